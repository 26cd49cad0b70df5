"""Certified radii of face verification with a 1-Lipschitz network: pure functions of norms, angles and the threshold.

A pair is accepted iff cos(theta) > tau, theta the angle between its two embeddings; delta = |theta - arccos tau| is the
angle by which it keeps to its side. Everything is computed in float64 and broadcasts; numbers, numpy arrays and tensors
are taken alike. Radii are l2 norms of perturbations in the scale of the network's input, and a decision is certified at
a budget below its radius. Every function of tau raises ValueError unless -1 < tau < 1.
"""
from typing import Any

import numpy as np
import torch
from torch import Tensor


PROTOCOLS = ("strict", "paper")  # by the definitions, or as the published figures were made


def is_paper(protocol: str) -> bool:
    """Whether the protocol is "paper" rather than "strict". Raises ValueError for any other word."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
    return protocol == "paper"


def angle(u: Any, v: Any) -> Tensor:
    """The angle [...] in radians between vectors [..., D]; pi/2 where one of them is zero.

    2 atan2(|u/|u| - v/|v||, |u/|u| + v/|v||): accurate to rounding at every angle, where arccos loses half of the
    digits near 0 and pi.
    """
    u, v = (_double(vector) for vector in (u, v))
    u, v = (torch.nn.functional.normalize(vector, dim=-1, eps=torch.finfo(torch.float64).tiny) for vector in (u, v))
    return 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))


def threshold_angle(tau: Any) -> Tensor:
    """arccos tau: accepted pairs are those of a smaller angle."""
    tau = _threshold(tau)
    return torch.atan2(((1 - tau) * (1 + tau)).sqrt(), tau)


def one_sided_radius(norm: Any, theta: Any, tau: Any) -> Tensor:
    """The largest radius for an attack on the one image whose embedding has this norm: norm * sin(min(delta, pi/2)).

    It is the distance from f(x) to the cone {u: angle(u, f(y)) = arccos tau}: past 90 degrees its tip, the origin, is
    the nearest point. Tight for a network that is an isometry.
    """
    delta = (_double(theta) - threshold_angle(tau)).abs()
    return _double(norm) * delta.clamp(max=torch.pi / 2).sin()


def theorem1_radius(norm_x: Any, norm_y: Any, theta: Any, tau: Any) -> Tensor:
    """Theorem 1: min(|f(x)|, |f(y)|) * |sqrt(1 - tau^2) cos(theta) - tau sin(theta)|, as published also for delta
    past 90 degrees.
    """
    return torch.minimum(_double(norm_x), _double(norm_y)) * _margin(theta, tau)


def pair_radius(norm_x: Any, norm_y: Any, theta: Any, tau: Any, protocol: str = "strict") -> Tensor:
    """Radius of a pair either of whose images, but not both, may be attacked: `theorem1_radius` under "paper"; the
    smaller `one_sided_radius` under "strict".
    """
    if is_paper(protocol):
        return theorem1_radius(norm_x, norm_y, theta, tau)
    return torch.minimum(one_sided_radius(norm_x, theta, tau), one_sided_radius(norm_y, theta, tau))


def untargeted_radius(norm: Any, tau: Any, protocol: str = "strict") -> Tensor:
    """Radius of an image against its own perturbed copy (theta = 0): norm * sqrt(1 - tau^2); under "strict" a
    negative tau gives norm.
    """
    if is_paper(protocol):
        return _double(norm) * _margin(0., tau)
    return one_sided_radius(norm, 0., tau)


def theorem2_upper_bound(image_distance: Any, theta: Any, tau: Any) -> Tensor:
    """Theorem 2: what a radius can be at most, without false acceptance, for images |x - y| apart:

    |x - y| / sqrt(2 (1 - tau)) * |sqrt(1 - tau^2) cos(theta) - tau sin(theta)|.
    """
    return _double(image_distance) / (2 * (1 - _threshold(tau))).sqrt() * _margin(theta, tau)


def upper_bound(image_distance: Any, theta: Any, tau: Any, protocol: str = "strict") -> Tensor:
    """What `pair_radius` can be at most where the pair is rejected: `theorem2_upper_bound` under "paper"; under
    "strict" its factor stays 1 past 90 degrees, as that of `one_sided_radius` does.

    For 1-Lipschitz f, min(|f(x)|, |f(y)|) sqrt(2 (1 - cos(theta))) <= |f(x) - f(y)| <= |x - y|, and cos(theta) <= tau.
    An accepted pair can have a larger radius.
    """
    if is_paper(protocol):
        return theorem2_upper_bound(image_distance, theta, tau)
    return one_sided_radius(_double(image_distance) / (2 * (1 - _threshold(tau))).sqrt(), theta, tau)


def certified_roc(cosine: Any, norm: Any, same: Any, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(tau, FAR, TAR), float64 [T] each: what holds at each threshold whichever image of a pair is moved by eps.

    TAR: the share of true pairs that are accepted with `one_sided_radius` > eps. FAR: the share of false pairs that are
    not rejected with such a radius. norm [N]: the smaller one of the two embeddings of a pair. Exact: tau falls through
    one threshold of each interval in which neither share changes. Raises ValueError unless there are both true and
    false pairs.
    """
    norm, same = _double(norm), torch.as_tensor(np.array(same, dtype=bool))
    if same.all() or not same.any():
        raise ValueError("a ROC curve needs both true and false pairs")
    theta = _double(cosine).clamp(-1, 1).arccos()
    # norm sin(min(delta, pi/2)) > eps iff norm > eps and delta > arcsin(eps / norm): each pair turns at one angle
    sine = eps / norm.clamp(min=torch.finfo(torch.float64).tiny)
    turn = torch.where(norm > eps, sine.clamp(max=1).arcsin(), torch.inf)
    true, false = (theta + turn)[same].sort().values, (theta - turn)[~same].sort().values
    edges = torch.cat([true, false, theta.new_tensor([0, torch.pi])]).clamp(0, torch.pi).unique()
    angles = (edges[1:] + edges[:-1]) / 2
    far, tar = (torch.searchsorted(turns, angles, right=True).double() / len(turns) for turns in (false, true))
    return angles.cos(), far, tar


def certified_accuracy(correct: Any, radius: Any, eps: float) -> float:
    """The share of decisions that are right and have radius > eps. Raises ValueError where there are none."""
    correct, radius = torch.as_tensor(correct, dtype=torch.bool), _double(radius)
    if not correct.numel():
        raise ValueError("the certified accuracy of no decisions")
    return (correct & (radius > eps)).double().mean().item()


def lower_median(values: Any) -> float:
    """The median, of an even number of values the lower of the two middle ones. Raises ValueError where there are
    none.
    """
    values = _double(values)
    if not values.numel():
        raise ValueError("the median of no values")
    return values.flatten().median().item()  # torch's median is the lower one


def _double(values: Any) -> Tensor:
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()  # a column of a data frame may be read-only, which tensors cannot be
    return torch.as_tensor(values, dtype=torch.float64)


def _threshold(tau: Any) -> Tensor:
    tau = _double(tau)
    if not bool(((tau > -1) & (tau < 1)).all()):
        raise ValueError(f"tau is {tau.tolist()}, expected inside (-1, 1)")
    return tau


def _margin(theta: Any, tau: Any) -> Tensor:
    """|sqrt(1 - tau^2) cos(theta) - tau sin(theta)| = |sin(arccos tau - theta)|; the left form cancels, the right
    one does not.
    """
    return (threshold_angle(tau) - _double(theta)).sin().abs()
