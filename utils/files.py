"""Files that are either whole or not there: atomic writing and fingerprints; what is in a folder, and what a file is."""
import argparse
import codecs
import contextlib
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

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


# what systems and tools put into folders by themselves, in small letters; names that begin with a dot are theirs as well
_LEFT_BY_TOOLS = {"__macosx", "@eadir", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "$recycle.bin",
                  "system volume information", "lost+found", "lost.dir", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
                  "icon\r", "__pycache__"}


def is_left_by_tools(name: str) -> bool:
    """Whether a file or folder of that name is none of the user's: .DS_Store, ._lfw.bin, .ipynb_checkpoints, __MACOSX, Thumbs.db, ..."""
    return name.startswith((".", "~$")) or name.casefold() in _LEFT_BY_TOOLS


def found_in(folder: str | os.PathLike[str], pattern: str) -> list[Path]:
    """What matches a pattern in a folder ("*.bin", "*/summary.json"), sorted, without what tools left there (`is_left_by_tools`)."""
    folder = Path(folder)
    return sorted(path for path in folder.glob(pattern) if not any(map(is_left_by_tools, path.relative_to(folder).parts)))


def folders_in(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the folders in a folder, sorted, without those that tools left there. Raises OSError where it is none."""
    return sorted(entry.name for entry in os.scandir(folder) if not is_left_by_tools(entry.name) and entry.is_dir())


def files_under(folder: str | os.PathLike[str], endings: tuple[str, ...]) -> list[str]:
    """The paths of the files with these endings (small letters) in a folder and those inside it, by folder and name.

    What tools left there is no file of it. Links to folders are not followed: there may be no end to them.
    """
    paths = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_left_by_tools(name)]
        paths += [(place, name) for name in files if name.lower().endswith(endings) and not is_left_by_tools(name)]
    return [os.path.join(place, name) for place, name in sorted(paths)]


_KINDS = (
    (rb"version https://git-lfs\.github\.com/", "a pointer of Git LFS: `git lfs pull` fetches the file itself"),
    (rb"\s*(?i:<!doctype html|<html|<head|<script)", "an HTML page: the download gave a web page in its place"),
    (rb"\s*(?i:<\?xml|<error)", "an XML text: the download may have given an answer in its place"),
    (rb"\xff\xd8\xff", "a JPEG"), (rb"\x89PNG\r\n\x1a\n", "a PNG"), (rb"GIF8[79]a", "a GIF"), (rb"RIFF....WEBP", "a WebP"),
    (rb"II\*\0|MM\0\*", "a TIFF"), (rb"....ftyp(?:hei|hev|mif1|avif)", "a HEIF or AVIF image"),
    (rb"BM.{4}\0\0\0\0", "a BMP"), (rb"\x1f\x8b", "a gzip archive: gunzip unpacks it"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive"), (rb"Rar!\x1a\x07", "a RAR archive"), (rb"BZh[1-9]", "a bzip2 archive"),
    (rb"\xfd7zXZ\0", "an xz archive"), (rb"\x28\xb5\x2f\xfd", "a zstd archive"),
    (rb"PK\x03\x04|PK\x05\x06", "a zip archive, as .pt and .npz files are"),
    (rb".{257}ustar", "a tar archive"), (rb"\x93NUMPY", "an array of numpy (.npy)"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file"), (rb"\x0a\x23\xd7\xce", "a RecordIO file"),
    (rb"\0\x05\x16[\0\x07]", "what macOS keeps beside a file (AppleDouble)"), (rb"%PDF", "a PDF"), (rb"\s*[{\[]\s*[\"{\[]", "a JSON text"))

TEXT = "a text"


def kind_of(start: bytes) -> str:
    """What a file with this beginning (300 bytes are enough) seems to be; "" where that cannot be said."""
    return _signature(start[:300]) or (TEXT if _is_text(start[:300]) else "" if start else "an empty file, of 0 bytes")


def _signature(start: bytes) -> str:
    if not start.strip(b"\0"):
        return "zeros, as a download or a copy that broke off leaves them" if start else ""
    return next((kind for pattern, kind in _KINDS if re.match(pattern, start, re.DOTALL)), "")


def _is_text(start: bytes) -> bool:
    """Whether it is text that people wrote; pickles of the oldest kind are text as well, and begin with a bracket or a name."""
    if len(start) < 8 or re.match(rb"\(|c[\w.]+\n", start):
        return False
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # which may end within a character
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\t\r\n" for char in text)


def is_a(start: bytes) -> str:
    """What bytes that begin so are, as a remark for a message, " (a JPEG)"; "" for text, which the message shows itself."""
    kind = _signature(start[:300])
    return f" ({kind})" if kind else ""


def at_home(value: Any) -> Any:
    """A path that begins with ~/ or ~name/ with the home folder that a shell would have put there; other values as they are."""
    text = os.fspath(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text.startswith("~") or "/" not in text and text != "~":
        return value
    return type(value)(os.path.expanduser(text)) if isinstance(value, Path) else os.path.expanduser(text)


def with_homes(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments of a command line with `at_home` of each, and of each element of a list."""
    for name, value in vars(args).items():
        setattr(args, name, [at_home(item) for item in value] if isinstance(value, list) else at_home(value))
    return args


def text_of(data: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 where it begins with the mark of that; a mark is no part of it. Raises nothing."""
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="replace")


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
        raise InputError(f"{path}: not a regular file{', but a folder' * stat.S_ISDIR(status.st_mode)}")
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


def write_csv(path: str | os.PathLike[str], table: Any) -> None:
    """Write a pandas table without its index, whole or not at all. Floats are written by repr: reading gives the same numbers back."""
    with atomic_write(path) as file:
        table.to_csv(file, index=False, lineterminator="\n")


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
