"""What a machine is short of: told from errors of many kinds, with what can be done about it."""
import os
import re
import shutil
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

_KINDS = {
    "shared memory": r"shared memory|\bshm\b|shm_open|</torch_|Bus error",
    "open files": r"too many open files|errno 24\b|ancdata|ulimit -n",
    "processes": r"can't start new thread|resource temporarily unavailable|errno 11\b",
    "memory": r"cannot allocate memory|out of memory|can't allocate memory|not enough memory|errno 12\b|bad_alloc|signal: killed|"
              "MemoryError"}
_PATTERNS = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in _KINDS.items()}
KINDS = tuple(_KINDS)
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def shortage(error: BaseException) -> str | None:
    """Which of KINDS an error is about, None for others. Libraries raise RuntimeError and OSError for all of them."""
    if isinstance(error, MemoryError):
        return "memory"
    text = f"{error} {getattr(error, 'strerror', None) or ''}"
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(text)), None)


def advice(kind: str) -> str:
    """What is short, how much of it there is, and what helps, for the end of a message."""
    if kind == "shared memory":
        return (f"shared memory is short{_size_of_shm()}: give more of it (docker run --shm-size=8g), or load data in fewer processes or "
                "none (num_workers=0, --num-workers 0)")
    if kind == "open files":
        limit = f", of which {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} are allowed" if resource else ""
        return (f"too many open files{limit}: allow more (ulimit -n 65536), or load data in fewer processes or none (num_workers=0, "
                "--num-workers 0)")
    if kind == "processes":
        return ("no further process or thread could be started: allow more (ulimit -u), or load data in fewer processes (num_workers, "
                "--num-workers)")
    return ("memory is short: load data in fewer processes (num_workers, --num-workers), or take smaller batches (batch_size and "
            "grad_accum_steps, --batch-size)")


def _size_of_shm() -> str:
    if not os.path.isdir("/dev/shm"):
        return ""
    usage = shutil.disk_usage("/dev/shm")
    return f" (/dev/shm: {usage.free >> 20} of {usage.total >> 20} MB are free)"


def free_memory() -> "int | None":
    """Bytes that this process can still take: of the machine, and of its container where that has a limit. None where nothing says so."""
    available = re.search(r"^MemAvailable: +(\d+) kB", _text(_MEMINFO), re.MULTILINE)
    found = [int(available[1]) << 10] if available else []
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        numbers = [_text(_CGROUP / name).strip() for name in (limit, used)]
        # files that were read are kept in memory, and counted, until something else needs it
        cached = re.search(r"^(?:total_)?inactive_file (\d+)", _text((_CGROUP / limit).parent / "memory.stat"), re.MULTILINE)
        if all(map(str.isdecimal, numbers)):
            found.append(max(0, int(numbers[0]) - int(numbers[1]) + (int(cached[1]) if cached else 0)))
    return min(found, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeError):
        return ""
