"""RecordIO, the container of MXNet: many records in one .rec file, found through an .idx file of "key<TAB>offset" lines.

Framing (all little-endian, every part begins at a multiple of 4): the magic number, a word of 3 bits of flag and 29 bits of length,
the bytes, zeros up to the next multiple of 4. The magic number must not occur at such a place inside the bytes: a record that holds
it there is cut at it into parts (flag 1 for the first, 2 for those between, 3 for the last; 0 is a whole record), and the reader
puts it back between the parts. An image record begins with 24 bytes of flag, label, id and id2; with flag > 0 so many float32 labels
follow. After that come the bytes of the image.
"""
import contextlib
import errno
import os
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils import InputError, RecordError
from utils.files import atomic_write, is_a
from utils.record_index import MAGIC, read_index, scan
from utils.record_table import RecordTable, blocks

MAX_LENGTH = 2**29 - 1
# The parts of a record are joined in a Python loop; a crafted file could hold a hundred million empty ones.
MAX_PARTS = 2**20

_MAGIC_BYTES = struct.pack("<I", MAGIC)
_FRAME = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_TO_LABEL = struct.Struct("<IIIfQQf")  # frame, header, and the first of the labels behind it
_READ_AHEAD = 2**16  # bytes
_INDEX_LINE = 48  # the most bytes of two numbers of 19 digits with what is around them
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)

PathLike = str | os.PathLike[str]


class Record(NamedTuple):
    """An unpacked image record; `label` is a float, or a float32 array [flag] where flag > 0."""

    flag: int
    label: float | np.ndarray
    id: int
    image: memoryview


def unpack(payload: bytes | memoryview, name: str = "record") -> Record:
    """Split the payload of an image record into header and image bytes; raises RecordError (with `name`) where it is too short."""
    view = memoryview(payload)
    if len(view) < _HEADER.size:
        raise RecordError(f"{name}: {len(view)} bytes, expected at least the {_HEADER.size} of an image record's header")
    flag, label, identifier, _ = _HEADER.unpack_from(view)
    start = _HEADER.size + 4 * flag
    if flag == 0:
        return Record(flag, label, identifier, view[start:])
    if len(view) < start:
        raise RecordError(f"{name}: {len(view)} bytes, expected at least {start} with {flag} labels")
    return Record(flag, np.frombuffer(view, "<f4", flag, _HEADER.size), identifier, view[start:])


def pack(label: float | Sequence[float] | np.ndarray, identifier: int = 0, image: bytes = b"") -> bytes:
    """The payload of an image record with one label (flag 0) or an array of labels (flag = how many)."""
    if np.ndim(label) == 0:
        return _HEADER.pack(0, label, identifier, 0) + image
    labels = np.asarray(label, "<f4")
    return _HEADER.pack(labels.size, 0.0, identifier, 0) + labels.tobytes() + image


class IndexedRecordFile:
    """Random access to the records of a .rec file; idx_path: None reads all of it once for what an index would say (`scan`).

    The file is opened on first use in each process, so that objects can be pickled and used in forked or spawned workers, which share the
    index (`SharedArray`); reading at a place, not through a memory map, turns a file that shrinks or a disk that
    fails into an error where the map would kill the process. Raises InputError where a file is missing, the index is malformed, has
    keys or offsets twice or points out of the file, and where the last record is cut short or followed by one that is not in the index.
    """

    def __init__(self, rec_path: PathLike, idx_path: PathLike | None) -> None:
        self.rec_path, self.idx_path = str(rec_path), f"{rec_path}, read without an index" if idx_path is None else str(idx_path)
        for path in (self.rec_path,) if idx_path is None else (self.rec_path, self.idx_path):
            if not os.path.isfile(path):
                raise InputError(f"{path}: there is no such file")
        self.size = os.path.getsize(self.rec_path)
        self._file: Any = None
        keys, offsets = scan(self.rec_path) if idx_path is None else self._read_index()
        self._check_offsets(keys, offsets)
        self._table = RecordTable(keys, offsets, self.size, self.idx_path)
        self._check_last(self._table.last)

    @property
    def keys(self) -> np.ndarray:
        """int64 [N], in the order of the index file."""
        return self._table.keys

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, key: int) -> bool:
        return key in self._table

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def name(self, key: int) -> str:
        """How messages call a record."""
        return f"{self.rec_path}: key {key}"

    def fingerprint(self) -> str:
        """What tells this file from others without reading all of it: the SHA-256 of its index and its size, hexadecimal."""
        return self._table.fingerprint()

    def read(self, key: int) -> bytes:
        """The payload of a record. Raises, naming file and key, RecordError where it is damaged, and InputError where the key is not
        in the index or the whole file is gone, shorter than it was, or unreadable.
        """
        start, limit = self._table.span(key)
        data = _Window(self, start, limit, self.name(key))
        parts, position, following = [], start, (_WHOLE, _FIRST)
        while True:
            if position + _FRAME.size > limit:
                raise self._overrun(key, position + _FRAME.size, limit)
            magic, word = _FRAME.unpack(data.take(position, _FRAME.size))
            flag, length = word >> 29, word & MAX_LENGTH
            if magic != MAGIC:
                raise RecordError(f"{self.name(key)}: {magic:#010x} at byte {position}, expected the magic number {MAGIC:#010x}")
            if flag not in following or len(parts) == MAX_PARTS:
                raise RecordError(f"{self.name(key)}: part {len(parts)} at byte {position} has flag {flag}, expected {following}")
            begin, end = position + _FRAME.size, position + _FRAME.size + length
            if end > limit:
                raise self._overrun(key, end, limit)
            parts.append(data.take(begin, length))
            if flag in (_WHOLE, _LAST):
                return parts[0] if flag == _WHOLE else _MAGIC_BYTES.join(parts)
            position, following = end + -length % 4, (_MIDDLE, _LAST)

    def first_labels(self, keys: np.ndarray, damaged: float | None = None) -> np.ndarray:
        """The (first) label of each record of `keys`, float64 [len(keys)], without reading the images; `damaged`, unless that is None, of
        those that cannot be read. Raises as `read` does.
        """
        labels = np.empty(len(keys))
        for number, key in enumerate(keys):
            try:
                labels[number] = self._first_label(int(key))
            except RecordError:
                if damaged is None:
                    raise
                labels[number] = damaged
        return labels

    def _first_label(self, key: int) -> float:
        start, limit = self._table.span(key)
        if start + _TO_LABEL.size <= limit:
            magic, length, flag, label, _, _, first = _TO_LABEL.unpack(self._bytes(start, _TO_LABEL.size, self.name(key)))
            if magic == MAGIC and _HEADER.size + 4 * (flag > 0) <= length <= MAX_LENGTH:
                return first if flag else label
        return float(np.ravel(unpack(self.read(key), self.name(key)).label)[0])  # in parts, short, or damaged (read() says how)

    def _bytes(self, start: int, count: int, name: str) -> bytes:
        """`count` bytes from `start` on, which lie within the file as it was; `name` is what the message calls them."""
        try:
            if self._file is None:
                self._file = open(self.rec_path, "rb", buffering=0)  # noqa: SIM115 - for as long as this object lives
            data = os.pread(self._file.fileno(), count, start)
        except OSError as error:
            kind = RecordError if error.errno == errno.EIO else InputError  # a bad sector, or no file any more
            raise kind(f"{name}: cannot be read: {error.strerror}") from None
        if len(data) < count:
            found = os.fstat(self._file.fileno()).st_size
            raise InputError(f"{self.rec_path}: {found} bytes, expected {self.size}: the file shrank while in use")
        return data

    def _overrun(self, key: int, end: int, limit: int) -> RecordError:
        if limit == self.size:
            return RecordError(f"{self.name(key)}: ends at byte {end}, but the file has {self.size}: truncated")
        return RecordError(f"{self.name(key)}: ends at byte {end}, but the index has the next record at {limit}: they overlap")

    def _read_index(self) -> tuple[np.ndarray, np.ndarray]:
        size = os.path.getsize(self.idx_path)
        if size > _INDEX_LINE * (1 + self.size // _FRAME.size):
            raise InputError(f"{self.idx_path}: {size} bytes are more entries than {self.rec_path} can have records, with {self.size} "
                             "bytes")
        return read_index(self.idx_path)

    def _beginning(self) -> bytes:
        with open(self.rec_path, "rb") as file:
            return file.read(300)

    def _check_offsets(self, keys: np.ndarray, offsets: np.ndarray) -> None:
        for block in blocks(len(offsets)):
            part = offsets[block]
            wrong = np.flatnonzero((part % 4 != 0) | (part < 0) | (part > self.size - _FRAME.size))
            if len(wrong):
                key, offset = keys[block][wrong[0]], part[wrong[0]]
                raise InputError(f"{self.idx_path}: key {key} has offset {offset}, expected a multiple of 4 up to "
                                 f"{self.size - _FRAME.size} ({self.rec_path} has {self.size} bytes{is_a(self._beginning())})")

    def _check_last(self, key: int) -> None:
        """A download of either file that broke off is noticed at once rather than after hours of training, or never."""
        start, limit = self._table.span(key)
        magic, word = _FRAME.unpack(self._bytes(start, _FRAME.size, self.name(key)))
        flag, end = word >> 29, start + _FRAME.size + (word & MAX_LENGTH)
        if magic != MAGIC:
            return  # a damaged record is for read() to name: it may not be needed, or be skipped
        if end > limit:
            raise self._overrun(key, end, limit)
        following = end + (start - end) % 4
        if flag == _WHOLE and following + _FRAME.size <= self.size and self._bytes(following, 4, self.name(key)) == _MAGIC_BYTES:
            raise InputError(f"{self.idx_path}: ends with key {key}, but {self.rec_path} goes on with a record at byte {following} of "
                             f"{self.size}: the index is cut short, or of another file")


class _Window:
    """The bytes of one record, most often read in one go: the index bounds it, and what it bounds is rarely large."""

    def __init__(self, file: IndexedRecordFile, start: int, limit: int, name: str) -> None:
        self._file, self._start, self._name = file, start, name
        self._data = file._bytes(start, min(limit - start, _READ_AHEAD), name)

    def take(self, position: int, count: int) -> bytes:
        offset = position - self._start
        if offset + count <= len(self._data):
            return self._data[offset:offset + count]
        return self._file._bytes(position, count, self._name)


class MXNetRecordFile(IndexedRecordFile):
    """The same interface, the records read by MXNet's own MXIndexedRecordIO (reopened in each process)."""

    def __init__(self, rec_path: PathLike, idx_path: PathLike | None) -> None:
        import_mxnet()
        if idx_path is None:
            raise InputError(f"{rec_path}: there is no index beside it, which MXNet needs: python -m utils.build_dataset idx --rec "
                             f"{rec_path} writes one")
        super().__init__(rec_path, idx_path)
        self._reader: Any = None
        self._pid: int | None = None

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_reader": None, "_pid": None}

    def read(self, key: int) -> bytes:
        """The payload of a record, as MXNet's reader has it. Raises as `IndexedRecordFile.read`."""
        self._table.span(key)
        if self._pid != os.getpid():  # a forked copy of a handle would move the file position of its parent
            self._reader = import_mxnet().recordio.MXIndexedRecordIO(self.idx_path, self.rec_path, "r")
            self._pid = os.getpid()
        try:
            payload = self._reader.read_idx(key)
        except Exception as error:
            raise RecordError(f"{self.name(key)}: MXNet cannot read it: {str(error).strip().splitlines()[-1]}") from None
        if payload is None:
            raise RecordError(f"{self.name(key)}: MXNet finds no record there")
        return payload


def import_mxnet():
    """Import MXNet beside a numpy that no longer has the aliases MXNet uses; raises InputError with advice where it cannot be."""
    aliases = {"bool": bool, "object": object, "float": float, "int": int, "complex": complex, "str": str, "long": int,
               "unicode": str}
    for name, kind in aliases.items():
        if name not in vars(np):  # not hasattr(), which warns about the names numpy removed
            setattr(np, name, kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own use of other old interfaces
            import mxnet
            import mxnet.recordio
    except Exception as error:  # whatever an unmaintained package runs into: a missing module, a missing shared library
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"recordio_backend=mxnet: MXNet cannot be imported ({type(error).__name__}: {reason}); it has wheels for "
                         "Linux on x86-64 with Python < 3.12 (pip install mxnet): recordio_backend=builtin reads the same files") \
            from None
    return mxnet


class RecordWriter:
    """Write PREFIX.rec and PREFIX.idx, as a context manager: both get their names only when the body ends without an exception."""

    def __init__(self, prefix: PathLike) -> None:
        self.rec_path, self.idx_path = Path(f"{prefix}.rec"), Path(f"{prefix}.idx")

    def __enter__(self) -> "RecordWriter":
        self._files = contextlib.ExitStack()
        self._idx = self._files.enter_context(atomic_write(self.idx_path))
        self._rec = self._files.enter_context(atomic_write(self.rec_path, "wb"))
        return self

    def __exit__(self, *error) -> bool | None:
        return self._files.__exit__(*error)

    def write(self, key: int, payload: bytes) -> None:
        """Append a record; raises ValueError where it is longer than the format allows."""
        if len(payload) > MAX_LENGTH:
            raise ValueError(f"the record of key {key} has {len(payload)} bytes, expected at most {MAX_LENGTH}")
        self._idx.write(f"{key}\t{self._rec.tell()}\n")
        cuts = _aligned_magic(payload)
        starts = [0, *(cut + 4 for cut in cuts)]
        ends = [*cuts, len(payload)]
        flags = [_FIRST, *[_MIDDLE] * (len(cuts) - 1), _LAST] if cuts else [_WHOLE]
        for flag, start, end in zip(flags, starts, ends):
            self._rec.write(_FRAME.pack(MAGIC, flag << 29 | end - start))
            self._rec.write(payload[start:end])
        self._rec.write(b"\0" * (-len(payload) % 4))


def _aligned_magic(payload: bytes) -> list[int]:
    """Where the magic number stands at a multiple of 4."""
    found, position = [], payload.find(_MAGIC_BYTES)
    while position >= 0:
        if position % 4 == 0:
            found.append(position)
        position = payload.find(_MAGIC_BYTES, position + 1)
    return found
