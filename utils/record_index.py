"""The index of a RecordIO file: "key<TAB>offset" lines of an .idx, or, where there is none, what the records themselves say."""
import codecs
import os
import struct
import warnings
from array import array

import numpy as np

from utils import InputError
from utils.files import atomic_write, is_a

MAGIC = 0xCED7230A
_FRAME = struct.Struct("<II")  # the magic number; 3 bits of flag and 29 of length
_BLOCK = 2**20  # bytes
_ENDS_A_RECORD = (0, 3)  # flags of a whole record, and of the last part of one


def read_index(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(keys, offsets), int64, of an index file. Raises InputError naming the line that is no entry."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about a file without data, which is an error below
            warnings.simplefilter("error", DeprecationWarning)  # numpy 1.26 still takes "1e1" for an integer, with a warning
            table = np.loadtxt(path, dtype=np.int64, delimiter="\t", comments=None, ndmin=2, encoding="utf-8-sig")
    except (ValueError, OverflowError, DeprecationWarning) as error:
        raise InputError(f"{path}: {_bad_line(path) or error}") from None
    if table.shape[1] != 2 or len(table) == 0:
        raise InputError(f"{path}: {_bad_line(path) or 'no entries'}")
    if table.min() < 0:
        raise InputError(f"{path}: {_bad_line(path)}")
    return np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])


def _bad_line(path: str) -> str | None:
    """The first line that is not an entry; only looked for once something is wrong, as it is a Python loop over the lines."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            fields = line.removeprefix(codecs.BOM_UTF8).strip().split(b"\t")
            if len(fields) != 2 or not all(field.isdigit() and len(field) < 19 for field in fields):
                return f"line {number} is {line[:60]!r}{is_a(line)}, expected a key, a tab and an offset"
    return None


def scan(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(keys, offsets), int64, of the records of a .rec without an index: their numbers in the file, from 0 on, as MXNet's rec2idx has
    them, and where they begin.

    Raises InputError where something else than a record follows another one, or the last one is cut short.
    """
    offsets, position, size, whole = array("q"), 0, os.path.getsize(path), True
    with open(path, "rb", buffering=_BLOCK) as file:
        while position + _FRAME.size <= size:
            file.seek(position)
            data = file.read(_FRAME.size)
            magic, word = _FRAME.unpack(data) if len(data) == _FRAME.size else (0, 0)
            if magic != MAGIC:
                raise InputError(f"{path}: {data!r}{is_a(data)} at byte {position}, expected the magic number of record {len(offsets)}: "
                                 "without an index nothing past it is found")
            if whole:
                offsets.append(position)
            length = word & 2**29 - 1
            whole, position = word >> 29 in _ENDS_A_RECORD, position + _FRAME.size + length + -length % 4
    if not offsets or not whole or position > size + 3:
        raise InputError(f"{path}: {size} bytes end within record {max(0, len(offsets) - 1)}: cut short")
    return np.arange(len(offsets)), np.frombuffer(offsets, np.int64).copy()


def write_index(rec: str, idx: str) -> int:
    """Write the index file of a .rec that has none; returns the number of records. Raises as `scan`."""
    keys, offsets = scan(rec)
    with atomic_write(idx) as file:
        file.writelines(f"{key}\t{offset}\n" for key, offset in zip(keys, offsets))
    return len(keys)
