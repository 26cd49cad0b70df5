"""Which process sees which sample when."""
from collections.abc import Iterator, Sized

import numpy as np
from torch.utils.data import Sampler

from utils import InputError
from utils.distributed import rank as this_rank
from utils.distributed import world_size

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
        numbers = np.arange(len(labels))
        persons = np.unique(np.where(labels < 0, -1 - numbers, labels), return_inverse=True)[1].reshape(-1)
        self._by_person = np.argsort(persons, kind="stable")  # the images of each person side by side
        self._counts = np.bincount(persons, minlength=1)[persons]
        self._starts = np.searchsorted(persons[self._by_person], persons)
        self._places = np.empty_like(numbers)  # of each image among those of its person
        self._places[self._by_person] = numbers - self._starts[self._by_person]

    def of_epoch(self, epoch: int) -> np.ndarray:
        """The partner of each sample, int64 [N]."""
        numbers = np.random.default_rng([self.seed, epoch, _PARTNERS]).random(len(self._counts))
        onwards = 1 + (numbers * (self._counts - 1)).astype(np.int64)
        return self._by_person[self._starts + (self._places + onwards) % self._counts]

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
        """The samples of this rank from `start` on, as int64 [len(self) - start]."""
        order = np.arange(self.num_samples_total)
        if self.shuffle:
            # a sequence as the seed, because seed + epoch would make epoch 1 of seed 0 the same as epoch 0 of seed 1
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples_total)
        if self.partners:
            order = self.partners.paired(order, self.epoch)
        return order[self.rank:len(self) * self.num_replicas:self.num_replicas][self.start:]

    def __iter__(self) -> Iterator[int]:
        return map(int, self.indices())
