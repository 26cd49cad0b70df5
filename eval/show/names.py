"""What the rows of tables and the lines of figures are called, and which results are one network trained with several seeds.

Results come as (path, summary): the folder or the file that a summary was read from.
"""
import os
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from eval.show.figures import Summary, radii
from utils import InputError, printable

Result = tuple[Path, Summary]
_SEED = re.compile(r"(?P<stem>.*?)[_\- ](?P<said>seed[_=\-]?|s(?=\d))?(?P<seed>\d{1,9})")


def names_of(results: Sequence[Result], alone: bool = False) -> list[str]:
    """A name for each result, by which those on the same pairs under the same settings can be told apart: what its summary says, or else
    the name of its folder; of folders that are called by their .bin file, the name of what is above them.

    alone: where nothing stands beside a name that says what a result is about, as in a legend: all are told apart.
    """
    names = [given_name(result) for result in results]
    groups = _by(range(len(results)), lambda number: (names[number], *(() if alone else _setting(results[number]))))
    groups = [alike for alike in groups if len({results[number][0] for number in alike}) > 1]
    for alike in [sum(groups, [])] if alone and groups else groups:
        for number, name in zip(alike, _told_apart([results[number] for number in alike], alone)):
            names[number] = name
    return names


def given_name(result: Result) -> str:
    """The name that a summary has from training or, without one, that of its folder."""
    return result[1].get("name") or _parts(result)[-1]


def prefixes_of(folders: Sequence[Path]) -> list[str]:
    """What the names of files about each of some folders begin with: as much of its path as tells it apart."""
    return [f"{end.replace('/', '_')}_" for end in _ends([_parts_of(folder) for folder in folders])]


def _told_apart(results: Sequence[Result], alone: bool) -> list[str]:
    """Names of results whose names are equal: by their seeds, or by as much of their paths as it takes."""
    seeds = [summary.get("seed") for _, summary in results]
    if None not in seeds and len(set(seeds)) == len(seeds):
        return [f"{given_name(result)}, seed {seed}" for result, seed in zip(results, seeds)]
    ends = _ends([_parts_of(result[0]) if alone else _parts(result) for result in results])
    return [f"{summary['name']} ({end})" if summary.get("name") else end for (_, summary), end in zip(results, ends)]


def _ends(parts: Sequence[Sequence[str]]) -> list[str]:
    """The shortest ends of paths, of one length, that differ where the paths do."""
    different = len(set(map(tuple, parts)))
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(some[-length:]) for some in parts]
        if len(set(ends)) == different:
            break
    return ends


def _parts_of(path: Path) -> list[str]:
    return [printable(part) for part in Path(os.path.abspath(path)).parts]


def _parts(result: Result) -> list[str]:
    """The parts of a result's path, without one that only repeats the name of its .bin file."""
    parts = _parts_of(result[0])
    return parts[:-1] if parts[-1] == result[1]["bin"] and len(parts) > 2 else parts


def _setting(result: Result) -> tuple[Hashable, ...]:
    """What a result is about, apart from the network."""
    summary = result[1]
    return *(summary.get(key) for key in ("bin", "protocol", "far_target", "flip")), radii(summary, sound=False)


def _by(numbers: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for number in numbers:
        groups.setdefault(key(number), []).append(number)
    return list(groups.values())


def names_of_groups(results: Sequence[Result]) -> list[str]:
    """The same, but results that differ in their seeds alone have one name: those whose summaries have one, and those whose names end in
    numbers one after another (run_0, run_1, run_2) or in a seed that is called so (run_seed7). Folders that are only called alike are told
    apart. Raises InputError where results that are to be one row are one and the same, of one seed, or of different networks.
    """
    names = [summary.get("name") or name for (_, summary), name in zip(results, names_of(results))]
    ends = {number: end for number, name in enumerate(names) if (end := _SEED.fullmatch(name)) and not end["stem"].endswith("xi")}
    for alike in _by(ends, lambda number: (ends[number]["stem"], results[number][1].get("backbone"), *_setting(results[number]))):
        seeds = sorted({int(ends[number]["seed"]) for number in alike})
        said = all(ends[number]["said"] for number in alike)
        if len(seeds) == len(alike) > 1 and (said or seeds[-1] - seeds[0] == len(seeds) - 1):
            for number in alike:
                names[number] = ends[number]["stem"]
    for alike in _by(range(len(results)), lambda number: (names[number], *_setting(results[number]))):
        _refuse_other_runs(names[alike[0]], [results[number] for number in alike])
    return names


def _refuse_other_runs(name: str, results: Sequence[Result]) -> None:
    seen: dict[Hashable, Path] = {}
    backbone = results[0][1].get("backbone")
    for path, summary in results:
        if summary.get("backbone") != backbone:
            raise InputError(f"--group: {results[0][0]} is of {backbone} and {path} of {summary.get('backbone')}, and both are called "
                             f"{name}: expected seeds of one network (--names tells them apart)")
        run = path if summary.get("seed") is None else f"seed {summary['seed']}"
        if run in seen:
            raise InputError(f"--group: {seen[run]} and {path} are both of {name}, {run}, which would count twice")
        seen[run] = path
