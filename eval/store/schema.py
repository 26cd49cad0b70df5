"""What the files of a results folder may hold: they may come from anyone, and everything past here believes them."""
import io
import math
import re
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pandas as pd

from utils import InputError
from utils.files import read_file, read_json

MAX_TABLE = 2**25  # bytes; the records of 6,000 pairs have one million, and reading takes up to 30 times as many
MAX_HEADER = 2**14
MAX_SUMMARY = 2**20
MAX_NUMBER = 1e15  # of norms and radii; from 2**53 on a histogram has no bins

CERTIFIED = tuple(f"{figure}_{kind}" for figure in ("cra", "med") for kind in "udi")
REQUIRED = ("bin", "protocol", "tau", "tar", "feature_norm", *CERTIFIED)  # keys of a summary

# kind of value, and range, of the columns of pairs.csv and images.csv
_BOOLEANS = ("flipped", "same", "accepted")
_INTEGERS = ("pair", "left", "right", "image")
_NUMBERS = ("norm_left", "norm_right", "norm", "radius", "radius_u", "radius_both", "radius_joint",
            "radius_sound", "radius_u_sound")
_ROBUST = re.compile(r"robust_[a-z]+_(\d+(\.\d+)?(e-?\d+)?)")


def read_table(path: Path) -> pd.DataFrame:
    """A table of records, as it was written, to the last bit. Raises InputError, naming the file and the column, for what is none."""
    table = read_csv(path, float_precision="round_trip")
    for name in table:
        if expected := _expected(name, table[name]):
            raise InputError(f"{path}: column {name} holds something else than {expected}")
    return table


def read_csv(path: Path, **how: Any) -> pd.DataFrame:
    """A table with rows, of bounded size. Raises InputError, naming the file, where there is none."""
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
    if table.empty:
        raise InputError(f"{path}: no rows")
    return table


def within(values: pd.Series, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether all are numbers (booleans are none), finite, from low to high."""
    return pd.api.types.is_numeric_dtype(values) and values.dtype != bool and bool(((values >= low) & (values <= high)
                                                                                    & (values.abs() < math.inf)).all())


def _expected(name: str, values: pd.Series) -> str:
    """What a column of that name must hold, if these values are something else; else nothing. Other names may hold anything."""
    known = values.dropna()
    if name in _BOOLEANS:
        return "" if values.dtype == bool else "True and False"
    if name in _INTEGERS:
        return "" if values.dtype == np.int64 and within(values, 0) else "integers from 0"
    if name in _NUMBERS:
        return "" if within(values, 0, MAX_NUMBER) else f"numbers from 0 to {MAX_NUMBER:g}"
    if name == "cosine":  # -inf: of an embedding without direction
        return "" if pd.api.types.is_numeric_dtype(values) and within(values[values != -math.inf], -1, 1) else "numbers from -1 to 1"
    if name.startswith("robust_"):
        fits = _ROBUST.fullmatch(name) and all(value is True or value is False for value in known.unique().tolist())
        return "" if fits else "True and False at a budget"
    if name.startswith("norm_") or name == "upper_bound":  # inf: no attack succeeded
        fits = pd.api.types.is_numeric_dtype(values) and within(known[known != math.inf], 0, MAX_NUMBER)
        return "" if fits else f"numbers from 0 to {MAX_NUMBER:g}"
    return ""


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json. Raises InputError, naming the file and the key, for what is none."""
    try:
        summary = read_json(path, MAX_SUMMARY)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if missing := sorted(set(REQUIRED) - (set(summary) if isinstance(summary, dict) else set())):
        raise InputError(f"{path}: not a summary: {', '.join(missing)} missing")
    for key, value in summary.items():
        fits = next((fits for pattern, fits in _SUMMARY if pattern.fullmatch(key)), None)
        if fits and not fits(value):
            raise InputError(f"{path}: not a summary: {key} is {str(value)[:60]}")
    return summary


def _is_number(value: Any) -> bool:
    """A finite number, or None for a figure that could not be computed."""
    return value is None or type(value) is float and math.isfinite(value) or type(value) is int and abs(value) < 2**63


def _is_text(value: Any) -> bool:
    """Text that can be printed: no line breaks, nothing that a terminal obeys."""
    return isinstance(value, str) and value.isprintable() and len(value) <= 1000


def _each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(_is_text(key) and fits(item) for key, item in value.items())


def _is_by_budget(value: Any) -> bool:
    return _each(_is_number)(value) and all(re.fullmatch(r"\d+(\.\d+)?(e-?\d\d?)?", budget) for budget in value)


def _is_attack(entry: Any) -> bool:
    """The settings of an attack and what it cost, as far as they are there."""
    if not isinstance(entry, dict):
        return False
    return all(fits(entry[key]) for key, fits in _ATTACK.items() if key in entry)


def _are_budgets(value: Any) -> bool:
    return isinstance(value, list) and all(type(eps) is float and 0 < eps < math.inf for eps in value)


def _are_shares(value: Any) -> bool:
    return _each(lambda some: _each(_is_number)(some) and _is_by_budget({key: 0 for key in some if key != "all"}))(value) \
        and set(value) <= set("udi")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


_ATTACK: "dict[str, Callable[[Any], bool]]" = {
    "eps": _are_budgets, "eps_u": _are_budgets, "skipped": _are_shares, "limit": lambda value: value is None or _is_count(value),
    **dict.fromkeys(("minimum_norm", "published"), lambda value: type(value) is bool),
    **dict.fromkeys(("forward_passes", "backward_passes"), _is_count)}
_SUMMARY: "tuple[tuple[re.Pattern, Callable[[Any], bool]], ...]" = tuple((re.compile(pattern), fits) for pattern, fits in (
    (r"bin|protocol|flip", _is_text), (r"backbone|code_version|\w+_sha256", lambda value: value is None or _is_text(value)),
    (r"tau", lambda value: _is_number(value) and value is not None and -1 <= value <= 1),
    (r"cra_[udi]", lambda value: _is_by_budget(value) and bool(value)), (r"(era|cra_attacked)_[udi]", _each(_is_by_budget)),
    (r"med_attack_[udi]", _each(_is_number)), (r"attacks", _each(_is_attack)), (r"reasons", _each(_is_text)),
    (r"far_target|far|tar|feature_norm|med_[udi]|accuracy|accuracy_std|auc|eer|xi|limit|lipschitz|sound_\w+|n_\w+", _is_number)))
