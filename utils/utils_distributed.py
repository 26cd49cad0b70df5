"""One process or many: the few collective operations that training and evaluation need, each a no-op in a single process."""
import contextlib
import os
from typing import Any, Iterator, Optional

import torch
import torch.distributed as dist

from utils import InputError


def world_size() -> int:
    """Number of processes of the run; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_gather_interleaved(values: torch.Tensor) -> torch.Tensor:
    """Concatenate [B, ...] of every rank to [world * B, ...], without gradient.

    Row k of rank r becomes row k * world + r: the order in which a single process would have seen the samples, because the sampler
    deals them out to the ranks in turn. Every rank must hold the same B.
    """
    values = values.detach()
    if world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def gather_objects(value: Any) -> list:
    """The picklable `value` of every rank, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def process_group(device: Optional[str] = None) -> Iterator[torch.device]:
    """Join the processes that torchrun started (nccl on CUDA, gloo on the CPU) and yield this process's device.

    device: "cpu", "cuda", "cuda:1" ...; None: CUDA where there is one. Without torchrun nothing is joined. Raises InputError for a
    device that is not there.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    chosen = _device(device, local)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if "WORLD_SIZE" not in os.environ:
        yield chosen
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", device_id=chosen if chosen.type == "cuda" else None)
    try:
        yield chosen
    finally:
        dist.destroy_process_group()


def _device(name: Optional[str], local_rank: int) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"device {name!r}: expected cpu, cuda or cuda:N") from error
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device}: there are {torch.cuda.device_count()} CUDA devices")
    return device
