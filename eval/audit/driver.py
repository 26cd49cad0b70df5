"""The audit of a certificate: whatever it lets an attacker move, everything that is certified is attacked just below its radius.

one.py attacks one image at a time, pairs.py both of a pair; this file deals the work out, takes it up again after an interruption and
writes the report.
"""
import copy
from collections.abc import Callable
from typing import Any, Protocol

import pandas as pd
from torch import nn

from eval.audit import one, pairs
from eval.audit.settings import SHARE, Settings, searched
from eval.certificates import certificate
from eval.store import provenance, results
from eval.store.journal import Journal, Outcome
from eval.store.subject import OBJECTIVES, Subject
from utils import InputError
from utils.distributed import barrier, rank
from utils.faults.signals import unbroken
from utils.files import write_json


class Search(Protocol):
    """How what a geometry lets an attacker move is attacked."""
    kinds: str  # of decisions that it is about: u, d, i
    strongest: list[str]  # the attacks, for the report
    measured: list[str]  # columns that `attack` returns

    @property
    def most_passes(self) -> int:
        """Of a sample through the network, at most."""

    def samples(self, kind: str) -> pd.DataFrame:
        """What may be attacked: with a column `row` of the records and one `radius`, 0 where nothing is certified."""

    def attack(self, kind: str, tick: Callable[[int], None], samples: pd.DataFrame) -> Outcome:
        """One batch, with the columns `measured`; tick is told of each pass how many images it had."""

    def report(self, audited: pd.DataFrame) -> dict[str, Any]:
        """What is said of all samples (with `kind` and what was measured): violations and the nearest to one."""


def audit(subject: Subject, threat: str = "one", steps: int = 100, restarts: int = 3, limit: int | None = None, seed: int = 0
          ) -> dict[str, Any]:
    """Attack all that a certificate (`eval.certificates`) says is certified, of the first `limit` rows of each kind.

    Returns what goes to audit.json, or audit_{certificate}.json where both images move. Of attacks on one image it writes the single
    attacks to attacks.csv as well. The network must be 1-Lipschitz by construction. "violations" lists the true ones. Raises InputError
    where the records have no such radii.
    """
    found, chosen_certificate = subject.records, certificate(threat)
    if chosen_certificate.column not in found.pairs:
        raise InputError(f"{subject.folder / results.PAIRS}: column {chosen_certificate.column} missing: run python -m eval certify "
                         f"--certificate {threat}")
    double = copy.deepcopy(subject.network)
    double = double.double() if isinstance(double, nn.Module) else double
    settings = Settings(steps, restarts, limit, seed)
    kind_of_search = one.OneImageSearch if chosen_certificate.geometry == "one" else pairs.PairSearch
    search: Search = kind_of_search(subject, double, chosen_certificate, settings)
    written = {"threat": threat, **settings._asdict(), "share_of_radius": SHARE, "attacks": search.strongest}
    origin = provenance.fingerprint(found.summary)
    journal = Journal(subject.folder, f"audit_{threat.replace(':', '_')}", {**origin, **written})
    report: dict[str, Any] = {**origin, "bin": found.summary.get("bin"), "settings": written, "attacked": {}, "unresolved": {}}
    every = {kind: search.samples(kind) for kind in search.kinds}
    audited = []
    for kind, samples, chosen, rows in searched(subject, f"audit {threat}", journal, every, search.attack, search.most_passes,
                                                subject.batch_size):
        audited.append(chosen.join(rows.reindex(columns=search.measured)).assign(kind=kind))
        report["attacked"][kind] = int(chosen["row"].nunique())
        unresolved = samples[(samples["radius"] > 0) & ~samples["row"].isin(chosen["row"])]
        report["unresolved"][kind] = int(unresolved["row"].nunique())
    everything = pd.concat(audited)
    report |= {**search.report(everything), "points": int(everything["points"].sum()),
               "rechecked": int(everything["rechecked"].sum()), **journal.passes}
    report["n_violations"] = len(report["violations"])
    if rank() == 0:
        with unbroken():
            results.write_records(subject.folder, found)
            write_json(subject.folder / results.audit_file(threat), report)
            journal.remove()
    barrier()
    return report


def describe(report: dict[str, Any]) -> str:
    """A report in a few lines; it says how strong the attacks were."""
    attacked, settings = report["attacked"], report["settings"]
    images = f" and {attacked['u']} images" if "u" in attacked else ""
    lines = [f"{report['bin']}, {certificate(settings['threat']).label}: {report['n_violations']} violations in "
             f"{attacked['d'] + attacked['i']} certified pairs{images} ({report['points']} points, {report['rechecked']} rechecked in "
             f"float64; {', '.join(settings['attacks'])} with {settings['steps']} steps and {settings['restarts']} restarts)"]
    if report.get("largest_ratio") is not None:
        lines.append(f"largest |f(x*) - f(x)| / |x* - x|: {report['largest_ratio']:.6f}")
    if report.get("smallest_margin") is not None:
        lines.append(f"smallest |cos - tau|: {report['smallest_margin']:.3g}")
    for kind, found in report.get("tightness", {}).items():
        number = {key: "-" if found[key] is None else f"{found[key]:.3f}" for key in ("minimum", "median")}
        lines.append(f"smallest success / radius, {OBJECTIVES[kind]}: minimum {number['minimum']}, "
                     f"median {number['median']} of {found['n']}")
    for violation in report["violations"][:10]:
        moved = [violation[key] for key in ("perturbation", "moved_left", "moved_right") if key in violation]
        lines.append(f"violated: {', '.join(violation['checks'])}: {OBJECTIVES[violation['kind']]}, row {violation['row']}, moved by "
                     f"{' and '.join(f'{some:.6g}' for some in moved)}, certified radius {violation['certified_radius']:.6g}")
    return "\n".join(lines)
