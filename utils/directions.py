"""Directions of vectors, and the one rule for vectors that have none.

A vector that is zero or not finite has no direction. Its norm counts as 0, its cosine with anything is -inf, which no threshold accepts,
and its angle is pi. So a pair with such an embedding is rejected at every threshold, and its certified radius is 0.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-150  # of the norms that count: the squares of smaller ones have lost digits or are 0


def norms(vectors: Tensor) -> Tensor:
    """Euclidean norms [...] in float64 of vectors [..., D]; 0 for one without direction."""
    return _lengths(vectors.double())


def cosine(u: Tensor, v: Tensor) -> Tensor:
    """cos [...] of the angles between vectors [..., D], in their dtype, to rounding in [-1, 1]; -inf, with zero gradient, where one of the
    two has no direction.
    """
    defined = (_lengths(u.detach()) > 0) & (_lengths(v.detach()) > 0)
    u, v = (torch.where(defined[..., None], vector, 1.) for vector in (u, v))  # before any division: its gradient would be nan
    return torch.where(defined, (_unit(u) * _unit(v)).sum(-1), -torch.inf)


def angle(u: Tensor, v: Tensor) -> Tensor:
    """The angle [...] in radians between vectors [..., D], in their dtype; pi where one of the two has no direction.

    2 atan2(|u/|u| - v/|v||, |u/|u| + v/|v||): accurate to rounding at every angle, where arccos loses half of the digits near 0 and pi.
    """
    defined = (_lengths(u) > 0) & (_lengths(v) > 0)
    u, v = _unit(u), _unit(v)
    return torch.where(defined, 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)), torch.pi)


def _lengths(vectors: Tensor) -> Tensor:
    lengths = vectors.norm(dim=-1)
    return torch.where(lengths.isfinite() & (lengths > SMALLEST), lengths, 0.)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1, eps=torch.finfo(vectors.dtype).tiny)
