"""Soundness audit of certificates against an attack on both images of a pair at once.

`radius_both` says that no two perturbations, each smaller than it, change the decision, and `radius_joint` that no two change it
whose norms (a, b) have sqrt(a^2 + b^2) below it. Both images follow the gradient of the cosine together, in steps that fall in
length, from random starts, inside 0.999 of that. What crosses tau is computed again in float64, and only what does so there is a
violation.
"""
import copy
import math
from functools import partial
from typing import Any, Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import attacks
from eval import certification, records
from eval.audit.one import RESOLUTION
from eval.store.journal import Journal, Outcome
from eval.store.subject import OBJECTIVES, Subject, is_right, table_of
from utils import InputError
from utils.distributed import barrier, rank
from utils.files import write_json
from utils.precision import full_precision

_SHARE = 0.999  # of the radius: the budget of the attack
_BOX = (-0.5, 0.5)
_EXACT = 1e-9  # relative rounding of float64


def audit(subject: Subject, threat: str, steps: int = 100, restarts: int = 3, limit: "int | None" = None, seed: int = 0
          ) -> dict[str, Any]:
    """Attack all pairs that are certified against a threat, "both" or "joint" (of the first `limit` of each kind).

    Returns what goes to audit_both.json or audit_joint.json. Raises InputError where the records have no such radii.
    """
    found, column = subject.records, f"radius_{threat}"
    if column not in found.pairs:
        raise InputError(f"{subject.folder / records.PAIRS}: column {column} missing: run python -m eval certify again")
    settings = {"threat": threat, "steps": steps, "restarts": restarts, "limit": limit, "seed": seed, "share_of_radius": _SHARE}
    origin = records.fingerprint(found.summary)
    journal = Journal(subject.folder, f"audit_{threat}", {**origin, **settings})
    double = copy.deepcopy(subject.network)
    double = double.double() if isinstance(double, nn.Module) else double
    report: dict[str, Any] = {**origin, "bin": found.summary.get("bin"), "settings": settings, "attacked": {}, "unresolved": {}}
    audited = []
    for kind in "di":
        table = table_of(found, kind)[:limit]
        radius = table[column].where(is_right(table), 0.)
        chosen = table.assign(radius=radius)[radius > RESOLUTION]
        work = partial(_attack, subject, double, kind, settings)
        with subject.bar(len(chosen), f"audit {threat} {kind.upper()}") as bar:
            rows = journal.run(kind, chosen, work, subject.batch_size, lambda rows: bar.update(len(rows)))
        report["attacked"][kind] = len(chosen)
        report["unresolved"][kind] = int(((radius > 0) & (radius <= RESOLUTION)).sum())
        audited.append(chosen[["left", "right", "flipped", "radius"]].join(rows.reindex(columns=_COLUMNS)).assign(kind=kind))
    everything = pd.concat(audited)
    lowest = everything["margin"].min()
    report |= {"points": int(everything["points"].sum()), "rechecked": int(everything["rechecked"].sum()),
               "smallest_margin": float(lowest) if math.isfinite(lowest) else None, **journal.passes}
    report["violations"] = [
        {"kind": row.kind, "row": int(row.Index), "left": int(row.left), "right": int(row.right), "flipped": bool(row.flipped),
         "certified_radius": row.radius, "moved_left": row.moved_left, "moved_right": row.moved_right}
        for row in everything[everything["broken"].fillna(False).astype(bool)].itertuples()]
    report["n_violations"] = len(report["violations"])
    if rank() == 0:
        write_json(subject.folder / records.AUDIT_OF[threat], report)
        journal.remove()
    barrier()
    return report


_COLUMNS = ["points", "margin", "rechecked", "broken", "moved_left", "moved_right"]  # of each pair


def describe(report: dict[str, Any]) -> str:
    """A report in a few lines."""
    attacked, threat = report["attacked"], report["settings"]["threat"]
    lowest = report["smallest_margin"]
    lines = [f"{report['bin']}, both images attacked ({threat}): {report['n_violations']} violations in "
             f"{attacked['d'] + attacked['i']} certified pairs ({report['points']} points, {report['rechecked']} rechecked in float64), "
             f"smallest |cos - tau| {'-' if lowest is None else f'{lowest:.3g}'}"]
    for one in report["violations"][:10]:
        lines.append(f"violated: {OBJECTIVES[one['kind']]}, row {one['row']}, images moved by {one['moved_left']:.6g} and "
                     f"{one['moved_right']:.6g}, certified radius {one['certified_radius']:.6g}")
    return "\n".join(lines)


def _attack(subject: Subject, double: Callable, kind: str, settings: dict[str, Any], samples: pd.DataFrame) -> Outcome:
    """One batch: points, margin (the smallest one, positive for the certified decision), and what float64 says of that point."""
    tau, steps = subject.records.summary["tau"], settings["steps"]
    images = torch.stack([subject.images(samples[side], samples["flipped"]) for side in ("left", "right")], 1)  # [N, 2, C, H, W]
    budget = torch.tensor(_SHARE * samples["radius"].to_numpy(), device=images.device)
    each = budget.repeat_interleave(2) if settings["threat"] == "both" else budget  # balls of each image, or of the two as one
    worst, lowest = images.clone(), torch.full_like(budget, math.inf)
    with full_precision(), torch.autocast(images.device.type, enabled=False):
        for restart in range(settings["restarts"]):
            points = _step(images, _noise(images, settings["seed"], samples.index, restart), images, each, each)
            for step in range(steps + 1):
                margins, gradients = _look(subject.network, points, tau, OBJECTIVES[kind])
                lower = margins < lowest
                worst[lower], lowest[lower] = points[lower], margins[lower]
                if step < steps:
                    points = _step(points, -gradients, images, each, 2 * each * (1 - step / steps))
        # what looks like a violation, within the rounding of float32, and the nearest to one
        chosen = ((lowest <= 1e-6) | (lowest == lowest.min())).nonzero().flatten()
        exact = _recheck(double, images[chosen], worst[chosen], kind, tau, settings["threat"])
    rows = pd.DataFrame({"points": settings["restarts"] * (steps + 1), "margin": lowest.tolist(), "rechecked": False, "broken": False,
                         "moved_left": math.nan, "moved_right": math.nan}, index=samples.index)
    place = samples.index[chosen.tolist()]
    rows.loc[place, list(exact)] = exact.set_index(place)
    rows["rechecked"] = rows.index.isin(place)
    passes = 2 * len(samples) * settings["restarts"] * (steps + 1)
    return Outcome(rows, passes, passes)


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


def _recheck(network: Callable[[Tensor], Tensor], images: Tensor, points: Tensor, kind: str, tau: float, threat: str) -> pd.DataFrame:
    """broken, moved_left and moved_right of pairs [N, 2, C, H, W] in float64, the radius being computed anew."""
    objective = OBJECTIVES[kind]
    with torch.no_grad():
        clean, found = (network(batch.double().flatten(0, 1)).unflatten(0, (-1, 2)) for batch in (images, points))
    moved = attacks.l2((points.double() - images.double()).flatten(0, 1)).view(-1, 2)
    used = moved.amax(1) if threat == "both" else moved.norm(dim=1)
    radius = records.THREATS[threat](*clean.norm(dim=-1).unbind(1), certification.angle(*clean.unbind(1)), tau)
    before, after = (attacks.succeeds(attacks.margin(*pair.unbind(1), tau, objective), objective) for pair in (clean, found))
    broken = ~before & after & (used < radius * (1 - _EXACT) - _EXACT)
    return pd.DataFrame({"broken": broken.tolist(), "moved_left": moved[:, 0].tolist(), "moved_right": moved[:, 1].tolist()})
