"""The paper's tables from summaries of results: columns and rows of numbers, which become text when a table is printed.

A summary (summary.json) is a row. It may have two keys more: `name`, what the row is called, and `xi`, the bound of the feature norm that
the network was trained with. Rows of several protocols, FAR targets and .bin files can stand in one table, as columns say which; what
could not be told apart is refused.
"""
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from attacks import ATTACKS
from eval.summary import ByBudget
from utils import InputError

Summary = Mapping[str, Any]
LABELS = {"name": "Model", "xi": "xi", "bin": "Dataset", "protocol": "Protocol", "flip": "Flip", "far_target": "FAR"}
OPTIONAL = ("name", "xi", "flip")  # columns that are there only where some summary has something to say in them
EMPIRICAL = ("pgd", "cw")  # the attacks of the paper's Table 2
PERCENT, DECIMALS = 2, 3  # digits behind the point: of percentages, and of thresholds, radii and norms
WIDTH = 200  # characters after which a table in plain text goes on below
# what of an attack's entry in a summary does not change what its figures mean
_NO_SETTINGS = {"skip", "skipped", "seed", "settings", "eps", "eps_u", "forward_passes", "backward_passes"}
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
          ">": r"\textgreater{}", **{character: "\\" + character for character in "&%$#_{}"}}


class Column(NamedTuple):
    """What a column is of: a figure (CRA_U) and, where it has one, its budget.

    digits: behind the point of its numbers; None: it is a label, which says what a row is about.
    """
    title: str
    eps: float | None = None
    digits: int | None = DECIMALS

    def __str__(self) -> str:
        return self.title if self.eps is None else f"{self.title} {self.eps}"

    @property
    def is_label(self) -> bool:
        """Whether it says what a row is about, and is no figure."""
        return self.digits is None


class OverSeeds(NamedTuple):
    """A figure of several runs that differ in their seeds; None where one lacks it."""
    values: tuple[float | None, ...]


class Table(NamedTuple):
    """columns, and rows with a cell each: labels are strings or numbers, figures are numbers or `OverSeeds`; None is missing."""
    columns: list[Column]
    rows: list[list[Any]]

    def frame(self) -> pd.DataFrame:
        """With the headings as they are printed and all digits; missing figures are NaN."""
        cells = zip(*self.rows) if self.rows else ((),) * len(self.columns)
        return pd.DataFrame({str(column): pd.Series(values, dtype=None if column.is_label else float)
                             for column, values in zip(self.columns, cells)})

    def without(self, *titles: str) -> "Table":
        """The table without some columns."""
        kept = [place for place, column in enumerate(self.columns) if column.title not in titles]
        return Table([self.columns[place] for place in kept], [[row[place] for place in kept] for row in self.rows])


def table1(summaries: Iterable[Summary]) -> Table:
    """Table 1, a row a summary: TAR and CRA in percent, medians and norm in l2 units.

    Figures that a summary with other budgets lacks are missing in its row. Raises InputError as `refuse_mixed` does.
    """
    summaries = refuse_mixed(summaries)
    return _table(summaries, [*_TAR, *_certified(summaries), _NORM])


def table2(summaries: Iterable[Summary], attacks: Sequence[str] = EMPIRICAL) -> Table:
    """Table 2, a row a summary: ERA in percent of each attack with a budget; of each minimum-norm attack the median norm and, in percent,
    the share that it never turned.

    The columns of limits say of how many rows of a kind, where it was not all: one column where that is the same for all attacks of a
    summary, else one for each. Raises InputError as `refuse_mixed` does, and where none of the summaries has figures of these attacks.
    """
    summaries = refuse_mixed(summaries, attacks)
    columns = _empirical(summaries, attacks)
    if not columns:
        raise InputError(f"none of these results has figures of {' or '.join(attacks)}: run python -m eval attack, or name others by "
                         "--attacks")
    return _table(summaries, [*_limits(summaries, attacks), *_TAR, *columns])


def verification(summaries: Iterable[Summary]) -> Table:
    """How well clean images are verified, a row a summary; shares in percent. Raises InputError as `refuse_mixed` does.

    best accuracy and its threshold are over all thresholds, on the same pairs: an optimistic figure. 10-fold: the threshold of the other
    folds.
    """
    return _table(refuse_mixed(summaries), [*_TAR, *_VERIFICATION])


def ablation(summaries: Iterable[Summary], attacks: Sequence[str] = EMPIRICAL) -> Table:
    """The ablation: certified and, where attacks were run, empirical figures by rising `xi`, a key of each summary."""
    summaries = sorted(refuse_mixed(summaries, attacks), key=lambda summary: summary["xi"])
    return _table(summaries, [*_limits(summaries, attacks), *_TAR, *_certified(summaries), _NORM, *_empirical(summaries, attacks)])


def refuse_mixed(summaries: Iterable[Summary], attacks: Sequence[str] = ()) -> list[Summary]:
    """The summaries, unless rows that look alike are not: raises InputError where one .bin name stands for several
    files, they were made by different code, or one attack under one protocol was run with several settings (seeds apart).
    """
    summaries, seen = list(summaries), {}
    for summary in summaries:
        marks = {f"the .bin file called {summary['bin']}": summary.get("bin_sha256"), "the code": summary.get("code_sha256")}
        for attack in attacks:
            settings = {key: value for key, value in _entry(summary, attack).items() if key not in _NO_SETTINGS}
            marks[f"{attack} under the {summary['protocol']} protocol"] = settings or None
        for what, mark in marks.items():
            if mark is not None and seen.setdefault(what, mark) != mark:
                raise InputError(f"{what} is not the same in all results: {_difference(seen[what], mark)}")
    return summaries


def attack_label(name: str) -> str:
    """How tables and figures write an attack. Somebody else's, which a file from anywhere may name, is not imported for that."""
    return ATTACKS.find(name).label if name in ATTACKS.names() else name.rpartition(":")[2]


def _entry(summary: Summary, attack: str) -> Mapping[str, Any]:
    return summary.get("attacks", {}).get(attack, {})


def _difference(one: Any, other: Any) -> str:
    if not isinstance(one, Mapping):
        return f"sha256 {one[:12]} and {other[:12]}"
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return "; ".join(f"{key} {one.get(key)} and {other.get(key)}" for key in keys)


Figure = tuple[Column, Callable[[Summary], Any]]


def _table(summaries: Sequence[Summary], figures: Iterable[Figure]) -> Table:
    labels = [_figure(label, key, digits=None) for key, label in LABELS.items()
              if key not in OPTIONAL or any(summary.get(key, "none") != "none" for summary in summaries)]
    columns, values = zip(*labels, *figures)
    return Table(list(columns), [[value(summary) for value in values] for summary in summaries])


def _figure(title: str, key: str, digits: int | None = DECIMALS) -> Figure:
    return Column(title, digits=digits), lambda summary: summary.get(key)


def _share(title: str, key: str, digits: int = PERCENT) -> Figure:
    return Column(title, digits=digits), lambda summary: _percent(summary.get(key))


_TAR = (_share("TAR", "tar"), _figure("tau", "tau"))
_NORM = _figure("norm", "feature_norm")
_VERIFICATION = (_share("reached FAR", "far", DECIMALS), _share("accuracy at tau", "accuracy_at_tau"),
                 _share("best accuracy", "best_accuracy"), _figure("its threshold", "best_threshold"),
                 _share("10-fold accuracy", "accuracy"), _share("its deviation", "accuracy_std"),
                 _share("AUC", "auc"), _share("EER", "eer"))


def _limits(summaries: Sequence[Summary], attacks: Sequence[str]) -> list[Figure]:
    """How many rows of each kind attacks were about: one column where that is the same for all attacks of each summary, else one each."""
    found = [{attack: _entry(summary, attack).get("limit") for attack in attacks if _entry(summary, attack)} for summary in summaries]
    if not any(limit is not None for limits in found for limit in limits.values()):
        return []
    if all(len(set(limits.values())) <= 1 for limits in found):
        return [(Column("Limit", digits=None), lambda summary: _limit(summary, attacks))]
    return [(Column(f"{attack_label(attack)} limit", digits=None), lambda summary, attack=attack: _limit(summary, [attack]))
            for attack in attacks if any(attack in limits for limits in found)]


def _limit(summary: Summary, attacks: Sequence[str]) -> int | None:
    return next((_entry(summary, attack).get("limit") for attack in attacks if _entry(summary, attack)), None)


def _certified(summaries: Sequence[Summary]) -> list[Figure]:
    figures: list[Figure] = []
    for kind in "udi":
        figures += _by_budget(f"CRA_{kind.upper()}", summaries, lambda summary, key=f"cra_{kind}": summary[key])
        figures.append(_figure(f"med {kind.upper()}", f"med_{kind}"))
    return figures


def _empirical(summaries: Sequence[Summary], attacks: Sequence[str]) -> list[Figure]:
    figures: list[Figure] = []
    for kind in "udi":
        for attack in attacks:
            label = attack_label(attack)
            if any(_entry(summary, attack).get("minimum_norm") for summary in summaries):
                figures.append((Column(f"{label} med {kind.upper()}"), _of_attack(f"med_attack_{kind}", attack)))
                never = _of_attack(f"never_{kind}", attack)
                if any(never(summary) is not None for summary in summaries):
                    figures.append((Column(f"{label} never {kind.upper()}", digits=PERCENT),
                                    lambda summary, never=never: _percent(never(summary))))
            else:
                shares = _of_attack(f"era_{kind}", attack)
                figures += _by_budget(f"{label} ERA_{kind.upper()}", summaries, lambda summary, shares=shares: shares(summary) or {})
    return figures


def _of_attack(key: str, attack: str) -> Callable[[Summary], Any]:
    return lambda summary: summary.get(key, {}).get(attack)


def _by_budget(title: str, summaries: Sequence[Summary], shares: Callable[[Summary], ByBudget]) -> list[Figure]:
    budgets = sorted({budget for summary in summaries for budget in shares(summary)})
    return [(Column(title, budget, PERCENT), lambda summary, budget=budget: _percent(shares(summary).get(budget))) for budget in budgets]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def xi_of(summary: Summary, folder: Path) -> float:
    """The xi of a result: a key of its summary or, failing that, in the name of a folder, as in runs/xi3/lfw."""
    if summary.get("xi") is not None:
        return float(summary["xi"])
    for part in reversed(folder.resolve().parts):
        if found := re.search(r"xi[_=-]?(\d+(?:\.\d+)?)", part):
            return float(found[1])
    raise InputError(f"{folder}: neither its summary nor its name says which xi it is of: give --xi")


def over_seeds(table: Table) -> Table:
    """A table whose rows of equal labels are one, in the order of the first, with all their figures in each cell."""
    groups: dict[tuple[Any, ...], list[list[Any]]] = {}
    for row in table.rows:
        groups.setdefault(tuple(cell for column, cell in zip(table.columns, row) if column.is_label), []).append(row)
    return Table(table.columns, [_merged(table.columns, rows) for rows in groups.values()])


def _merged(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> list[Any]:
    if len(rows) == 1:
        return [*rows[0]]
    return [cells[0] if column.is_label else OverSeeds(cells) for column, cells in zip(columns, zip(*rows))]


def formatted(table: Table) -> list[list[str]]:
    """The cells of each row as they are printed; "-" for what is missing."""
    return [[_cell(column, cell) for column, cell in zip(table.columns, row)] for row in table.rows]


def _cell(column: Column, value: Any) -> str:
    if isinstance(value, OverSeeds):
        return _mean_and_range(column, value.values)
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:g}" if column.is_label else f"{value:.{column.digits}f}"


def _mean_and_range(column: Column, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):  # a mean over some of the seeds would be of other runs than its neighbours
        return ", ".join(_cell(column, value) for value in values) if known else "-"
    mean, low, high = (_cell(column, value) for value in (np.mean(known), min(known), max(known)))
    return f"{mean} [{low}, {high}]"


def side_by_side(table: Table) -> pd.DataFrame:
    """A table turned round for a narrow page: a column a row, headed by what the row is about, and a line a figure."""
    cells = pd.DataFrame(formatted(table), columns=list(map(str, table.columns)), dtype=object)
    return cells.set_index([str(column) for column in table.columns if column.is_label]).T.rename_axis(index=None)


def render(table: Table, kind: str = "text") -> str:
    """A table as "text" (aligned), "markdown" or "latex", rounded, or as "csv" with all digits."""
    return {"text": _text, "markdown": _markdown, "latex": _latex, "csv": _csv}[kind](table)


def _csv(table: Table) -> str:
    return table.frame().to_csv(index=False, lineterminator="\n").rstrip("\n")


def _markdown(table: Table) -> str:
    rule = [":--" if column.is_label else "--:" for column in table.columns]
    lines = [list(map(str, table.columns)), rule, *formatted(table)]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)


def _latex(table: Table) -> str:
    align = "".join("l" if column.is_label else "r" for column in table.columns)
    lines = [["".join(_LATEX.get(character, character) for character in text) for text in line]
             for line in (list(map(str, table.columns)), *formatted(table))]
    header, *rows = [" & ".join(line) + r" \\" for line in lines]
    return "\n".join([rf"\begin{{tabular}}{{{align}}}", r"\hline", header, r"\hline", *rows, r"\hline",
                      r"\end{tabular}"])


def _text(table: Table) -> str:
    """Numbers to the right. What is wider than WIDTH goes on below, each part with the labels of its rows."""
    columns = [(column.is_label, _aligned(column, texts)) for column, *texts in zip(table.columns, *formatted(table))]
    labels = [texts for is_label, texts in columns if is_label]
    parts, room = [], 0
    for texts in (texts for is_label, texts in columns if not is_label):
        if not parts or room < len(texts[0]) + 2:
            parts.append([*labels])
            room = WIDTH - sum(len(label[0]) + 2 for label in labels)
        parts[-1].append(texts)
        room -= len(texts[0]) + 2
    return "\n\n".join("\n".join("  ".join(line).rstrip() for line in zip(*part)) for part in parts)


def _aligned(column: Column, texts: Sequence[str]) -> list[str]:
    texts = [str(column), *texts]
    width = max(map(len, texts))
    return [(str.ljust if column.is_label else str.rjust)(text, width) for text in texts]
