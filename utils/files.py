"""Files that are either whole or not there: atomic writing and fingerprints."""
import contextlib
import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import IO, Iterator

from utils import InputError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside `path` that takes its name only once everything was written.

    mode: "w" (UTF-8 text) or "wb". The folder is made where it is missing. Where the body raises, `path` keeps its former content
    and the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner may read
        # names of files may be no text: they are written as messages show them
        text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
        with os.fdopen(handle, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the name must not reach the disk before the content
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _sync_folder(folder: Path) -> None:
    """A new name is on the disk only once its folder is; where folders cannot be opened (Windows), nothing can be done about it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_unfinished(folder: str | os.PathLike[str], names: str) -> None:
    """Remove what `atomic_write` left behind in processes that were killed: temporary files of names that match the pattern."""
    for path in Path(folder).glob(f".{names}.*.tmp"):
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_file(path: str | os.PathLike[str]) -> int:
    """The size of a regular file in bytes.

    Raises OSError where there is nothing, and InputError where there is something else: a pipe would never end.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: not a regular file")
    return status.st_size


def read_file(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises as `require_file`, and InputError for a longer one."""
    size = require_file(path)
    if size > most:
        raise InputError(f"{path}: {size} bytes, expected at most {most}")
    with open(path, "rb") as file:
        return file.read(most)


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits. Raises as `require_file`."""
    require_file(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write plain data as indented JSON, whole or not at all. Raises ValueError for NaN and infinities, which JSON has not."""
    with atomic_write(path) as file:
        json.dump(content, file, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: str | os.PathLike[str], most: int = 2**20) -> object:
    """What a JSON file of at most `most` bytes holds. Raises as `read_file`, and InputError where it is not JSON."""
    try:
        return json.loads(read_file(path, most))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
