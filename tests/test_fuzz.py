"""Arbitrary input to everything that reads a file or an argument: data or the documented exception, nothing else. And what is written
is read back, by this reader and by MXNet's."""
import ast
import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import config
from datasets import RecordDataset
from eval.verification import read_bin
from utils import InputError, checkpoint
from utils.images import decode_image, encode_image
from utils.recordio import MAGIC, IndexedRecordFile, RecordWriter, import_mxnet, pack, unpack
from utils.settings import override
from utils.untrusted.pickles import load_plain
from utils.utils_logging import read_training_log

fuzz = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
MAGIC_BYTES = struct.pack("<I", MAGIC)
# bytes rich in what the formats are made of
pieces = st.lists(st.one_of(st.binary(max_size=12), st.sampled_from([MAGIC_BYTES, MAGIC_BYTES[1:], bytes(4), b"\xff" * 4, b"\0\0\0\x20"])),
                  max_size=10).map(b"".join)
edits = st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=6)), max_size=4)


def edited(data: bytes, changes, cut: "int | None") -> bytes:
    data = bytearray(data)
    for place, new in changes:
        place %= max(1, len(data))
        data[place:place + len(new)] = new
    return bytes(data if cut is None else data[:cut % (len(data) + 1)])


def data_or_input_error(read, *arguments):
    try:
        return read(*arguments)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    return None


def write(prefix, payloads):
    with RecordWriter(prefix) as writer:
        for key, payload in payloads.items():
            writer.write(key, payload)
    return f"{prefix}.rec", f"{prefix}.idx"


# --- RecordIO

@fuzz
@given(st.dictionaries(st.integers(0, 2**62), pieces, min_size=1, max_size=6))
def test_any_payload_is_read_back_by_both_readers(tmp_path, payloads):
    rec, idx = write(tmp_path / "a", payloads)
    ours = IndexedRecordFile(rec, idx)
    assert {key: ours.read(key) for key in ours.keys.tolist()} == payloads
    try:
        recordio = import_mxnet().recordio
    except InputError as error:
        pytest.skip(str(error))
    theirs = recordio.MXRecordIO(rec, "r")
    assert [theirs.read() for _ in payloads] == list(payloads.values()) and theirs.read() is None
    theirs.close()
    theirs = recordio.MXIndexedRecordIO(str(tmp_path / "b.idx"), str(tmp_path / "b.rec"), "w")
    for key, payload in payloads.items():
        theirs.write_idx(key, payload)
    theirs.close()
    assert (tmp_path / "b.rec").read_bytes() == (tmp_path / "a.rec").read_bytes()


@fuzz
@given(pieces, st.binary(max_size=60) | st.lists(st.tuples(st.integers(-1, 9), st.integers(-8, 60)), max_size=5).map(
    lambda lines: "".join(f"{key}\t{offset}\n" for key, offset in lines).encode()))
def test_record_files_of_any_bytes(tmp_path, rec, idx):
    (tmp_path / "a.rec").write_bytes(rec)
    (tmp_path / "a.idx").write_bytes(idx)

    def read():
        file = IndexedRecordFile(tmp_path / "a.rec", tmp_path / "a.idx")
        for key in file.keys.tolist():
            data_or_input_error(lambda: unpack(file.read(key)))
        data_or_input_error(file.first_labels, file.keys)
    data_or_input_error(read)


@fuzz
@given(edits, st.none() | st.integers(0, 10**6), edits)
def test_edited_datasets(tmp_path, rec_edits, cut, idx_edits):
    image = encode_image(torch.zeros(3, 4, 4, dtype=torch.uint8), "png")
    write(tmp_path / "train", {0: pack([3, 4]), 1: pack(0, 1, image), 2: pack([0, 7], 2, image)})
    for name, changes in (("train.rec", rec_edits), ("train.idx", idx_edits)):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(edited(content, changes, cut if name == "train.rec" else None))
    dataset = data_or_input_error(RecordDataset, tmp_path)
    for index in range(len(dataset) if dataset else 0):
        data_or_input_error(dataset.__getitem__, index)


# --- pickles, checkpoints, images

plain = st.recursive(st.none() | st.booleans() | st.integers(-2**100, 2**100) | st.floats(allow_nan=False) | st.binary(max_size=20)
                     | st.text(max_size=9), lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner), max_leaves=12)


@fuzz
@given(plain, st.integers(0, 5))
def test_plain_data_is_read_as_pickle_reads_it(tmp_path, value, protocol):
    (tmp_path / "a.bin").write_bytes(pickle.dumps(value, protocol))
    assert load_plain(tmp_path / "a.bin") == value


@fuzz
@given(st.binary(max_size=80) | st.lists(st.sampled_from([bytes([code]) for code in range(256)]) | st.binary(max_size=4), max_size=30).map(b"".join))
def test_pickles_of_any_bytes(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    data_or_input_error(read_bin, tmp_path / "a.bin")


@fuzz
@given(edits, st.none() | st.integers(0, 10**6), st.sampled_from([2, 3, 4, 5]))
def test_edited_bin_files(tmp_path, changes, cut, protocol):
    content = pickle.dumps(([b"\xff\xd8abc", np.arange(9, dtype=np.uint8)], np.array([True])), protocol)
    (tmp_path / "a.bin").write_bytes(edited(content, changes, cut))
    data_or_input_error(read_bin, tmp_path / "a.bin")


@fuzz
@given(edits, st.none() | st.integers(0, 10**6), st.booleans())
def test_edited_checkpoints(tmp_path, changes, cut, archive):
    torch.save({"a": torch.zeros(2, 3), "b": torch.ones(2, dtype=torch.int64)}, tmp_path / "a.pt", _use_new_zipfile_serialization=archive)
    (tmp_path / "a.pt").write_bytes(edited((tmp_path / "a.pt").read_bytes(), changes, cut))
    data_or_input_error(checkpoint.load, tmp_path / "a.pt")


@fuzz
@given(edits, st.none() | st.integers(0, 10**6), st.sampled_from(["png", "jpeg"]))
def test_edited_images(changes, cut, kind):
    data = encode_image(torch.randint(256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), kind)
    image = data_or_input_error(decode_image, edited(data, changes, cut), "a.bin: image 3")
    assert image is None or image.dtype == torch.uint8 and image.dim() == 3


# --- text

@fuzz
@given(st.sampled_from(sorted(config)),
       st.text(max_size=40) | plain.map(repr) | st.sampled_from(["__import__('os').getcwd()", "[" * 9999, "9" * 9999]))
def test_overrides_of_any_text(key, text):
    found = data_or_input_error(override, config, [f"{key}={text}"])
    if found is not None and not isinstance(config[key], str):
        try:
            given_value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            given_value = text
        assert type(found[key]) in (str, list, int, float, bool, type(None)) or given_value == found[key]


@fuzz
@given(st.text(max_size=30))
def test_arguments_of_any_text(argument):
    data_or_input_error(override, config, [argument])


LINES = ["Training: 2024-02-02 12:33:23,502-Speed 2027.33 samples/sec   Loss 39.6672   LearningRate 0.001000   Epoch: 0   Global Step: 40   "
         "Fp16 Grad Scale: 65536   Required: 30 hours Feat Norm 11.1632  Reg Loss 0.0000",
         "Training: 2024-02-03 03:43:15,407-[lfw][202000]XNorm: 3.246280",
         "Training: 2024-02-03 03:43:15,407-[lfw][202000]Accuracy-Flip: 0.96567+-0.01028"]


@fuzz
@given(st.lists(st.sampled_from(LINES) | st.text(max_size=40), max_size=6), edits, st.none() | st.integers(0, 10**6))
def test_logs_of_any_text(tmp_path, lines, changes, cut):
    (tmp_path / "training.log").write_bytes(edited("\n".join(lines).encode("utf-8", "replace"), changes, cut))
    data_or_input_error(read_training_log, tmp_path / "training.log")


@fuzz
@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["bin", "tau", "tar", "cra_u", "0.25"]), inner), max_leaves=8))
def test_summaries_of_any_json(tmp_path, value):
    from eval.store import results
    (tmp_path / "summary.json").write_text(json.dumps(value))
    data_or_input_error(results.read_summaries, tmp_path)
    os.remove(tmp_path / "summary.json")
