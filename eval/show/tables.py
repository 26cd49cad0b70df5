"""The paper's tables from summaries of results: first a data frame, then its rendering.

A summary (summary.json) is a row. It may have two keys more: `name`, what the row is called, and `xi`, the bound of the
feature norm that the network was trained with. Rows of several protocols, FAR targets and .bin files can stand in one
table, as columns say which; what could not be told apart is refused.
"""
import re
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence

import pandas as pd

from utils import InputError

Summary = Mapping[str, Any]
LABELS = {"name": "Model", "xi": "xi", "bin": "Dataset", "protocol": "Protocol", "flip": "Flip", "far_target": "FAR",
          "limit": "Limit"}
OPTIONAL = ("name", "xi", "flip", "limit")  # columns that are there only where some summary has something to say in them
SETTINGS = tuple(LABELS.values())  # what a row is about; everything else is a figure
ATTACKS = ("pgd", "cw")  # of the paper's Table 2
ATTACK_NAMES = {"pgd": "PGD", "apgd": "APGD", "fgsm": "FGSM", "cw": "C&W", "ddn": "DDN"}
PERCENT, DECIMALS = 2, 3  # digits behind the point: of percentages, and of thresholds, radii and norms
WIDTH = 200  # characters after which a table in plain text goes on below
# what of an attack's entry in a summary does not change what its columns mean
_NO_SETTINGS = {"skip", "skipped", "seed", "eps", "eps_u", "forward_passes", "backward_passes"}
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
          ">": r"\textgreater{}", **{character: "\\" + character for character in "&%$#_{}"}}


def table1(summaries: Iterable[Summary]) -> pd.DataFrame:
    """Table 1, a row a summary: TAR and CRA in percent, medians and norm in l2 units, NaN where a figure is missing.

    Columns that summaries with other budgets lack are NaN in their rows. Raises InputError as `refuse_mixed` does.
    """
    summaries = refuse_mixed(summaries)
    return _frame(summaries, [*_verification(), *_certified(summaries), _norm()])


def table2(summaries: Iterable[Summary], attacks: Sequence[str] = ATTACKS) -> pd.DataFrame:
    """Table 2, a row a summary: ERA in percent of each attack with a budget, median norm of each minimum-norm attack.

    The column Limit says of how many rows of a kind, where it was not all. Raises InputError as `refuse_mixed` does,
    and where none of the summaries has figures of these attacks.
    """
    summaries = _with_limits(refuse_mixed(summaries, attacks), attacks)
    columns = _empirical(summaries, attacks)
    if not columns:
        raise InputError(f"none of these results has figures of {' or '.join(attacks)}: run python -m eval attack")
    return _frame(summaries, [*_verification(), *columns])


def ablation(summaries: Iterable[Summary], attacks: Sequence[str] = ATTACKS) -> pd.DataFrame:
    """The ablation: certified and, where attacks were run, empirical figures by rising `xi`, a key of each summary."""
    summaries = _with_limits(refuse_mixed(summaries, attacks), attacks)
    summaries = sorted(summaries, key=lambda summary: summary["xi"])
    return _frame(summaries, [*_verification(), *_certified(summaries), _norm(), *_empirical(summaries, attacks)])


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


def _entry(summary: Summary, attack: str) -> Mapping[str, Any]:
    return summary.get("attacks", {}).get(attack, {})


def _with_limits(summaries: Iterable[Summary], attacks: Sequence[str]) -> list[Summary]:
    limits = [{_entry(summary, attack).get("limit") for attack in attacks} - {None} for summary in summaries]
    return [{**summary, "limit": min(limit)} if limit else summary for summary, limit in zip(summaries, limits)]


def _difference(one: Any, other: Any) -> str:
    if not isinstance(one, Mapping):
        return f"sha256 {one[:12]} and {other[:12]}"
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return "; ".join(f"{key} {one.get(key)} and {other.get(key)}" for key in keys)


Column = tuple[str, Callable[[Summary], Any]]


def _frame(summaries: Sequence[Summary], columns: Iterable[Column]) -> pd.DataFrame:
    labels = [(label, lambda summary, key=key: summary.get(key)) for key, label in LABELS.items()
              if key not in OPTIONAL or any(summary.get(key, "none") != "none" for summary in summaries)]
    frame = pd.DataFrame({name: [value(summary) for summary in summaries] for name, value in [*labels, *columns]})
    figures = [name for name in frame if name not in SETTINGS]
    return frame.astype(dict.fromkeys(figures, float))


def _verification() -> list[Column]:
    return [("TAR", lambda summary: _percent(summary["tar"])), ("tau", lambda summary: summary["tau"])]


def _norm() -> Column:
    return "norm", lambda summary: summary["feature_norm"]


def _certified(summaries: Sequence[Summary]) -> list[Column]:
    columns = []
    for kind in "udi":
        columns += _by_budget(f"CRA_{kind.upper()}", summaries, lambda summary, key=f"cra_{kind}": summary[key])
        columns.append((f"med {kind.upper()}", lambda summary, key=f"med_{kind}": summary[key]))
    return columns


def _empirical(summaries: Sequence[Summary], attacks: Sequence[str]) -> list[Column]:
    columns = []
    for kind in "udi":
        for attack in attacks:
            def median(summary: Summary, key: str = f"med_attack_{kind}", attack: str = attack) -> "float | None":
                return summary.get(key, {}).get(attack)

            def shares(summary: Summary, key: str = f"era_{kind}", attack: str = attack) -> dict[str, Any]:
                return summary.get(key, {}).get(attack, {})
            if any(attack in summary.get(f"med_attack_{kind}", {}) for summary in summaries):
                columns.append((f"{ATTACK_NAMES[attack]} med {kind.upper()}", median))
            else:
                columns += _by_budget(f"{ATTACK_NAMES[attack]} ERA_{kind.upper()}", summaries, shares)
    return columns


def _by_budget(title: str, summaries: Sequence[Summary],
               shares: Callable[[Summary], Mapping[str, Any]]) -> list[Column]:
    budgets = sorted({budget for summary in summaries for budget in shares(summary)}, key=float)
    return [(f"{title} {budget}", lambda summary, budget=budget: _percent(shares(summary).get(budget)))
            for budget in budgets]


def _percent(share: "float | None") -> "float | None":
    return None if share is None else 100 * share


def xi_of(summary: Summary, folder: Path) -> float:
    """The xi of a result: a key of its summary or, failing that, in the name of a folder, as in runs/xi3/lfw."""
    if summary.get("xi") is not None:
        return float(summary["xi"])
    for part in reversed(folder.resolve().parts):
        if found := re.search(r"xi[_=-]?(\d+(?:\.\d+)?)", part):
            return float(found[1])
    raise InputError(f"{folder}: neither its summary nor its name says which xi it is of: give --xi")


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """A table whose rows of equal settings are one, in the order of the first: the mean, and in brackets the range, of each figure."""
    labels = [name for name in frame if name in SETTINGS]
    rows = []
    for _, group in frame.groupby(labels, sort=False, dropna=False):
        cells = formatted(group.iloc[:1]).iloc[0].to_dict()
        if len(group) > 1:
            cells |= {name: _mean_and_range(name, group[name]) for name in frame if name not in SETTINGS}
        rows.append(cells)
    return pd.DataFrame(rows, columns=frame.columns)


def _mean_and_range(column: str, values: pd.Series) -> str:
    if values.isna().any():  # a mean over some of the seeds would be of other runs than its neighbours
        return ", ".join(_cell(column, value) for value in values) if values.notna().any() else "-"
    mean, low, high = (_cell(column, value) for value in (values.mean(), values.min(), values.max()))
    return f"{mean} [{low}, {high}]"


def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table with every cell as the string that is printed; "-" for what is missing."""
    return pd.DataFrame({name: [_cell(name, value) for value in frame[name]] for name in frame.columns}, dtype=object)


def _cell(column: str, value: Any) -> str:
    if pd.isna(value):
        return "-"
    if isinstance(value, str):
        return value
    if column in SETTINGS:
        return f"{value:g}"
    return f"{value:.{PERCENT if column == 'TAR' or 'RA_' in column else DECIMALS}f}"


def side_by_side(frame: pd.DataFrame) -> pd.DataFrame:
    """A table turned round for a narrow page: a column a row, headed by what the row is about, and a line a figure."""
    cells = formatted(frame)
    labels = [name for name in cells if name in SETTINGS]
    return cells.set_index(labels).T.rename_axis(index=None)


def render(frame: pd.DataFrame, kind: str = "text") -> str:
    """A table as "text" (aligned), "markdown" or "latex", rounded, or as "csv" with all digits."""
    return {"text": _text, "markdown": _markdown, "latex": _latex, "csv": _csv}[kind](frame)


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, lineterminator="\n").rstrip("\n")


def _markdown(frame: pd.DataFrame) -> str:
    cells = formatted(frame)
    rule = [":--" if name in SETTINGS else "--:" for name in cells]
    lines = [list(cells), rule, *cells.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)


def _latex(frame: pd.DataFrame) -> str:
    cells = formatted(frame)
    align = "".join("l" if name in SETTINGS else "r" for name in cells)
    lines = [["".join(_LATEX.get(character, character) for character in text) for text in line]
             for line in (list(cells), *cells.to_numpy().tolist())]
    header, *rows = [" & ".join(line) + r" \\" for line in lines]
    return "\n".join([rf"\begin{{tabular}}{{{align}}}", r"\hline", header, r"\hline", *rows, r"\hline",
                      r"\end{tabular}"])


def _text(frame: pd.DataFrame) -> str:
    """Numbers to the right. What is wider than WIDTH goes on below, each part with the labels of its rows."""
    cells = formatted(frame)
    labels = [column for column in map(_aligned, cells.items()) if column[0].strip() in SETTINGS]
    parts, room = [], 0
    for column in map(_aligned, (item for item in cells.items() if item[0] not in SETTINGS)):
        if not parts or room < len(column[0]) + 2:
            parts.append([*labels])
            room = WIDTH - sum(len(label[0]) + 2 for label in labels)
        parts[-1].append(column)
        room -= len(column[0]) + 2
    return "\n\n".join("\n".join("  ".join(line).rstrip() for line in zip(*part)) for part in parts)


def _aligned(item: tuple[str, pd.Series]) -> list[str]:
    name, cells = item
    width = max(map(len, (name, *cells)))
    return [(str.ljust if name in SETTINGS else str.rjust)(text, width) for text in (name, *cells)]
