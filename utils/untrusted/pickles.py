"""Read a pickle of plain data from a stranger without running anything it says.

`pickle.Unpickler` with a restricted `find_class` still allocates what the file asks for (memo slots, byte strings by
declared length, copies made by calls), so the few opcodes that plain data needs are interpreted here instead. Nothing
is ever imported or called by a name that comes from the file: a name is a key of a small table, and a name outside it
is refused.
"""
import codecs
import os
import pickle
import re
import struct
from typing import Any, BinaryIO

import numpy as np

from utils import InputError
from utils.files import TEXT, kind_of, require_file

MAX_OPCODES = 2_000_000  # bounds time, and memory (about 100 bytes an object), for files made of tiny objects
_EXPANSION = 2  # bytes that calls may make, in file sizes: no pickler needs more than text -> bytes -> array

_COUNTED_BYTES = {pickle.BINSTRING: "<i", pickle.SHORT_BINSTRING: "<B", pickle.BINBYTES: "<I",
                  pickle.SHORT_BINBYTES: "<B", pickle.BINBYTES8: "<Q", pickle.BYTEARRAY8: "<Q"}
_COUNTED_TEXT = {pickle.BINUNICODE: "<I", pickle.SHORT_BINUNICODE: "<B", pickle.BINUNICODE8: "<Q"}
_NUMBERS = {pickle.BININT: "<i", pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BINFLOAT: ">d"}
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_BINARY_INDEX = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I", pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
_DIGITS = 64  # of a number written as text


def load_plain(path: str | os.PathLike[str]) -> Any:
    """Unpickle `path` (protocols 0 to 5, Python 2 and 3; Python 2's str comes back as bytes).

    Only bytes, str, bool, None, numbers, lists, tuples, and numpy arrays and scalars of numbers or bytes are built, and arrays of objects
    that are one of these. Time and memory are bounded by the size of the file. Raises OSError where it cannot be read and
    InputError, naming the file and the byte, for anything else.
    """
    size = require_file(path)
    with open(path, "rb") as file:
        try:
            return PlainUnpickler(file, size, str(path)).load()
        except InputError as error:
            file.seek(0)
            kind = kind_of(file.read(300))
            if not kind:
                raise
            # pickles may be text as well: only where the file is none for certain does nobody need to know which byte is wrong
            found = f"{error}; the file seems to be" if kind == TEXT else f"{path}: not {PlainUnpickler.kind}: it seems to be"
            raise InputError(f"{found} {kind}; a .bin holds the images and labels of pairs") from None


class Refused(Exception):
    """Why the pickle is not accepted; the message lacks the file and the position, which `load` adds."""


class _Dtype:
    """A numpy dtype of numbers, bytes or objects under construction: its byte order arrives in a second step."""

    def __init__(self, name: Any) -> None:
        name = name.decode("latin1") if isinstance(name, bytes) else name
        if not isinstance(name, str) or not re.fullmatch(r"[|<>=]?(b1|[iu][1248]|f[248]|S[1-9]\d{0,8}|O8?)", name):
            raise Refused(f"numpy dtype {_short(name)}; only booleans, integers, floats, bytes and objects are accepted")
        self.dtype = np.dtype(name)

    def build(self, state: Any) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("|", "<", ">", "=") or any(field is not None for field in state[2:5]):
            raise Refused("a numpy dtype that is not a plain number")
        self.dtype = self.dtype.newbyteorder(order)


class _Name:
    """A name of the table below: `call` (None where it is only ever an argument) makes plain data from plain
    arguments.
    """

    def __init__(self, name: str, call: Any = None) -> None:
        self.name, self.call = name, call


def _make_bytes(kind: type) -> Any:
    def call(text: Any = b"", encoding: str = "latin1") -> Any:
        if isinstance(text, str):
            return kind(_encode(text, encoding))
        if not isinstance(text, (bytes, bytearray)):  # bytes(10**12) would be a bomb
            raise Refused(f"{kind.__name__}() of {type(text).__name__}")
        return kind(text)
    return call


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes under protocols 0 to 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused(f"_codecs.encode of {type(text).__name__} to {_short(encoding)}; only str to latin1 is accepted")
    return text.encode("latin1")


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """numpy's `_reconstruct`: an array of nothing, filled by the BUILD that follows whatever is said here."""
    if not isinstance(kind, _Name) or kind.name != "numpy.ndarray":
        raise Refused("a numpy array of another class than ndarray")
    return np.empty(0, np.uint8)


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    return _fill(np.empty(0, np.uint8), (1, shape, dtype, order == "F", buffer))


def _scalar(dtype: Any, buffer: Any = b"") -> Any:
    if isinstance(dtype, _Dtype) and dtype.dtype.kind == "S" and isinstance(buffer, bytes):
        return buffer  # whole: numpy would take zeros off its end
    return _fill(np.empty(0, np.uint8), (1, (), dtype, False, buffer))[()]


def _fill(array: np.ndarray, state: Any) -> np.ndarray:
    """numpy's `ndarray.__setstate__` once everything it is given has been checked."""
    _, shape, dtype, fortran, buffer = state
    shape = (shape,) if isinstance(shape, int) else shape
    holds = list if isinstance(dtype, _Dtype) and dtype.dtype.hasobject else (bytes, bytearray)
    if not isinstance(dtype, _Dtype) or not isinstance(buffer, holds) or not isinstance(shape, tuple):
        raise Refused("a numpy array that is not of plain data")
    if len(shape) > 8 or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise Refused("a numpy array of an impossible shape")
    count = 1
    for size in shape:
        count *= size
    size = 1 if holds is list else dtype.dtype.itemsize
    if count * size != len(buffer):
        raise Refused(f"a numpy array of {count} elements with {len(buffer)} {'objects' if holds is list else 'bytes of data'}")
    if not count and max(shape) > MAX_OPCODES:
        raise Refused("a numpy array of nothing with a shape of many")
    array.__setstate__((1, shape, dtype.dtype, bool(fortran), list(buffer) if holds is list else bytes(buffer)))
    return array


_NAMES = {"_codecs.encode": _encode, "builtins.bytes": _make_bytes(bytes), "builtins.bytearray": _make_bytes(bytearray),
          "numpy.ndarray": None, "numpy.dtype": lambda name, *flags: _Dtype(name)}
_NAMES.update({f"__builtin__.{kind.__name__}": _make_bytes(kind) for kind in (bytes, bytearray)})
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _NAMES.update({f"{_core}.multiarray._reconstruct": _empty_array, f"{_core}.multiarray.scalar": _scalar,
                   f"{_core}.numeric._frombuffer": _from_buffer})


def _short(value: Any) -> str:
    """One short line of ASCII for a value of the file, which may be anything."""
    text = ascii(value) if isinstance(value, (str, bytes)) and len(value) < 10_000 else f"<{type(value).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."


class PlainUnpickler:
    """The stack machine of the pickle format, for plain data only; what else a pickle may hold, a subclass says."""

    kind = "a pickle of plain data"  # for messages

    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        self.file, self.left, self.size, self.name = file, size, size, name
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.made = 0

    def load(self) -> Any:
        """What the pickle holds. Raises as `load_plain`."""
        try:
            for _ in range(MAX_OPCODES):
                opcode = self._read(1)
                if opcode == pickle.STOP:
                    return self.stack.pop()
                self._step(opcode)
            raise Refused(f"more than {MAX_OPCODES} opcodes")
        except Refused as error:
            reason = f"{error}{' (inside an array of dtype object)' * self._holds_objects()}"
        except (LookupError, TypeError, ValueError, OverflowError, MemoryError) as error:
            reason = f"a damaged pickle ({type(error).__name__})"
        raise InputError(f"{self.name}: not {self.kind}: byte {self.size - self.left}: {reason}")

    def _holds_objects(self) -> bool:
        """Whether the elements of an array of objects are being made."""
        return any(isinstance(item, _Dtype) and item.dtype.hasobject for level in (*self.marks, self.stack) for item in level)

    def _step(self, opcode: bytes) -> None:
        if opcode in _COUNTED_BYTES:
            data = self._counted(_COUNTED_BYTES[opcode])
            self.stack.append(bytearray(data) if opcode == pickle.BYTEARRAY8 else data)
        elif opcode in _COUNTED_TEXT:
            self.stack.append(self._counted(_COUNTED_TEXT[opcode]).decode("utf-8", "surrogatepass"))
        elif opcode in _NUMBERS:
            self.stack.append(self._number(_NUMBERS[opcode]))
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            self._tuple(_TUPLES[opcode])
        elif opcode in _BINARY_INDEX:
            self._memo(opcode in (pickle.BINPUT, pickle.LONG_BINPUT), self._number(_BINARY_INDEX[opcode]))
        else:
            self._handler(opcode)(self)

    def _handler(self, opcode: bytes) -> Any:
        return _HANDLERS.get(opcode) or _refuse(opcode)

    def _lookup(self, name: str) -> Any:
        """What a name of the file stands for: a function, or None for an argument. Raises KeyError where it is refused."""
        return _NAMES[name]

    # reading: a length is compared with what is left of the file before anything of that length is made

    def _read(self, count: int) -> bytes:
        if not 0 <= count <= self.left:
            raise Refused(f"the end of the file, {self.left} bytes on, where {count} more bytes were announced")
        data = self.file.read(count)
        self.left -= count
        if len(data) != count:
            raise Refused("the file became shorter while it was read")
        return data

    def _line(self, limit: int) -> bytes:
        line = self.file.readline(min(limit + 1, self.left))
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise Refused("an unfinished line")
        return line[:-1].rstrip(b"\r")

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._read(struct.calcsize(layout)))[0]

    def _counted(self, layout: str) -> bytes:
        return self._read(self._number(layout))

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _collect(self, kind: type) -> None:
        items = self._pop_mark()  # first: it also puts back the stack that the collection goes to
        self.stack.append(kind(items))

    def _tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _memo(self, put: bool, index: int) -> None:
        if put:
            self.memo[index] = self.stack[-1]
        else:
            self.stack.append(self.memo[index])

    # opcodes

    def _frame(self) -> None:
        size = self._number("<Q")
        if size > self.left:
            raise Refused(f"a frame of {size} bytes where {self.left} are left")

    def _mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _int(self) -> None:
        line = self._line(_DIGITS)
        self.stack.append(line == b"01" if line in (b"00", b"01") else int(line))  # Python 2's way to write booleans

    def _long(self) -> None:
        self.stack.append(int(self._line(_DIGITS).rstrip(b"L")))

    def _long_binary(self, layout: str) -> None:
        count = self._number(layout)
        if not 0 <= count <= 16:
            raise Refused(f"an integer of {count} bytes")
        self.stack.append(int.from_bytes(self._read(count), "little", signed=True))

    def _float(self) -> None:
        self.stack.append(float(self._line(_DIGITS)))

    def _string(self) -> None:
        line = self._line(self.left)
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise Refused("a string without quotes")
        self.stack.append(codecs.escape_decode(line[1:-1])[0])

    def _unicode(self) -> None:
        self.stack.append(self._line(self.left).decode("raw-unicode-escape"))

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise Refused(f"elements appended to {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _global(self) -> None:
        self._find(*(self._line(200).decode("latin1") for _ in range(2)))

    def _stack_global(self) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        self._find(module, attribute)

    def _find(self, module: Any, attribute: Any) -> None:
        name = f"{module}.{attribute}" if isinstance(module, str) and isinstance(attribute, str) else ""
        try:
            call = self._lookup(name)
        except KeyError:
            raise Refused(f"it asks for {_short(name)[1:-1]}, which is not plain data and was not run") from None
        self.stack.append(_Name(name, call))

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or function.call is None or not isinstance(arguments, tuple):
            raise Refused("a call of something that is not a function")
        self._count(arguments)
        self.stack.append(function.call(*arguments))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(state, tuple) or not isinstance(target, (_Dtype, np.ndarray)):
            raise Refused(f"a state for {type(target).__name__}")
        self._count(state)
        target.build(state) if isinstance(target, _Dtype) else _fill(target, state)

    def _count(self, arguments: tuple) -> None:
        """One long string or list of the file, named again and again, must not become many long copies (short ones are
        bounded anyway).
        """
        sizes = [len(argument) for argument in arguments if isinstance(argument, (str, bytes, bytearray))]
        sizes += [8 * len(argument) for argument in arguments if isinstance(argument, list)]  # pointers
        self.made += sum(size for size in sizes if size > 64)
        if self.made > _EXPANSION * self.size:
            raise Refused("more bytes than a file of this size can hold")


def _refuse(opcode: bytes) -> Any:
    names = {value: name for name, value in vars(pickle).items() if name in pickle.__all__ and isinstance(value, bytes)}
    raise Refused(f"opcode {names.get(opcode, ascii(opcode))}, which plain data does not need")


_HANDLERS = {
    pickle.PROTO: lambda self: self._read(1), pickle.FRAME: PlainUnpickler._frame, pickle.MARK: PlainUnpickler._mark,
    pickle.POP: lambda self: self.stack.pop(), pickle.POP_MARK: PlainUnpickler._pop_mark,
    pickle.DUP: lambda self: self.stack.append(self.stack[-1]),
    pickle.INT: PlainUnpickler._int, pickle.LONG: PlainUnpickler._long, pickle.FLOAT: PlainUnpickler._float,
    pickle.LONG1: lambda self: self._long_binary("<B"), pickle.LONG4: lambda self: self._long_binary("<i"),
    pickle.STRING: PlainUnpickler._string, pickle.UNICODE: PlainUnpickler._unicode,
    pickle.EMPTY_LIST: lambda self: self.stack.append([]), pickle.APPEND: PlainUnpickler._append,
    pickle.APPENDS: lambda self: self._extend(self._pop_mark()), pickle.LIST: lambda self: self._collect(list),
    pickle.TUPLE: lambda self: self._collect(tuple), pickle.MEMOIZE: lambda self: self._memo(True, len(self.memo)),
    pickle.PUT: lambda self: self._memo(True, int(self._line(_DIGITS))),
    pickle.GET: lambda self: self._memo(False, int(self._line(_DIGITS))),
    pickle.GLOBAL: PlainUnpickler._global, pickle.STACK_GLOBAL: PlainUnpickler._stack_global,
    pickle.REDUCE: PlainUnpickler._reduce, pickle.BUILD: PlainUnpickler._build,
}
