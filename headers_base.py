"""What margin headers share: their names, their rows, and what they may ask of the classes and samples of other processes."""
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sharding
from sharding import at_own_targets
from utils.distributed import all_gather_interleaved, averaged_gradient, largest_of_ranks, rank, sum_with_gradient, world_size
from utils.registry import Registry


@dataclass(frozen=True)
class HeaderEntry:
    """A header by its name. build: (num_classes, emb_size, further arguments by name) -> nn.Module."""

    name: str
    build: Callable[..., nn.Module]


HEADERS: Registry[HeaderEntry] = Registry("header", HeaderEntry)


class Header(nn.Module):
    """The weight and what all headers share; a header implements `logits(products, labels)`.

    shardable: whether its `logits` are right where there are some of the classes only. shard: which those are; None: all, and the samples
    are those of this process. own_labels: the labels of the last call as columns of its logits, -1 where there is none.
    """

    normalises_embeddings = True
    shardable = False

    def __init__(self, num_classes: int, emb_size: int):
        super().__init__()
        self.shard = sharding.current()
        self.weight = nn.Parameter(sharding.drawn_rows(num_classes, emb_size, self.shard))
        self.step = 0

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings [N, emb_size], labels int64 [N] in [-1, num_classes) -> logits [N, num_classes].

        With a shard: embeddings and labels of all processes, and the logits of the classes here.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            rows, self.own_labels = self._rows(labels)
            return self._of_rows(embeddings.to(rows.dtype), F.normalize(rows), self.own_labels)

    def _of_rows(self, embeddings: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Logits of unit rows `weight`, with labels among them."""
        if self.normalises_embeddings:
            return self.logits(F.linear(F.normalize(embeddings), weight).clamp(-1, 1), labels)
        return self.logits(F.linear(embeddings, weight), labels)

    def _rows(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of this call, and the labels among them."""
        if self.shard is None:
            return self.weight, labels
        rows, own = averaged_gradient(self.weight), self.shard.own(labels)
        if self.shard.sample_rate == 1 or not self.training:
            return rows, own
        index, own = self.shard.sample(own, self.step)
        return rows[index], own

    def logits(self, products: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def at_targets(self, values: Tensor, labels: Tensor, absent: float = math.nan) -> Tensor:
        """The entry of each row of values [N, columns] at its label, [N], whichever process has it; `absent` for samples of nobody. Without
        gradient.
        """
        found, here = at_own_targets(values.detach(), labels), labels >= 0
        if self.shard is not None:
            found, here = sum_with_gradient(torch.stack([torch.where(here, found, 0.0), here.to(found.dtype)]))
        return torch.where(here > 0, found, absent)

    def target_rows(self, weight: Tensor, labels: Tensor) -> Tensor:
        """The row of each label, [N, emb_size], whichever process has it; of a sample of nobody any one, or zeros."""
        rows = weight[labels.clamp_min(0)]
        return rows if self.shard is None else sum_with_gradient(torch.where(labels[:, None] >= 0, rows, 0.0))

    def log_sum_exp(self, values: Tensor) -> Tensor:
        """log sum_j exp(values_ij) over the classes of all processes, [N]. Without gradient."""
        found = values.detach().logsumexp(1)
        if self.shard is None:
            return found
        largest = largest_of_ranks(found)
        return sum_with_gradient(torch.exp(found - largest)).log() + largest

    def of_all(self, values: Tensor) -> Tensor:
        """Values [N] of the samples of all processes, in the order in which one process would have seen them. Without gradient."""
        return all_gather_interleaved(values) if self.shard is None else values

    def of_this(self, values: Tensor) -> Tensor:
        """What `of_all` made of it, back to the samples of this call."""
        return values[rank()::world_size()] if self.shard is None else values

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


def subtract_at_targets(values: Tensor, labels: Tensor, margin: Tensor | float) -> Tensor:
    """values with `margin` (one, or one per row) subtracted at each row's label; nothing where the label is -1."""
    margin = torch.as_tensor(margin, dtype=values.dtype, device=values.device).expand(len(values))
    margin = torch.where(labels >= 0, margin, torch.zeros_like(margin))
    return values.scatter_add(1, labels.clamp_min(0).view(-1, 1), -margin.view(-1, 1))


def norms_of(embeddings: Tensor) -> Tensor:
    """[N, 1] of embeddings [N, D]."""
    return torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
