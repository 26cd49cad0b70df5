"""What a training minimises: the cross entropy of the header, the penalty on short embeddings and the contrastive term."""
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sharding
from utils.distributed import all_gather_interleaved, all_gather_with_gradient, rank, world_size
from utils.faults.guard import poisoned


def objective(classify: Callable[[Tensor, Tensor], Tensor], embeddings: Tensor, labels: Tensor, lambda_: float, xi: float,
              contrast: float = 0.0, contrast_args: Mapping[str, float] = MappingProxyType({})) -> tuple[Tensor, Tensor, Tensor]:
    """cross_entropy(header(e), y) + lambda * mean(max(0, -xi log(||e|| / xi))) + contrast * `contrastive`, that regulariser, and the mean
    norm ||e||.

    embeddings: [N, D] of this rank; labels: int64 [N]. The mean of the loss over the ranks is that of one process. The 1e-24 keeps a zero
    embedding finite, and its gradient one that lets the norm grow.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
        squares = embeddings.square().sum(1)
        log_norm = 0.5 * torch.log(squares + 1e-24)
        regulariser = F.relu(-xi * (log_norm - math.log(xi))).mean() if xi > 0 else squares.new_zeros(())
        loss = _cross_entropy(classify, embeddings, labels) + lambda_ * regulariser
        if contrast > 0:
            loss = loss + contrast * contrastive(embeddings, labels, **contrast_args)
        loss = poisoned(loss)
    return loss, regulariser.detach(), squares.detach().sqrt().mean()


def _cross_entropy(classify: Callable[[Tensor, Tensor], Tensor], embeddings: Tensor, labels: Tensor) -> Tensor:
    if getattr(classify, "shard", None):
        return sharding.cross_entropy(classify, embeddings, labels)
    return F.cross_entropy(classify(embeddings, labels), labels)


def contrastive(embeddings: Tensor, labels: Tensor, s: float, m: float) -> Tensor:
    """The supervised contrastive loss (Khosla et al., NeurIPS 2020, their L_out) with a margin, over the batches of all ranks together.

    Of all M embeddings, with u = e / ||e||, P_i the others with the label of i (nobody where that is -1) and
    S_ij = s (<u_i, u_j> - m [j in P_i]):

        loss_i = -mean over p in P_i of (S_ip - log(sum over k != i of exp(S_ik))), and 0 where P_i is empty

    embeddings: [N, D] of this rank, float32 or better; labels: int64 [N]. Returns the mean of loss_i over this rank's N, whose mean over
    the ranks is that over all M; with gradients averaged over the ranks, as DDP does, so are the gradients.
    """
    units = F.normalize(embeddings)
    all_units, (positive, itself) = all_gather_with_gradient(units), companions(labels)
    cosines = units @ all_units.T
    similarities = s * torch.where(positive, cosines - m, cosines)
    # not -inf: a batch of one image has a loss of 0, and a gradient
    log_sums = similarities.masked_fill(itself, torch.finfo(similarities.dtype).min).logsumexp(1, keepdim=True)
    log_shares = torch.where(positive, similarities - log_sums, 0.0).sum(1) / positive.sum(1).clamp_min(1)
    return -log_shares.mean()


def companions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of labels int64 [N] of this rank and the M samples of the batches of all ranks, in the order in which one process would have them:
    which are other images of one person, bool [N, M] (nobody is where the label is -1), and which are the same image, bool [N, M].
    """
    all_labels = all_gather_interleaved(labels)
    numbers = torch.arange(len(all_labels), device=labels.device)
    itself = numbers[rank()::world_size(), None] == numbers
    return (labels[:, None] == all_labels) & (labels[:, None] >= 0) & ~itself, itself


def trades(classify: Callable[[Tensor, Tensor], Tensor], embeddings: Tensor, labels: Tensor, beta: float,
           **settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`objective` of the clean images + beta * mean(||u - u*||^2) with u = e / ||e||, u* of their adversarial images (Zhang et al., ICML
    2019, for embeddings: there it is a divergence of class probabilities). ||u - u*||^2 is 2 (1 - cos).

    embeddings: [2N, D], of N clean images and then, in the same order, of their adversarial ones; labels: [N]; settings: of `objective`.
    Returns what that returns, the regulariser and the norm being those of the clean images.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        clean, adversarial = (embeddings if embeddings.dtype == torch.float64 else embeddings.float()).chunk(2)
        loss, regulariser, norm = objective(classify, clean, labels, **settings)
        loss = poisoned(loss + beta * (F.normalize(clean) - F.normalize(adversarial)).square().sum(1).mean())
    return loss, regulariser, norm
