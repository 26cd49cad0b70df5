"""One process or many: the few collective operations that training and evaluation need, each a no-op in a single process."""
import contextlib
import datetime
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from utils import InputError
from utils.cores import limit_threads
from utils.faults.launch import launch
from utils.faults.rendezvous import TIMEOUT, of_this_start, raise_for_lost_process


def world_size() -> int:
    """Number of processes of the run; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def per_rank(count: int) -> int:
    """Of so many things that are dealt out to the ranks, how many one of them has at most."""
    return -(-count // world_size())


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


def all_gather_with_gradient(values: torch.Tensor) -> torch.Tensor:
    """As `all_gather_interleaved`, with a gradient: each rank gets the sum over all ranks of the gradients of its own rows.

    All ranks take part in the backward pass. DDP averages over ranks, so the gradient of the parameters is that of the mean over ranks of
    what they computed from the rows.
    """
    return values if world_size() == 1 else _Gathered.apply(values)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return all_gather_interleaved(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _reduced(gradient, dist.ReduceOp.SUM)[rank()::world_size()]


def sum_with_gradient(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, of the same shape on each, with a gradient: each rank gets the sum of the gradients of all ranks."""
    return values if world_size() == 1 else _Summed.apply(values)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return _reduced(values, dist.ReduceOp.SUM)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _reduced(gradient, dist.ReduceOp.SUM)


def averaged_gradient(values: torch.Tensor) -> torch.Tensor:
    """The same values, whose gradient is divided by the number of ranks, as DDP does with that of what all ranks hold."""
    return values if world_size() == 1 else _Averaged.apply(values)


class _Averaged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / world_size()


def largest_of_ranks(values: torch.Tensor) -> torch.Tensor:
    """The largest over all ranks, entry by entry, without gradient."""
    return values.detach() if world_size() == 1 else _reduced(values.detach(), dist.ReduceOp.MAX)


@torch.no_grad()
def buffers_of_first_rank(module: nn.Module) -> None:
    """Give the floating-point buffers of a module, such as running means, the values that they have on rank 0."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if world_size() == 1 or not buffers:
        return
    together = torch.cat([buffer.flatten() for buffer in buffers])
    dist.broadcast(together, 0)
    for buffer, values in zip(buffers, together.split([buffer.numel() for buffer in buffers])):
        buffer.copy_(values.view_as(buffer))


def _reduced(values: torch.Tensor, how: Any) -> torch.Tensor:
    values = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(values, how)
    return values


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


def from_first_rank(make: Callable[[], Any]) -> Any:
    """What `make` returns on rank 0, on every rank. InputError and OSError that it raises there are raised, as InputError, on all."""
    value, error = None, None
    if rank() == 0:
        try:
            value = make()
        except (InputError, OSError) as caught:
            if world_size() == 1:
                raise
            error = caught
    value, reason = gather_objects((value, error and str(error)))[0]
    if reason:
        raise InputError(reason if rank() == 0 else f"process {rank()} stops with process 0: {reason}") from error
    return value


def sums_over_ranks(values: Sequence[int]) -> list[int]:
    """The sum over all ranks of each of a few integers. Goes through the CPU: no device is waited for."""
    sums = torch.tensor(values, dtype=torch.int64)
    if world_size() > 1:
        dist.all_reduce(sums)
    return sums.tolist()


def distribute(module: nn.Module, parts: int = 1) -> nn.Module:
    """The module under DDP where there are several processes and anything to train in common; it is run `parts` times a step."""
    if world_size() == 1 or getattr(module, "shard", None) or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True, static_graph=parts == 1)


def undistributed(module: nn.Module) -> nn.Module:
    """The module that DDP holds, or the module itself."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def locally(module: nn.Module) -> contextlib.AbstractContextManager:
    """Inside, backward passes add up gradients on this rank without averaging them over the ranks."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()


@contextlib.contextmanager
def process_group(device: str | None = None, timeout: float = TIMEOUT) -> Iterator[torch.device]:
    """Join the processes that torchrun started (nccl for CUDA, gloo for the CPU) and yield this process's device.

    device: "cpu", "cuda", "cuda:1" ...; None: CUDA where there is one. Without torchrun nothing is joined. Raises InputError for a
    device that is not there and for an environment that cannot be used (`launch`), and RunError where another process ended or did not
    answer within `timeout` seconds.
    """
    start = launch()
    limit_threads()
    chosen = _device(device, start.local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not start.grouped:
        yield chosen
        return
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=timeout)))
        # gloo beside nccl: what is in the memory of the CPU is exchanged without waiting for a device
        store = of_this_start(store, number, count, timeout)
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", store=store, rank=number, world_size=count,
                                device_id=chosen if chosen.type == "cuda" else None,
                                timeout=datetime.timedelta(seconds=timeout))
        try:
            yield chosen
        except BaseException:
            dist.destroy_process_group()  # at once: torchrun is about to stop this process as well, which has something to say
            raise
        leave_group()
    except RuntimeError as error:
        raise_for_lost_process(error, timeout)
        raise


def leave_group() -> None:
    """Leave the process group, whose threads end here.

    A module under DDP holds the group: while one is there, if only in a cycle, the group's threads run on, and one that lets go of a
    tensor while the interpreter ends aborts the process ("terminate called without an active exception").
    """
    gc.collect()
    dist.destroy_process_group()


def _device(name: str | None, local_rank: int) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"device {name!r}: expected cpu, cuda or cuda:N") from error
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device}: there are {torch.cuda.device_count()} CUDA devices")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # of a kind that this build of PyTorch is without
        raise InputError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    return device
