"""What attacks came to, row by row, from their single attacks (attacks.csv).

A row is robust at a budget if its decision is right when clean and no attack on either of its images succeeded. Where the protocol is
"strict", what fell at a budget falls at every larger one; a published attack stands for its own budget only.
"""
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from eval.records import AUDITED, Records, is_right, table_of
from utils import InputError

_NEEDED = {"eps", "eps_u", "minimum_norm", "published", "limit"}  # of the entry of an attack in the summary


def attack_names(found: Records) -> list[str]:
    """The attacks that the records have figures of, the audit not among them.

    Raises InputError where the summary does not say of one what its rows are about.
    """
    attacks = found.summary.get("attacks", {})
    for name, entry in attacks.items():
        if lacking := _NEEDED - set(entry):
            raise InputError(f"attack {name} of the summary lacks {', '.join(sorted(lacking))}")
    return list(attacks)


def budgets(found: Records, attack: str, kind: str) -> list[float]:
    """The budgets that an attack was run or is evaluated at, of a kind (u, d, i)."""
    return found.summary["attacks"][attack]["eps_u" if kind == "u" else "eps"]


def single_attacks(found: Records, attack: str, kind: str) -> pd.DataFrame:
    """The rows of attacks.csv of an attack and a kind."""
    table = found.attacks
    return table[(table["attack"] == attack) & (table["kind"] == kind)]


def attacked(found: Records, attack: str, kind: str) -> pd.DataFrame:
    """The rows of images or pairs that an attack was about: the first ones, as many as its limit says."""
    return table_of(found, kind)[:found.summary["attacks"][attack]["limit"]]


def robust(found: Records, attack: str, kind: str, eps: float) -> pd.Series:
    """Whether each attacked row is robust at a budget; index: the rows."""
    entry = found.summary["attacks"][attack]
    if entry["minimum_norm"]:
        smallest = norms(found, attack, kind)
        return is_right(attacked(found, attack, kind)) & (smallest > eps)
    tries = single_attacks(found, attack, kind)
    reached = tries["eps"] == eps if entry["published"] else tries["eps"] <= eps
    right = is_right(attacked(found, attack, kind))
    return right & ~right.index.isin(tries.loc[tries["success"] & reached, "row"])


def norms(found: Records, attack: str, kind: str) -> pd.Series:
    """The smallest successful perturbation of each row that a minimum-norm attack, or the audit, was about; index: the rows.

    Infinite without a success, 0 for a decision that is wrong when clean. Of the audit: the rows that it attacked.
    """
    tries = single_attacks(found, attack, kind)
    smallest = tries["norm"].where(tries["success"], math.inf).groupby(tries["row"]).min()
    if attack == AUDITED:
        return smallest
    right = is_right(attacked(found, attack, kind))
    return smallest.reindex(right.index, fill_value=math.inf).where(right, 0.)


def successes(found: Records, attack: str, kind: str) -> np.ndarray:
    """The norms [n] of all single attacks that succeeded, on either side, clean errors among them: what the published median is of."""
    tries = single_attacks(found, attack, kind)
    return tries.loc[tries["success"], "norm"].to_numpy()


def never_turned(found: Records, attack: str, kind: str) -> float | None:
    """The share of the attacked rows that a minimum-norm attack never turned, on either side; None of none.

    The published code does not ask whether a decision was right, and in dodging asks the left image twice; so does the published attack.
    """
    published, tries = found.summary["attacks"][attack]["published"], single_attacks(found, attack, kind)
    rows = attacked(found, attack, kind)
    if rows.empty:
        return None
    asked = tries["side"] == "left" if published and kind == "d" else True
    standing = ~rows.index.isin(tries.loc[tries["success"] & asked, "row"])
    return float((standing if published else standing & is_right(rows)).mean())


def fallen_certificates(found: Records, attack: str) -> Iterator[tuple[str, float | None, int]]:
    """(kind, budget or None, number) of the certified decisions that fell all the same."""
    for kind in "udi":
        table = table_of(found, kind)
        radius = table["radius_u" if kind == "u" else "radius"]
        tries = single_attacks(found, attack, kind)
        tries = tries[tries["success"] & is_right(table)[tries["row"]].to_numpy()]
        certified = radius[tries["row"]].to_numpy()
        minimum_norm = found.summary["attacks"][attack]["minimum_norm"]
        fell = tries[tries["norm"] <= certified if minimum_norm else tries["eps"] < certified]
        for eps, some in fell.groupby("eps", dropna=False):
            yield kind, None if math.isnan(eps) else eps, some["row"].nunique()
