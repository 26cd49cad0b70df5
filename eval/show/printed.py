"""Tables as text: aligned for a terminal, Markdown, LaTeX and CSV."""
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from eval.show.cells import SEEDS, Column, OverSeeds, Table
from utils import InputError

WIDTH = 200  # characters after which a table in plain text goes on below
_OF_MODEL = ("Model", "xi", "Flip", "Radii", "Seed", SEEDS)  # labels of what is compared; the others say where it is compared
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
          ">": r"\textgreater{}", "|": r"\textbar{}",
          **{character: "\\" + character for character in "&%$#_{}"}}


def formatted(table: Table, signs: bool = False) -> list[list[str]]:
    """The cells of each row as they are printed, rounded; "-" for what is missing. signs: with % behind what is in percent."""
    return [[_cell(column, cell, column.unit if signs and column.unit == "%" else "") for column, cell in zip(table.columns, row)]
            for row in table.rows]


def _cell(column: Column, value: Any, sign: str = "") -> str:
    if isinstance(value, OverSeeds):
        return _mean_and_range(column, value, sign)
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:g}" if column.is_label else f"{value:.{column.digits}f}{sign}"


def _mean_and_range(column: Column, figure: OverSeeds, sign: str) -> str:
    three = figure.summarised()
    if three is None:
        known = any(value is not None for value in figure.values)
        return ", ".join(_cell(column, value, sign) for value in figure.values) if known else "-"
    mean, low, high = (_cell(column, value) for value in three)
    return f"{mean}{sign}" if low == high else f"{mean}{sign} [{low}, {high}]"


def best(table: Table) -> set[tuple[int, int]]:
    """The cells (row, column) that are the best of their column among the rows of one dataset, protocol, FAR and limit, as they are
    printed: equal ones share it. Where there is nothing to compare, because a row is alone or all are equal, there is none.
    """
    rivals: dict[tuple[Any, ...], list[int]] = {}
    for number, row in enumerate(table.rows):
        setting = tuple(cell for column, cell in zip(table.columns, row) if column.is_label and column.title not in _OF_MODEL)
        rivals.setdefault(setting, []).append(number)
    found = set()
    for place, column in enumerate(table.columns):
        for rows in rivals.values() if column.better else ():
            values = {row: _compared(column, table.rows[row][place]) for row in rows}
            known = [value for value in values.values() if value is not None]
            if len(set(known)) > 1:
                top = max(known, key=lambda value, sign=column.better: sign * value)
                found |= {(row, place) for row, value in values.items() if value == top}
    return found


def _compared(column: Column, value: Any) -> float | None:
    if isinstance(value, OverSeeds):
        three = value.summarised()
        value = None if three is None else three[0]
    return None if value is None else float(f"{value:.{column.digits}f}")


def side_by_side(table: Table) -> pd.DataFrame:
    """A table turned round for a narrow page: a column a row, headed by what the row is about, and a line a figure."""
    table = table.shown()
    cells = pd.DataFrame(formatted(table), columns=[column.heading for column in table.columns], dtype=object)
    return cells.set_index([column.heading for column in table.columns if column.is_label]).T.rename_axis(index=None)


def render(table: Table, kind: str = "text", bold: bool | None = None) -> str:
    """A table as "text" (aligned), "markdown" or "latex", rounded and with units, or as "csv" with all digits.

    bold: whether `best` stands out (default: in LaTeX). Raises InputError where it cannot.
    """
    if bold and kind in ("text", "csv"):
        raise InputError(f"--bold: {kind} has no bold figures, expected --format markdown or latex")
    if kind == "csv":
        return table.frame().to_csv(index=False, lineterminator="\n").rstrip("\n")
    make: Callable[[Table, set[tuple[int, int]]], str] = {"text": _text, "markdown": _markdown, "latex": _latex}[kind]
    strong = best(table) if bold or bold is None and kind == "latex" else set()
    kept = [place for place, column in enumerate(table.columns) if not column.hidden]
    return make(table.shown(), {(row, kept.index(place)) for row, place in strong})


def _emphasised(cells: Sequence[Sequence[str]], strong: set[tuple[int, int]], mark: str) -> list[list[str]]:
    return [[mark.format(text) if (row, place) in strong else text for place, text in enumerate(line)] for row, line in enumerate(cells)]


def _markdown(table: Table, strong: set[tuple[int, int]]) -> str:
    rule = [":--" if column.is_label else "--:" for column in table.columns]
    lines = [[column.heading for column in table.columns], rule, *_emphasised(formatted(table), strong, "**{}**")]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)


def _latex(table: Table, strong: set[tuple[int, int]]) -> str:
    """For the package booktabs."""
    align = "".join("l" if column.is_label else "r" for column in table.columns)
    cells = [[_latex_number(text) if not column.is_label or text == "-" else _latex_text(text) for column, text in zip(table.columns, line)]
             for line in formatted(table)]
    header = [_latex_heading(column) for column in table.columns]
    head, *rows = [_latex_row(line) for line in (header, *_emphasised(cells, strong, r"\textbf{{{}}}"))]
    return "\n".join([r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule",
                      r"\end{tabular}"])


def _latex_row(cells: Sequence[str]) -> str:
    """What follows the end of a row must not look like an argument of it: a * or a bracket."""
    first, *others = cells
    return " & ".join([f"{{{first[0]}}}{first[1:]}" if first[:1] in ("[", "*") else first, *others]) + r" \\"


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_number(text: str) -> str:
    """Minus signs, and a dash for what is missing."""
    return re.sub(r"-(?!\d|\$)", "--", re.sub(r"-(?=\d)", "$-$", text))


def _latex_heading(column: Column) -> str:
    title = re.sub(r"\b([CE]RA)\\_([UDI])\b", r"\1\\textsubscript{\2}", _latex_text(str(column)))
    unit = {"l2": r"$\ell_2$"}.get(column.unit, _latex_text(column.unit))
    return f"{title} [{unit}]" if unit else title


def _text(table: Table, strong: set[tuple[int, int]]) -> str:
    """Numbers to the right, percentages with their sign. What is wider than WIDTH goes on below, each part with the labels of its rows."""
    columns = [(column.is_label, _aligned(column, texts)) for column, *texts in zip(table.columns, *formatted(table, signs=True))]
    labels = [texts for is_label, texts in columns if is_label]
    parts, room = [] if len(labels) < len(columns) else [labels], 0
    for texts in (texts for is_label, texts in columns if not is_label):
        if not parts or room < len(texts[0]) + 2:
            parts.append([*labels])
            room = WIDTH - sum(len(label[0]) + 2 for label in labels)
        parts[-1].append(texts)
        room -= len(texts[0]) + 2
    return "\n\n".join("\n".join("  ".join(line).rstrip() for line in zip(*part)) for part in parts)


def _aligned(column: Column, texts: Sequence[str]) -> list[str]:
    texts = [str(column) if column.unit == "%" else column.heading, *texts]
    width = max(map(len, texts))
    return [(str.ljust if column.is_label else str.rjust)(text, width) for text in texts]
