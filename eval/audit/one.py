"""Soundness audit: does anything that an attack can find contradict a certificate?

A radius rests on three statements about any x* that is r = |x* - x| away from x:

    lipschitz   |f(x*) - f(x)| <= r
    margin      angle(f(x*), f(x)) <= arcsin(r / |f(x)|)  for r < |f(x)|, so that the margin falls no faster
    decision    it is the same for x* as for x, where r is below the certified radius

Each is checked at every iterate of the strongest attacks there are here. What breaks one in the arithmetic of the
network beyond its rounding is computed again in float64, and only what breaks it there is a violation.
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
from eval.store.journal import Journal, Outcome
from eval.store.subject import OBJECTIVES, Subject, plan, table_of
from utils.distributed import barrier, rank
from utils.files import write_json
from utils.precision import full_precision

COLUMN = "norm_audit"
CHECKS = ("lipschitz", "margin", "decision")
RESOLUTION = 1e-4  # a smaller radius cannot be told from the rounding of pixels near 0.5, and is not attacked
_MEASURED = ["norm", "points", "rechecked", "ratio", "moved", "broken"]  # of each single attack
_SHARE = 0.999  # of the radius: the budget of attacks with one
_EDGES = np.arange(1, 6.01, 0.25)
_EXACT = 1e-9  # relative rounding of float64


def audit(subject: Subject, steps: int = 100, restarts: int = 3, limit: "int | None" = None, seed: int = 0
          ) -> dict[str, Any]:
    """Attack all that is certified (of the first `limit` rows of each kind); returns what goes to audit.json.

    Writes that file and the column norm_audit (the smallest perturbation that succeeded; of pairs, on either side). The
    network must be 1-Lipschitz by construction. "violations" lists the true ones.
    """
    settings = {"steps": steps, "restarts": restarts, "limit": limit, "seed": seed, "share_of_radius": _SHARE,
                "attacks": ["apgd", "ddn", "cw"]}
    found = subject.records
    origin = records.fingerprint(found.summary)
    journal = Journal(subject.folder, "audit", {**origin, **settings})
    report: dict[str, Any] = {**origin, "bin": found.summary.get("bin"), "settings": settings,
                              "attacked": {}, "unresolved": {}, "tightness": {}}
    double = copy.deepcopy(subject.network)
    double = double.double() if isinstance(double, nn.Module) else double
    audited = []
    for kind in OBJECTIVES:
        samples = plan(found, kind, limit)
        chosen = samples[samples["radius"] > RESOLUTION]
        work = partial(_audit_batch, subject, double, kind, settings)
        with subject.bar(len(chosen), f"audit {kind.upper()}") as bar:
            rows = journal.run(kind, chosen, work, subject.batch_size, lambda rows: bar.update(len(rows)))
        audited.append(chosen.join(rows.reindex(columns=_MEASURED)).assign(kind=kind))
        report["attacked"][kind] = int(chosen["row"].nunique())
        unresolved = samples[(samples["radius"] > 0) & ~samples["row"].isin(chosen["row"])]
        report["unresolved"][kind] = int(unresolved["row"].nunique())
        _set_norms(found, kind, chosen, rows)
        report["tightness"][kind] = tightness(table_of(found, kind), "radius_u" if kind == "u" else "radius")
    everything = pd.concat(audited)
    largest = everything["ratio"].max()
    report |= {"points": int(everything["points"].sum()), "rechecked": int(everything["rechecked"].sum()),
               "largest_ratio": float(largest) if math.isfinite(largest) else None, **journal.passes}
    report["violations"] = _violations(everything)
    report["n_violations"] = len(report["violations"])
    if rank() == 0:
        records.write_records(subject.folder, found)
        write_json(subject.folder / records.AUDIT, report)
        journal.remove()
    barrier()
    return report


def _set_norms(found: records.Records, kind: str, chosen: pd.DataFrame, rows: pd.DataFrame) -> None:
    table = found.images if kind == "u" else found.pairs
    if kind != "i":  # the first time in each table: a former audit may have gone further
        table[COLUMN] = np.nan
    if len(chosen):
        norms = rows["norm"].groupby(chosen["row"]).min()
        table.loc[norms.index, COLUMN] = norms


def tightness(table: pd.DataFrame, radius: str) -> dict[str, Any]:
    """Smallest successful perturbation over certified radius, of the rows that were audited: number, minimum, median
    (the lower; None where half of the attacks or more fail) and histogram (counts between the edges, and outside them).
    """
    table = table[table[COLUMN].notna()]
    ratio = (table[COLUMN] / table[radius]).to_numpy()
    median = certification.lower_median(ratio) if len(ratio) else math.inf
    least = ratio.min() if len(ratio) else math.inf
    return {"n": len(ratio), "minimum": float(least) if math.isfinite(least) else None,
            "median": median if math.isfinite(median) else None,
            "histogram": {"edges": _EDGES.tolist(),
                          "counts": np.histogram(ratio[np.isfinite(ratio)], _EDGES)[0].tolist(),
                          "below": int((ratio < _EDGES[0]).sum()), "above": int((ratio > _EDGES[-1]).sum())}}


def _violations(audited: pd.DataFrame) -> list[dict[str, Any]]:
    true = audited[audited["broken"].fillna("") != ""]
    return [{"kind": row.kind, "row": int(row.row), "side": "image" if row.kind == "u" else ("left", "right")[row.side],
             "image": int(row.image), "target": int(row.target), "flipped": bool(row.flipped),
             "checks": row.broken.split(), "certified_radius": row.radius, "perturbation": row.moved,
             "ratio": row.ratio if math.isfinite(row.ratio) else None} for row in true.itertuples()]


def describe(report: dict[str, Any]) -> str:
    """A report in a few lines."""
    attacked, lines = report["attacked"], []
    lines.append(f"{report['bin']}: {report['n_violations']} violations in {attacked['d'] + attacked['i']} certified "
                 f"pairs and {attacked['u']} images ({report['points']} points, {report['rechecked']} rechecked in "
                 "float64)")
    if report["largest_ratio"] is not None:
        lines.append(f"largest |f(x*) - f(x)| / |x* - x|: {report['largest_ratio']:.6f}")
    for kind, found in report["tightness"].items():
        number = {key: "-" if found[key] is None else f"{found[key]:.3f}" for key in ("minimum", "median")}
        lines.append(f"smallest success / radius, {OBJECTIVES[kind]}: minimum {number['minimum']}, "
                     f"median {number['median']} of {found['n']}")
    for one in report["violations"][:10]:
        lines.append(f"violated: {', '.join(one['checks'])}: {OBJECTIVES[one['kind']]}, row {one['row']}, "
                     f"image {one['image']} moved by {one['perturbation']:.6g}, certified radius "
                     f"{one['certified_radius']:.6g}")
    return "\n".join(lines)


def _suite(samples: pd.DataFrame, settings: dict[str, Any]) -> list[attacks.Attack]:
    budget, steps = torch.tensor(_SHARE * samples["radius"].to_numpy()), settings["steps"]
    return [attacks.preset("apgd", budget, steps=steps, restarts=settings["restarts"]),
            attacks.preset("ddn", steps=steps, restarts=settings["restarts"]), attacks.preset("cw", steps=steps)]


def _audit_batch(subject: Subject, double: Callable, kind: str, settings: dict[str, Any], samples: pd.DataFrame
                 ) -> Outcome:
    numbers = (samples["image"], samples["flipped"]), (samples["target"], samples["flipped"])
    images, targets, tau = subject.images(*numbers[0]), subject.embedded(*numbers[1]), subject.records.summary["tau"]
    norm = torch.full((len(samples),), math.inf, dtype=torch.float64, device=images.device)
    passes = [0, 0]
    radius = torch.tensor(samples["radius"].to_numpy(), device=images.device)
    with full_precision(), torch.autocast(images.device.type, enabled=False):
        watch = _Watch(subject.network, images, subject.embedded(*numbers[0]), radius, OBJECTIVES[kind])
        for attack in _suite(samples, settings):
            result = attack(watch.embed, images, targets, OBJECTIVES[kind], tau, seed=settings["seed"],
                            sample_ids=samples.index.tolist(), on_iterate=watch)
            norm = torch.where(result.success, torch.minimum(norm, result.norm), norm)
            passes = [passes[0] + result.forward_passes, passes[1] + result.backward_passes]
        rows = {"norm": norm.tolist(), "points": watch.points.tolist(), "rechecked": False, "ratio": math.nan,
                "moved": math.nan, "broken": ""}
        rows = pd.DataFrame(rows, index=samples.index)
        # the nearest to a violation of each batch as well: its ratio is what the report says of the network
        chosen = ((watch.excess > 0) | (watch.excess == watch.excess.max())).nonzero().flatten()
        others = subject.images(*(column.iloc[chosen.tolist()] for column in numbers[1]))
        exact = recheck(double, images[chosen], watch.worst[chosen], others, OBJECTIVES[kind], tau)
    rows.loc[samples.index[chosen.tolist()], list(exact)] = exact.set_index(samples.index[chosen.tolist()])
    rows.loc[samples.index[(watch.excess > 0).cpu().numpy()], "rechecked"] = True
    return Outcome(rows, *passes)


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
            tau: float) -> pd.DataFrame:
    """The three statements at points [N, C, H, W] near images, in float64, `network` being a copy in float64.

    Columns: moved, |x* - x|; ratio, |f(x*) - f(x)| / |x* - x|; broken, the names of those that do not hold. The
    radius is computed anew, and a decision that is wrong or undefined here has none.
    """
    with torch.no_grad():
        clean, found, targets = (network(batch.double()) for batch in (images, points, others))
    moved, norm = attacks.l2(points.double() - images.double()), clean.norm(dim=-1)
    drift, turned = (found - clean).norm(dim=-1), certification.angle(found, clean)
    allowed = torch.where(moved < norm, torch.asin((moved / norm).clamp(max=1)), math.pi)
    radius = certification.one_sided_radius(norm, certification.angle(clean, targets), tau)
    margins = [attacks.margin(embeddings, targets, tau, objective) for embeddings in (clean, found)]
    before, after = (attacks.succeeds(margin, objective) for margin in margins)
    broken = {"lipschitz": ~(drift <= moved * (1 + _EXACT) + _EXACT),
              "margin": ~(turned <= allowed * (1 + _EXACT) + _EXACT),
              "decision": ~before & after & (moved < radius * (1 - _EXACT) - _EXACT)}
    names = [" ".join(check for check in CHECKS if broken[check][k]) for k in range(len(images))]
    ratio = (drift / moved).nan_to_num(nan=math.nan)
    return pd.DataFrame({"moved": moved.tolist(), "ratio": ratio.tolist(), "broken": names})
