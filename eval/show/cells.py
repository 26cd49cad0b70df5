"""What a table is made of: columns with their units, rows of numbers, and rows that stand for several runs."""
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

PERCENT, DECIMALS = 2, 3  # digits behind the point: of percentages, and of thresholds, radii and norms
SEEDS = "Seeds"


class Column(NamedTuple):
    """What a column is of: a figure (CRA_U) and, where it has one, its budget.

    digits: behind the point of its numbers; None: it is a label, which says what a row is about. unit: "%", "l2" or nothing. better: 1
    where a larger figure is the better one, -1 where a smaller one is, 0 where neither is. scale: of the budget ("/255": grey levels).
    hidden: of a label that keeps rows apart and is not printed.
    """
    title: str
    eps: float | None = None
    digits: int | None = DECIMALS
    unit: str = ""
    better: int = 0
    scale: str = ""
    hidden: bool = False

    def __str__(self) -> str:
        return self.title if self.eps is None else f"{self.title} {self.eps}{self.scale}"

    @property
    def heading(self) -> str:
        """With the unit of its figures."""
        return f"{self} [{self.unit}]" if self.unit else str(self)

    @property
    def is_label(self) -> bool:
        """Whether it says what a row is about, and is no figure."""
        return self.digits is None


class OverSeeds(NamedTuple):
    """A figure of several runs that differ in their seeds; None where one lacks it."""
    values: tuple[float | None, ...]

    def summarised(self) -> tuple[float, float, float] | None:
        """Mean, smallest and largest; None where a run lacks the figure: a mean over some would be of other runs than its neighbours."""
        known = [value for value in self.values if value is not None]
        return None if len(known) < len(self.values) else (float(np.mean(known)), min(known), max(known))


class Table(NamedTuple):
    """columns, and rows with a cell each: labels are strings or numbers, figures are numbers or `OverSeeds`; None is missing."""
    columns: list[Column]
    rows: list[list[Any]]

    def frame(self) -> pd.DataFrame:
        """With titles for headings and all digits; missing figures are NaN. A figure over seeds has columns of its own for the smallest and
        the largest one ("TAR min", "TAR max") beside its mean.
        """
        table = self.shown()
        series: dict[str, pd.Series] = {}
        for place, column in enumerate(table.columns):
            cells = [row[place] for row in table.rows]
            if any(isinstance(cell, OverSeeds) for cell in cells):
                threes = [_three(cell) for cell in cells]
                for end, values in zip(("", " min", " max"), zip(*threes)):
                    series[f"{column}{end}"] = pd.Series(values, dtype=float)
            else:
                series[str(column)] = pd.Series(cells, dtype=None if column.is_label else float)
        return pd.DataFrame(series)

    def shown(self) -> "Table":
        """Without what is hidden."""
        return self._kept([not column.hidden for column in self.columns])

    def without(self, *titles: str) -> "Table":
        """The table without some columns."""
        return self._kept([column.title not in titles for column in self.columns])

    def without_empty(self) -> "Table":
        """The table without columns in which nothing stands."""
        return self._kept([any(row[place] is not None for row in self.rows) for place in range(len(self.columns))])

    def _kept(self, kept: Sequence[bool]) -> "Table":
        return Table([column for column, keep in zip(self.columns, kept) if keep],
                     [[cell for cell, keep in zip(row, kept) if keep] for row in self.rows])

    def labels(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """What a row is about."""
        return tuple(cell for column, cell in zip(self.columns, row) if column.is_label)

    def shown_labels(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """The same, as far as it is printed."""
        return tuple(cell for column, cell in zip(self.columns, row) if column.is_label and not column.hidden)


def _three(cell: Any) -> tuple[float | None, ...]:
    return (cell.summarised() or (None,) * 3) if isinstance(cell, OverSeeds) else (cell,) * 3


def over_seeds(table: Table, counted: bool = False) -> Table:
    """A table whose rows of equal labels are one, in the order of the first, with all their figures in each cell; `counted`: with a column
    that says how many they are, after the other labels that are printed.
    """
    groups: dict[tuple[Any, ...], list[list[Any]]] = {}
    for row in table.rows:
        groups.setdefault(table.labels(row), []).append(row)
    merged = Table(table.columns, [_merged(table.columns, rows) for rows in groups.values()])
    if not counted:
        return merged
    place = sum(column.is_label and not column.hidden for column in table.columns)
    return Table([*merged.columns[:place], Column(SEEDS, digits=None), *merged.columns[place:]],
                 [[*row[:place], len(rows), *row[place:]] for row, rows in zip(merged.rows, groups.values())])


def _merged(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> list[Any]:
    if len(rows) == 1:
        return [*rows[0]]
    return [cells[0] if column.is_label else OverSeeds(cells) for column, cells in zip(columns, zip(*rows))]


def with_digits(table: Table, digits: int) -> Table:
    """The table with so many digits behind the point of percentages, and as many more or fewer of everything else."""
    change = digits - PERCENT
    return Table([column if column.digits is None else column._replace(digits=max(0, column.digits + change)) for column in table.columns],
                 table.rows)
