"""One process or many: the few collective operations that training and evaluation need, each a no-op in a single process."""
import contextlib
import datetime
import os
import re
import time
import uuid
from typing import Any, Iterator, Optional, Sequence

import torch
import torch.distributed as dist

from utils import InputError, RunError

TIMEOUT = 1800  # seconds
# what gloo, nccl and the store that joins them say when a process has gone or does not answer
_LOST = re.compile(r"\b(gloo|nccl|c10d|\w*store|socket)\b|processgroup|connection|timed out|timeout|broken pipe", re.IGNORECASE)


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


def sums_over_ranks(values: Sequence[int]) -> list[int]:
    """The sum over all ranks of each of a few integers. Goes through the CPU: no device is waited for."""
    sums = torch.tensor(values, dtype=torch.int64)
    if world_size() > 1:
        dist.all_reduce(sums)
    return sums.tolist()


@contextlib.contextmanager
def process_group(device: Optional[str] = None, timeout: float = TIMEOUT) -> Iterator[torch.device]:
    """Join the processes that torchrun started (nccl for CUDA, gloo for the CPU) and yield this process's device.

    device: "cpu", "cuda", "cuda:1" ...; None: CUDA where there is one. Without torchrun nothing is joined. Raises InputError for a
    device that is not there, and RunError where another process ended or did not answer within `timeout` seconds.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    chosen = _device(device, local)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if "WORLD_SIZE" not in os.environ:
        yield chosen
        return
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=timeout)))
        # gloo beside nccl: what is in the memory of the CPU is exchanged without waiting for a device
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", store=_of_this_start(store, number, count, timeout),
                                rank=number, world_size=count, device_id=chosen if chosen.type == "cuda" else None,
                                timeout=datetime.timedelta(seconds=timeout))
        try:
            yield chosen
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        raise_for_lost_process(error, timeout)
        raise


def raise_for_lost_process(error: RuntimeError, timeout: float = TIMEOUT) -> None:
    """Raise RunError instead of what a collective operation raises where another process ended or does not answer; return for others."""
    first = str(error).strip().split("\n")[0]
    if not isinstance(error, (RunError, torch.OutOfMemoryError)) and _LOST.search(first):
        raise RunError(f"process {os.environ.get('RANK', 0)}: another process ended, or did not answer within {timeout:g} seconds: "
                       f"{first}") from error


def _of_this_start(store: dist.Store, number: int, count: int, timeout: float) -> dist.Store:
    """A part of the store that the processes of this very start have to themselves.

    torchrun keeps one store through all its restarts, and what the killed processes left in it, their addresses, must not be found by
    those that follow. Process 0 gives this start a name and waits until each of the others has left a word under it; they know by
    their own word in its answer that it is not that of an earlier start.
    """
    word, deadline, seen = uuid.uuid4().hex, time.monotonic() + timeout, ""
    if number == 0:
        store.set("start", word)
        words = [store.get(f"{word}/{other}").decode() for other in range(1, count)]
        store.set(f"{word}/all", " ".join(words))
        return dist.PrefixStore(word, store)
    while time.monotonic() < deadline:
        start = store.get("start").decode()
        if start != seen:
            store.set(f"{start}/{number}", word)
        if store.check([f"{start}/all"]) and word in store.get(f"{start}/all").decode():
            return dist.PrefixStore(start, store)
        seen = start
        time.sleep(0.02)
    raise RunError(f"process {number}: process 0 did not answer within {timeout:g} seconds")


def _device(name: Optional[str], local_rank: int) -> torch.device:
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
