"""What the files of a results folder may hold: they may come from anyone, and everything past here believes them."""
import io
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval.records import AUDITED, CERTIFIED, FORMAT, Records, table_of
from eval.smoothing import SIGMAS, Smoothing
from eval.summary import Summary
from utils import InputError
from utils.files import read_file, read_json, write_json

MAX_TABLE = 2**25  # bytes; the records of 6,000 pairs have one million, and reading takes up to 30 times as many
MAX_HEADER = 2**14
MAX_SUMMARY, MAX_AUDIT = 2**20, 2**24  # a report lists all violations
MAX_NUMBER = 1e15  # of norms and radii; from 2**53 on a histogram has no bins

IDENTIFICATION = "identification"  # the task of summaries of identify, which are not of pairs
REQUIRED = ("bin", "protocol", "tau", "tar", "feature_norm", *CERTIFIED)  # keys of a summary

# kind of value, and range, of the columns of pairs.csv, images.csv and attacks.csv
_BOOLEANS = ("flipped", "same", "accepted", "success")
_INTEGERS = ("pair", "left", "right", "image", "row", "seed", "votes", "votes_left", "votes_right", "samples")
_WORDS = {"kind": ("u", "d", "i"), "side": ("left", "right", "image")}


def read_table(path: Path, rows: bool = True) -> pd.DataFrame:
    """A table of records, as it was written, to the last bit. Raises InputError, naming the file and the column, for what is none.

    rows: whether there must be any.
    """
    table = read_csv(path, rows, float_precision="round_trip", dtype={"attack": str, "settings": str}, keep_default_na=False,
                     na_values=[""])
    for name in table:
        if expected := _expected(name, table[name], infinite="success" in table):
            raise InputError(f"{path}: column {name} holds something else than {expected}")
    return table


def read_csv(path: Path, rows: bool = True, **how: Any) -> pd.DataFrame:
    """A table (with `rows`: not an empty one), of bounded size. Raises InputError, naming the file, where there is none."""
    try:
        content = read_file(path, MAX_TABLE)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(content.partition(b"\n")[0]) > MAX_HEADER:
        raise InputError(f"{path}: the first line has more than {MAX_HEADER} bytes, expected the names of columns")
    try:
        table = pd.read_csv(io.BytesIO(content), **how)
    except (ValueError, OverflowError) as error:  # all that pandas raises for what is no table
        raise InputError(f"{path}: cannot be read: {error}") from None
    if rows and table.empty:
        raise InputError(f"{path}: no rows")
    return table


def within(values: pd.Series, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether all are numbers (booleans are none), finite, from low to high."""
    return pd.api.types.is_numeric_dtype(values) and values.dtype != bool and bool(((values >= low) & (values <= high)
                                                                                    & (values.abs() < math.inf)).all())


def _expected(name: str, values: pd.Series, infinite: bool) -> str:
    """What a column of that name must hold, if these values are something else; else nothing. Other names may hold anything.

    infinite: norms may be, as those of attacks without success are.
    """
    if name in _BOOLEANS:
        return "" if values.dtype == bool or values.empty else "True and False"
    if name in _INTEGERS:
        return "" if values.empty or values.dtype == np.int64 and within(values, 0) else "integers from 0"
    if name in _WORDS:
        return "" if values.isin(_WORDS[name]).all() else f"{', '.join(_WORDS[name])}"
    if name in ("attack", "settings"):
        return "" if all(map(_is_text, values)) else "names"
    if name == "theta":
        return "" if within(values, 0, math.pi) else "angles from 0 to pi"
    if name in ("cosine", "cosine_left", "cosine_right"):  # -inf: of an embedding without direction
        return "" if pd.api.types.is_numeric_dtype(values) and within(values[values != -math.inf], -1, 1) else "numbers from -1 to 1"
    if name == "norm" and infinite or name == "upper_bound":
        return "" if _are_lengths(values[values != math.inf]) else f"numbers from 0 to {MAX_NUMBER:g}"
    if name == "eps":  # empty: of an attack without budget
        return "" if _are_lengths(values.dropna()) else f"numbers from 0 to {MAX_NUMBER:g}"
    if name.startswith(("radius", "norm")):
        return "" if _are_lengths(values) else f"numbers from 0 to {MAX_NUMBER:g}"
    return ""


def _are_lengths(values: pd.Series) -> bool:
    return values.empty or within(values, 0, MAX_NUMBER)


def refuse_other_rows(path: Path, found: Records) -> None:
    """Raise InputError where single attacks are of rows that there are not, or of attacks and settings that the summary does not know."""
    known = {name: entry.get("settings") for name, entry in found.summary.get("attacks", {}).items()}
    table = found.attacks
    for kind in "udi":
        rows = table.loc[table["kind"] == kind, "row"]
        if other := sorted(set(rows) - set(table_of(found, kind).index)):
            raise InputError(f"{path}: row {other[0]} of kind {kind} is not one of the records")
    pairs = table.loc[table["attack"] != AUDITED, ["attack", "settings"]].drop_duplicates()
    for attack, settings in pairs.itertuples(index=False):
        if known.get(attack, "") != settings:
            raise InputError(f"{path}: attack {attack} with settings {settings}, which the summary does not know")


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json, whole or not at all."""
    write_json(path, _as_lists(summary))


def read_summary(path: Path) -> Summary:
    """summary.json. Raises InputError, naming the file and the key, for what is none, and for results of another format."""
    try:
        summary = read_json(path, MAX_SUMMARY)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if isinstance(summary, dict) and summary.get("format") != FORMAT and {"protocol", "tau"} <= set(summary):
        raise InputError(f"{path}: results of format {str(summary.get('format', 1))[:20]}, of another version of this project, expected "
                         f"{FORMAT}: run python -m eval certify again, in another folder")
    if _is_identification(summary):
        raise InputError(f"{path}: results of identify, expected those of pairs, which certify and attack write")
    if missing := sorted(set(REQUIRED) - (set(summary) if isinstance(summary, dict) else set())):
        raise InputError(f"{path}: not a summary: {', '.join(missing)} missing")
    summary = _as_dicts(summary)
    for key, value in summary.items():
        fits = next((fits for pattern, fits in _SUMMARY if pattern.fullmatch(key)), None)
        if fits and not fits(value):
            raise InputError(f"{path}: not a summary: {key} is {str(value)[:60]}")
    if summary.get("certificate") != (label := _label(path, summary)):
        raise InputError(f"{path}: not a summary: certificate is {summary.get('certificate')}, expected {label}")
    return summary


def _label(path: Path, summary: Mapping[str, Any]) -> str | None:
    """What tables call the certificate of smoothed decisions; of others there is nothing of the kind."""
    if "smoothing" not in summary:
        return None
    try:
        return Smoothing.of(summary).label
    except InputError as error:
        raise InputError(f"{path}: not a summary: smoothing: {error}") from None


def is_of_identify(path: Path) -> bool:
    """Whether a summary.json is of identify, and not of pairs; of what cannot be read `read_summary` says why."""
    try:
        return _is_identification(read_json(path, MAX_SUMMARY))
    except (OSError, InputError):
        return False


def _is_identification(summary: Any) -> bool:
    return isinstance(summary, dict) and summary.get("task") == IDENTIFICATION


def read_audit(path: Path) -> dict[str, Any]:
    """The report of an audit. Raises InputError, naming the file and the key, for what is none."""
    report = read_json(path, MAX_AUDIT)
    if not isinstance(report, dict):
        raise InputError(f"{path}: not the report of an audit")
    of_report, of_settings = (_SMOOTHED_AUDIT, _SMOOTHED_SETTINGS) if "smoothing" in report else (_AUDIT, _AUDIT_SETTINGS)
    for place, fits in ((report, of_report), (report.get("settings"), of_settings)):
        for key, fit in fits.items():
            if not isinstance(place, dict) or key not in place or not fit(place[key]):
                value = place.get(key) if isinstance(place, dict) else place
                raise InputError(f"{path}: not the report of an audit: {key} is {str(value)[:60]}")
    return report


def _as_lists(value: Any) -> Any:
    """Figures by budget as lists of {"eps", "value"}: JSON has no numbers for keys."""
    if isinstance(value, Mapping) and value and all(key is None or isinstance(key, float) for key in value):
        return [{"eps": key, "value": _as_lists(item)} for key, item in value.items()]
    if isinstance(value, Mapping):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _as_dicts(value: Any) -> Any:
    """The reverse of `_as_lists`. What is no such list stays as it is, and is refused where a figure is expected."""
    if isinstance(value, list):
        items = [_as_dicts(item) for item in value]
        by_budget = items and all(isinstance(item, dict) and set(item) == {"eps", "value"} and _is_budget(item["eps"]) for item in items)
        return {item["eps"]: item["value"] for item in items} if by_budget else items
    return {key: _as_dicts(item) for key, item in value.items()} if isinstance(value, dict) else value


def _is_budget(value: Any) -> bool:
    return value is None or type(value) is float and 0 < value < math.inf


def _is_number(value: Any) -> bool:
    """A finite number, or None for a figure that could not be computed."""
    return value is None or type(value) is float and math.isfinite(value) or type(value) is int and abs(value) < 2**63


def _is_text(value: Any) -> bool:
    """Text that can be printed: no line breaks, nothing that a terminal obeys."""
    return isinstance(value, str) and value.isprintable() and len(value) <= 1000


def _each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(_is_text(key) and fits(item) for key, item in value.items())


def _by_budget(fits: Callable[[Any], bool], without: bool = False) -> Callable[[Any], bool]:
    """Figures by budget; without: also one of attacks without a budget, by None."""
    return lambda value: isinstance(value, dict) and all((without if eps is None else _is_budget(eps)) and fits(item)
                                                         for eps, item in value.items())


_is_by_budget = _by_budget(_is_number)


def _is_attack(entry: Any) -> bool:
    """The settings of an attack and what it cost, as far as they are there."""
    if not isinstance(entry, dict):
        return False
    return all(fits(entry[key]) for key, fits in _ATTACK.items() if key in entry)


def _are_budgets(value: Any) -> bool:
    return isinstance(value, list) and all(type(eps) is float and 0 < eps < math.inf for eps in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_seed(value: Any) -> bool:
    return value is None or _is_count(value)


def _are_norms(value: Any) -> bool:
    """[{p, dimension, cra_u, cra_d, cra_i}]: certified accuracies in l_p norms."""
    return isinstance(value, list) and all(isinstance(norm, dict) and _is_order(norm.get("p")) and all(
        _is_by_budget(norm.get(f"cra_{kind}")) for kind in "udi") for norm in value)


def _is_order(value: Any) -> bool:
    return value == "inf" or type(value) in (int, float) and 1 <= value < math.inf


def _is_figures(value: Any) -> bool:
    """{cra_d, med_d, cra_i, med_i} of a certificate."""
    return isinstance(value, dict) and all(_is_by_budget(item) if str(key).startswith("cra_") else _is_number(item)
                                           for key, item in value.items())


def _is_threshold(value: Any) -> bool:
    """{target, tau, far, tar}: what is certified where the threshold is chosen under attack; tau None: `reason` says why there is none."""
    return isinstance(value, dict) and _is_number(value.get("target")) and value.get("target") is not None and (
        _is_text(value.get("reason")) if value.get("tau") is None else
        all(_is_number(value.get(key)) and value.get(key) is not None for key in ("tau", "far", "tar")))


def _is_smoothing(value: Any) -> bool:
    """The settings of `eval.smoothing.Smoothing`, and what else is said there."""
    return isinstance(value, dict) and all(key in value and fits(value[key]) for key, fits in _SMOOTHING.items())


def _is_share(value: Any) -> bool:
    return type(value) is float and 0 <= value <= 1


_SMOOTHING: dict[str, Callable[[Any], bool]] = {
    "sigma": lambda value: type(value) is float and SIGMAS[0] <= value <= SIGMAS[1],
    "alpha": lambda value: _is_share(value) and 0 < value < 1,
    "limit": lambda value: value is None or _is_count(value) and value > 0, "threat": lambda value: value in ("one", "joint"),
    "tau_mean": lambda value: type(value) is float and -1 < value < 1, "abstained": _is_share,
    **dict.fromkeys(("n0", "n", "seed", "forward_passes"), _is_count)}
_ATTACK: dict[str, Callable[[Any], bool]] = {
    "eps": _are_budgets, "eps_u": _are_budgets, "skipped": _each(_by_budget(_is_number, True)),
    "limit": lambda value: value is None or _is_count(value),
    "settings": lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{12}", value) is not None,
    **dict.fromkeys(("minimum_norm", "published"), lambda value: type(value) is bool),
    **dict.fromkeys(("forward_passes", "backward_passes", "seed"), _is_count)}
_SUMMARY: tuple[tuple[re.Pattern, Callable[[Any], bool]], ...] = tuple((re.compile(pattern), fits) for pattern, fits in (
    (r"bin|protocol|flip|certificate", _is_text), (r"smoothing", _is_smoothing),
    (r"image_size", lambda value: isinstance(value, list) and len(value) == 3 and all(map(_is_count, value))),
    (r"backbone|code_version|\w+_sha256", lambda value: value is None or _is_text(value)),
    (r"tau", lambda value: _is_number(value) and value is not None and -1 <= value <= 1),
    (r"cra_[udi](_sound)?", lambda value: _is_by_budget(value) and bool(value)), (r"(era|cra_attacked)_[udi]", _each(_is_by_budget)),
    (r"(med_attack|never)_[udi]", _each(_is_number)), (r"attacks", _each(_is_attack)), (r"reasons", _each(_is_text)),
    (r"certificates", _each(_is_figures)), (r"lp", _are_norms), (r"certified_far", _by_budget(_is_threshold)), (r"seed", _is_seed),
    (r"name", lambda value: value is None or _is_text(value)), (r"lipschitz_assumed", lambda value: type(value) is bool),
    (r"far_target|far|tar|feature_norm|med_[udi]|accuracy|accuracy_(std|at_tau)|best_\w+|auc|eer|xi|limit|lipschitz|sound_\w+|n_\w+",
     _is_number)))
_REPORT: dict[str, Callable[[Any], bool]] = {
    "settings": lambda value: isinstance(value, dict), "attacked": _each(_is_count), "unresolved": _each(_is_count),
    "n_violations": _is_count}
_SETTINGS: dict[str, Callable[[Any], bool]] = {
    "threat": _is_text, "limit": lambda value: value is None or _is_count(value), **dict.fromkeys(("steps", "restarts", "seed"), _is_count)}
_AUDIT = {**_REPORT, "points": _is_count, "rechecked": _is_count}
_AUDIT_SETTINGS = {**_SETTINGS, "attacks": lambda value: isinstance(value, list) and all(map(_is_text, value))}
_SMOOTHED_AUDIT = {**_REPORT, "smoothing": _is_smoothing, "sampled": _each(_is_count), "share": _each(_each(_each(_is_share))),
                   "n_fallen": _is_count, "chance": _is_share,
                   "expected": lambda value: type(value) is float and 0 <= value < math.inf}
_SMOOTHED_SETTINGS = {**_SETTINGS, "attack": _is_text, "draws": _is_count}
