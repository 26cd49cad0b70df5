"""Several processes of one machine that work as the ranks of a group."""
import gc

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils.distributed import leave_group


def in_processes(work, folder, world):
    """Call work(rank, folder), a function of a module, in `world` new processes; what they find they leave in the folder."""
    torch.multiprocessing.spawn(_member, (work, folder, world), nprocs=world)


def _member(rank, work, folder, world):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store{world}", rank=rank, world_size=world)
    work(rank, folder)
    leave_group()
    assert not any(isinstance(each, DistributedDataParallel) for each in gc.get_objects()), "a module that keeps the group's threads alive"
