"""Audit of smoothed decisions, whose radii hold with confidence 1 - alpha: how many fall to attacks just below them, against alpha.

A decision fell where the other one is the majority of fresh draws with confidence 1 - alpha. Of a decision whose radius is right that
happens with a chance of at most alpha, and a radius is wrong with a chance of at most alpha: at most 2 alpha of all decisions that were
sampled, certified or not, are expected to fall.
"""
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from scipy.stats import binom

import attacks
from eval import certification
from eval.audit.settings import RESOLUTION, SHARE, searched
from eval.store import provenance, results
from eval.store.journal import Journal, Outcome
from eval.store.subject import OBJECTIVES, Subject, plan, side_name
from eval.through_noise import DRAWS, NoiseSearch, most_passes
from utils.distributed import barrier, rank
from utils.faults.signals import unbroken
from utils.files import write_json

LEVEL = 1e-3  # more falls than alpha allows are called so where their number, or a larger one, has a smaller chance
_MEASURED = ["norm", "after", "fell"]


def audit(subject: Subject, steps: int = 20, restarts: int = 2, draws: int = DRAWS, limit: int | None = None, seed: int = 0
          ) -> dict[str, Any]:
    """Attack what is certified of the first `limit` rows of each kind of a subject that `eval.smoothed` opened; returns what goes to
    audit.json. "violations" lists all falls where they are more than alpha allows, and none otherwise.
    """
    found, search = subject.records, NoiseSearch(subject, draws, seed)
    settings = search.settings
    written = {"threat": settings.threat, "attack": "pgd on the mean cosine", "steps": steps, "restarts": restarts, "draws": draws,
               "limit": limit, "seed": seed, "share_of_radius": SHARE}
    origin = provenance.fingerprint(found.summary)
    journal = Journal(subject.folder, "audit_smoothed", {**origin, **found.summary["smoothing"], **written})
    report: dict[str, Any] = {**origin, "bin": found.summary["bin"], "settings": written, "smoothing": found.summary["smoothing"],
                              "sampled": {}, "attacked": {}, "unresolved": {}, "fallen": {}, "share": {}}

    def attack(kind: str, tick: Callable[[int], None], samples: pd.DataFrame) -> Outcome:
        budget = torch.tensor(SHARE * samples["radius"].to_numpy())
        return search.attack(kind, attacks.preset("pgd", budget, steps=steps, restarts=restarts), tick, samples)
    every = {kind: plan(found, kind, limit) for kind in ("di" if search.joint else "udi")}
    each = most_passes(settings, draws, attacks.preset("pgd", 1., steps=steps, restarts=restarts))
    audited = []
    for kind, samples, chosen, rows in searched(subject, "audit", journal, every, attack, each, search.group):
        rows = chosen.assign(kind=kind).join(rows.reindex(columns=_MEASURED))
        audited.append(rows)
        report["sampled"][kind], report["attacked"][kind], report["fallen"][kind] = len(samples), len(rows), int(rows["fell"].sum())
        report["unresolved"][kind] = int(((samples["radius"] > 0) & (samples["radius"] <= RESOLUTION)).sum())
        report["share"][kind] = {name: _spread(rows[name]) for name in ("before", "after")}
    report |= {**verdict(pd.concat(audited), sum(report["sampled"].values()), settings.alpha), **journal.passes}
    if rank() == 0:
        with unbroken():
            write_json(subject.folder / results.AUDIT, report)
            journal.remove()
    barrier()
    return report


def verdict(audited: pd.DataFrame, sampled: int, alpha: float) -> dict[str, Any]:
    """How many decisions fell, how many of those sampled at most are expected to, the chance of so many if decisions are independent of
    each other, and the falls, called violations where that is small.
    """
    fallen = audited[audited["fell"].astype(bool)]
    chance = float(binom.sf(len(fallen) - 1, sampled, min(1., 2 * alpha)))
    falls = [{"kind": row.kind, "row": int(row.row), "side": side_name(row.kind, row.side), "certified_radius": row.radius,
              "perturbation": row.norm, "before": row.before, "after": row.after} for row in fallen.itertuples()]
    violations = falls if chance < LEVEL else []
    return {"n_fallen": len(falls), "expected": 2 * alpha * sampled, "chance": chance, "falls": falls, "violations": violations,
            "n_violations": len(violations)}


def _spread(shares: pd.Series) -> dict[str, float | None]:
    return {"minimum": float(shares.min()), "median": certification.lower_median(shares.to_numpy())} if len(shares) else {}


def describe(report: dict[str, Any]) -> str:
    """A report in a few lines; it says how strong the attack was."""
    how, smoothing_of, attacked = report["settings"], report["smoothing"], report["attacked"]
    lines = [f"{report['bin']}, sigma {smoothing_of['sigma']:g}: {report['n_fallen']} of {sum(attacked.values())} certified decisions "
             f"fell; of {sum(report['sampled'].values())} sampled at most {report['expected']:.3g} are expected to at alpha "
             f"{smoothing_of['alpha']:g} ({how['attack']} of {how['draws']} draws with {how['steps']} steps and {how['restarts']} "
             f"restarts, at {SHARE} of the radius; decided anew by {smoothing_of['n']} fresh draws)"]
    for kind, share in report["share"].items():
        if attacked[kind]:
            lines.append(f"draws that decide as certified, {OBJECTIVES[kind]}, {attacked[kind]} decisions: median "
                         f"{share['before']['median']:.1%} before, {share['after']['median']:.1%} after, "
                         f"least {share['after']['minimum']:.1%}")
    if report["violations"]:
        lines.append(f"violated: so many falls or more have a chance of {report['chance']:.2g}: these certificates are wrong more often "
                     "than they say")
    return "\n".join(lines)
