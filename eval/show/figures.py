"""The figures of a summary as columns, by the names that docs/columns.md has for them: what `eval table --columns` takes, and what the
tables of the paper are made of.

    KEY            tar, auc, feature_norm, cra_d, med_d, cra_d_sound, ...
    KEY:OF         of a certificate (cra_d:both), an l_p norm (cra_d:p=inf), an attack (era_d:pgd, never_u:cw, limit:pgd) or a threshold
                   that was chosen under attack (certified_far:tar); without :OF the figures of attacks are those of all attacks
    KEY@EPS        at one budget; without it at each that there is
"""
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from attacks import ATTACKS
from eval.show.cells import DECIMALS, PERCENT, Column
from utils import InputError

Summary = Mapping[str, Any]
Figure = tuple[Column, Callable[[Summary], Any]]

LABELS = {"name": "Model", "xi": "xi", "bin": "Dataset", "protocol": "Protocol", "flip": "Flip", "far_target": "FAR", "radii": "Radii"}
USUAL = {"flip": "none", "radii": "plain"}  # labels that are there only where some summary says something else
OPTIONAL = ("name", "xi", *USUAL)  # the same, and those that not every summary has
LIMIT = "limit"
_NORM = "p="


class _Family(NamedTuple):
    """title: {kind} is U, D or I, {of} what it is of. of: what may or must stand behind the colon: "certificate", "attack", "threshold"."""
    title: str
    unit: str = ""
    better: int = 0
    of: str = ""
    by_budget: bool = False
    digits: int = DECIMALS


def _share(title: str, better: int = 1, digits: int = PERCENT, **more: Any) -> _Family:
    return _Family(title, "%", better, digits=digits, **more)


PASSES = "passes"
_FAMILIES = {
    PASSES: _Family("passes a decision", better=-1, digits=0),
    "tar": _share("TAR"), "far": _share("reached FAR", 0, DECIMALS), "tau": _Family("tau"), "feature_norm": _Family("norm"),
    "accuracy": _share("10-fold accuracy"), "accuracy_std": _share("10-fold deviation", 0),
    "accuracy_at_tau": _share("accuracy at tau"), "best_accuracy": _share("best accuracy"), "best_threshold": _Family("best threshold"),
    "auc": _share("AUC"), "eer": _share("EER", -1),
    "cra_K": _share("CRA_{kind}", of="certificate", by_budget=True), "med_K": _Family("med {kind}", "l2", 1, of="certificate"),
    "cra_K_sound": _share("sound CRA_{kind}", by_budget=True), "med_K_sound": _Family("sound med {kind}", "l2", 1),
    "era_K": _share("{of} ERA_{kind}", of="attack", by_budget=True),
    "cra_attacked_K": _share("CRA_{kind} of the rows of {of}", of="attack", by_budget=True),
    "med_attack_K": _Family("{of} med {kind}", "l2", 1, of="attack"), "never_K": _share("{of} never {kind}", of="attack"),
}
# certified_far:OF
_THRESHOLD = {"tar": _share("certified TAR", of="threshold", by_budget=True),
              "far": _share("certified FAR", 0, DECIMALS, of="threshold", by_budget=True),
              "tau": _Family("certified tau", of="threshold", by_budget=True)}
_SPEC = re.compile(r"(?P<key>\w+)(?::(?P<of>[^@]+))?(?:@(?P<eps>[^@]+))?")


class Asked(NamedTuple):
    """A name of columns, taken apart: KEY, OF ("" for none) and EPS (None: all)."""
    key: str
    of: str = ""
    eps: float | None = None

    def __str__(self) -> str:
        return self.key + (f":{self.of}" if self.of else "") + ("" if self.eps is None else f"@{self.eps:g}")


def asked(text: str) -> Asked:
    """What a name of columns asks for. Raises InputError where nothing is called so."""
    found = _SPEC.fullmatch(text)
    key, of, eps = (found["key"], found["of"] or "", found["eps"]) if found else (text, "", None)
    family = _family(key, of)
    known = key in LABELS or key in (LIMIT, "seeds") or family is not None
    if not found or not known:
        raise InputError(f"--columns {text}: not a figure or label, expected {', '.join(names())} (docs/columns.md)")
    if of and not (key == LIMIT or family is not None and family.of):
        raise InputError(f"--columns {text}: {key} is of nothing that stands behind a colon, expected {key}")
    if eps is not None and (family is None or not family.by_budget):
        raise InputError(f"--columns {text}: {key} has no budget, expected {key}{':' if of else ''}{of}")
    try:
        if of.startswith(_NORM):
            _order(of)
        return Asked(key, of, None if eps is None else float(eps))
    except ValueError as error:
        raise InputError(f"--columns {text}: {error}") from None


def names() -> list[str]:
    """All that can be asked for; K stands for u, d or i."""
    behind = {"certificate": "[:CERTIFICATE]", "attack": "[:ATTACK]", "": ""}
    figures = [f"{key}{behind[family.of]}{'[@EPS]' if family.by_budget else ''}" for key, family in _FAMILIES.items()]
    return [*LABELS, "seeds", f"{LIMIT}[:ATTACK]", *figures, "cra_K:p=P[@EPS]", *(f"certified_far:{of}[@EPS]" for of in _THRESHOLD)]


def _family(key: str, of: str) -> _Family | None:
    if key == "certified_far":
        return _THRESHOLD.get(of)
    if key.endswith(("_K", "_K_sound")):
        return None
    return _FAMILIES.get(re.sub(r"^(cra|med|era|cra_attacked|med_attack|never)_[udi](?=$|_sound$)", r"\1_K", key))


def figures_of(wanted: Iterable[Asked], summaries: Sequence[Summary], sound: bool = False) -> list[Figure]:
    """The columns of each figure, with what finds its value in a summary; as many as there are attacks and budgets, and none where no
    summary has it. sound: for cra_K and med_K the sound figures of summaries that have them.
    """
    return [figure for one in wanted for figure in _columns(one, summaries, sound)]


def _columns(one: Asked, summaries: Sequence[Summary], sound: bool) -> list[Figure]:
    family = _family(one.key, one.of)
    if family is None:
        return []
    if family.of == "attack" and not one.of:
        return figures_of([one._replace(of=attack) for attack in attacks_of(summaries)], summaries)
    values = [value for found, value in (_value(summary, one, family, sound) for summary in summaries) if found]
    if not values:
        return []
    column = Column(_title(family, one), None, family.digits, family.unit, family.better, "/255" if one.of.startswith(_NORM) else "")
    if not family.by_budget:
        return [(column, lambda summary: _scaled(_value(summary, one, family, sound)[1], family))]
    budgets = sorted({eps for value in values for eps in value or {} if eps is not None})
    return [(column._replace(eps=eps), lambda summary, eps=eps: _scaled((_value(summary, one, family, sound)[1] or {}).get(eps), family))
            for eps in budgets if one.eps in (None, eps)]


def _scaled(value: float | None, family: _Family) -> float | None:
    return 100 * value if value is not None and family.unit == "%" else value


def _title(family: _Family, one: Asked) -> str:
    kind = re.search(r"_([udi])(?:$|_sound$)", one.key)
    title = family.title.format(kind=kind[1].upper() if kind else "", of=attack_label(one.of) if family.of == "attack" else one.of)
    if family.of != "certificate" or not one.of:
        return title
    return f"{title} l_{_order(one.of):g}" if one.of.startswith(_NORM) else f"{title} {one.of.rpartition(':')[2]}"


def _value(summary: Summary, one: Asked, family: _Family, sound: bool) -> tuple[bool, Any]:
    """Whether a summary has a figure, and the figure, or figures by budget."""
    if one.key == PASSES:
        return True, passes(summary)
    if not one.of:
        key = f"{one.key}_sound" if sound and f"{one.key}_sound" in summary else one.key
        return key in summary, summary.get(key)
    if family.of == "threshold":
        found = {eps: entry.get(one.of) for eps, entry in summary.get(one.key, {}).items()}
        return bool(found), found
    if family.of == "attack":
        return one.of in summary.get(one.key, {}), summary.get(one.key, {}).get(one.of)
    if one.of.startswith(_NORM):
        found = next((norm for norm in summary.get("lp", []) if float(norm["p"]) == _order(one.of)), {})
    else:
        found = summary.get("certificates", {}).get(one.of, {})
    return one.key in found, found.get(one.key)


def passes(summary: Summary) -> int:
    """Of images through the network, for one decision about an image that is presented to a person whose embedding is kept; of a decision
    of which both images are smoothed, for these two.
    """
    found = summary.get("smoothing")
    return 1 if found is None else (found["n0"] + found["n"]) * (1 + (found["threat"] == "joint"))


def _order(of: str) -> float:
    return float(of.removeprefix(_NORM))


def labels(summaries: Sequence[Summary], sound: bool = False, asked_for: Sequence[str] = ()) -> dict[str, Figure]:
    """What each row is about, by key: what all rows have, and what is optional where it is asked for or some summary has something to say
    in it.
    """
    values = {key: (lambda summary, key=key: _label(summary, key, sound)) for key in LABELS}
    return {key: (Column(LABELS[key], digits=None), value) for key, value in values.items()
            if key not in OPTIONAL or key in asked_for or any(value(summary) not in (None, USUAL.get(key)) for summary in summaries)}


def _label(summary: Summary, key: str, sound: bool) -> Any:
    if key == "radii":
        return radii(summary, sound)
    return summary.get(key, USUAL.get(key))


def radii(summary: Summary, sound: bool = True) -> str | None:
    """What is divided or proven beyond the formula: plain, tight (by the proven constant), assumed (by one that is somebody's word), sound
    (in floating point); smoothing, with its noise and confidence. None where there are no radii.
    """
    if all(summary.get(f"med_{kind}") is None for kind in "udi"):
        return None
    if "certificate" in summary:
        return summary["certificate"]
    if sound and "cra_d_sound" in summary:
        return "sound"
    if summary.get("lipschitz_assumed"):
        return "assumed"
    return "plain" if summary.get("lipschitz", 1) == 1 else "tight"


def limits(summaries: Sequence[Summary], attacks: Sequence[str]) -> list[Figure]:
    """How many rows of each kind attacks were about: one column where that is the same for all attacks of each summary, else one each."""
    found = [{attack: entry(summary, attack).get(LIMIT) for attack in attacks if entry(summary, attack)} for summary in summaries]
    if not any(limit is not None for limits in found for limit in limits.values()):
        return []
    if all(len(set(limits.values())) <= 1 for limits in found):
        return [(Column("Limit", digits=None), lambda summary: _limit(summary, attacks))]
    return [(Column(f"{attack_label(attack)} limit", digits=None), lambda summary, attack=attack: _limit(summary, [attack]))
            for attack in attacks if any(attack in limits for limits in found)]


def _limit(summary: Summary, attacks: Sequence[str]) -> int | None:
    return next((entry(summary, attack).get(LIMIT) for attack in attacks if entry(summary, attack)), None)


def entry(summary: Summary, attack: str) -> Mapping[str, Any]:
    """What a summary says of an attack; nothing where it was not run."""
    return summary.get("attacks", {}).get(attack, {})


def attacks_of(summaries: Iterable[Summary]) -> list[str]:
    """All attacks of some summaries, in their order there."""
    return list(dict.fromkeys(attack for summary in summaries for attack in summary.get("attacks", {})))


def attack_label(name: str) -> str:
    """How tables and figures write an attack. Somebody else's, which a file from anywhere may name, is not imported for that."""
    return ATTACKS.find(name).label if name in ATTACKS.names() else name.rpartition(":")[2]
