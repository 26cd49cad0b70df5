"""An index of tens of millions of entries: one to open, and what that takes.

    python tests/benchmarks/large_index.py FOLDER      opens the one there; prints [seconds, CPU seconds, MiB, KiB] as `opened` has them
"""
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
from memory import memory  # noqa: E402


def write(folder: Path, count: int, shuffled: bool, block: int = 2**18) -> None:
    """train.idx of `count` records of 8 to 16 kB, their keys in order or shuffled, as im2rec has those of a shuffled list; and a train.rec of
    that length, all of it a hole."""
    numbers, position = np.random.default_rng(0), 0
    keys = numbers.permutation(count) if shuffled else np.arange(count)
    with open(folder / "train.idx", "w") as file:
        for start in range(0, count, block):
            part = keys[start:start + block]
            ends = position + np.cumsum(4 * numbers.integers(2000, 4000, len(part)))
            file.writelines(map("%d\t%d\n".__mod__, zip(part.tolist(), [position, *ends[:-1].tolist()])))
            position = int(ends[-1])
    with open(folder / "train.rec", "wb") as file:
        file.truncate(position)


def opened(folder: str) -> tuple[float, float, float, float]:
    """(seconds and CPU seconds of opening an index, MiB of this process at their peak, KiB of a spawned worker's pickle of it)."""
    from multiprocessing import context
    from multiprocessing.reduction import ForkingPickler
    from types import SimpleNamespace

    import datasets  # noqa: F401  what training has in memory as well
    from utils.recordio import IndexedRecordFile
    started, cpu = time.perf_counter(), time.process_time()
    file = IndexedRecordFile(f"{folder}/train.rec", f"{folder}/train.idx")
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = memory("VmHWM")
    context.set_spawning_popen(SimpleNamespace(duplicate_for_child=lambda descriptor: descriptor, DupFd=int))
    sent = len(ForkingPickler.dumps(file))
    context.set_spawning_popen(None)
    return seconds, cpu, peak / 2**20, sent / 2**10


if __name__ == "__main__":
    print(json.dumps(opened(sys.argv[1])))
