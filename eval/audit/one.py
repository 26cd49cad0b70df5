"""Soundness audit of certificates against attacks on one image at a time.

A radius rests on three statements about any x* that is r = |x* - x| away from x:

    lipschitz   |f(x*) - f(x)| <= r
    margin      angle(f(x*), f(x)) <= arcsin(r / |f(x)|)  for r < |f(x)|, so that the margin falls no faster
    decision    it is the same for x* as for x, where r is below the certified radius

Each is checked at every iterate of the strongest attacks there are here. What breaks one in the arithmetic of the
network beyond its rounding is computed again in float64, and only what breaks it there is a violation.
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
from eval.certificates import ONE, Case, Certificate, OneImage
from eval.records import AUDITED, table_of
from eval.robustness import with_attacks
from eval.store.journal import Outcome
from eval.store.subject import OBJECTIVES, Subject, plan, side_name
from utils.precision import full_precision

CHECKS = ("lipschitz", "margin", "decision")
_EDGES = np.arange(1, 6.01, 0.25)


class OneImageSearch:
    """Attacks on one image at a time: of each pair either one, and each image against itself."""
    strongest = ["apgd", "ddn", "cw"]
    measured = ["norm", "points", "rechecked", "ratio", "moved", "broken"]

    def __init__(self, subject: Subject, double: Callable[[Tensor], Tensor], certificate: Certificate, settings: Settings):
        self.subject, self.double, self.certificate, self.settings = subject, double, certificate, settings
        self.kinds = "udi" if type(certificate) is OneImage else "di"  # images have their radius from Theorem 1 alone

    def samples(self, kind: str) -> pd.DataFrame:
        """Each image of the rows, with its radius."""
        return plan(self.subject.records, kind, self.settings.limit, self.certificate)

    @property
    def most_passes(self) -> int:
        """Of an image, of all attacks."""
        return sum(attack.most_passes for attack in self._suite(1.))

    def attack(self, kind: str, tick: Callable[[int], None], samples: pd.DataFrame) -> Outcome:
        """norm: the smallest success (inf: none); points seen and whether one was computed again, with ratio, moved and broken of that."""
        subject = self.subject
        numbers = (samples["image"], samples["flipped"]), (samples["target"], samples["flipped"])
        images, targets = subject.images(*numbers[0]), subject.embedded(*numbers[1])
        norm = torch.full((len(samples),), math.inf, dtype=torch.float64, device=images.device)
        passes = [0, 0]
        radius = torch.tensor(samples["radius"].to_numpy(), device=images.device)
        with full_precision(), torch.autocast(images.device.type, enabled=False):
            watch = _Watch(subject.network, images, subject.embedded(*numbers[0]), radius, OBJECTIVES[kind])

            def see(points: Tensor, index: Tensor, margins: Tensor) -> None:
                watch(points, index, margins)
                tick(len(index))
            for attack in self._suite(torch.tensor(SHARE * samples["radius"].to_numpy())):
                result = attack(watch.embed, images, targets, OBJECTIVES[kind], subject.tau, seed=self.settings.seed,
                                sample_ids=samples.index.tolist(), on_iterate=see)
                norm = torch.where(result.success, torch.minimum(norm, result.norm), norm)
                passes = [passes[0] + result.forward_passes, passes[1] + result.backward_passes]
            rows = pd.DataFrame({"norm": norm.tolist(), "points": watch.points.tolist(), "rechecked": False, "ratio": math.nan,
                                 "moved": math.nan, "broken": ""}, index=samples.index)
            # the nearest to a violation of each batch as well: its ratio is what the report says of the network
            chosen = ((watch.excess > 0) | (watch.excess == watch.excess.max())).nonzero().flatten()
            others = subject.images(*(column.iloc[chosen.tolist()] for column in numbers[1]))
            exact = recheck(self.double, images[chosen], watch.worst[chosen], others, OBJECTIVES[kind], subject.tau, self.certificate,
                            samples["side"].to_numpy()[chosen.tolist()])
        rows.loc[samples.index[chosen.tolist()], list(exact)] = exact.set_index(samples.index[chosen.tolist()])
        rows.loc[samples.index[(watch.excess > 0).cpu().numpy()], "rechecked"] = True
        return Outcome(rows, *passes)

    def _suite(self, budget: attacks.Budget) -> list[attacks.Attack]:
        steps, restarts = self.settings.steps, self.settings.restarts
        return [attacks.preset("apgd", budget, steps=steps, restarts=restarts), attacks.preset("ddn", steps=steps, restarts=restarts),
                attacks.preset("cw", steps=steps)]

    def report(self, audited: pd.DataFrame) -> dict[str, Any]:
        """The largest |f(x*) - f(x)| / |x* - x| met, how tight the radii are, and violations. The audit of Theorem 1 is kept with the
        single attacks of the records.
        """
        found, of_theorem_1 = self.subject.records, type(self.certificate) is OneImage
        if of_theorem_1:
            found.attacks = found.attacks[found.attacks["attack"] != AUDITED]
        tight = {}
        for kind in self.kinds:
            rows = audited[audited["kind"] == kind]
            norm, radius = (rows.groupby("row")[name].min() for name in ("norm", "radius"))
            if of_theorem_1:
                fresh = rows.assign(success=np.isfinite(rows["norm"].to_numpy()))
                found.attacks = with_attacks(found.attacks, fresh, kind=kind, attack=AUDITED, eps=math.nan, seed=self.settings.seed,
                                             settings=AUDITED)
                radius = table_of(found, kind).loc[norm.index, "radius_u" if kind == "u" else "radius"]
            tight[kind] = tightness((norm / radius).to_numpy())
        return {"tightness": tight, "largest_ratio": finite(audited["ratio"].max()), "violations": _violations(audited)}


def tightness(ratio: np.ndarray) -> dict[str, Any]:
    """Smallest successful perturbation over certified radius [rows]: number, minimum, median (the lower; None where half of the attacks or
    more fail) and histogram (counts between the edges, and outside them).
    """
    return {"n": len(ratio), "minimum": finite(ratio.min()) if len(ratio) else None,
            "median": finite(certification.lower_median(ratio)) if len(ratio) else None,
            "histogram": {"edges": _EDGES.tolist(),
                          "counts": np.histogram(ratio[np.isfinite(ratio)], _EDGES)[0].tolist(),
                          "below": int((ratio < _EDGES[0]).sum()), "above": int((ratio > _EDGES[-1]).sum())}}


def _radius(certificate: Certificate, norm: Tensor, other: Tensor, theta: Tensor, tau: float, dimension: int, side: Any) -> Tensor:
    """The radius of an attack on the image whose embedding has this norm, which is the left one of its pair where `side` is 0."""
    left, _ = certificate.sides(Case(norm, other, theta, tau, dimension=dimension))
    _, right = certificate.sides(Case(other, norm, theta, tau, dimension=dimension))
    left, right = (torch.as_tensor(radius, device=norm.device) for radius in (left, right))
    return torch.where(torch.as_tensor(side, device=norm.device) == 0, left, right)


def _violations(audited: pd.DataFrame) -> list[dict[str, Any]]:
    true = audited[audited["broken"].fillna("") != ""]
    return [{"kind": row.kind, "row": int(row.row), "side": side_name(row.kind, row.side),
             "image": int(row.image), "target": int(row.target), "flipped": bool(row.flipped),
             "checks": row.broken.split(), "certified_radius": row.radius, "perturbation": row.moved,
             "ratio": row.ratio if math.isfinite(row.ratio) else None} for row in true.itertuples()]


class _Watch:
    """Sees every iterate, and keeps for each sample the one that is nearest to breaking a statement.

    excess [N]: by what share of its distance from the image that point would break it, were rounding as bad as it can
    be expected to be; positive is beyond rounding. worst [N, C, H, W]: these points. points [N]: how many were seen.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], images: Tensor, clean: Tensor, radius: Tensor,
                 objective: str):
        self.network, self.images, self.radius, self.objective = network, images, radius, objective
        self.clean = clean.double()
        self.rounding = 16 * torch.finfo(images.dtype).eps * torch.maximum(attacks.l2(images), self.clean.norm(dim=-1))
        self.worst, self.excess = images.clone(), torch.full_like(radius, -math.inf)
        self.points = torch.zeros_like(radius, dtype=torch.long)

    def embed(self, points: Tensor) -> Tensor:
        embeddings = self.network(points)
        self.embeddings = embeddings.detach().double()
        return embeddings

    def __call__(self, points: Tensor, index: Tensor, margins: Tensor) -> None:
        moved = attacks.l2(points.double() - self.images[index].double())
        # the margin follows from the norms: an angle beyond its arcsine needs a drift beyond the distance
        drift = (self.embeddings - self.clean[index]).norm(dim=-1)
        excess = (drift - self.rounding[index]) / moved - 1
        early = attacks.succeeds(margins, self.objective) & (moved < self.radius[index])
        decision = (self.radius[index] - moved - self.rounding[index]) / moved
        excess = torch.where(early, torch.maximum(excess, decision), excess)
        excess = torch.where((moved > 0) & ~excess.isnan(), excess, -math.inf)
        excess = torch.where(self.embeddings.isfinite().all(-1), excess, math.inf)
        worse = excess > self.excess[index]
        self.worst[index[worse]], self.excess[index[worse]] = points[worse], excess[worse]
        self.points[index] += 1


def recheck(network: Callable[[Tensor], Tensor], images: Tensor, points: Tensor, others: Tensor, objective: str,
            tau: float, certificate: Certificate = ONE, side: Any = 0) -> pd.DataFrame:
    """The three statements at points [N, C, H, W] near images, in float64, `network` being a copy in float64.

    Columns: moved, |x* - x|; ratio, |f(x*) - f(x)| / |x* - x|; broken, the names of those that do not hold. The
    radius is computed anew, and a decision that is wrong or undefined here has none.
    """
    with torch.no_grad():
        clean, found, targets = (network(batch.double()) for batch in (images, points, others))
    moved, norm = attacks.l2(points.double() - images.double()), clean.norm(dim=-1)
    drift, turned = (found - clean).norm(dim=-1), certification.angle(found, clean)
    allowed = torch.where(moved < norm, torch.asin((moved / norm).clamp(max=1)), math.pi)
    radius = _radius(certificate, norm, targets.norm(dim=-1), certification.angle(clean, targets), tau, images[0].numel(), side)
    margins = [attacks.margin(embeddings, targets, tau, objective) for embeddings in (clean, found)]
    before, after = (attacks.succeeds(margin, objective) for margin in margins)
    broken = {"lipschitz": ~(drift <= moved * (1 + EXACT) + EXACT),
              "margin": ~(turned <= allowed * (1 + EXACT) + EXACT),
              "decision": ~before & after & (moved < radius * (1 - EXACT) - EXACT)}
    names = [" ".join(check for check in CHECKS if broken[check][k]) for k in range(len(images))]
    ratio = (drift / moved).nan_to_num(nan=math.nan)
    return pd.DataFrame({"moved": moved.tolist(), "ratio": ratio.tolist(), "broken": names})
