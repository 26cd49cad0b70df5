"""A result in plain words: the one home of the sentences that commands end with and pages begin with.

Shares of what stays as it is are rounded down to a tenth of a percent, so that no sentence promises more than was found.
"""
import math
from collections.abc import Iterable, Mapping
from typing import Any

from eval.certificates import CERTIFICATES, certificate
from eval.show.tables import attack_label
from eval.smoothing import confidence


def in_words(summary: Mapping[str, Any], attacks: Iterable[str] = (), audits: Iterable[Mapping[str, Any]] = ()) -> list[str]:
    """Sentences about a summary: what is proven, what each of these of its attacks left, and what each report of an audit found."""
    return [certified(summary), *(left for name in attacks if (left := attacked(summary, name))), *map(audited, audits)]


def certified(summary: Mapping[str, Any]) -> str:
    """What share of decisions no attack can turn, at the first budget, and how many are right without an attack."""
    kind = "i" if summary["tar"] is None else "d"
    of, stays, without, other = (("true", "accepted", "tar", "far"), ("false", "rejected", "far", "tar"))[kind == "i"]
    clean = summary.get(without)
    right = None if clean is None else clean if kind == "d" else 1 - clean
    if right is None:
        return "There are no pairs that a share could be of."
    passing = "" if summary.get(other) is None else f", at a threshold that {_nearest(summary[other])} of false pairs pass"
    eps, share = next(iter(summary.get(f"cra_{kind}_sound", summary[f"cra_{kind}"]).items()))
    if share is None:
        return f"{percent(right)} of {of} pairs are {stays} without an attack{passing}; nothing is proven of this network under one."
    where = "both images together" if summary.get("smoothing", {}).get("threat") == "joint" else "one image"
    return (f"{percent(share)} of {of} pairs stay {stays} under any attack on {where} up to {eps:g}, {_by_what(summary)}; "
            f"{percent(right)} are {stays} without an attack{passing}.{_abstained(summary)}")


def _by_what(summary: Mapping[str, Any]) -> str:
    """What the share rests on."""
    if "smoothing" in summary:
        of = summary["smoothing"]
        return f"with a confidence of {confidence(of['alpha'])} for each (randomised smoothing, noise of sigma {of['sigma']:g})"
    if summary.get("lipschitz_assumed"):
        return "if the Lipschitz constant that was given for the network is right"
    if summary["protocol"] == "paper":
        return "by the paper's formula"
    return "which is proven" + (", rounding included" if "sound_lipschitz" in summary else "")


def _abstained(summary: Mapping[str, Any]) -> str:
    """How many decisions are none, of those that are smoothed."""
    if "smoothing" not in summary:
        return ""
    return f" {_nearest(summary['smoothing']['abstained'])} of all decisions abstain, which counts as wrong."


def attacked(summary: Mapping[str, Any], name: str) -> str:
    """What an attack left of the true pairs at its smallest budget; "" where it was on none."""
    eps, share = next(((eps, share) for eps, share in sorted(summary.get("era_d", {}).get(name, {}).items())), (None, None))
    if share is None:
        return ""
    limit, draws = (summary["attacks"][name].get(key) for key in ("limit", "draws"))
    noise = "" if draws is None else f" through the noise ({draws} draws a step)"
    return (f"{attack_label(name)}{noise} left {percent(share)} of {'' if limit is None else f'the first {limit} '}true pairs accepted at "
            f"{eps:g}.")


def audited(report: Mapping[str, Any]) -> str:
    """What the report of an audit found."""
    rows, settings, broken = report["attacked"], report["settings"], report["n_violations"]
    smoothed = "n_fallen" in report  # whose radii may be wrong now and then
    what = f"{sum(rows.values()):,} certified decisions through the noise" if smoothed else " and ".join(
        [f"{rows.get('d', 0) + rows.get('i', 0):,} certified pairs", *([f"{rows['u']:,} images"] if "u" in rows else [])])
    how = f"An audit attacked {what} just below the radius ({threat_label(settings['threat'])}; {settings['steps']} steps an attack)"
    if smoothed:
        return f"{how}; {report['n_fallen']:,} fell, {'more than' if broken else 'no more than'} their confidence allows."
    return f"{how} and broke none." if not broken else f"{how} and broke {broken:,}: these certificates do not hold."


def threat_label(name: str) -> str:
    """What an attacker may move, in words. Somebody else's certificate, which a file from anywhere may name, is not imported for that."""
    return certificate(name).label if name in CERTIFICATES.names() else name.rpartition(":")[2]


def percent(share: float) -> str:
    """62.46 % as "62.4 %": down to a tenth; the allowance is for the rounding of the division that made the share."""
    return f"{math.floor(1000 * share + 1e-9) / 10:g} %"


def _nearest(share: float) -> str:
    return f"{100 * share:.3g} %"
