"""Memory and bytes of a margin header on several processes: `python tests/benchmarks/header.py`, one line of JSON.

Each process makes two steps of CosFace and AdamW with embeddings that are drawn, a header that all hold (DDP) or that is dealt out
(--sharded). Bytes are those of the tensors that a process gives to collective operations in the second step, not what a backend makes of
them.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from memory import memory  # noqa: E402
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook  # noqa: E402

from headers import get_header  # noqa: E402
from losses import objective  # noqa: E402
from sharding import shard_of  # noqa: E402
from utils.distributed import distribute  # noqa: E402


class Sent:
    """Counts the bytes given to all_reduce and all_gather of torch.distributed."""

    def __init__(self) -> None:
        self.bytes = 0
        for name, place in (("all_reduce", 0), ("all_gather", 1)):  # of what is given, among the arguments
            setattr(dist, name, self._counting(getattr(dist, name), place))

    def _counting(self, plain: Any, place: int) -> Any:
        def counted(*args: Any, **kw: Any) -> Any:
            self.bytes += args[place].nbytes
            return plain(*args, **kw)
        return counted


def measure(rank: int, folder: str, world: int, sharded: bool, classes: int, size: int, batch: int) -> None:
    """Write what process `rank` needed to `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    before = memory("VmRSS")
    header = get_header("cosface", classes, size, shard=shard_of(classes, rank, world) if sharded else None)
    optimizer, classify = torch.optim.AdamW(header.parameters(), 1e-3), distribute(header)
    sent = Sent()
    if not sharded:
        classify.register_comm_hook(None, allreduce_hook)  # what DDP does without one, where it is counted
    for _ in range(2):
        sent.bytes = 0
        embeddings = torch.randn(batch // world, size, requires_grad=True)
        optimizer.zero_grad(set_to_none=True)
        objective(classify, embeddings, torch.randint(classes, (batch // world,)), 1.0, 3.0)[0].backward()
        optimizer.step()
    Path(folder, f"{rank}.json").write_text(json.dumps({"peak": memory("VmHWM") - before, "sent": sent.bytes}))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """The largest peak of a process, and the bytes that one sends in a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sharded", action="store_true")
    for name, default in (("processes", 4), ("classes", 10**6), ("size", 128), ("batch", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (folder, args.processes, args.sharded, args.classes, args.size, args.batch), nprocs=args.processes)
        found = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    print(json.dumps({key: max(values[key] for values in found) for key in ("peak", "sent")}))


if __name__ == "__main__":
    main()
