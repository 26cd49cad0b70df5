"""A margin header whose rows are dealt out to the processes: none holds all classes, and no gradient of a row is sent.

Process r of W has the rows of a range of classes. The embeddings and labels of all processes are gathered, each computes the logits of its
classes for all of them, and what the cross entropy needs of the others are two numbers a sample:

    loss_i = log sum_j exp(l_ij) - l_iy,      the sum over j being one over processes of sums over their classes.

Losses and gradients are those of a header that every process holds, to rounding, as headers.py has the same code for both. With
`sample_rate` below 1 a step takes the classes of its batch and, of the others, as many at random as make that share of the rows (PartialFC,
An et al., CVPR 2022); rows that are not taken have a gradient of 0, so that an optimiser with momentum still moves them.
"""
import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils import InputError
from utils.distributed import all_gather_interleaved, all_gather_with_gradient, largest_of_ranks, rank, sum_with_gradient, world_size

MANY = 2**17  # a header is sharded from more classes than these on, where the settings do not say
_BLOCK = 2**20  # numbers that are drawn at a time


class Shard(NamedTuple):
    """The classes from `first` to `last` - 1, those of one process. sample_rate: the share of them that a step takes; seed: of which."""
    first: int
    last: int
    sample_rate: float = 1.0
    seed: int = 0

    def own(self, labels: Tensor) -> Tensor:
        """The rows here of labels [N], -1 for those of other processes and of nobody."""
        return torch.where((labels >= self.first) & (labels < self.last), labels - self.first, -1)

    def sample(self, own: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Rows that a step takes, ascending, int64 [taken], those in `own` [N] among them; and where these are in them, -1 as it was."""
        rows = self.last - self.first
        taken = min(rows, max(math.ceil(self.sample_rate * rows), len(own)))
        key = np.random.SeedSequence([self.seed, step, self.first]).generate_state(1, np.uint64)[0]
        scores = torch.rand(rows + 1, generator=torch.Generator(own.device).manual_seed(int(key >> np.uint64(1))), device=own.device)
        # the last one stands for all that are not here, so that no number of rows has to be waited for
        scores = scores.index_fill(0, torch.where(own >= 0, own, rows), 2.0)[:rows]
        index = scores.topk(taken).indices.sort().values
        return index, torch.where(own >= 0, torch.searchsorted(index, own), -1)


def shard_of(num_classes: int, number: int, count: int, sample_rate: float = 1.0, seed: int = 0) -> Shard:
    """What process `number` of `count` has. Raises InputError for fewer classes than processes."""
    if num_classes < count:
        raise InputError(f"header_shards: {num_classes} classes for {count} processes, expected one or more for each")
    return Shard(number * num_classes // count, (number + 1) * num_classes // count, sample_rate, seed)


_building: "list[Shard | None]" = [None]


@contextlib.contextmanager
def building(shard: Shard | None) -> Iterator[None]:
    """Headers that are made inside have these rows only."""
    _building.append(shard)
    try:
        yield
    finally:
        _building.pop()


def current() -> Shard | None:
    """What `building` says; None: all rows."""
    return _building[-1]


def drawn_rows(num_classes: int, emb_size: int, shard: Shard | None) -> Tensor:
    """The rows of the shard of a weight [num_classes, emb_size] from N(0, 0.01^2). Numbers are drawn for all rows, and the same ones
    whatever the shard is, but not held.
    """
    if shard is None:
        return torch.normal(0.0, 0.01, (num_classes, emb_size))
    rows = torch.empty(shard.last - shard.first, emb_size)
    # PyTorch draws in blocks of 16: parts of as many rows, and no last part of fewer, get what the whole would
    size = 16 * max(1, _BLOCK // (16 * emb_size))
    ends = [*range(size, num_classes - 15, size), num_classes]
    for start, end in zip([0, *ends], ends):
        values = torch.normal(0.0, 0.01, (end - start, emb_size))
        low, high = max(start, shard.first), min(end, shard.last)
        if low < high:
            rows[low - shard.first:high - shard.first] = values[low - start:high - start]
    return rows


def at_own_targets(values: Tensor, labels: Tensor) -> Tensor:
    """The entry of each row at its label, [N]; that of column 0 where the label is -1."""
    return values.gather(1, labels.clamp_min(0).view(-1, 1)).squeeze(1)


def cross_entropy(header: Any, embeddings: Tensor, labels: Tensor) -> Tensor:
    """The mean cross entropy of this rank's samples under a sharded header, whose gradients are those of the mean over ranks.

    header: of headers.py, with a shard. embeddings: [N, D] of this rank, labels: int64 [N], as many on each rank.
    """
    logits = header(all_gather_with_gradient(embeddings), all_gather_interleaved(labels))
    largest = largest_of_ranks(logits.detach().amax(1))
    sums = torch.exp(logits - largest[:, None]).sum(1)
    own = header.own_labels
    targets = torch.where(own >= 0, at_own_targets(logits, own), 0.0)
    sums, targets = sum_with_gradient(torch.stack([sums, targets]))
    return (sums.log() + largest - targets)[rank()::world_size()].mean()
