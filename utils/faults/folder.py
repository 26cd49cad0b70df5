"""Who writes to a folder: one run at a time, and which of its processes see what the first one writes there."""
import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from utils import InputError
from utils.distributed import gather_objects, rank, world_size
from utils.faults.launch import restarts
from utils.faults.machines import where

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOGGER = logging.getLogger("training")
NAME = ".lock"
LEASE = 120.0  # seconds for which a file server may keep the lock of a machine that is gone; NFSv4 does for 90 by default
PATIENCE = 10.0  # seconds until a file that one machine wrote is seen by another, of which a network file system may need a few
_held: dict[Path, bool] = {}  # folders of this process; whether no other process can have them


def is_owned(folder: "str | os.PathLike[str]") -> bool:
    """Whether this process is inside `owned` of that folder, on a file system that has locks."""
    return _held.get(Path(folder).resolve(), False)


@contextlib.contextmanager
def owned(folder: "str | os.PathLike[str]", name: str = NAME, shared: bool = False) -> Iterator[None]:
    """Inside, no other run that asks for it has the folder, which is made where it is missing. All ranks call it; the first one holds it.

    It is held by a lock of the operating system on the file `name` in it, which ends with the process, however that ends, and not with
    the processes that load its data. Where torchrun starts a job anew, the lock may be that of the start before, on a machine that is gone:
    it is waited for, LEASE seconds at most. Where a file system has no locks a warning says so. shared: whether all ranks must see the
    same folder. Raises InputError, on all ranks, where another run has the folder, it cannot be written or, with `shared`, is not that of
    all ranks. Leaves nothing behind in a folder that stayed empty. Entered once more inside, it changes nothing.
    """
    folder = Path(folder)
    key = folder.resolve() / name if name != NAME else folder.resolve()
    if key in _held:
        yield
        return
    word, error, made, file, mine = uuid.uuid4().hex, None, [], None, rank() == 0
    if mine:
        try:
            made = _make(folder)
            file = _locked(folder, name, word)
        except (InputError, OSError) as caught:
            error = str(caught)
    try:
        error, word = gather_objects((error, word))[0]
        if error:
            raise InputError(error if mine else f"process {rank()} stops with another one: {error}")
        if shared and world_size() > 1:
            _require_shared(folder, name, word)
        _held[key] = file is not None and name == NAME
        yield
    finally:
        _held.pop(key, None)
        if mine and not error:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        if file is not None:
            file.close()
        for each in made:
            with contextlib.suppress(OSError):  # it is not empty
                each.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make a folder; returns those that were missing, the innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _locked(folder: Path, name: str, word: str) -> IO | None:
    """The lock file, held by this process; None where the file system has no locks."""
    deadline = time.monotonic() + (LEASE if restarts() else 0)
    while True:
        file = open(folder / name, "a+", encoding="utf-8")  # noqa: SIM115 - it is what holds the lock
        try:
            locked = _lock(file, folder)
        except InputError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)
            continue
        if not locked:
            file.close()
            (folder / name).write_text(f"{word}\n", encoding="utf-8")
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / name)):
                break
        file.close()  # its former owner removed it in between
    file.truncate(0)
    file.write(f"{word}\nprocess {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _lock(file: IO, folder: Path) -> bool:
    """Whether it is locked now. A record lock, unlike flock, is not handed on to processes that load data, which may outlive this one."""
    try:
        if fcntl is None:
            raise OSError("no locks on this system")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = " ".join(file.read(1000).split("\n")[1:]).strip()
        file.close()
        raise InputError(f"{folder}: another run is writing there{f' ({owner})' if owner else ''}: wait for its end, or give another "
                         "folder") from None
    except OSError as error:
        LOGGER.warning("%s: cannot be locked (%s): see to it that no other run writes there", folder, error.strerror or error)
        return False
    return True


def _require_shared(folder: Path, name: str, word: str) -> None:
    seen = rank() == 0 or _sees(folder, name, word)
    found = gather_objects((seen, where(folder)))
    lacking = [f"process {number} has {place}" for number, (seen, place) in enumerate(found) if not seen]
    if lacking:
        raise InputError(f"{folder}: expected a folder that all processes share, but process 0 writes to {found[0][1]}, and "
                         f"{', '.join(lacking[:4])}{', ...' if len(lacking) > 4 else ''}")


def _sees(folder: Path, name: str, word: str) -> bool:
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError):
            os.listdir(folder)  # what a network file system remembers of the folder is looked at anew
            if (folder / name).read_text(encoding="utf-8", errors="replace").startswith(word):
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
