"""RecordIO: the framing byte for byte, both backends, workers, and files that are damaged."""
import multiprocessing
import pickle
import struct

import numpy as np
import pytest
from conftest import SHARED, needs_shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils import InputError
from utils.record_index import read_index
from utils.recordio import MAGIC, IndexedRecordFile, MXNetRecordFile, RecordWriter, import_mxnet, pack, unpack

MAGIC_BYTES = struct.pack("<I", MAGIC)
FACES = SHARED / "data" / "lfwcrop"
# the magic number at aligned and unaligned places, in a row, at both ends, and cut short
TRICKY = [b"", b"a", b"abcd", MAGIC_BYTES, MAGIC_BYTES * 3, b"x" + MAGIC_BYTES + b"yyy", b"abcd" + MAGIC_BYTES, MAGIC_BYTES + b"z",
          MAGIC_BYTES[:3], b"12" + MAGIC_BYTES * 2 + b"34", b"abcd" + MAGIC_BYTES + b"efgh" + MAGIC_BYTES + b"ijk"]


@pytest.fixture(scope="module")
def mxnet():
    try:
        return import_mxnet()
    except InputError as error:
        pytest.skip(str(error))


def write(prefix, payloads):
    with RecordWriter(prefix) as writer:
        for key, payload in payloads.items():
            writer.write(key, payload)
    return f"{prefix}.rec", f"{prefix}.idx"


def frame(payload, flag=0, length=None, magic=MAGIC):
    word = flag << 29 | (len(payload) if length is None else length)
    return struct.pack("<II", magic, word) + payload + b"\0" * (-len(payload) % 4)


def files(tmp_path, rec, idx):
    (tmp_path / "f.rec").write_bytes(rec)
    (tmp_path / "f.idx").write_bytes(idx if isinstance(idx, bytes) else "".join(f"{k}\t{o}\n" for k, o in idx).encode())
    return tmp_path / "f.rec", tmp_path / "f.idx"


def expect(tmp_path, rec, idx, key, *words):
    """Opening, or reading `key`, ends in one InputError whose single line holds all `words`."""
    with pytest.raises(InputError) as error:
        IndexedRecordFile(*files(tmp_path, rec, idx)).read(key)
    message = str(error.value)
    assert "\n" not in message and str(tmp_path) in message and all(word in message for word in words), message


def read_all(file):
    return [file.read(int(key)) for key in file.keys]


def test_writer_matches_mxnet_byte_for_byte(mxnet, tmp_path):
    payloads = {key * 7 % 23: payload for key, payload in enumerate(TRICKY)}
    write(tmp_path / "ours", payloads)
    theirs = mxnet.recordio.MXIndexedRecordIO(str(tmp_path / "theirs.idx"), str(tmp_path / "theirs.rec"), "w")
    for key, payload in payloads.items():
        theirs.write_idx(key, payload)
    theirs.close()
    for suffix in ("rec", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()


@pytest.mark.filterwarnings("ignore:tostring:DeprecationWarning")
def test_pack_and_unpack_match_mxnet(mxnet):
    for label in (3.0, 0.1, np.float32([1.0, 2.0]), [7.5]):
        ours = pack(label, 5, b"image")
        assert ours == mxnet.recordio.pack(mxnet.recordio.IRHeader(0, label, 5, 0), b"image")
        header, image = mxnet.recordio.unpack(ours)
        record = unpack(ours)
        assert (record.flag, record.id, bytes(record.image)) == (header.flag, header.id, image)
        np.testing.assert_array_equal(record.label, header.label)


@pytest.mark.parametrize("backend", [IndexedRecordFile, MXNetRecordFile])
def test_reads_what_mxnet_wrote(mxnet, tmp_path, backend):
    rec, idx = str(tmp_path / "m.rec"), str(tmp_path / "m.idx")
    writer = mxnet.recordio.MXIndexedRecordIO(idx, rec, "w")
    keys = [9, 2, 30, 4, 0, 77, 5, 6, 8, 1, 3]
    for key, payload in zip(keys, TRICKY):
        writer.write_idx(key, payload)
    writer.close()
    file = backend(rec, idx)
    assert file.keys.tolist() == keys and file.keys.dtype == np.int64
    assert [file.read(key) for key in sorted(keys)] == [payload for _, payload in sorted(zip(keys, TRICKY))]


@needs_shared
def test_both_backends_agree_on_every_record(mxnet):
    ours, theirs = (kind(FACES / "train.rec", FACES / "train.idx") for kind in (IndexedRecordFile, MXNetRecordFile))
    assert ours.keys.tolist() == theirs.keys.tolist()
    for key in ours.keys.tolist():
        payload = theirs.read(key)
        assert ours.read(key) == payload
        header, image = mxnet.recordio.unpack(payload)
        record = unpack(payload)
        assert bytes(record.image) == image and np.array_equal(record.label, header.label)


def _child(file, queue):
    queue.put(read_all(file))


@pytest.mark.parametrize("backend", [IndexedRecordFile, MXNetRecordFile])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_forked_and_spawned_processes(request, tmp_path, backend, method):
    if backend is MXNetRecordFile:
        request.getfixturevalue("mxnet")
    file = backend(*write(tmp_path / "w", dict(enumerate(TRICKY))))
    assert read_all(file) == TRICKY  # open here before the children get it
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    children = [context.Process(target=_child, args=(file, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [TRICKY, TRICKY]
    for child in children:
        child.join()
    assert read_all(file) == TRICKY and read_all(pickle.loads(pickle.dumps(file))) == TRICKY


pieces = st.lists(st.one_of(st.binary(max_size=9), st.just(MAGIC_BYTES), st.just(MAGIC_BYTES[:2])), max_size=8).map(b"".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(0, 2**40), pieces, min_size=1, max_size=8))
def test_round_trip_of_any_payload(tmp_path, payloads):
    file = IndexedRecordFile(*write(tmp_path / "h", payloads))
    assert {int(key): file.read(int(key)) for key in file.keys} == payloads


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.integers(0, 90), st.one_of(st.none(), st.binary(max_size=30)))
def test_no_bytes_end_in_another_exception(tmp_path, noise, place, idx):
    rec, index = write(tmp_path / "g", {0: pack([2.0, 3.0]), 1: pack(0.0, 1, b"abc" + MAGIC_BYTES * 2), 2: b"xy"})
    with open(rec, "r+b") as file:
        file.seek(place)
        file.write(noise)
    if idx is not None:
        (tmp_path / "g.idx").write_bytes(idx)
    try:
        damaged = IndexedRecordFile(rec, index)
        for key in damaged.keys.tolist():
            unpack(damaged.read(key), damaged.name(key))
    except InputError as error:
        assert "\n" not in str(error)


@settings(max_examples=100, deadline=None)
@given(pieces, st.integers(0, 20))
def test_unpack_refuses_what_is_too_short(image, flag):
    payload = struct.pack("<IfQQ", flag, 1.0, 2, 3) + image
    if len(image) < 4 * flag:
        with pytest.raises(InputError, match="expected at least"):
            unpack(payload)
    else:
        assert bytes(unpack(payload).image) == image[4 * flag:]
    with pytest.raises(InputError, match="24"):
        unpack(payload[:23])


@pytest.mark.parametrize("end", range(1, 44))
def test_truncated_anywhere(tmp_path, end):
    whole = frame(b"abcd" * 2) + frame(b"12345678", 1) + frame(b"1234", 3)  # 16 bytes and 16 + 12 bytes
    idx = [(3, 0), (8, 16)]
    assert IndexedRecordFile(*files(tmp_path, whole, idx)).read(8) == b"12345678" + MAGIC_BYTES + b"1234"
    expect(tmp_path, whole[:end], idx, 8, "key 8" if end >= 8 else "key 3")


def test_last_record_cut_short_is_noticed_on_opening(tmp_path):
    with pytest.raises(InputError, match="f.rec: key 8: ends at byte 32, but the file has 30: truncated"):
        IndexedRecordFile(*files(tmp_path, (frame(b"abcd" * 2) + frame(b"12345678"))[:30], [(3, 0), (8, 16)]))


@pytest.mark.parametrize("last", [b"", b"a", b"abc", b"abcdefgh"])
def test_index_cut_short_is_noticed_on_opening(tmp_path, last):
    """Without it, a file that has no header would only have fewer images."""
    payloads = {9: b"first", 3: last, 5: b"x"}
    rec, idx = write(tmp_path / "w", payloads)
    whole = (tmp_path / "w.idx").read_bytes()
    for lines in (1, 2):
        (tmp_path / "w.idx").write_bytes(b"".join(whole.splitlines(keepends=True)[:lines]))
        with pytest.raises(InputError, match=rf"w.idx: ends with key {[9, 3][lines - 1]}, but .*w.rec goes on with a record at byte"):
            IndexedRecordFile(rec, idx)
    (tmp_path / "w.idx").write_bytes(whole)
    assert read_all(IndexedRecordFile(rec, idx)) == list(payloads.values())


def test_what_follows_the_last_record_and_is_none_is_left_alone(tmp_path):
    assert IndexedRecordFile(*files(tmp_path, frame(b"abcd") + b"\0" * 16, [(0, 0)])).read(0) == b"abcd"


@pytest.mark.parametrize("rec, words", [
    (frame(b"abcd", magic=MAGIC + 1), ["key 0", "magic number", hex(MAGIC + 1)]),
    (frame(b"abcd", 2), ["key 0", "flag 2", "(0, 1)"]),
    (frame(b"abcd", 3), ["key 0", "flag 3"]),
    (frame(b"abcd", 5), ["key 0", "flag 5"]),
    (frame(b"abcd", 1) + frame(b"abcd"), ["key 0", "part 1", "flag 0", "(2, 3)"]),
    (frame(b"abcd", 1) + frame(b"abcd", 1), ["key 0", "part 1", "flag 1"]),
    (frame(b"abcd", 1) + frame(b"abcd", 2), ["key 0", "truncated"]),
    (frame(b"abcd", 1) + b"\0" * 8, ["key 0", "magic number", "0x00000000"]),
    (frame(b"abcd", length=2**29 - 1), ["key 0", "truncated"]),
])
def test_damaged_frames(tmp_path, rec, words):
    expect(tmp_path, rec, [(0, 0)], 0, *words)


@pytest.mark.parametrize("idx, words", [
    ([(0, 0), (0, 12)], ["f.idx", "key 0 is there twice"]),
    ([(0, 0), (1, 0)], ["f.idx", "offset 0 is there twice"]),
    ([(0, 0), (1, 24)], ["f.idx", "key 1 has offset 24", "24 bytes"]),
    ([(0, 0), (1, 2**62)], ["f.idx", "key 1 has offset"]),
    ([(0, 0), (1, 13)], ["f.idx", "key 1 has offset 13", "multiple of 4"]),
    ([(0, 0), (1, 16)], ["f.rec: key 1", "magic number"]),
    ([(1, 0), (2, 8)], ["f.rec: key 1", "next record at 8: they overlap"]),
    ([(0, 0), (2, 12)], ["f.idx", "key 1 is not in the index"]),
    ([(0, 0)], ["f.idx: ends with key 0", "f.rec goes on with a record at byte 12 of 24"]),
    (b"0\t0\n1\t1", ["f.idx", "key 1 has offset 1", "multiple of 4"]),
    (b"", ["f.idx", "no entries"]),
    (b"\n\n", ["f.idx", "line 1"]),
    (b"0\t0\n1\n", ["f.idx", "line 2 is b'1\\n'"]),
    (b"0\t0\n1\t12\t3\n", ["f.idx", "line 2"]),
    (b"0\t0\n1\t-4\n", ["f.idx", "line 2"]),
    (b"0\t0\nx\t12\n", ["f.idx", "line 2"]),
    (b"0\t0\n1\t1e1\n", ["f.idx", "line 2"]),
    (b"0 0\n1 12\n", ["f.idx", "line 1"]),
    (b"0\t0\n1\t99999999999999999999999\n", ["f.idx", "line 2"]),
    (b"\xff\xfe\x00\x80", ["f.idx", "line 1"]),
])
def test_index_that_disagrees(tmp_path, idx, words):
    rec = frame(b"abcd") + frame(b"efgh")
    assert read_all(IndexedRecordFile(*files(tmp_path, rec, [(0, 0), (1, 12)]))) == [b"abcd", b"efgh"]
    expect(tmp_path, rec, idx, 1, *words)


def test_index_with_other_line_ends(tmp_path):
    (tmp_path / "x.idx").write_bytes(b"4\t0\r\n2\t12")
    keys, offsets = read_index(str(tmp_path / "x.idx"))
    assert keys.tolist() == [4, 2] and offsets.tolist() == [0, 12]


def test_missing_files(tmp_path):
    rec, idx = write(tmp_path / "w", {0: b"a"})
    for pair in ((rec, str(tmp_path / "no.idx")), (str(tmp_path / "no.rec"), idx)):
        with pytest.raises(InputError, match=r"no\.(rec|idx): there is no such file"):
            IndexedRecordFile(*pair)


def test_file_that_shrinks_in_use(tmp_path):
    rec, idx = write(tmp_path / "w", {key: bytes(5000) for key in range(4)})
    file = IndexedRecordFile(rec, idx)
    assert file.read(3) == bytes(5000)
    with open(rec, "r+b") as handle:
        handle.truncate(6000)
    with pytest.raises(InputError, match="w.rec: 6000 bytes, expected 20032: the file shrank"):
        file.read(3)


def test_first_labels(tmp_path):
    tricky = struct.unpack("<f", MAGIC_BYTES)[0]  # as a label it cuts the record within its header
    labels = {5: 3.0, 1: [4.0, 9.0], 7: tricky, 2: [8.0], 3: 0.0, 9: [tricky, 1.0]}
    file = IndexedRecordFile(*write(tmp_path / "w", {key: pack(label, key) for key, label in labels.items()}))
    expected = [np.ravel(label)[0] for label in labels.values()]
    np.testing.assert_array_equal(file.first_labels(file.keys), np.float32(expected))
    np.testing.assert_array_equal(file.first_labels(np.array([9, 2])), np.float32([tricky, 8.0]))


def test_first_labels_names_a_damaged_record(tmp_path):
    rec, idx = write(tmp_path / "w", {0: pack(1.0), 4: b"short", 5: pack(2.0)})
    file = IndexedRecordFile(rec, idx)
    with pytest.raises(InputError, match="w.rec: key 4: 5 bytes"):
        file.first_labels(file.keys)


def test_writer_leaves_nothing_behind_on_failure(tmp_path):
    rec, idx = write(tmp_path / "w", {0: b"before"})
    with pytest.raises(RuntimeError), RecordWriter(tmp_path / "w") as writer:
        writer.write(0, b"after")
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.idx", "w.rec"]
    assert IndexedRecordFile(rec, idx).read(0) == b"before"


def test_missing_mxnet_is_explained(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mxnet", None)
    with pytest.raises(InputError, match="recordio_backend=mxnet: MXNet cannot be imported .*recordio_backend=builtin"):
        import_mxnet()
