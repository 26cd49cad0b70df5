"""Which process sees which sample when."""
from collections.abc import Iterator, Sized

import numpy as np
from torch.utils.data import Sampler

from utils.distributed import rank as this_rank
from utils.distributed import world_size


class DistributedSampler(Sampler[int]):
    """Deal a permutation of the samples, keyed by (seed, epoch), out to the ranks in turn.

    Rank r of W gets positions r, r + W, r + 2W, ... of the permutation, so that batches of B on each of W ranks are together exactly
    the batches of W * B of a single process, in the same order. Every rank gets floor(N / W) samples: the tail is left out, nothing
    is repeated.

    num_replicas, rank: taken from the process group when None (1 and 0 without one).
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
        return order[self.rank:len(self) * self.num_replicas:self.num_replicas][self.start:]

    def __iter__(self) -> Iterator[int]:
        return map(int, self.indices())
