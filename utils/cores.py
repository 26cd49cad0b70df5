"""How many cores this process may use, and how many threads and workers that is enough for.

Import it ahead of torch, whose thread library reads at its start whether threads that wait give their core away. Those that spin
instead hold up the ones that are waited for where other programs want the same cores: training of sllnet_small beside other jobs on two
cores went from 21 images/s to 3.
"""
import os
from pathlib import Path

from utils.faults.launch import launch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may use: by its affinity (taskset, SLURM), and by the quota of its container; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _quota())))


def workers(wanted: "int | None") -> int:
    """Decoding processes of this training process: as asked for, or one per core that is left over, at most 8."""
    return max(0, min(8, usable_cores() // launch().local_world_size - 1)) if wanted is None else wanted


def limit_threads() -> None:
    """Give torch no more threads than this process has cores for, beside the others of the same start.

    OMP_NUM_THREADS, which torchrun sets as well, holds where it is set. There are never more than before.
    """
    import torch
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), max(1, usable_cores() // launch().local_world_size)))


def oversubscribed(num_workers: int) -> "str | None":
    """A remark where this start, or this machine, has more to do than it has cores for."""
    import torch
    cores, processes, threads = usable_cores(), launch().local_world_size, torch.get_num_threads()
    wanted, load = processes * (threads + num_workers), _load()
    if wanted > cores + processes:  # a worker waits for its training process as often as that waits for it
        return (f"{processes} processes with {threads} threads and {num_workers} workers each on {cores} cores: OMP_NUM_THREADS="
                f"{max(1, cores // processes)} and num_workers={workers(None)} would be enough")
    if load + 1 > 1.5 * cores and load >= 1:
        return f"other programs are busy on these {cores} cores (load {load:.1f}): this one is slower than it would be alone"
    return None


def _load() -> float:
    """What else ran in the last minute, on average, of the cores of the machine, scaled to those of this process."""
    try:
        return os.getloadavg()[0] * usable_cores() / (os.cpu_count() or 1)
    except (OSError, AttributeError):
        return 0.0


def _quota() -> float:
    """The cores that control groups grant, the strictest of this process's group and of those around it; infinite without a limit."""
    found = [float("inf")]
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers == "":  # version 2
            root, of = _CGROUPS, _quota_of_2
        elif "cpu" in controllers.split(","):
            root, of = _CGROUPS / "cpu", _quota_of_1
        else:
            continue
        inner = root / path.lstrip("/")
        found += [of(folder) for folder in (inner, *inner.parents) if folder == root or root in folder.parents]
    return min(found)


def _quota_of_2(folder: Path) -> float:
    return _share(_read(folder / "cpu.max").split())


def _quota_of_1(folder: Path) -> float:
    return _share([_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()])


def _share(words: "list[str]") -> float:
    """Quota and period in microseconds, as words; "max" and -1 are no limit."""
    if len(words) != 2 or not all(word.isdecimal() for word in words) or not int(words[1]):
        return float("inf")
    return int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeError):
        return ""
