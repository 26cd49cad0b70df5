"""Certified radii of face verification with a 1-Lipschitz network: pure functions of norms, angles and the threshold.

A pair is accepted iff cos(theta) > tau, theta the angle between its two embeddings; delta = |theta - arccos tau| is the
angle by which it keeps to its side. Everything is computed in float64 and broadcasts; numbers, numpy arrays and tensors
are taken alike. Radii are l2 norms of perturbations in the scale of the network's input, and a decision is certified at
a budget below its radius. Every function of tau raises ValueError unless -1 < tau < 1.

Radii of networks without such a constant, by randomised smoothing, are in smoothing.py.

docs/certificates.md has the proofs. Except for the published formulas of Theorems 1 and 2, what is returned is rounded
down: never above the true value of the formula at the arguments given, and below it by less than 6e-15 of the norm.
"""
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.evaluation import PROTOCOLS
from utils import directions

# More than the rounding of arccos tau (below 4) and of its difference from theta (below pi), in radians, and of the ten or so
# operations, relatively, that make a radius of them: each is off by at most 2^-52 of its result.
_ROUNDING = 2.0 ** -49
_BISECTIONS = 60  # of an interval: what is left of it is below the rounding of its ends


def is_paper(protocol: str) -> bool:
    """Whether the protocol is "paper" rather than "strict". Raises ValueError for any other word."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
    return protocol == "paper"


def angle(u: Any, v: Any) -> Tensor:
    """The angle [...] in radians between vectors [..., D]; pi where one of them has no direction, as `utils.directions` says."""
    return directions.angle(_double(u), _double(v))


def threshold_angle(tau: Any) -> Tensor:
    """arccos tau: accepted pairs are those of a smaller angle."""
    tau = _threshold(tau)
    return torch.atan2(((1 - tau) * (1 + tau)).sqrt(), tau)


def one_sided_radius(norm: Any, theta: Any, tau: Any) -> Tensor:
    """The largest radius for an attack on the one image whose embedding has this norm: norm * sin(min(delta, pi/2)).

    It is the distance from f(x) to the cone {u: angle(u, f(y)) = arccos tau}: past 90 degrees its tip, the origin, is
    the nearest point. Tight for a network that is an isometry.
    """
    return _down(_double(norm) * _separation(theta, tau).clamp(max=torch.pi / 2).sin())


def two_sided_radius(norm_x: Any, norm_y: Any, theta: Any, tau: Any) -> Tensor:
    """The largest eps for an attack that moves both images, each by up to eps; 0 where a norm is.

    With a <= b the two norms: a b sin(delta) / sqrt(a^2 + b^2 + 2 a b cos(delta)) where cos(delta) >= -a/b, else a. It solves
    arcsin(eps / a) + arcsin(eps / b) = delta. An image that moves by c eps instead has norm / c in place of its norm.
    """
    small, ratio, gap = _shorter(norm_x, norm_y)
    delta = _separation(theta, tau)
    cosine = (delta / 2).cos()
    share = delta.sin() / torch.hypot(gap, 2 * ratio.sqrt() * cosine)
    # cos(delta) < -a/b, without cancellation: beyond it the shorter embedding can be taken to the origin for less
    share = torch.where(2 * cosine.square() < gap, 1., share).clamp(max=1)
    return _down(torch.where(small > 0, small * share, 0.))


def joint_radius(norm_x: Any, norm_y: Any, theta: Any, tau: Any) -> Tensor:
    """The largest R for an attack on both images with |dx|^2 + |dy|^2 <= R^2; 0 where a norm is.

    R^2 = (a^2 + b^2 - sqrt(a^4 + b^4 + 2 a^2 b^2 cos(2 delta))) / 2 for delta <= pi/2, else min(a, b)^2; in the form
    2 a^2 b^2 s^2 / (a^2 + b^2 + sqrt((a^2 + b^2)^2 - 4 a^2 b^2 s^2)), s = sin(delta), which does not cancel.
    """
    small, ratio, gap = _shorter(norm_x, norm_y)
    delta = _separation(theta, tau).clamp(max=torch.pi / 2)
    root = torch.hypot(gap * (1 + ratio), 2 * ratio * delta.cos())
    return _down(small * delta.sin() * (2 / (1 + ratio.square() + root)).sqrt())


def lp_radius(radius: Any, p: float, n: int) -> Tensor:
    """The radius in the l_p norm, 1 <= p <= inf, that an l2 radius of an input of n numbers guarantees.

    radius / n^max(0, 1/2 - 1/p), as |d|_2 <= n^max(0, 1/2 - 1/p) |d|_p. Times 255 it is in grey levels (units of 1/255), the
    scale of the input being that of pixels in [-0.5, 0.5]. Raises ValueError for p < 1 and unless n >= 1.
    """
    if not p >= 1:
        raise ValueError(f"p is {p}, expected at least 1")
    if not n >= 1:
        raise ValueError(f"n is {n}, expected at least 1")
    exponent = max(0., 0.5 - 1 / p)
    return _down(_double(radius) / n ** exponent) if exponent else _double(radius)


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
    """Theorem 2: what a radius can be at most, without false acceptance, for images |x - y| apart.

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
    same = torch.as_tensor(np.array(same, dtype=bool))
    if same.all() or not same.any():
        raise ValueError("a ROC curve needs both true and false pairs")
    # norm sin(min(delta, pi/2)) > eps iff norm > eps and delta > arcsin(eps / norm): each pair turns at one angle
    theta, turned = _double(cosine).clamp(-1, 1).arccos(), turn(norm, eps)
    return operating_points((theta + turned)[same], (theta - turned)[~same])


def turn(norm: Any, eps: float) -> Tensor:
    """The largest angle by which an embedding of this norm can turn when its image moves by eps: arcsin(eps / norm), and
    infinity (any angle at all) unless norm > eps. Rounded up, by what `one_sided_radius` is rounded down.
    """
    norm = _double(norm)
    sine = eps / norm.clamp(min=torch.finfo(torch.float64).tiny) * (1 + 2 * _ROUNDING)
    return torch.where((norm > eps) & (sine < 1), sine.clamp(max=1).arcsin(), torch.inf)


def operating_points(true: Any, false: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(tau, FAR, TAR), float64 [T] each, of thresholds falling from 1 to -1, one inside each interval without change.

    true, false: the angles, of true and of false pairs in the worst case under attack, below arccos tau which they count as
    accepted. Where an interval is too narrow for a tau inside it, pairs that are too close to call count against the result.
    """
    true, false = (_double(angles).sort().values for angles in (true, false))
    edges = torch.cat([true, false, true.new_tensor([0, torch.pi])]).clamp(0, torch.pi).unique()
    largest = 1 - torch.finfo(torch.float64).eps / 2
    tau = ((edges[1:] + edges[:-1]) / 2).cos().clamp(-largest, largest)
    angles = threshold_angle(tau).cummax(0).values  # of tau as it was rounded
    far, tar = (torch.searchsorted(turns, angles + room, right=True).double() / len(turns)
                for turns, room in ((false, 2 * _ROUNDING), (true, -2 * _ROUNDING)))
    return tau, far, tar


def threshold_under_attack(points: tuple[Tensor, Tensor, Tensor], far: float) -> tuple[float, float, float]:
    """(tau, FAR, TAR) of the loosest of these points, as of `certified_roc`, whose FAR is at most the target.

    Chosen so, the threshold keeps false acceptance below the target under the attack, and TAR is certified under it: the
    certified TAR at certified FAR. Raises ValueError where no point is: some false pairs can be moved to any decision.
    """
    thresholds, fars, tars = points
    kept = int((fars <= far).sum())
    if not kept:
        raise ValueError(f"under this attack FAR is at least {fars.min().item():g} at every threshold, above {far:g}")
    return thresholds[kept - 1].item(), fars[kept - 1].item(), tars[kept - 1].item()


def identification_radius(embedding: Any, gallery: Any, poisoned: float = 0.) -> Tensor:
    """Radius [...] at which the nearest template, by the angle, stays the nearest one: rank-1 identification.

    embedding [..., D]; gallery [M, D]: a template a row, the mean of the embeddings of an identity's K enrolled images. The
    regions where another template j wins are half-spaces, and the radius is the distance to the nearest one, exactly:
    min_j <u, v_i - v_j> / |v_i - v_j| over unit templates, i the nearest; where there is no other |u|, the distance to the origin,
    which has no direction.

    poisoned: the share m / K of each identity's enrolled images that moves as well, each by the same eps. The radius is then
    a lower bound, the root of <u, v_i - v_j> - eps |v_i - v_j| - (|u| + eps) (c_i + c_j), c = 2 sin(arcsin(m eps / (K |t|)) / 2)
    how far a unit template can move; where there is no other the eps at which probe or template can lose its direction.

    Templates without a direction are never found, unless poison can give them one: then all radii are 0, as is that of an
    embedding without a direction. Raises ValueError where the shapes
    do not fit, no template has a direction or poisoned is not in [0, 1].
    """
    embedding, gallery = _double(embedding), _double(gallery)
    if gallery.dim() != 2 or embedding.shape[-1:] != gallery.shape[1:]:
        raise ValueError(f"embeddings {list(embedding.shape)} and gallery {list(gallery.shape)}, expected [..., D] and [M, D]")
    if not 0 <= poisoned <= 1:
        raise ValueError(f"poisoned is {poisoned}, expected a share in [0, 1]")
    units, lengths = unit_templates(gallery)
    usable = lengths > 0
    if not usable.any():
        raise ValueError("no template has a direction")
    if poisoned and not usable.all():
        return embedding.new_zeros(embedding.shape[:-1])
    units, lengths = units[usable], lengths[usable]
    probes = embedding.reshape(-1, embedding.shape[-1])
    probes = torch.where(probes.isfinite().all(-1, keepdim=True), probes, 0.)
    nearest, radius = (probes @ units.T).argmax(-1), probes.new_zeros(len(probes))
    for winner in nearest.unique().tolist():
        rows = nearest == winner
        radius[rows] = _rank1_radius(probes[rows], units, lengths / poisoned if poisoned else None, winner)
    return radius.reshape(embedding.shape[:-1])


def unit_templates(gallery: Any) -> tuple[Tensor, Tensor]:
    """(unit vectors [M, D], norms [M]) of templates [M, D]; both are 0 for one without direction, as `utils.directions` says."""
    gallery = _double(gallery)
    lengths = directions.norms(gallery)
    return torch.where(lengths[:, None] > 0, gallery / lengths[:, None], 0.), lengths


def _rank1_radius(probes: Tensor, units: Tensor, lengths: "Tensor | None", winner: int) -> Tensor:
    """`identification_radius` [n] of probes [n, D] whose nearest unit template [M, D] is number `winner`; lengths [M] of the
    templates in units of what moves them, None where nothing does.
    """
    rounding = (probes.shape[1] + 8) * torch.finfo(torch.float64).eps  # of a unit template and of an inner product with it
    others = torch.arange(len(units)) != winner
    norm, apart = probes.norm(dim=1), units[winner] - units[others]
    distance = apart.norm(dim=1) + rounding
    gap = probes @ apart.T - rounding * norm[:, None]  # [n, M - 1]
    # any half-space is as near as the origin, which has no direction: that is what is left where there is no other template
    radius = _down(torch.cat([gap / distance, norm[:, None]], 1).amin(1).clamp(min=0))
    if lengths is None:
        return radius
    low, high = torch.zeros_like(radius), radius.clamp(max=_down(lengths[winner]))
    for _ in range(_BISECTIONS):
        eps = (low + high) / 2
        moved = 2 * ((eps[:, None] / lengths).clamp(max=1).arcsin() / 2).sin()
        moved = torch.where(eps[:, None] < lengths, moved, 2.)
        left = gap - eps[:, None] * distance - (norm + eps)[:, None] * (moved[:, [winner]] + moved[:, others])
        holds = (left > rounding * norm[:, None]).all(1)
        low, high = torch.where(holds, eps, low), torch.where(holds, high, eps)
    return low


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


def _separation(theta: Any, tau: Any) -> Tensor:
    """delta = |theta - arccos tau|, rounded down, as a larger angle would make a larger radius."""
    return ((_double(theta) - threshold_angle(tau)).abs() - _ROUNDING).clamp(min=0)


def _down(radius: Tensor) -> Tensor:
    return radius * (1 - _ROUNDING)


def _shorter(norm_x: Any, norm_y: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(a, a / b, (b - a) / b) of two norms a <= b: squares of norms could overflow, and differences of ratios cancel."""
    norm_x, norm_y = _double(norm_x), _double(norm_y)
    small, large = torch.minimum(norm_x, norm_y), torch.maximum(norm_x, norm_y)
    large = torch.where(large > 0, large, 1.)
    return small, small / large, (large - small) / large


def _margin(theta: Any, tau: Any) -> Tensor:
    """|sqrt(1 - tau^2) cos(theta) - tau sin(theta)| = |sin(arccos tau - theta)|; the left form cancels, the right
    one does not.
    """
    return (threshold_angle(tau) - _double(theta)).sin().abs()
