"""Files made to harm: each is refused with one line, runs nothing, and costs little memory and time. And what a certificate rests on."""
import ast
import collections
import io
import json
import os
import pickle
import re
import resource
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_world import SIZE, Tight, Tiny, command, world  # noqa: F401
from torch import nn

import backbones
import eval.__main__ as command_line
from backbones.bounds import lipschitz_bound
from backbones.custom_layers import SLLConv2d, SLLLinear
from datasets import get_dataset
from eval import verification
from eval.show import tables
from eval.store import provenance, results
from utils import InputError, build_dataset, checkpoint, one_line
from utils.images import decode_image
from utils.recordio import MAGIC, IndexedRecordFile
from utils.untrusted.torchfile import check

ROOT = Path(__file__).resolve().parents[1]


# --- checkpoints

class Call:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def over(elements, stride=1, offset=0):
    """A tensor that claims more than its storage has."""
    storage = torch.zeros(2).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    return Call(torch._utils._rebuild_tensor_v2, typed, offset, (elements,), (stride,), False, collections.OrderedDict())


CONTENTS = {
    "os.system": lambda: Call(__import__("os").system, "touch hacked"), "eval": lambda: Call(eval, "open('hacked', 'w')"),
    "a bytearray of 10 GB": lambda: Call(bytearray, 10**10), "a view of 40 GB": lambda: over(10**10),
    "an expansion to 40 GB": lambda: over(10**10, 0), "a view behind the end": lambda: over(1, 1, 2),
    "a negative shape": lambda: over(-1), "a set": lambda: {1}, "an ordered dictionary of a list": lambda: Call(collections.OrderedDict, [(1, 2)]),
    "a numpy array": lambda: np.zeros(3), "a class": lambda: nn.Linear}


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_checkpoints_that_ask_for_more_than_tensors_are_refused_before_torch_sees_them(tmp_path, monkeypatch, content, archive):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": content(), "bias": torch.zeros(2)}, "a.pt", _use_new_zipfile_serialization=archive)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    with pytest.raises(InputError, match="a.pt: not a plain state dict") as error:
        checkpoint.load("a.pt")
    assert "\n" not in str(error.value) and not Path("hacked").exists()


def rewritten(path, change) -> None:
    """The zip file with its entries (name, content) put through `change`, which may also choose the compression."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content, *how in change(entries):
            archive.writestr(name, content, *how)


@pytest.mark.parametrize("change, words", [
    (lambda entries: [(name, bytes(10**8) if "data/0" in name else content, zipfile.ZIP_DEFLATED) for name, content in entries],
     "compressed"),
    (lambda entries: [(name, content[:-4] if "data/0" in name else content) for name, content in entries],
     "storage 0 has 8 bytes, expected 12"),
    (lambda entries: [entry for entry in entries if "data/0" not in entry[0]], "storage 0 has 0 bytes"),
    (lambda entries: [entry for entry in entries if "data.pkl" not in entry[0]], "not one of torch.save"),
    (lambda entries: [(name, b"\x80\x02}(" + b"K\x00K\x00" * 2**20 + b"u." if "data.pkl" in name else content)
                      for name, content in entries], "opcodes")])
def test_archives_that_are_not_as_torch_writes_them(tmp_path, change, words):
    checkpoint.save(tmp_path / "a.pt", {"weight": torch.zeros(3)})
    rewritten(tmp_path / "a.pt", change)
    with pytest.raises(InputError, match=words):
        checkpoint.load(tmp_path / "a.pt")


def two_directories(seen, hidden) -> bytes:
    """A zip file in which `zipfile` finds the first archive, right before the end, and who goes by the offset in there the other."""
    one, other = (archive[:archive.index(b"PK\1\2")] for archive in (seen, hidden))
    entries, others = (archive[archive.index(b"PK\1\2"):archive.rindex(b"PK\5\6")] for archive in (seen, hidden))
    missing = len(entries) - len(others)
    assert missing >= 0 and len(other) >= len(one)
    last = others.rindex(b"PK\1\2")  # a comment makes the directories equally long
    others = others[:last + 32] + struct.pack("<H", missing) + others[last + 34:] + bytes(missing)
    moved = bytearray(entries)
    for place in (found.start() for found in re.finditer(b"PK\1\2", entries)):
        struct.pack_into("<I", moved, place + 42, struct.unpack_from("<I", moved, place + 42)[0] + len(other) - len(one))
    end = seen[seen.rindex(b"PK\5\6"):]
    return other + others + one + bytes(moved) + end[:16] + struct.pack("<I", len(other)) + end[20:]


def plain_zip(content, folder, entries) -> bytes:
    """What torch.save would write of `content`, as a zip file of `zipfile`'s, filled up to so many entries."""
    file, copy = io.BytesIO(), io.BytesIO()
    torch.save(content, file)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as other:
        for entry in archive.infolist():
            other.writestr(f"{folder}/{entry.filename.partition('/')[2]}", archive.read(entry))
        for number in range(len(archive.infolist()), entries):
            other.writestr(f"{folder}/{number}", bytes(2000))
    return copy.getvalue()


def test_archives_that_torch_reads_otherwise_than_zipfile_are_refused(tmp_path, monkeypatch):
    seen, hidden = plain_zip({"a": torch.zeros(4)}, "archive", 8), plain_zip({"a": Call(bytearray, 10**9)}, "a", 8)
    (tmp_path / "seen.pt").write_bytes(seen)
    assert checkpoint.load(tmp_path / "seen.pt")["a"].shape == (4,)
    (tmp_path / "both.pt").write_bytes(two_directories(seen, hidden))
    with zipfile.ZipFile(tmp_path / "both.pt") as archive:
        assert archive.testzip() is None and archive.namelist()[0] == "archive/data.pkl"
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    with pytest.raises(InputError, match="both.pt: a zip file, but not one of torch.save"):
        checkpoint.load(tmp_path / "both.pt")


@pytest.mark.parametrize("change", [
    lambda entries: [*entries, ("archive/DATA.pkl", b"N.")], lambda entries: [*entries, ("other/x", b"")],
    lambda entries: [*entries, ("archive/\u00e9", b"")]], ids=["names that differ in case", "two folders", "a name that is not ASCII"])
def test_archives_with_names_that_can_be_taken_for_others(tmp_path, change):
    checkpoint.save(tmp_path / "a.pt", {"weight": torch.zeros(3)})
    rewritten(tmp_path / "a.pt", lambda entries: [(f"archive/{name.partition('/')[2]}", content) for name, content in entries])
    assert checkpoint.load(tmp_path / "a.pt")["weight"].shape == (3,)
    rewritten(tmp_path / "a.pt", change)
    with pytest.raises(InputError, match="not one of torch.save"):
        checkpoint.load(tmp_path / "a.pt")


def test_every_truncation_and_many_edits_of_checkpoints_are_refused_or_loaded(tmp_path):
    rng = np.random.default_rng(0)
    for archive in (True, False):
        torch.save(collections.OrderedDict(a=torch.arange(4.0), b=nn.Parameter(torch.zeros(2, 2))), tmp_path / "a.pt",
                   _use_new_zipfile_serialization=archive)
        content = (tmp_path / "a.pt").read_bytes()
        for trial in range(120):
            edited = bytearray(content)
            if trial < 40:
                del edited[rng.integers(len(content)):]
            for place in rng.integers(0, max(1, len(edited)), rng.integers(1, 5)):
                edited[place:place + 1] = bytes([rng.integers(256)])
            (tmp_path / "b.pt").write_bytes(edited)
            try:
                checkpoint.load(tmp_path / "b.pt")
            except InputError as error:
                assert "\n" not in str(error) and "b.pt" in str(error)


def test_checksums_are_compared_where_all_is_read(tmp_path):
    checkpoint.save(tmp_path / "a.pt", {"weight": torch.full((1000,), 3.0)})
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[content.index(struct.pack("<f", 3.0)) + 2000] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    check(tmp_path / "a.pt")
    with pytest.raises(InputError, match="checksum of archive/data/0 is wrong"):
        check(tmp_path / "a.pt", whole=True)


@pytest.mark.parametrize("archive", [True, False])
def test_what_torch_saves_is_loaded(tmp_path, archive):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    shared = torch.arange(6.0)
    content = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "random": {"cpu": torch.get_rng_state(), "cuda": None},
               "half": torch.zeros(2, dtype=torch.bfloat16), "t": torch.zeros(4, 5).t(), "parameter": nn.Parameter(shared),
               "views": [shared[2:], shared[:2]], "size": torch.Size([1, 2]), "dtype": torch.float32, "empty": torch.zeros(0, 3), "numbers": (1, 2.5, True, None, "text")}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=archive)
    found = checkpoint.load(tmp_path / "a.pt", whole=True)
    assert torch.equal(found["views"][0], shared[2:]) and found["t"].stride() == (1, 5) and found["size"] == (1, 2)
    assert all(torch.equal(value, found["model"][key]) for key, value in network.state_dict().items())


# --- RecordIO, images, .bin: through the command line, in a process with little memory

def png(width, height, *chunks):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) \
        + b"".join(chunk(*pair) for pair in chunks) + chunk(b"IEND", b"")


def small_png():
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    return file.getvalue()


BOMB = zlib.compress(bytes(10**8), 9)
IMAGES = {"a PNG of 100 GB": png(2**30, 32, (b"IDAT", BOMB)), "a PNG with 100 MB of pixels too many": png(16, 16, (b"IDAT", BOMB)),
          "a PNG with a text of 100 MB": png(16, 16, (b"zTXt", b"a\0\0" + BOMB)),
          "a PNG with a profile of 100 MB": png(16, 16, (b"iCCP", b"a\0\0" + BOMB)), "a PNG without pixels": png(16, 16),
          "a BMP of 4 GB": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 2**15, 2**15, 1, 24, 0, 0, 0, 0, 0, 0),
          "a PPM of 10 GB": b"P6 100000 100000 255\n", "a PPM with a comment of 4 MB": b"P6 #" + bytes(2**22), "a GIF": b"GIF89a" + bytes(100), "nothing": b"",
          "a TIFF of 4 GB": b"II*\0" + struct.pack("<IH", 8, 3) + struct.pack("<HHII", 256, 4, 1, 2**16) * 2
          + struct.pack("<HHII", 257, 4, 1, 2**16) + bytes(4)}


@pytest.fixture
def little_memory():
    """Refusals must do with 1 GB more than the process has now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory in use cannot be read")
@pytest.mark.parametrize("data", IMAGES.values(), ids=IMAGES.keys())
def test_image_bombs(little_memory, data):
    try:
        image = decode_image(data, "a.bin: image 7")
    except InputError as error:
        assert str(error).startswith("a.bin: image 7: ") and "\n" not in str(error)
    else:
        assert image.shape == (3, 16, 16), "a small image with much behind it is a small image"


def frame(payload, flag=0, length=None):
    return struct.pack("<II", MAGIC, flag << 29 | (len(payload) if length is None else length)) + payload + bytes(-len(payload) % 4)


@pytest.mark.parametrize("rec, idx, words", [
    (frame(b"abcd"), "0\t-4\n", "line 1"), (frame(b"abcd"), "0\t99999999999999999999\n", "line 1"),
    (frame(b"abcd"), "0\t4611686018427387904\n", "offset"),
    (frame(b"abcd", length=2**29 - 1), "0\t0\n", "truncated"), (frame(b"abcd" * 5) + frame(b"b"), "0\t0\n1\t12\n", "overlap|magic"),
    (frame(b"abcd"), "0\t0\n" * 10**5, "more entries"), (frame(b"abcd"), "\n" * 10**6, "more entries"), (b"", "0\t0\n", "offset"),
    (frame(b"", 1) + frame(b"", 2) * (2**20 + 5) + frame(b"", 3), "0\t0\n", "part 1048576")])
def test_record_files(little_memory, tmp_path, rec, idx, words):
    (tmp_path / "a.rec").write_bytes(rec)
    (tmp_path / "a.idx").write_text(idx)
    with pytest.raises(InputError, match=words) as error:
        file = IndexedRecordFile(tmp_path / "a.rec", tmp_path / "a.idx")
        for key in file.keys.tolist():
            file.read(key)
    assert "\n" not in str(error.value)


def test_images_too_large_for_a_network_are_refused_before_a_batch_of_them_is_made(world, monkeypatch, capsys):  # noqa: F811
    file = io.BytesIO()
    Image.new("L", (1024, 1024)).save(file, "PNG")
    (world / "large.bin").write_bytes(pickle.dumps(([file.getvalue(), file.getvalue() + b"."] * 5, [True, False] * 2 + [True]), 2))
    monkeypatch.setattr(verification, "embed_images", lambda *_, **__: pytest.fail("images were embedded"))
    assert command(world, "certify", bin="large.bin") == 2
    assert "large.bin: image 0: images of [3, 1024, 1024]: expected at most 262144 pixels" in capsys.readouterr().err


HOSTILE = {
    "system.bin": pickle.dumps(Call(__import__("os").system, "touch hacked"), 2), "frame.bin": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "deep.bin": b"\x80\x02" + b"(" * 10**6 + b".", "bytes.bin": b"\x80\x03B" + struct.pack("<I", 2**32 - 1) + b"abc.", "empty.bin": b"",
    "image.bin": pickle.dumps(([IMAGES["a PNG of 100 GB"], small_png()] * 10, [True, False] * 5), 2),
    "twice.bin": pickle.dumps(([small_png(), b"\xff\xd8" + b"\xff\xda" * 10**6] * 10, [True, False] * 5), 2),
    "system.pt": None, "memory.pt": None, "half.pt": None, "nan.pt": None, "transposed.pt": None, "other.pt": None}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_the_command_in_one_line_and_status_2(world, monkeypatch, capsys, name):  # noqa: F811
    monkeypatch.chdir(world)
    weights = torch.load(world / "tiny.pt", weights_only=True)
    content = {"system.pt": lambda: {"a": Call(__import__("os").system, "touch hacked")}, "memory.pt": lambda: {"a": Call(bytearray, 10**10)},
               "half.pt": lambda: weights, "nan.pt": lambda: {**weights, "1.q": weights["1.q"] * torch.nan},
               "transposed.pt": lambda: {**weights, "3.weight": weights["3.weight"].T}, "other.pt": lambda: nn.Linear(2, 2).state_dict()}
    if name.endswith(".bin"):
        (world / name).write_bytes(HOSTILE[name])
        status = command(world, "certify", bin=name)
    else:
        torch.save(content[name](), world / "tiny.pt")
        if name == "half.pt":
            (world / "tiny.pt").write_bytes((world / "tiny.pt").read_bytes()[:-3000])
        status = command(world, "certify")
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1 and len(error) < 600
    assert not (world / "hacked").exists() and not (world / "out").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "null", '{"bin": 3}', "\x00"])
def test_summaries_that_are_none(tmp_path, capsys, text):
    (tmp_path / "summary.json").write_text(text)
    assert command_line.main(["table", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("key, value", [
    ("tau", "0.3"), ("cra_u", [1]), ("cra_d", {"0.25": "all"}), ("bin", 3), ("med_u", {}), ("tau", None), ("cra_u", {"all": 1.0}), ("cra_d", {}),
    ("tar", 10**400), ("far_target", [1]), ("bin", "\x1b[31m"), ("bin", "\ud800"), ("bin_sha256", 3), ("attacks", {"pgd": {"limit": "all"}}),
    ("attacks", 3), ("era_u", {"pgd": 3}), ("med_attack_u", {"cw": "x"}), ("reasons", [1]), ("xi", "three"), ("flip", [])])
def test_summaries_with_values_of_another_kind(world, capsys, key, value):  # noqa: F811
    assert command(world, "certify") == 0
    summary = json.loads((world / "out" / "summary.json").read_text())
    (world / "out" / "summary.json").write_text(json.dumps({**summary, key: value}))
    capsys.readouterr()
    assert command_line.main(["table", str(world / "out")]) == 2
    assert f"not a summary: {key} is" in capsys.readouterr().err


@pytest.mark.parametrize("name, column, value", [
    ("pairs", "left", 10**6), ("pairs", "left", -1), ("pairs", "cosine", "x"), ("pairs", "cosine", 2.0), ("pairs", "norm_left", np.inf),
    ("pairs", "radius", np.nan), ("pairs", "same", 0.5), ("pairs", "accepted", 3), ("pairs", "theta", 4.0), ("pairs", "radius_linf", "yes"),
    ("pairs", "norm_cw", -1.0), ("images", "norm", "x"), ("images", "image", 7), ("images", "flipped", True)])
def test_records_with_values_of_another_kind(world, capsys, name, column, value):  # noqa: F811
    assert command(world, "certify") == 0
    table = pd.read_csv(world / "out" / f"{name}.csv")
    table[column] = value
    table.to_csv(world / "out" / f"{name}.csv", index=False)
    capsys.readouterr()
    assert command(world, "attack", "--attack", "fgsm") == 2
    error = capsys.readouterr().err
    assert f"{name}.csv: column {column} " in error and error.count("\n") == 1


@pytest.mark.parametrize("column, value, words", [
    ("success", "yes", "column success "), ("norm", -1.0, "column norm "), ("norm", np.nan, "column norm "), ("eps", "all", "column eps "),
    ("eps", -0.25, "column eps "), ("kind", "x", "column kind "), ("side", "top", "column side "), ("row", -1, "column row "),
    ("row", 0.5, "column row "), ("row", 10**6, "is not one of the records"), ("attack", "\x1b[31m", "column attack "),
    ("attack", "cw", "which the summary does not know"), ("settings", "0" * 12, "which the summary does not know"), ("seed", "x", "column seed ")])
def test_single_attacks_with_values_of_another_kind(world, capsys, column, value, words):  # noqa: F811
    assert command(world, "attack", "--attack", "fgsm") == 0
    table = pd.read_csv(world / "out" / "attacks.csv", dtype={"settings": str}).astype({column: object})
    table.loc[0, column] = value
    table.to_csv(world / "out" / "attacks.csv", index=False)
    capsys.readouterr()
    assert command(world, "attack", "--attack", "fgsm") == 2
    error = capsys.readouterr().err
    assert "attacks.csv: " in error and words in error and error.count("\n") == 1


def test_attacks_without_their_table_and_older_results_are_refused(world, capsys):  # noqa: F811
    assert command(world, "attack", "--attack", "fgsm") == 0
    (world / "out" / "attacks.csv").unlink()
    capsys.readouterr()
    assert command(world, "attack", "--attack", "pgd") == 2
    assert "attacks.csv: cannot be read" in capsys.readouterr().err
    path = world / "out" / "summary.json"
    for other in (1, None, 3, "x" * 99):
        summary = {**json.loads(path.read_text()), "format": other}
        path.write_text(json.dumps({key: value for key, value in summary.items() if value is not None or key != "format"}))
        assert command(world, "attack", "--attack", "pgd") == 2
        error = capsys.readouterr().err
        assert "of another version of this project" in error and "run python -m eval certify again" in error and error.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"pair\n", b"\0" * 1000, b'"' * 99, b"a,b\n1,2,3\n1\n", b"\xff\xfe\n1", b"," * 10**5, "\u0663".encode() * 99])
def test_tables_that_are_none(world, capsys, content):  # noqa: F811
    assert command(world, "certify") == 0
    (world / "out" / "pairs.csv").write_bytes(content)
    capsys.readouterr()
    assert command_line.main(["plot", str(world / "out")]) == 2
    error = capsys.readouterr().err
    assert "pairs.csv: " in error and error.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_pipes_are_not_waited_for(world, capsys):  # noqa: F811
    assert command(world, "certify") == 0
    for name in ("log", "faces/a/1.jpg", "out/pairs.csv", "pairs.txt"):
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        (world / name).unlink(missing_ok=True)
        os.mkfifo(world / name)
    capsys.readouterr()
    with pytest.raises(InputError, match="1.jpg: not a regular file"):
        get_dataset(world / "faces")
    assert command_line.main(["curves", str(world / "log"), "--out", str(world / "a.png")]) == 2
    assert command_line.main(["plot", str(world / "out")]) == 2
    assert build_dataset.main(["bin", "--pairs", str(world / "pairs.txt"), "--images", str(world), "--out", str(world / "b.bin")]) == 2
    assert capsys.readouterr().err.count("not a regular file\n") == 3


def test_errors_are_one_line_that_a_terminal_does_not_obey():
    assert one_line("a\nb  c\x1b[31m\ud800 \u00e9") == r"a b c\x1b[31m\ud800 \xe9".replace(r"\xe9", "\u00e9")


# --- no code from data

def sources():
    for path in sorted(ROOT.rglob("*")):
        if ".venv" in path.parts or not path.is_file():
            continue
        if path.suffix == ".py":
            yield path, path.read_text(encoding="utf-8")
        elif path.suffix == ".ipynb":
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
                if cell["cell_type"] == "code":
                    yield path, "".join(line for line in cell["source"] if not line.startswith(("%", "!")))


def test_nothing_here_runs_what_it_reads():
    """No eval, exec or compile, no unpickling, no torch.load but of weights, no shell, outside of the tests."""
    forbidden = {"eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler", "os.system", "os.popen", "yaml.load",
                 "joblib.load", "pd.read_pickle", "pandas.read_pickle", "torch.jit.load", "dill.load", "dill.loads", "marshal.loads"}
    for path, source in sources():
        if "tests" in path.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call):
                continue
            name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert name not in forbidden, f"{path}:{node.lineno}: {name}"
            assert given.get("shell", "False") == "False" and given.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
            assert not name.endswith("torch.load") or given.get("weights_only") == "True", f"{path}:{node.lineno}"
            assert not name.endswith("np.load") or given.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"


# --- certificates

def norm_by_power(layer, size=8) -> float:
    """The norm of V in float64, as an operator on images, from below."""
    weight = layer.rescaled()[0].double()
    x = torch.randn(1, weight.shape[1], size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(60):
        y = nn.functional.conv2d(x, weight, padding=layer.padding)
        x = nn.functional.conv_transpose2d(y, weight, padding=layer.padding)
        x = x / x.norm()
    return nn.functional.conv2d(x, weight, padding=layer.padding).norm().item()


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_bound_of_a_layer_lies_between_its_norm_and_one(kernel, scale):
    torch.manual_seed(0)
    layer = SLLConv2d(6, 6, kernel, bias=True)
    with torch.no_grad():
        layer.weight.mul_(torch.randn_like(layer.weight).exp() * scale)
        layer.weight[2] = 0
        layer.q[3:] = torch.tensor([300., -300., 1e4])
    bound = lipschitz_bound(nn.Sequential(layer), (6, 8, 8))
    assert norm_by_power(layer) <= bound + 1e-6 and bound <= 1 + 1e-6


def test_the_bound_of_a_dense_layer_is_its_norm():
    torch.manual_seed(0)
    layer = SLLLinear(9, 5)
    assert lipschitz_bound(nn.Sequential(layer), (9,)) == pytest.approx(torch.linalg.matrix_norm(layer.rescaled()[0].double(), 2).item(), rel=1e-9)


class Own(nn.Sequential):
    """A layer and a parameter beside it."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.scale = nn.Parameter(torch.tensor(2.0))


@pytest.mark.parametrize("network, words", [
    (nn.Sequential(SLLLinear(4, 4), nn.Linear(4, 4)), "layer 1: Linear has no known"), (nn.Sequential(nn.BatchNorm1d(4)), "BatchNorm1d"),
    (nn.Sequential(SLLLinear(4, 4), nn.ReLU()), "ReLU has no known"), (Own(SLLLinear(4, 4)), "scale of Own: parameters outside of layers")])
def test_networks_of_other_layers_have_no_bound(network, words):
    with pytest.raises(InputError, match=words):
        lipschitz_bound(network, (4,))


def test_weights_that_are_not_finite_or_a_rescaling_that_is_wrong_are_refused(monkeypatch):
    for parameter in ("weight", "bias", "q"):
        for value in (torch.nan, torch.inf):
            network = Tiny()
            getattr(network[1], parameter).data.view(-1)[0] = value
            with pytest.raises(InputError, match=rf"1.{parameter}: 1 of \d+ values are not finite"):
                lipschitz_bound(network, SIZE)
    assert lipschitz_bound(Tight(), SIZE) == pytest.approx(1, abs=1e-6)
    rescaled = SLLConv2d.rescaled
    monkeypatch.setattr(SLLConv2d, "rescaled", lambda layer: (rescaled(layer)[0] * 1.001, None))  # 2 * 1.001^2 - 1
    with pytest.raises(InputError, match="layer 1: its Lipschitz constant may be 1.004"):
        lipschitz_bound(Tight(), SIZE)


@pytest.mark.parametrize("name", ["sllnet_mnist", "sllnet_cifar", "sllnet_small", "sllnet_plus", "orthonet"])
def test_the_networks_here_are_verified(name):
    torch.manual_seed(0)
    assert 0 < lipschitz_bound(backbones.get_backbone(name), backbones.image_size(name)) <= 1 + 1e-4


def test_results_of_other_code_are_not_mixed(world, monkeypatch, capsys):  # noqa: F811
    assert command(world, "certify") == 0
    summary = results.read_summaries(world / "out")[world / "out"]
    assert len(summary["code_sha256"]) == 64 and summary["weights_sha256"] and summary["bin_sha256"]
    monkeypatch.setattr(provenance, "code_sha256", lambda *names: "0" * 64)
    assert command(world, "attack", "--attack", "fgsm") == 2 and "code_sha256" in capsys.readouterr().err
    with pytest.raises(InputError, match="the code is not the same in all results"):
        tables.table1([summary, {**summary, "code_sha256": "0" * 64}])
