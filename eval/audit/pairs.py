"""Soundness audit of certificates against an attack on both images of a pair at once.

`radius_both` says that no two perturbations, each smaller than it, change the decision, and `radius_joint` that no two change it
whose norms (a, b) have sqrt(a^2 + b^2) below it. Both images follow the gradient of the cosine together, in steps that fall in
length, from random starts, inside 0.999 of that. What crosses tau is computed again in float64, and only what does so there is a
violation.
"""
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import attacks
from eval import certification
from eval.audit.settings import EXACT, SHARE, Settings, finite
from eval.certificates import Case, Certificate
from eval.records import is_right, table_of
from eval.store.journal import Outcome
from eval.store.subject import OBJECTIVES, Subject
from utils.precision import full_precision

_BOX = (-0.5, 0.5)


class PairSearch:
    """Attacks on both images of a pair at once: each in a ball of its own, or the two in one."""
    kinds = "di"
    strongest = ["gradient steps on both images"]
    measured = ["points", "margin", "rechecked", "broken", "moved_left", "moved_right"]

    def __init__(self, subject: Subject, double: Callable[[Tensor], Tensor], certificate: Certificate, settings: Settings):
        self.subject, self.double, self.certificate, self.settings = subject, double, certificate, settings

    def samples(self, kind: str) -> pd.DataFrame:
        """Each pair, with its radius."""
        table = table_of(self.subject.records, kind)[:self.settings.limit]
        return table.assign(row=table.index, radius=table[self.certificate.column].where(is_right(table), 0.))

    @property
    def most_passes(self) -> int:
        """Of the two images of a pair."""
        return 2 * self.settings.restarts * (self.settings.steps + 1)

    def attack(self, kind: str, tick: Callable[[int], None], samples: pd.DataFrame) -> Outcome:
        """points, margin (the smallest one, positive for the certified decision), and what float64 says of that point."""
        tau, settings = self.subject.tau, self.settings
        sides = [self.subject.images(samples[side], samples["flipped"]) for side in ("left", "right")]
        images = torch.stack(sides, 1)  # [N, 2, C, H, W]
        budget = torch.tensor(SHARE * samples["radius"].to_numpy(), device=images.device)
        each = budget.repeat_interleave(2) if self.certificate.geometry == "both" else budget  # balls of each image, or of the two as one
        worst, lowest = images.clone(), torch.full_like(budget, math.inf)
        with full_precision(), torch.autocast(images.device.type, enabled=False):
            for restart in range(settings.restarts):
                points = _step(images, _noise(images, settings.seed, samples.index, restart), images, each, each)
                for step in range(settings.steps + 1):
                    margins, gradients = _look(self.subject.network, points, tau, OBJECTIVES[kind])
                    tick(2 * len(points))
                    lower = margins < lowest
                    worst[lower], lowest[lower] = points[lower], margins[lower]
                    if step < settings.steps:
                        points = _step(points, -gradients, images, each, 2 * each * (1 - step / settings.steps))
            # what looks like a violation, within the rounding of float32, and the nearest to one
            chosen = ((lowest <= 1e-6) | (lowest == lowest.min())).nonzero().flatten()
            exact = _recheck(self.double, images[chosen], worst[chosen], kind, tau, self.certificate)
        seen = self.most_passes // 2
        rows = pd.DataFrame({"points": seen, "margin": lowest.tolist(), "rechecked": False, "broken": False,
                             "moved_left": math.nan, "moved_right": math.nan}, index=samples.index)
        place = samples.index[chosen.tolist()]
        rows.loc[place, list(exact)] = exact.set_index(place)
        rows["rechecked"] = rows.index.isin(place)
        return Outcome(rows, 2 * len(samples) * seen, 2 * len(samples) * seen)

    def report(self, audited: pd.DataFrame) -> dict[str, Any]:
        """The smallest margin met, and violations."""
        violations = audited[audited["broken"].fillna(False).astype(bool)]
        return {"smallest_margin": finite(audited["margin"].min()), "violations": [
            {"kind": row.kind, "row": int(row.Index), "left": int(row.left), "right": int(row.right), "flipped": bool(row.flipped),
             "checks": ["decision"], "certified_radius": row.radius, "moved_left": row.moved_left, "moved_right": row.moved_right}
            for row in violations.itertuples()]}


def _look(network: Callable[[Tensor], Tensor], points: Tensor, tau: float, objective: str) -> tuple[Tensor, Tensor]:
    """Margins [N] of pairs [N, 2, C, H, W] and their gradients."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        u, v = network(points.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        margins = attacks.margin(u, v, tau, objective)
    gradients, = torch.autograd.grad(margins.sum(), points, materialize_grads=True) if margins.requires_grad else (points.detach() * 0,)
    return margins.detach(), gradients


def _step(points: Tensor, direction: Tensor, images: Tensor, eps: Tensor, length: Tensor) -> Tensor:
    """Points [N, 2, C, H, W] moved along a direction and projected, as [balls, ...]: 2 N for a budget each, N for a joint one."""
    shape, balls = points.shape, (len(eps), -1, *points.shape[-2:])
    points, direction, images = (tensor.reshape(balls) for tensor in (points, direction, images))
    ahead = points + attacks.unit(direction) * length.to(points.dtype).view(-1, 1, 1, 1)
    return attacks.project(ahead, images, eps, _BOX).reshape(shape)


def _noise(images: Tensor, seed: int, numbers: pd.Index, restart: int) -> Tensor:
    draw = [np.random.default_rng((seed, number, restart)).standard_normal(images.shape[1:]) for number in numbers.tolist()]
    return torch.from_numpy(np.stack(draw)).to(images)


def _recheck(network: Callable[[Tensor], Tensor], images: Tensor, points: Tensor, kind: str, tau: float,
             certificate: Certificate) -> pd.DataFrame:
    """broken, moved_left and moved_right of pairs [N, 2, C, H, W] in float64, the radius being computed anew."""
    objective = OBJECTIVES[kind]
    with torch.no_grad():
        clean, found = (network(batch.double().flatten(0, 1)).unflatten(0, (-1, 2)) for batch in (images, points))
    moved = attacks.l2((points.double() - images.double()).flatten(0, 1)).view(-1, 2)
    used = moved.amax(1) if certificate.geometry == "both" else moved.norm(dim=1)
    left, right = clean.unbind(1)
    case = Case(left.norm(dim=-1), right.norm(dim=-1), certification.angle(left, right), tau, dimension=images[0, 0].numel())
    radius = certificate.radius(case)
    before, after = (attacks.succeeds(attacks.margin(pair[:, 0], pair[:, 1], tau, objective), objective) for pair in (clean, found))
    broken = ~before & after & (used < radius * (1 - EXACT) - EXACT)
    return pd.DataFrame({"broken": broken.tolist(), "moved_left": moved[:, 0].tolist(), "moved_right": moved[:, 1].tolist()})
