"""Tens of millions of records: an index is read in pieces, kept in few bytes and shared; what float32 rounded is found again, or refused."""
import copy
import io
import multiprocessing
import os
import pickle
import tracemalloc
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from many_records import Many
from tiny_training import write_faces

from datasets import RecordDataset, get_dataloader
from utils import InputError, RecordError, record_index, record_layout, record_table, utils_distributed_sampler
from utils.record_index import read_index
from utils.record_layout import image_keys
from utils.record_table import RecordTable
from utils.recordio import IndexedRecordFile, RecordWriter, pack
from utils.shared_arrays import SharedArray
from utils.utils_distributed_sampler import DistributedSampler, Partners

COUNT = 200_000
NUMBERS = st.one_of(st.integers(0, 99), st.integers(10**17, 2**63 - 1), st.integers(-3, 2**65)).map(str) | st.sampled_from(
    ["+3", " 4 ", "007", "", "1e1", "x", "\u0663", "3.0", "0" * 30 + "5"])
LINES = st.lists(st.tuples(st.lists(NUMBERS, min_size=1, max_size=3) | st.lists(st.integers(0, 10**6).map(str), min_size=2, max_size=2),
                           st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n"])), max_size=8)


def at_once(path):
    """As np.loadtxt reads the whole file, or None where it takes it for no index."""
    try:
        table = np.loadtxt(path, dtype=np.int64, delimiter="\t", comments=None, ndmin=2, encoding="utf-8-sig")
    except (ValueError, OverflowError, DeprecationWarning):
        return None
    return table if len(table) and table.shape[1] == 2 and table.min() >= 0 else None


@pytest.mark.filterwarnings("error::DeprecationWarning", "ignore::UserWarning")
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES, st.booleans(), st.booleans(), st.sampled_from([1, 5, 64, 2**20]))
def test_pieces_are_read_as_the_whole(tmp_path, monkeypatch, lines, mark, cut, block):
    text = "".join("\t".join(numbers) + end for numbers, end in lines).encode()
    (tmp_path / "a.idx").write_bytes(b"\xef\xbb\xbf" * mark + (text.rstrip() if cut else text))
    monkeypatch.setattr(record_index, "_BLOCK", block)
    expected = at_once(tmp_path / "a.idx")
    if expected is None:
        with pytest.raises(InputError) as error:
            read_index(str(tmp_path / "a.idx"))
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    else:
        found = read_index(str(tmp_path / "a.idx"))
        assert all(column.dtype == np.int64 for column in found) and np.array_equal(np.stack(found, 1), expected)


def entries(order: str) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets, in order; keys in another one; with gaps between them; and the offsets in another one as well."""
    numbers = np.random.default_rng(0)
    keys = np.arange(COUNT) if order == "ascending" else numbers.permutation(COUNT)
    keys = keys * 3 + 5 if order in ("gaps", "all") else keys
    offsets = np.cumsum(numbers.integers(2, 900, COUNT)) * 4
    return keys, numbers.permutation(offsets) if order == "all" else offsets


@pytest.mark.parametrize("order, kept", [("ascending", 16), ("shuffled", 20), ("gaps", 28), ("all", 36)])
def test_a_large_index_takes_few_bytes_a_record(tmp_path, monkeypatch, order, kept):
    monkeypatch.setattr(record_index, "_BLOCK", 2**16)
    monkeypatch.setattr(record_table, "_BLOCK", 2**12)
    keys, offsets = entries(order)
    size = int(offsets.max()) + 8
    (tmp_path / "a.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in zip(keys, offsets)))
    with open(tmp_path / "a.rec", "wb") as file:  # all of it is a hole
        file.truncate(size)
    tracemalloc.start()
    try:
        file = IndexedRecordFile(tmp_path / "a.rec", tmp_path / "a.idx")
        now, peak = (number / COUNT for number in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert now < 1.2 * kept + 1 and peak < 1.2 * kept + 10, (now, peak)
    assert np.array_equal(file.keys, keys) and len(file) == COUNT
    place = {int(key): int(offset) for key, offset in zip(keys, offsets)}
    following = dict(zip(np.sort(offsets)[:-1].tolist(), np.sort(offsets)[1:].tolist()))
    for key in [*keys[:50].tolist(), *keys[-50:].tolist(), int(keys.min()), int(keys.max())]:
        assert key in file and file._table.span(key) == (place[key], following.get(place[key], size))
    for key in (-1, int(keys.max()) + 1, 2**62):
        assert key not in file
    assert (order in ("gaps", "all")) == (6 not in file)
    starts = np.array([place[key] for key in sorted(place)])
    import hashlib  # the fingerprints of states that were saved before
    assert file.fingerprint() == hashlib.sha256(str(size).encode() + keys.tobytes() + starts.tobytes()).hexdigest()


@pytest.mark.parametrize("keys, offsets, words", [([3, 1, 2, 1], [0, 4, 8, 12], "key 1 is there twice"), ([2, 0, 2], [0, 4, 8], "key 2 is"),
                                                  ([5, 900, 5], [0, 4, 8], "key 5 is"), ([0, 1, 2], [8, 4, 8], "offset 8 is there twice")])
def test_what_is_there_twice(keys, offsets, words):
    with pytest.raises(InputError, match=f"a.idx: {words}"):
        RecordTable(np.array(keys), np.array(offsets), 20, "a.idx")


# --- shared

def _look(shared, table, queue):
    queue.put((int(shared.array.sum()), shared.array.flags.writeable, [table.span(key) for key in (0, 7, COUNT - 1)], table.fingerprint(),
               os.readlink(f"/proc/self/fd/{shared._file.fileno()}")))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what a descriptor is of cannot be asked")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_are_started_map_the_same_memory(method):
    keys, offsets = entries("shuffled")
    shared, table = SharedArray(np.arange(COUNT)), RecordTable(keys, offsets, int(offsets.max()) + 8, "a.idx")
    expected = [table.span(key) for key in (0, 7, COUNT - 1)]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    before = len(os.listdir("/dev/shm"))
    for _ in range(2):
        child = context.Process(target=_look, args=(shared, table, queue))
        child.start()
        total, writeable, spans, fingerprint, memory = queue.get(timeout=200)
        child.join()
        assert total == COUNT * (COUNT - 1) // 2 and not writeable and spans == expected and fingerprint == table.fingerprint()
        assert memory == os.readlink(f"/proc/self/fd/{shared._file.fileno()}") and "memfd" in memory  # of which nothing is in /dev/shm
    assert len(os.listdir("/dev/shm")) <= before + 6, "nothing but the queue's semaphores"


class _Starting:
    """What pickles for a process that is being started ask: a place for descriptors."""

    def __init__(self):
        self.descriptors = []

    def duplicate_for_child(self, descriptor):
        self.descriptors.append(descriptor)
        return descriptor

    class DupFd:
        def __init__(self, descriptor):
            self.descriptor = descriptor

        def detach(self):
            return os.dup(self.descriptor)


def as_for_a_worker(what) -> bytes:
    """The pickle of it that a spawned worker gets."""
    from multiprocessing import context
    file = io.BytesIO()
    context.set_spawning_popen(_Starting())
    try:
        ForkingPickler(file).dump(what)
    finally:
        context.set_spawning_popen(None)
    return file.getvalue()


def test_a_dataset_for_a_worker_is_a_small_pickle_and_a_copy_elsewhere(tmp_path):
    with RecordWriter(tmp_path / "train") as writer:
        for key in np.random.default_rng(0).permutation(5000).tolist():
            writer.write(key, pack(key % 50, key))
    table = IndexedRecordFile(tmp_path / "train.rec", tmp_path / "train.idx")
    small = RecordDataset(write_faces(tmp_path / "faces"))
    loader = get_dataloader(small, 8)
    assert len(as_for_a_worker(table)) < 3000 and len(as_for_a_worker(loader._reader)) < 5000 < len(pickle.dumps(table)) / 10
    assert len(as_for_a_worker(table)) == len(as_for_a_worker(table)), "nor does a second one copy"
    for copied in (pickle.loads(pickle.dumps(table)), copy.deepcopy(table), pickle.loads(as_for_a_worker(table))):
        assert np.array_equal(copied.keys, table.keys) and copied.fingerprint() == table.fingerprint()
        assert copied.read(77) == table.read(77) == pack(27, 77)


def test_where_there_is_no_memory_without_a_name_a_file_without_one_does(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    shared = SharedArray(np.arange(100))
    assert np.array_equal(pickle.loads(as_for_a_worker(shared)).array, np.arange(100)) and np.array_equal(shared.array, np.arange(100))


# --- orders

@pytest.mark.parametrize("count, world", [(1, 1), (2, 1), (1000, 1), (70001, 3)])
def test_orders_are_those_of_before_in_half_the_bytes(count, world):
    expected = np.random.default_rng([3, 2]).permutation(count)
    for rank in range(world):
        sampler = DistributedSampler(range(count), world, rank, seed=3)
        sampler.set_epoch(2)
        found = sampler.indices()
        assert found.dtype == np.int32 and np.array_equal(found, expected[rank:count // world * world:world])


@pytest.mark.parametrize("labels", [[], [-1], [4], np.random.default_rng(0).integers(-1, 40, 500), [7] * 20])
def test_partners_are_those_of_before(monkeypatch, labels):
    monkeypatch.setattr(record_table, "_BLOCK", 64)
    labels = np.array(labels, np.int64)
    found = Partners(labels, 4, seed=5).of_epoch(3)
    draws = np.random.default_rng([5, 3, utils_distributed_sampler._PARTNERS]).random(len(labels))
    for sample, (label, partner, draw) in enumerate(zip(labels, found, draws)):
        own = [sample] if label < 0 else np.flatnonzero(labels == label).tolist()
        assert partner == own[(own.index(sample) + 1 + int(draw * (len(own) - 1))) % len(own)]
    assert len(found) == len(labels)


# --- what float32 rounded

FIRST = 2**24 + 7  # rounded to 2**24 + 8, as are 2**24 + 8 and 2**24 + 9


@pytest.mark.parametrize("images", range(2**24 - 3, 2**24 + 12))
def test_rounded_counts_are_exact_again(images):
    keys, identities = image_keys(Many(images, 20))
    assert keys == range(1, images + 1) and identities == 20


@pytest.mark.parametrize("damaged", [(FIRST - 1,), (FIRST,), (FIRST + 1,), (FIRST - 2, FIRST - 1), (FIRST + 1, FIRST + 2, FIRST - 1)])
def test_the_border_between_images_and_identities_is_found_beside_a_damaged_record(damaged):
    keys, identities = image_keys(Many(FIRST - 1, 900, damaged))
    assert keys == range(1, FIRST) and identities == 900


@pytest.mark.parametrize("many, words", [
    (Many(FIRST - 1, 900, (FIRST, FIRST + 1)), rf"key 0: the header promises about {FIRST} images.*and key {FIRST}, where .*damaged"),
    (Many(FIRST + 1, 0, (FIRST + 1,)), rf"key 0: .*key {FIRST + 1}, where they may end, is damaged"),
    (Many(FIRST + 40, 900, ends=(FIRST, FIRST + 900)), rf"key 0: the header promises about {FIRST} images.*key {FIRST + 2} is one"),
    (Many(FIRST - 30, 900, ends=(FIRST, FIRST + 900)), "key 0: the header promises .* is none"),
])
def test_a_border_that_nothing_says_is_refused(many, words):
    with pytest.raises(InputError, match=words) as error:
        image_keys(many)
    assert "\n" not in str(error.value) and not isinstance(error.value, RecordError)


@pytest.mark.parametrize("kept", [0, 100, 898])
def test_identities_that_neither_header_nor_index_count_are_not_guessed(kept):
    assert image_keys(Many(FIRST - 1, 900, kept=kept))[1] is None
    assert image_keys(Many(FIRST - 1, 900))[1] == 900


def test_they_are_taken_from_num_classes_or_property(tmp_path, monkeypatch):
    faces = write_faces(tmp_path)
    monkeypatch.setattr("datasets.image_keys", lambda file: (range(1, 49), None))
    with pytest.raises(InputError, match="train.rec: key 0: a rounded number of identities, but 48 images; num_classes="):
        RecordDataset(faces)
    assert RecordDataset(faces, num_classes=77).num_classes == 77
    (Path(faces) / "property").write_text("55,16,16")
    assert RecordDataset(faces).num_classes == 55


def test_labels_that_may_be_those_of_several_identities_are_refused(tmp_path, monkeypatch):
    faces = RecordDataset(write_faces(tmp_path))
    with RecordWriter(tmp_path / "train") as writer:
        for key, label in enumerate((0, 2**24 - 1, 2**24, 1)):
            writer.write(key, faces.file.read(1)[:4] + pack(float(label), key)[4:24] + faces.file.read(1)[24:])
    words = rf"train.rec: key 2: label 16777216, expected one below {record_layout.EXACT}"
    with pytest.raises(InputError, match=words):
        RecordDataset(tmp_path, num_classes=2**25)
    monkeypatch.setattr("datasets.LABELS_CHECKED", 2)
    dataset = RecordDataset(tmp_path, num_classes=2**25)
    assert dataset[1][1] == 2**24 - 1
    for read in (lambda: dataset[2], dataset.labels):
        with pytest.raises(InputError, match=words) as error:
            read()
        assert not isinstance(error.value, RecordError)
