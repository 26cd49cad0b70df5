"""Output for people where nobody reads it or it cannot be shown: the work goes on, with its files."""
import contextlib
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from small_world import command, world  # noqa: F401
from tiny_training import SETTINGS, write_faces
from tqdm import tqdm

import eval.__main__ as command_line
import train
import train_toy
from backbones import export, get_backbone
from config import config
from eval.store import results
from utils import build_dataset
from utils.console import Console, lasting_console
from utils.images import encode_image
from utils.utils_logging import init_logging

DRIVER = ROOT / "tests" / "tiny_training.py"


class Broken(io.TextIOBase):
    """A stream that takes nothing, for the reason given."""

    def __init__(self, number=errno.EPIPE):
        self.number, self.asked = number, 0

    def write(self, text):
        self.asked += 1
        raise OSError(self.number, os.strerror(self.number))

    def flush(self):
        self.write("")

    def isatty(self):
        return True  # so that progress bars are drawn


@pytest.fixture(params=[errno.EPIPE, errno.ENOSPC], ids=errno.errorcode.get)
def nobody(request):
    """A context in which nobody reads."""
    @contextlib.contextmanager
    def context():
        out, err = Broken(request.param), Broken(request.param)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
            assert (sys.stdout, sys.stderr) == (out, err), "put back"
        assert out.asked + err.asked, "somebody tried"
    return context


def test_training_goes_on(nobody, tmp_path):
    with nobody():
        assert train.run(config, [*SETTINGS, f"rec={write_faces(tmp_path)}", f"output={tmp_path / 'out'}"]) == 0
        text = (tmp_path / "out" / "training.log").read_text()
        assert "Global Step: 12 " in text and "done: " in text and (tmp_path / "out" / "model_final.pt").is_file()


def test_a_line_of_a_script_that_sets_up_logging_itself_goes_to_the_file(nobody, tmp_path):
    with nobody():
        init_logging(0, tmp_path, "training").info("hello")
        assert "hello" in (tmp_path / "training.log").read_text()


def test_toys_go_on(nobody, tmp_path):
    with nobody():
        assert train_toy.run([f"output={tmp_path}", "epochs=1", "batch_size=700", "device=cpu"]) == 0
        assert len(list(tmp_path.glob("*/projections.csv"))) == 1


def test_commands_finish_their_files(world, nobody, tmp_path):  # noqa: F811
    with nobody():
        folder = tmp_path / "images" / "a"
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(encode_image(torch.zeros(3, 8, 8, dtype=torch.uint8), "png"))
        assert build_dataset.main(["rec", "--images", str(folder.parent), "--out", str(tmp_path / "train")]) == 0
        assert (tmp_path / "train.idx").is_file() and (tmp_path / "property").is_file()
        torch.save(get_backbone("sllnet_small").state_dict(), tmp_path / "weights.pt")
        assert export.main(["--backbone", "sllnet_small", "--weights", str(tmp_path / "weights.pt"), "--out", str(tmp_path / "plain.pt")]) == 0
        assert (tmp_path / "plain.pt").is_file()
        for name, *more in (["certify"], ["attack", "--attack", "fgsm", "--limit", "3"], ["audit", "--steps", "2", "--limit", "2"]):
            assert command(world, name, *more) == 0
        assert len(results.read_records(tmp_path / "out").attacks) and (tmp_path / "out" / "audit.json").is_file()
        assert command_line.main(["list"]) == 0


def test_an_error_keeps_its_status(nobody):
    with nobody():
        assert train.run(config, ["nonsense=1"]) == 2 and command_line.main(["plot", "nowhere"]) == 2


@pytest.mark.parametrize("shell, status", [
    ("{eval} list | head -n 1", 0), ("{eval} list > /dev/full", 0), ("{eval} list >&-", 0), ("{eval} list --help | true", 0),
    ("{train} --help > /dev/full", 0), ("{train} nonsense=1 2>&-", 2), ("{train} {tiny} > /dev/full 2>&1", 0), ("{train} {tiny} >&- 2>&-", 0),
    ("{train} {tiny} 2>&1 | head -n 3", 0)])
def test_real_processes(tmp_path, shell, status):
    """Their exit status is that of the work, also after the last flush of the interpreter, and nothing is written into a file by mistake."""
    tiny = " ".join([f"rec={write_faces(tmp_path)}", f"output={tmp_path / 'out'}", "num_epoch=1"])
    line = shell.format(eval=f"{sys.executable} -m eval", train=f"{sys.executable} {DRIVER} output={tmp_path}", tiny=tiny)
    done = subprocess.run(["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    if "{tiny}" in shell:
        assert "done: " in (tmp_path / "out" / "training.log").read_text()
        assert torch.load(tmp_path / "out" / "model_final.pt", weights_only=True)


# --- what cannot be shown

@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16"])
def test_what_an_encoding_lacks_is_escaped(encoding):
    raw = io.BytesIO()
    console = Console(io.TextIOWrapper(raw, encoding))
    console.write("a\udcff\u4e2d\xeb")
    console.flush()
    found = raw.getvalue().decode(encoding)
    assert found == {"ascii": r"a\udcff\u4e2d\xeb", "latin-1": "a\\udcff\\u4e2d\xeb", "cp1252": "a\\udcff\\u4e2d\xeb"}.get(encoding, "a\\udcff\u4e2d\xeb")


def test_names_that_are_no_text(world, tmp_path, monkeypatch, capsys):  # noqa: F811
    """A .bin and an output folder called by bytes that are no UTF-8, on a console that has only ASCII."""
    odd = os.fsdecode(b"odd\xff\xe4")
    (tmp_path / odd).mkdir()
    faces = write_faces(tmp_path / odd)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    os.link(world / "faces.bin", faces / f"{odd}.bin")
    given = [each for each in SETTINGS if not each.startswith(("val_targets", "num_epoch"))]
    assert train.run(config, [*given, f"rec={faces}", f"output={tmp_path / odd / 'out'}", "num_epoch=1"]) == 0
    text = (tmp_path / odd / "out" / "training.log").read_bytes().decode("utf-8")
    assert r"odd\udcff\udce4][6]Accuracy-Flip" in text and "done: " in text
    out = tmp_path / f"out{odd}"
    assert command(world, "certify", bin=f"{odd}/{odd}.bin", out=out.name) == 0
    assert results.read_records(out).summary["bin"] == r"odd\udcff\udce4"
    for then in (["plot", str(out)], ["table", str(out)], ["table", str(out), "--out", str(tmp_path / "t.tex"), "--format", "latex"]):
        assert command_line.main(then) == 0, capsys.readouterr().err
    sys.stdout.flush()
    assert rb"odd\udcff\udce4" in sys.stdout.buffer.getvalue()


def test_bars_and_nesting(monkeypatch):
    with lasting_console():
        outer = sys.stdout
        with lasting_console():
            assert sys.stdout is outer
        assert isinstance(sys.stdout, Console)
    assert not isinstance(sys.stdout, Console)
    for stream in (None, Broken(), Broken(errno.EIO), Broken(errno.EAGAIN)):
        monkeypatch.setattr(sys, "stderr", stream)
        with lasting_console():
            assert len([*tqdm(range(3), mininterval=0)]) == 3
    closed = io.StringIO()
    closed.close()
    Console(closed).write("x")
    assert Console(None).write("abc") == 3 and not Console(None).isatty() and Path(os.devnull).exists()
