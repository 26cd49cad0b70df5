"""The paper's tables from summaries of results, and tables of figures that are asked for by name: columns and rows of numbers, which become
text when a table is printed.

A summary (summary.json) is a row. It may have two keys more: `name`, what the row is called, and `xi`, the bound of the feature norm that
the network was trained with. Rows of several protocols, FAR targets and .bin files can stand in one table, as columns say which; what
could not be told apart is refused.
"""
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.show.cells import PERCENT, SEEDS, Column, OverSeeds, Table, over_seeds
from eval.show.figures import LABELS, LIMIT, Asked, Figure, Summary, asked, attack_label, attacks_of, entry, figures_of, labels, limits
from eval.show.printed import formatted, render, side_by_side
from utils import InputError

__all__ = ["EMPIRICAL", "PERCENT", "Column", "OverSeeds", "Table", "ablation", "attack_label", "chosen", "formatted", "grouped",
           "over_seeds", "refuse_alike", "refuse_mixed", "render", "side_by_side", "table1", "table2", "verification", "xi_of"]

EMPIRICAL = ("pgd", "cw")  # the attacks of the paper's Table 2
_CLEAN, _NORM = (Asked("tar"), Asked("tau")), Asked("feature_norm")
_CERTIFIED = tuple(Asked(f"{figure}_{kind}") for kind in "udi" for figure in ("cra", "med"))
_VERIFICATION = tuple(map(Asked, ("far", "accuracy_at_tau", "best_accuracy", "best_threshold", "accuracy", "accuracy_std", "auc", "eer")))
# what of an attack's entry in a summary does not change what its figures mean; a limit is shown
_NO_SETTINGS = {"skip", "skipped", "seed", "settings", "eps", "eps_u", "forward_passes", "backward_passes", LIMIT}


def table1(summaries: Iterable[Summary], sound: bool = True) -> Table:
    """Table 1, a row a summary: TAR and CRA in percent, medians and norm in l2 units.

    sound: where a summary has figures that hold in floating point, these; the column Radii says so. Figures that a summary with other
    budgets lacks are missing in its row. Raises InputError as `refuse_mixed` does.
    """
    summaries = refuse_mixed(summaries)
    return _table(summaries, [], [*_CLEAN, *_CERTIFIED, _NORM], sound=sound)


def table2(summaries: Iterable[Summary], attacks: Sequence[str] = EMPIRICAL) -> Table:
    """Table 2, a row a summary: ERA in percent of each attack with a budget; of each minimum-norm attack the median norm and, in percent,
    the share that it never turned.

    The columns of limits say of how many rows of a kind, where it was not all: one column where that is the same for all attacks of a
    summary, else one for each. Raises InputError as `refuse_mixed` does, and where none of the summaries has figures of these attacks.
    """
    summaries = refuse_mixed(summaries, attacks)
    if not set(attacks) & set(attacks_of(summaries)):
        raise InputError(f"none of these results has figures of {' or '.join(attacks)}: run python -m eval attack, or name others by "
                         "--attacks")
    return _table(summaries, limits(summaries, attacks), [*_CLEAN, *_empirical(summaries, attacks)])


def verification(summaries: Iterable[Summary]) -> Table:
    """How well clean images are verified, a row a summary; shares in percent. Raises InputError as `refuse_mixed` does.

    best accuracy and its threshold are over all thresholds, on the same pairs: an optimistic figure. 10-fold: the threshold of the other
    folds.
    """
    return _table(refuse_mixed(summaries), [], [*_CLEAN, *_VERIFICATION])


def ablation(summaries: Iterable[Summary], attacks: Sequence[str] = EMPIRICAL) -> Table:
    """The ablation: certified and, where attacks were run, empirical figures by rising `xi`, a key of each summary."""
    summaries = sorted(refuse_mixed(summaries, attacks), key=lambda summary: summary["xi"])
    return _table(summaries, limits(summaries, attacks), [*_CLEAN, *_CERTIFIED, _NORM, *_empirical(summaries, attacks)], sound=True)


def chosen(summaries: Iterable[Summary], columns: Sequence[str]) -> Table:
    """The labels and figures of these names (eval/show/figures.py has what they are made of), a row a summary.

    Without labels among the names, those of all tables; else the others are hidden, and `refuse_alike` says whether they are missed. Raises
    InputError for names of nothing and for figures that none of the summaries has, and as `refuse_mixed` does.
    """
    summaries, wanted = list(summaries), list(dict.fromkeys(map(asked, columns)))
    attacks = list(dict.fromkeys(attack for one in wanted for attack in _attacks_behind(one, summaries)))
    shown = [one for one in wanted if _is_label(one)]
    limited = [_attacks_behind(one, summaries) for one in shown if one.key == LIMIT] if shown else [attacks]
    refuse_mixed(summaries, attacks, with_limits=bool(limited))
    figures = [figure for one in wanted if not _is_label(one) for figure in _found(one, summaries)]
    counts = [figure for some in limited for figure in limits(summaries, some)]
    return _assembled(summaries, [*_of_rows(summaries, [one.key for one in shown]), *counts], figures)


def _attacks_behind(one: Asked, summaries: Sequence[Summary]) -> list[str]:
    """The attacks that a name is about."""
    if not one.key.startswith(("era_", "cra_attacked_", "med_attack_", "never_", LIMIT)):
        return []
    return [one.of] if one.of else attacks_of(summaries)


def _is_label(one: Asked) -> bool:
    return one.key in LABELS or one.key in (LIMIT, SEEDS.lower())


def _found(one: Asked, summaries: Sequence[Summary]) -> list[Figure]:
    if found := figures_of([one], summaries):
        return found
    others = [str(column.eps) for column, _ in figures_of([one._replace(eps=None)], summaries)]
    known = f"{one.key} is at {', '.join(others)}" if others else f"docs/columns.md says which command computes {one.key}"
    raise InputError(f"--columns {one}: none of these results has it; {known}")


def _of_rows(summaries: Sequence[Summary], shown: Sequence[str]) -> list[Figure]:
    """All labels: those named by `shown` first, in that order, and the others hidden."""
    found = labels(summaries, asked_for=shown)
    if not shown:
        return list(found.values())
    front = [found[key] for key in shown if key in LABELS]
    return [*front, *((column._replace(hidden=True), value) for key, (column, value) in found.items() if key not in shown)]


def grouped(table: Table, columns: Sequence[str] = ()) -> Table:
    """`over_seeds`, with the number of runs of each row, which is hidden where labels are asked for by name and it is not."""
    table, wanted = over_seeds(table, counted=True), [asked(text) for text in columns]
    hidden = any(map(_is_label, wanted)) and not any(one.key == SEEDS.lower() for one in wanted)
    return Table([column._replace(hidden=hidden) if column.title == SEEDS else column for column in table.columns], table.rows)


def refuse_alike(table: Table) -> Table:
    """The table, unless rows look alike only because a label is hidden: raises InputError, naming it."""
    seen: dict[tuple[Any, ...], list[Any]] = {}
    for row in table.rows:
        other = seen.setdefault(table.shown_labels(row), row)
        for key, title in LABELS.items():
            cells = [(theirs, cell) for column, theirs, cell in zip(table.columns, other, row) if column.title == title and cell != theirs]
            for theirs, cell in cells:
                raise InputError(f"--columns: two rows look alike, of which one has {title} {theirs} and one {cell}: add {key}")
    return table


def refuse_mixed(summaries: Iterable[Summary], attacks: Sequence[str] = (), with_limits: bool = True) -> list[Summary]:
    """The summaries, unless rows that look alike are not: raises InputError where one .bin name stands for several
    files, they were made by different code, or one attack under one protocol was run with several settings (seeds apart).

    with_limits: whether the table says how many rows an attack was about; else that has to be the same as well.
    """
    summaries, seen = list(summaries), {}
    ignored = _NO_SETTINGS if with_limits else _NO_SETTINGS - {LIMIT}
    for summary in summaries:
        marks = {f"the .bin file called {summary['bin']}": summary.get("bin_sha256"), "the code": summary.get("code_sha256")}
        for attack in attacks:
            settings = {key: value for key, value in entry(summary, attack).items() if key not in ignored}
            through = " through noise" if "draws" in settings else ""
            marks[f"{attack}{through} under the {summary['protocol']} protocol"] = settings or None
        for what, mark in marks.items():
            if mark is not None and seen.setdefault(what, mark) != mark:
                raise InputError(f"{what} is not the same in all results: {_difference(seen[what], mark)}")
    return summaries


def _difference(one: Any, other: Any) -> str:
    if not isinstance(one, Mapping):
        return f"sha256 {one[:12]} and {other[:12]}"
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return "; ".join(f"{key} {one.get(key)} and {other.get(key)}" for key in keys)


def _table(summaries: Sequence[Summary], counts: Sequence[Figure], wanted: Iterable[Asked], sound: bool = False) -> Table:
    """The labels, the limits of attacks and the figures that are wanted, as far as a summary has them."""
    return _assembled(summaries, [*labels(summaries, sound).values(), *counts], figures_of(wanted, summaries, sound))


def _assembled(summaries: Sequence[Summary], of_rows: Sequence[Figure], figures: Sequence[Figure]) -> Table:
    columns, values = zip(*of_rows, *figures)
    return Table(list(columns), [[value(summary) for value in values] for summary in summaries])


def _empirical(summaries: Sequence[Summary], attacks: Sequence[str]) -> list[Asked]:
    """What there is to say of each attack."""
    found = []
    for kind in "udi":
        for attack in attacks:
            if not any(entry(summary, attack).get("minimum_norm") for summary in summaries):
                found.append(Asked(f"era_{kind}", attack))
                continue
            found.append(Asked(f"med_attack_{kind}", attack))
            if any(summary.get(f"never_{kind}", {}).get(attack) is not None for summary in summaries):
                found.append(Asked(f"never_{kind}", attack))
    return found


def xi_of(summary: Summary, folder: Path) -> float:
    """The xi of a result: a key of its summary or, failing that, in the name of a folder, as in runs/xi3/lfw."""
    if summary.get("xi") is not None:
        return float(summary["xi"])
    for part in reversed(folder.resolve().parts):
        if found := re.search(r"xi[_=-]?(\d+(?:\.\d+)?)", part):
            return float(found[1])
    raise InputError(f"{folder}: neither its summary nor its name says which xi it is of: give --xi")
