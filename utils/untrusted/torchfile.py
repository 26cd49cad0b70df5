"""What a file of torch.save asks for, found out before torch reads it.

`torch.load(weights_only=True)` runs no code, but it believes what a file says: a tensor of ten billion elements over eight bytes of
data is given its memory, and so is a bytearray of any length. Here the pickle is interpreted by the machine of pickles.py, where a
storage is a number of bytes and a tensor a claim about one; only what passes goes on to torch.
"""
import io
import os
import pickle
import re
import struct
import zipfile
from typing import Any, BinaryIO

from utils import InputError
from utils.files import kind_of, require_file
from utils.untrusted.pickles import PlainUnpickler, Refused

MAX_PICKLE = 2**26  # bytes; those of the published networks have thousands
_ZIP = b"PK\x03\x04"
# the records that end a zip file: signature, disks, counts of entries (2), size and offset of the directory ...
_END, _LOCATOR, _END_64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2I4Q")
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number of PyTorch before 1.6

_STORAGES = {"Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1}
_DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")


def check(path: str | os.PathLike[str], whole: bool = False) -> None:
    """Raise InputError, naming the file, unless it is one of torch.save with tensors and plain containers that the file has room for.

    whole: also read everything and compare it with the checksums in the file, which torch does not. Raises OSError where the file
    cannot be read.
    """
    size = require_file(path)
    with open(path, "rb") as file:
        beginning = file.read(300)
        start = beginning[:len(_LEGACY)]
        file.seek(0)
        if start.startswith(_ZIP):
            _check_archive(file, size, str(path), whole)
        elif start == _LEGACY:
            _check_legacy(file, size, str(path))
        else:
            kind = "a pickle, as .bin files of pairs are" if re.match(rb"\x80[\2-\5]", start) else kind_of(beginning)
            found = f"it seems to be {kind}" if kind else f"{size} bytes beginning with {start[:8]!r}"
            raise InputError(f"{path}: not a file of torch.save, or damaged: {found}; weights are a state dict, such as model_final.pt")


def _check_archive(file: BinaryIO, size: int, path: str, whole: bool) -> None:
    try:
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries) \
                or sum(entry.file_size for entry in entries) > size:
            raise InputError(f"{path}: entries larger than the file, or compressed: torch.save writes them as they are")
        names = {entry.filename.partition("/")[2]: entry for entry in entries}
        if not _has_one_reading(file, size, archive) or "data.pkl" not in names or names["data.pkl"].file_size > MAX_PICKLE:
            raise InputError(f"{path}: a zip file, but not one of torch.save, or damaged")
        pickled = archive.read(names["data.pkl"])
        damaged = archive.testzip() if whole else None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a checkpoint, or damaged: {str(error).splitlines()[0] if str(error) else 'cut short'}") from None
    if damaged:
        raise InputError(f"{path}: damaged: the checksum of {damaged} is wrong")
    storages = _Claims(io.BytesIO(pickled), len(pickled), path, size).storages_of_one()
    for key, count in storages.items():
        found = names[f"data/{key}"].file_size if f"data/{key}" in names else 0
        if found < count:
            raise InputError(f"{path}: storage {key[:20]} has {found} bytes, expected {count}: damaged")


def _has_one_reading(file: BinaryIO, size: int, archive: zipfile.ZipFile) -> bool:
    """Whether torch finds in the archive what `zipfile` finds: each has a way of its own with archives that are not as they should be.

    zipfile looks for the directory right before the record that ends the archive, torch where that record says, as often as it
    says, and for names without regard to case.
    """
    entries = archive.infolist()
    names = {entry.filename.lower() for entry in entries}
    if len(names) != len(entries) or len({name.partition("/")[0] for name in names}) != 1:
        return False
    if not all(entry.orig_filename == entry.filename and entry.filename.isascii() and _is_plain(entry.extra) for entry in entries):
        return False
    tail = _END_64.size + _LOCATOR.size + _END.size
    file.seek(max(0, size - tail))
    data = file.read(tail).rjust(tail, b"\0")
    end = _END.unpack(data[-_END.size:])
    locator = _LOCATOR.unpack_from(data, _END_64.size)
    if locator[0] == b"PK\6\7":
        wide = _END_64.unpack_from(data)
        if wide[0] != b"PK\6\6" or locator[2] != size - tail:
            return False
        count, start = wide[7], wide[9]
    else:
        count, start = end[4], end[6]
    return end[0] == b"PK\5\6" and end[7] == 0 and (count, start) == (len(entries), archive.start_dir)


def _is_plain(extra: bytes) -> bool:
    """Whether the directory has nothing more on an entry than, at most, the one field for large sizes."""
    return not extra or extra[:4] == struct.pack("<HH", 1, len(extra) - 4)


def _check_legacy(file: BinaryIO, size: int, path: str) -> None:
    """Five pickles in a row (magic number, version, system, content, keys of the storages), then the storages."""
    claims = _Claims(file, size, path, size)
    for _ in range(3):
        claims.load()
    if sum(claims.storages_of_one().values()) > size:
        raise InputError(f"{path}: the tensors need more bytes than the {size} of the file: damaged")


class _Storage:
    def __init__(self, item: int, count: int) -> None:
        self.item, self.count = item, count


class _Tensor:
    """Stands for a tensor: there is nothing that a pickle could do with it but put it into containers."""


class _Dictionary(dict):
    """Stands for an OrderedDict: keys and values come by SETITEMS."""


class _Claims(PlainUnpickler):
    """Takes checkpoints apart without making a tensor; `storages` has the bytes that each storage must have."""

    kind = "a plain state dict of tensors"

    def __init__(self, file: BinaryIO, size: int, name: str, room: int) -> None:
        super().__init__(file, size, name)
        self.room, self.storages = room, {}

    def storages_of_one(self) -> dict[str, int]:
        """Bytes by key of all storages that the next pickle names."""
        self.load()
        return self.storages

    def _handler(self, opcode: bytes) -> Any:
        return _MORE.get(opcode) or super()._handler(opcode)

    def _lookup(self, name: str) -> Any:
        if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            return self._tensor
        return _CALLS[name] if name in _CALLS else super()._lookup(name)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        numbers = (offset, *shape, *strides) if isinstance(shape, tuple) and isinstance(strides, tuple) else (None,)
        if not isinstance(storage, _Storage) or not all(type(value) is int and value >= 0 for value in numbers):
            raise Refused("a tensor whose shape is no shape")
        if len(shape) != len(strides) or len(shape) > 64:
            raise Refused(f"a tensor with {len(shape)} sizes and {len(strides)} strides")
        last, count = offset, 1
        for length, stride in zip(shape, strides):
            last, count = last + (length - 1) * stride, count * length
        if count and (last >= storage.count or count * storage.item > self.room):
            raise Refused(f"a tensor of {count} elements over a storage of {storage.count}")
        return _Tensor()

    def _persistent(self) -> None:
        """('storage', type, key, device, number of elements[, view]): what BINPERSID pops."""
        given = self.stack.pop()
        if not isinstance(given, tuple) or len(given) < 5 or given[0] not in ("storage", b"storage"):
            raise Refused("a reference to something that is not a storage")
        kind, key, count, view = given[1], given[2], given[4], given[5] if len(given) > 5 else None
        item = _STORAGES.get(getattr(kind, "name", "").removeprefix("torch.").removesuffix("Storage"))
        if item is None or not isinstance(key, str) or type(count) is not int or not 0 <= count <= self.room // item or view is not None:
            raise Refused("a storage that the file has no room for")
        self.storages[key] = max(count * item, self.storages.get(key, 0))
        self.stack.append(_Storage(item, count))

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise Refused(f"items set in {type(target).__name__}")
        target.update(zip(items[::2], items[1::2]))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _dictionary(self) -> None:
        items = self._pop_mark()
        self.stack.append({})
        self._set_items(items)

    def _build(self) -> None:
        """The attributes of an OrderedDict: the versions of its modules."""
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(state, dict) or not isinstance(target, _Dictionary):
            raise Refused(f"a state for {type(target).__name__}")


def _ordered(*items: Any) -> _Dictionary:
    if items not in ((), ([],)):
        raise Refused("an OrderedDict with its items as an argument")
    return _Dictionary()


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise Refused("a parameter that is no tensor")
    return data


def _size(lengths: Any) -> tuple:
    if not isinstance(lengths, tuple):
        raise Refused("a torch.Size of something else than numbers")
    return lengths


_CALLS: dict[str, Any] = {"collections.OrderedDict": _ordered, "torch._utils._rebuild_parameter": _parameter, "torch.Size": _size,
                            **{f"torch.{name}Storage": None for name in _STORAGES}, **{f"torch.{name}": None for name in _DTYPES}}
_MORE = {pickle.BINPERSID: _Claims._persistent, pickle.EMPTY_DICT: lambda self: self.stack.append({}), pickle.DICT: _Claims._dictionary,
         pickle.SETITEM: _Claims._set_item, pickle.SETITEMS: lambda self: self._set_items(self._pop_mark()), pickle.BUILD: _Claims._build}
