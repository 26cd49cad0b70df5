"""Processes on several machines, of which one may have files that another lacks: said at the start, or sent there."""
import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from utils import InputError
from utils.distributed import gather_objects, rank, world_size

_PART = 2**26  # bytes that are sent at a time


def where(path: "str | os.PathLike[str]") -> str:
    """How messages tell files of the same name on different machines from each other."""
    return f"{Path(path).resolve()} on {socket.gethostname()}"


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Where the body raises InputError or OSError on one rank, all ranks raise InputError; the body must not talk to other ranks."""
    error = None
    try:
        yield
    except (InputError, OSError) as caught:
        if world_size() == 1:
            raise
        error = caught
    reasons = gather_objects(None if error is None else str(error))
    if error is not None:
        raise InputError(str(error)) from error
    number = next((number for number, reason in enumerate(reasons) if reason is not None), None)
    if number is not None:
        raise InputError(f"process {rank()} stops with process {number}: {reasons[number]}")


def require_agreement(values: Mapping[str, Any]) -> None:
    """Raise InputError, naming key, process and machine, unless these values are those of all ranks."""
    mine = {key: repr(value) for key, value in values.items()}
    others = gather_objects((socket.gethostname(), mine))
    first_host, first = others[0]
    for number, (host, found) in enumerate(others):
        if different := [key for key in {**first, **found} if first.get(key) != found.get(key)]:
            key = different[0]
            raise InputError(f"{', '.join(different[:5])} of process {number} on {host} differ from those of process 0 on {first_host}: "
                             f"{key} is {str(found.get(key))[:100]}, not {str(first.get(key))[:100]}")


@contextlib.contextmanager
def file_of_first_rank(path: "str | os.PathLike[str]") -> Iterator[Path]:
    """A path at which each rank finds the file that rank 0 has at `path`: the same, or, where a rank sees it not, one of the same name with
    what rank 0 sent of it, which goes at the end. All ranks call it, once rank 0 has the file.
    """
    path = Path(path)
    facts = gather_objects(_facts(path))
    lacking = [mine != facts[0] for mine in facts]
    if facts[0] is None or not any(lacking):
        yield path
        return
    with contextlib.ExitStack() as stack:
        if lacking[rank()]:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
        file = stack.enter_context(open(path, "wb" if lacking[rank()] else "rb"))
        for start in range(0, facts[0][0], _PART):
            size = min(_PART, facts[0][0] - start)
            part = torch.frombuffer(bytearray(file.read(size)), dtype=torch.uint8) if rank() == 0 else torch.empty(size, dtype=torch.uint8)
            dist.broadcast(part, 0)
            if lacking[rank()]:
                file.write(part.numpy())
        file.close()
        yield path


def _facts(path: Path) -> "tuple[int, int] | None":
    """(size, time) of a file, None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
