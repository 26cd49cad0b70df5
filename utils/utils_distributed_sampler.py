"""Which process sees which sample when."""
from collections.abc import Iterator, Sized

import numpy as np
from torch.utils.data import Sampler

from utils import InputError
from utils.distributed import rank as this_rank
from utils.distributed import world_size
from utils.record_table import blocks, least_integer

# behind (seed, epoch): another stream of numbers than that of the permutation
_PARTNERS = 1


class Partners:
    """Makes the second half of every batch images of the persons in its first half: position p + B / 2 is another image of the person at p,
    or the same one again where there is no other, or where nobody is on it (label -1).

    labels: int64 [N], of all samples; batch_size: B, of all processes together; seed: which image it is, each of the others being as
    likely, is keyed by (seed, epoch, sample). Raises InputError where B is odd.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int = 0) -> None:
        if batch_size % 2:
            raise InputError(f"batch_size: {batch_size} on all ranks together, expected an even number with partners")
        self.batch_size, self.seed = batch_size, seed
        kind = least_integer(len(labels))
        order = np.argsort(labels, kind="stable")  # the images of each person side by side
        ordered = labels[order]
        begins = np.append(True, (ordered[1:] != ordered[:-1]) | (ordered[1:] < 0))[:len(labels)]  # whom nobody is on is alone
        self._starts = np.append(np.flatnonzero(begins), len(labels)).astype(kind)  # of each person in that order, and its end
        self._by_person = order.astype(kind)
        self._persons, self._places = np.empty(len(labels), kind), np.empty(len(labels), kind)  # of each image: whose, where in that order
        self._persons[order] = np.cumsum(begins, dtype=kind) - 1
        self._places[order] = np.arange(len(labels), dtype=kind)

    def of_epoch(self, epoch: int) -> np.ndarray:
        """The partner of each sample, [N] integers."""
        generator, partners = np.random.default_rng([self.seed, epoch, _PARTNERS]), np.empty_like(self._by_person)
        for block in blocks(len(partners)):
            persons = self._persons[block]
            starts = self._starts[persons]
            counts = self._starts[persons + 1] - starts
            onwards = 1 + (generator.random(len(persons)) * (counts - 1)).astype(np.int64)
            partners[block] = self._by_person[starts + (self._places[block] - starts + onwards) % counts]
        return partners

    def paired(self, order: np.ndarray, epoch: int) -> np.ndarray:
        """The samples `order` of an epoch with partners in the second half of each whole batch."""
        half, whole = self.batch_size // 2, len(order) // self.batch_size * self.batch_size
        order = order.copy()
        batches = order[:whole].reshape(-1, self.batch_size)
        batches[:, half:] = self.of_epoch(epoch)[batches[:, :half]]
        return order


class DistributedSampler(Sampler[int]):
    """Deal a permutation of the samples, keyed by (seed, epoch), out to the ranks in turn.

    Rank r of W gets positions r, r + W, r + 2W, ... of the permutation, so that batches of B on each of W ranks are together exactly
    the batches of W * B of a single process, in the same order. Every rank gets floor(N / W) samples: the tail is left out, nothing
    is repeated.

    num_replicas, rank: taken from the process group when None (1 and 0 without one).
    partners: attribute; with one the permutation's batches are half partners, None leaves it as it is.
    """

    def __init__(self, dataset: Sized, num_replicas: int | None = None, rank: int | None = None, shuffle: bool = True,
                 seed: int = 0) -> None:
        self.num_samples_total = len(dataset)
        self.num_replicas = world_size() if num_replicas is None else num_replicas
        self.rank = this_rank() if rank is None else rank
        if not 0 <= self.rank < self.num_replicas:
            raise ValueError(f"rank is {self.rank}, expected 0 <= rank < {self.num_replicas}")
        self.shuffle = shuffle
        self.seed = seed
        self.partners: Partners | None = None
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Take the permutation of `epoch`, leaving out the first `start` samples of this rank (to go on within an epoch)."""
        if epoch < 0 or start < 0:
            raise ValueError(f"epoch is {epoch} and start is {start}, expected both to be >= 0")
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch, whatever `start` is."""
        return self.num_samples_total // self.num_replicas

    def indices(self) -> np.ndarray:
        """The samples of this rank from `start` on, [len(self) - start] integers: of 4 bytes where they are enough."""
        order = np.arange(self.num_samples_total, dtype=least_integer(self.num_samples_total))
        if self.shuffle:
            # a sequence as the seed, because seed + epoch would make epoch 1 of seed 0 the same as epoch 0 of seed 1
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        if self.partners:
            order = self.partners.paired(order, self.epoch)
        share = order[self.rank:len(self) * self.num_replicas:self.num_replicas][self.start:]
        return share if self.num_replicas == 1 else share.copy()  # the shares of others need not stay in memory

    def __iter__(self) -> Iterator[int]:
        return map(int, self.indices())
