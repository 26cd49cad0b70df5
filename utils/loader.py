"""Batches of images that depend on (seed, epoch, sample) alone: not on how many processes load them, nor on where a run went on."""
import logging
import multiprocessing
import multiprocessing.queues
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from utils import InputError, RecordError
from utils.faults.resources import KINDS, advice, shortage
from utils.faults.signals import leave_to_the_parent
from utils.utils_distributed_sampler import DistributedSampler

LOGGER = logging.getLogger("training")
# so many records in a row that cannot be used are no bad records among good ones
MOST_BAD_IN_A_ROW = 100
# Seconds after which a DataLoader looks whether its workers live; with a longer timeout of its own it would not look before that is over.
LOOKING = 5.

_MASK = 2**64 - 1


def coin(seed: int, epoch: int, index: int) -> bool:
    """A fair coin for one sample in one epoch: the top bit of splitmix64 (Steele et al., 2014) chained over the three numbers.

    numpy's generators would do, but creating one costs a fifth of decoding an image.
    """
    state = 0
    for value in (seed, epoch, index):
        state = (state + value + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return bool(state >> 63)


class EpochBatches(Sampler):
    """Batches of (epoch, index) from a sampler. The epoch travels with the index, so that workers which are already running, or
    still busy with the epoch before, cannot draw the wrong coin.
    """

    def __init__(self, sampler: DistributedSampler, batch_size: int) -> None:
        self.sampler, self.batch_size = sampler, batch_size

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        indices, epoch = self.sampler.indices(), self.sampler.epoch
        for start in range(0, len(indices) - self.batch_size + 1, self.batch_size):
            yield [(epoch, index) for index in indices[start:start + self.batch_size].tolist()]


class BatchReader(Dataset):
    """Reads whole batches of a dataset of (uint8 [3, H, W], label), each image mirrored by its coin if `flip`.

    An InputError comes back as its message: raised in a worker, it would reach the training process wrapped in a traceback. With
    `skip` the next usable record stands in for a bad one, which does not depend on how many processes there are; the third part of
    a batch says which ones were bad, and why. Workers note in `reading` which sample each of them is at.
    """

    def __init__(self, dataset: Dataset, flip: bool, seed: int, skip: bool, num_workers: int) -> None:
        self.dataset, self.flip, self.seed, self.skip = dataset, flip, seed, skip
        self.reading = torch.full((max(1, num_workers), 3), -1)  # (process, sample, number of KINDS that was short) of each worker
        if num_workers:
            self.reading = shared(self.reading)

    def __getitems__(self, batch: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor, dict[str, str]] | str:
        worker, bad = get_worker_info(), {}
        here = self.reading[worker.id if worker else 0].numpy()
        here[0] = os.getpid()
        try:
            samples = [self._sample(epoch, index, here, bad) for epoch, index in batch]
            # decoders write the channels of a pixel side by side: stacking in that order is ten times faster than transposing; a worker
            # stacks in the memory that it shares with the training process, where the batch would have to be copied otherwise
            images = default_collate([image.permute(1, 2, 0) for image, _ in samples]).permute(0, 3, 1, 2)
            labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
            labels = labels if worker is None else shared(labels)
        except InputError as error:
            return str(error)
        except (RuntimeError, OSError, MemoryError) as error:
            if worker is None or (kind := shortage(error)) is None:
                raise
            return advice(kind)
        here[1] = -1
        return images, labels, bad

    def name(self, index: int) -> str:
        """How messages call a sample."""
        return self.dataset.name(index) if hasattr(self.dataset, "name") else f"sample {index}"

    def _sample(self, epoch: int, index: int, here, bad: dict[str, str]) -> tuple[torch.Tensor, int]:
        for place in range(index, index + MOST_BAD_IN_A_ROW):
            here[1] = place % len(self.dataset)
            try:
                image, label = self.dataset[place % len(self.dataset)]
            except RecordError as error:
                if not self.skip:
                    raise
                bad[self.name(place % len(self.dataset))] = str(error)
                continue
            mirrored = self.flip and coin(self.seed, epoch, index)
            return (image.flip(-1) if mirrored else image), label
        raise InputError(f"{MOST_BAD_IN_A_ROW} records in a row cannot be used, from {self.name(index)} on: {next(iter(bad.values()))}")


class Loader:
    """Iterates over (images uint8 [B, 3, H, W] in channels-last order, labels int64 [B]) on the CPU, for one epoch at a time.

    Made by `get_dataloader` of datasets.py. len() is the number of batches of a whole epoch. bad_records: what was left out so far, by
    name, and why. Raises InputError, with the message that a worker's dataset gave, where a sample cannot be read, and where a worker
    ends or takes longer than `timeout` seconds, naming the sample it was at.
    """

    def __init__(self, dataset: Dataset, sampler: DistributedSampler, batch_size: int, flip: bool, seed: int, num_workers: int,
                 prefetch_factor: int, pin_memory: bool, start_method: str | None, skip: bool, timeout: float) -> None:
        self.dataset, self.sampler, self.batch_size = dataset, sampler, batch_size
        self.bad_records: dict[str, str] = {}
        self._reader = BatchReader(dataset, flip, seed, skip, num_workers)
        self._timeout, self._waits = timeout, min(timeout, LOOKING)
        workers = dict(persistent_workers=True, prefetch_factor=prefetch_factor, multiprocessing_context=start_method, timeout=self._waits,
                       worker_init_fn=begin_worker)
        self._make = partial(DataLoader, self._reader, batch_sampler=EpochBatches(sampler, batch_size),
                             collate_fn=_as_it_is, num_workers=num_workers, pin_memory=pin_memory,
                             generator=torch.Generator(),  # or DataLoader draws from the global one
                             **(workers if num_workers else {}))
        self._loader = self._make()

    def __len__(self) -> int:
        """Batches of a whole epoch, also where set_epoch left some out."""
        return len(self._loader)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose what the next iteration gives: the batches of `epoch` from number `start_batch` on; earlier ones are not read."""
        self.sampler.set_epoch(epoch, start_batch * self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        try:
            with _children_are_not_watched():
                batches = iter(self._loader)
            waited = 0.
            while True:
                try:
                    batch = next(batches, None)
                except RuntimeError as error:
                    waited += self._waits
                    if waited < self._timeout and _timed_out(error):  # which leaves the iterator as it was
                        continue
                    raise
                waited = 0.
                if batch is None:
                    return
                if isinstance(batch, str):
                    break
                images, labels, bad = batch
                for name in bad.keys() - self.bad_records.keys():
                    LOGGER.warning("left out: %s", bad[name])
                self.bad_records.update(bad)
                yield images, labels
        except (RuntimeError, OSError, EOFError, MemoryError) as error:
            inside = not self._loader.num_workers or str(error).startswith("Caught ")  # not the end of a worker, but an error inside one
            if inside and (not self._loader.num_workers or shortage(error) is None):
                raise
            batch = advice(shortage(error)) if inside else self._lost(error)
        # The workers end here, by reference count. The traceback of the error would keep them until the garbage collector comes
        # by, which tears their queues down first: they would then not hear that they are to end, and be waited for.
        batches = None
        self._loader = self._make()
        raise InputError(batch)

    def _lost(self, error: Exception) -> str:
        """What the end of a worker, or of the time it had, is about. A dead one may also be noticed as a broken connection."""
        alive = {process.pid for process in multiprocessing.active_children()}
        at = {process: sample for process, sample, _ in self._reader.reading.tolist() if sample >= 0}
        at = {process: sample for process, sample in at.items() if process not in alive} or at
        noted = [KINDS[number] for number in self._reader.reading[:, 2].tolist() if number >= 0]
        self._reader.reading[:, 2] = -1
        kind = next(iter(noted), None) or shortage(error)
        reason = " ".join(str(error).split()) if "DataLoader" in str(error) else "a DataLoader worker ended"
        reason = f"DataLoader timed out after {self._timeout:g} seconds" if _timed_out(error) else reason
        return (f"{reason[:200]}; it was reading {', '.join(map(self._reader.name, at.values())) or 'nothing'}"
                + (f"; perhaps {advice(kind)}" if kind else ""))


def _timed_out(error: Exception) -> bool:
    return "DataLoader timed out" in str(error)


def shared(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory that processes share. Raises InputError with what can be done where there is too little of it."""
    try:
        return tensor.share_memory_()
    except (RuntimeError, OSError) as error:
        raise InputError(advice(shortage(error) or "shared memory")) from error


def lasting(loader: DataLoader) -> Iterator:
    """The batches of a loader. Raises InputError with what can be done where its workers, or what they need, come to an end."""
    try:
        with _children_are_not_watched():
            batches = iter(loader)
        yield from batches
    except (RuntimeError, OSError, EOFError, MemoryError) as error:
        kind = shortage(error)
        if not loader.num_workers or kind is None and (str(error).startswith("Caught ") or "DataLoader" not in str(error)):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the workers, until the garbage collector comes by, as `Loader` says
        reason = "" if str(error).startswith("Caught ") else f"{' '.join(str(error).split())[:200]}; "
        raise InputError(f"{reason}{advice(kind or 'memory')}") from error


def begin_worker(worker: int) -> None:
    """What processes that load data begin with: signals are their parent's matter, and a batch that cannot be sent is not waited for."""
    leave_to_the_parent()
    cast(Any, multiprocessing.queues.Queue)._on_queue_feeder_error = staticmethod(_cannot_send)


def _cannot_send(error: Exception, batch: object) -> None:
    """The thread that sends batches would print a traceback and leave one out, for which the parent then waits in vain."""
    info, kind = get_worker_info(), shortage(error)
    if kind is not None and isinstance(info.dataset, BatchReader):
        info.dataset.reading[info.id, 2] = KINDS.index(kind)
    os._exit(1)


class _children_are_not_watched:
    """DataLoader's handler of SIGCHLD raises wherever the training process happens to be. Without it the end of a worker is an error
    where the next batch is asked for.
    """

    def __enter__(self) -> None:
        self.mine = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
        self.before = signal.getsignal(signal.SIGCHLD) if self.mine else None

    def __exit__(self, *_) -> None:
        if self.mine and self.before is not None:
            signal.signal(signal.SIGCHLD, self.before)


def _as_it_is(batch):
    return batch
