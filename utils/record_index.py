"""The index of a RecordIO file: "key<TAB>offset" lines of an .idx, or, where there is none, what the records themselves say."""
import codecs
import io
import os
import struct
import warnings
from array import array
from collections.abc import Iterator

import numpy as np

from utils import InputError
from utils.files import atomic_write, is_a

MAGIC = 0xCED7230A
_FRAME = struct.Struct("<II")  # the magic number; 3 bits of flag and 29 of length
_BLOCK = 2**20  # bytes
_ENDS_A_RECORD = (0, 3)  # flags of a whole record, and of the last part of one


def read_index(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(keys, offsets), int64, of an index file, read in pieces. Raises InputError naming the line that is no entry."""
    columns = array("q"), array("q")  # they grow in place, so that nothing is there twice
    try:
        for lines in _whole_lines(path):
            for column, values in zip(columns, _entries(lines).T):
                column.frombytes(values.tobytes())
        if not columns[0]:
            raise ValueError("no entries")
    except (ValueError, OverflowError, DeprecationWarning) as error:
        raise InputError(f"{path}: {_bad_line(path) or error}") from None
    return np.frombuffer(columns[0], np.int64), np.frombuffer(columns[1], np.int64)


def _whole_lines(path: str) -> Iterator[bytes]:
    """A file in pieces of some _BLOCK bytes that end where a line ends, without a byte order mark."""
    with open(path, "rb") as file:
        pieces = [file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)]
        while data := file.read(_BLOCK):
            end = 1 + max(data.rfind(b"\n"), data.rfind(b"\r"))
            if end:
                yield b"".join([*pieces, data[:end]])
                pieces = []
            pieces.append(data[end:])
        if rest := b"".join(pieces):
            yield rest


def _entries(lines: bytes) -> np.ndarray:
    """int64 [entries, 2] of lines of an index. What is not just digits, tabs and line ends is left to np.loadtxt, which raises ValueError,
    OverflowError or DeprecationWarning.
    """
    text = lines.replace(b"\r\n", b"\n")
    text += b"" if text.endswith(b"\n") else b"\n"
    between = text.translate(None, b"0123456789")
    if between == b"\t\n" * (len(between) // 2) and text[:1] != b"\t" and b"\t\n" not in text and b"\n\t" not in text:
        table = np.fromstring(text, np.int64, sep=" ").reshape(-1, 2)
        if table.max() < 10**18:  # what is larger may have been too large
            return table
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about a text without data
        warnings.simplefilter("error", DeprecationWarning)  # numpy 1.26 still takes "1e1" for an integer, with a warning
        table = np.loadtxt(io.StringIO(lines.decode(), newline=None), np.int64, delimiter="\t", comments=None, ndmin=2)
    if table.size and (table.shape[1] != 2 or table.min() < 0):
        raise ValueError("no entries")
    return table


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
    return np.arange(len(offsets)), np.frombuffer(offsets, np.int64)


def write_index(rec: str, idx: str) -> int:
    """Write the index file of a .rec that has none; returns the number of records. Raises as `scan`."""
    keys, offsets = scan(rec)
    with atomic_write(idx) as file:
        file.writelines(f"{key}\t{offset}\n" for key, offset in zip(keys, offsets))
    return len(keys)
