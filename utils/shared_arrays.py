"""Arrays that processes share: one that is started anew maps the memory of the process that starts it, where a pickle would be a copy."""
import mmap
import os
import tempfile
from collections.abc import Callable
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import IO, Any

import numpy as np


class SharedArray:
    """A one-dimensional array; `array` has its values, to be asked for anew each time, as they move when they are first shared.

    Forked processes share it as they share everything. Pickled for a process that is being started ("spawn", "forkserver"), it moves, once,
    to memory without a name, and the pickle holds a descriptor of that, which needs no room in /dev/shm: the memory is free as soon as the
    last process that has it ends, in whatever way. From then on it is read-only. All other pickles, and copy.deepcopy, hold the values.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self.array)

    def __reduce__(self) -> tuple[Callable, tuple]:
        if os.name != "posix" or get_spawning_popen() is None or not len(self.array):
            return SharedArray, (np.array(self.array),)
        if self._file is None:
            file = os.fdopen(os.memfd_create("array"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()  # noqa: SIM115
            file.write(memoryview(np.ascontiguousarray(self.array)).cast("B"))
            file.flush()
            self._map(file, self.array.dtype.str)
        return _attached, (DupFd(self._file.fileno()), self.array.dtype.str)

    def _map(self, file: IO[bytes], dtype: str) -> None:
        self._file = file  # open for as long as this object lives, to be passed on
        self.array = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype)


def _attached(descriptor: Any, dtype: str) -> SharedArray:
    """What a process that was started makes of its pickle."""
    shared = SharedArray(np.empty(0, dtype))
    shared._map(os.fdopen(descriptor.detach(), "rb"), dtype)
    return shared
