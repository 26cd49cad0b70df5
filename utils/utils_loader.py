"""Batches of images that depend on (seed, epoch, sample) alone: not on how many processes load them, nor on where a run went on."""
from functools import partial
from typing import Iterator, Optional, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from utils import InputError
from utils.utils_distributed_sampler import DistributedSampler

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
    still busy with the epoch before, cannot draw the wrong coin."""

    def __init__(self, sampler: DistributedSampler, batch_size: int) -> None:
        self.sampler, self.batch_size = sampler, batch_size

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> "Iterator[list[tuple[int, int]]]":
        indices, epoch = self.sampler.indices(), self.sampler.epoch
        for start in range(0, len(indices) - self.batch_size + 1, self.batch_size):
            yield [(epoch, index) for index in indices[start:start + self.batch_size].tolist()]


class BatchReader(Dataset):
    """Reads whole batches of a dataset of (uint8 [3, H, W], label), each image mirrored by its coin if `flip`.

    An InputError comes back as its message: raised in a worker, it would reach the training process wrapped in a traceback.
    """

    def __init__(self, dataset: Dataset, flip: bool, seed: int) -> None:
        self.dataset, self.flip, self.seed = dataset, flip, seed

    def __getitems__(self, batch: "Sequence[tuple[int, int]]") -> "tuple[torch.Tensor, torch.Tensor] | str":
        try:
            samples = [self._sample(epoch, index) for epoch, index in batch]
        except InputError as error:
            return str(error)
        # decoders write the channels of a pixel side by side: stacking in that order is ten times faster than transposing
        images = torch.stack([image.permute(1, 2, 0) for image, _ in samples]).permute(0, 3, 1, 2)
        return images, torch.tensor([label for _, label in samples], dtype=torch.int64)

    def _sample(self, epoch: int, index: int) -> "tuple[torch.Tensor, int]":
        image, label = self.dataset[index]
        mirrored = self.flip and coin(self.seed, epoch, index)
        return (image.flip(-1) if mirrored else image), label


class Loader:
    """Iterates over (images uint8 [B, 3, H, W] in channels-last order, labels int64 [B]) on the CPU, for one epoch at a time.

    Made by `get_dataloader` of datasets.py. len() is the number of batches of a whole epoch. Raises InputError, with the message
    that a worker's dataset gave, where a sample cannot be read.
    """

    def __init__(self, dataset: Dataset, sampler: DistributedSampler, batch_size: int, flip: bool, seed: int, num_workers: int,
                 prefetch_factor: int, pin_memory: bool, start_method: Optional[str]) -> None:
        self.sampler, self.batch_size = sampler, batch_size
        workers = dict(persistent_workers=True, prefetch_factor=prefetch_factor, multiprocessing_context=start_method)
        self._make = partial(DataLoader, BatchReader(dataset, flip, seed), batch_sampler=EpochBatches(sampler, batch_size),
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

    def __iter__(self) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
        for batch in self._loader:
            if isinstance(batch, str):
                break
            yield tuple(batch)
        else:
            return
        # The workers end here, by reference count. The traceback of the error would keep them until the garbage collector comes
        # by, which tears their queues down first: they would then not hear that they are to end, and be waited for.
        self._loader = self._make()
        raise InputError(batch)


def _as_it_is(batch):
    return batch
