"""Results folders as a page that a person can read: one file that needs nothing else, neither a network nor scripts.

What a folder holds may come from anyone: the template escapes all of it, and the policy of the page lets no script run but its own, by
checksum, and loads nothing.
"""
import base64
import hashlib
import io
import itertools
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from eval import budgets
from eval.records import Records, is_right
from eval.show import confidence, facts, plots, sentence, smoothing, svg, tables
from eval.show.cells import Column, Table
from eval.show.facts import Shown
from eval.show.figures import attacks_of
from eval.show.names import names_of
from eval.sizes import size_in_words
from eval.store import results
from utils import InputError, printable
from utils.files import atomic_write, found_in, read_file

EXAMPLES = "adversarial_examples*.png"  # what `python -m eval plot` writes into a results folder
MAX_PICTURE = 2**22
TELLING = 8  # pairs of each sort in the table of telling pairs
_HERE = Path(__file__).resolve()
# what each figure of plots.py shows: heading, caption
FIGURES = {
    "smoothing": ("Proven, and with confidence", "The share of right decisions that no attack up to a budget can turn: solid lines in "
                                                 "black and grey are proven, the others hold with the confidence in the legend."),
    "certified_accuracy": ("Certified accuracy", "The share of right decisions that no attack up to a budget can turn. Steps are exact."),
    "robust_accuracy": ("Accuracy under attack", "The share that attacks failed to turn, and what is certified of the same rows: attacks "
                                                 "cannot come below it, and what lies between is not known."),
    "roc": ("ROC", "True pairs accepted against false pairs accepted, at each threshold. The band reaches down to what is certified where "
                   "one image of every pair is attacked; dots are at the threshold of this result."),
    "radius_histograms": ("Certified radii", "How many right decisions have which radius. The median counts wrong ones as 0."),
    "feature_norms": ("Feature norms", "How long the embeddings are: the longer, the larger a radius that is proven by it."),
    "radius_against_attack": ("Certificate and attack", "Each point is a decision: its radius, and the smallest change that turned it. "
                                                        "None may lie below the diagonal. Triangles at the top were not turned."),
    "tightness": ("Tightness", "The smallest change that turned a decision over its radius; at 1 the certificate could not be larger."),
    "radius_against_upper_bound": ("Radius and upper bound", "Rejected false pairs: the radius, and what it can be at most by Theorem 2.")}
COMPARED = ("certified_accuracy", "feature_norms")  # figures that show all results at once


class Result(NamedTuple):
    """A results folder that is shown. name: what it is called on the page; audits: reports by the names of their files."""
    folder: Path
    name: str
    found: Records
    audits: dict[str, dict[str, Any]]


def read(given: Iterable[str | os.PathLike[str]], names: Sequence[str] = ()) -> tuple[list[Result], list[str]]:
    """(results, remarks): the results in folders or in the folders inside them; what is skipped has a remark.

    names: one for each, in place of those that are made up from the results (`names_of`). Raises InputError where there is nothing to be
    shown, where a result cannot be read, and for another number of names.
    """
    given = [*given]
    summaries = results.read_summaries(*given)
    places = [path for each in given for path in results.places_in(each).values()]
    remarks = [f"{printable(str(path))}: results of identify, which this page does not show" for path in places if path not in summaries]
    if alone := [path for path in summaries if not path.is_dir()]:
        raise InputError(f"{alone[0]}: a summary alone, expected a results folder")
    if names and len(names) != len(summaries):
        raise InputError(f"--names: {len(names)} given, expected one for each of the {len(summaries)} results")
    called = [printable(name) for name in names] or (
        names_of([*summaries.items()], alone=True) if len(summaries) > 1 else [_name_of(*found) for found in summaries.items()])
    records = [results.read_records(folder, certified=False, smoothed=True) for folder in summaries]
    return [Result(folder, name, found, results.read_audits(folder, found))
            for folder, name, found in zip(summaries, called, records)], remarks


def _name_of(folder: Path, summary: Mapping[str, Any]) -> str:
    """What a result is called that stands alone."""
    return summary.get("name") or printable(folder.resolve().name)


def write(path: str | os.PathLike[str], shown: Sequence[Result], remarks: Sequence[str] = ()) -> None:
    """Write the page of these results, whole or not at all."""
    text = render(shown, remarks)
    with atomic_write(path) as file:
        file.write(text)


def render(shown: Sequence[Result], remarks: Sequence[str] = ()) -> str:
    """The page as HTML; the same results make the same text."""
    script = _HERE.with_name("page.js").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(percent=sentence.percent)
    template = environment.from_string(_HERE.with_name("page.html").read_text(encoding="utf-8"))
    summaries = [{**one.found.summary, **({"name": one.name} if len(shown) > 1 else {})} for one in shown]
    tables_shown, more = _tables(shown, summaries)
    smoothed = any(one.found.smoothed for one in shown)
    return template.render(
        title=", ".join(one.name for one in shown) if len(shown) < 4 else f"{len(shown)} results", results=[_told(one) for one in shown],
        smoothed=smoothed, drawable=not all(one.found.smoothed for one in shown), tables=tables_shown,
        telling=[_telling(one, len(shown) > 1) for one in shown],
        figures=_in_rows(_compared(shown) + _figures(shown), len(shown)),
        examples=_examples(shown), run=facts.what_was_run([(one.name, one.found.summary) for one in shown]),
        attacks=facts.attacks([(one.name, one.found.summary) for one in shown]),
        audits=facts.audits([(one.name, one.audits) for one in shown]),
        remarks=[*remarks, *more, *confidence.other_rows([(one.name, one.found.summary) for one in shown])],
        glossary=glossary() + (confidence.GLOSSARY if smoothed else []),
        style=Markup(_HERE.with_name("page.css").read_text(encoding="utf-8")), script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode())


def _told(one: Result) -> dict[str, Any]:
    """What is said of a result in words."""
    summary = one.found.summary
    words = sentence.in_words(summary, summary.get("attacks", {}), one.audits.values())
    numbers = math.prod(summary.get("image_size") or [0])
    eps = next(iter(summary["cra_d"]))
    size = f"A change of {eps:g} is as much as {size_in_words(f'{eps:g}', numbers)}." if eps <= math.sqrt(numbers) else ""
    noise = [confidence.in_words(summary["smoothing"])] if one.found.smoothed else []
    return {"name": one.name, "sentence": words[0], "further": words[1:], "lines": [*noise, *map(str.strip, budgets.describe(summary))],
            "size": size, "reasons": summary.get("reasons", {})}


def _tables(shown: Sequence[Result], summaries: Sequence[dict[str, Any]]) -> tuple[list[Shown], list[str]]:
    """The tables of figures, and why rows are not in one table where they could not be compared."""
    smoothed = [summary for summary in summaries if "smoothing" in summary]
    plain = [summary for summary in summaries if "smoothing" not in summary]
    proven = [summary for one, summary in zip(shown, summaries) if one.found.certified and not one.found.smoothed]
    makers = [("Certified", "CRA and medians; proven, in exact arithmetic.", proven, partial(tables.table1, sound=False)),
              ("Certified, in floating point", "The same figures of the radii that --sound proves.",
               [summary for summary in proven if "sound_lipschitz" in summary], tables.table1),
              ("Certified with confidence", confidence.CERTIFIED, smoothed, confidence.certified)]
    makers += [(f"Under {tables.attack_label(name)}", "What the attack left, of the rows that it was run on.",
                [summary for summary in plain if name in summary.get("attacks", {})],
                lambda rows, name=name: tables.table2(rows, [name])) for name in attacks_of(plain)]
    makers += [(f"Under {tables.attack_label(name)}, through the noise", confidence.ATTACKED,
                [summary for summary in smoothed if name in summary.get("attacks", {})],
                lambda rows, name=name: confidence.under(rows, name)) for name in attacks_of(smoothed)]
    makers.append(("Without an attack", " ".join(["How well clean images are verified.", *([confidence.CLEAN] if smoothed else [])]),
                   summaries, tables.verification))
    found, remarks = [], []
    for caption, note, rows, make in makers:
        try:
            found += [facts.of_table(caption, note, facts.varying(make(rows)))] if rows else []
        except InputError as error:  # they are not of one kind: a table each
            remarks.append(f"{caption}: not in one table, as {error}")
            found += [facts.of_table(f"{caption}: {row['name']}", note, facts.varying(make([row]))) for row in rows if len(rows) > 1]
    further = facts.certificates([(one.name, summary) for one, summary in zip(shown, summaries)])
    first = sum(shown.caption.startswith("Certified") for shown in found)
    return [*found[:first], *([further] if further.rows else []), *found[first:]], remarks


def _telling(one: Result, named: bool) -> Shown:
    """The pairs of a result that tell most: right ones with the smallest and the largest radius, and those that are wrong by most."""
    pairs, same = one.found.pairs, one.found.pairs["same"]
    right, margin = is_right(pairs), (pairs["cosine"] - one.found.summary["tau"]) * np.where(same, 1, -1)
    size = (pairs["radius"] if one.found.certified else margin)[right]
    decided = pairs["accepted"].map({True: "accepted", False: "rejected"})
    if one.found.smoothed:
        decided = pd.Series(confidence.decisions(one.found), pairs.index)
    chosen = {"closest": size.sort_values(kind="stable").index[:TELLING],
              "safest": size.sort_values(kind="stable", ascending=False).index[:TELLING],
              "wrong": margin[~right].sort_values(kind="stable").index[:TELLING]}
    tries = one.found.attacks
    smallest = tries[tries["success"] & (tries["kind"] != "u")].groupby("row")["norm"].min()
    rows = [[why, int(pairs.at[row, "pair"]), "one person" if same[row] else "two people", decided[row], float(pairs.at[row, "cosine"]),
             float(pairs.at[row, "radius"]) if one.found.certified else None, float(smallest[row]) if row in smallest else None]
            for why, index in chosen.items() for row in index]
    columns = [Column(title, digits=None) for title in ("why", "pair", "shows", "decision")]
    columns += [Column(title) for title in ("cosine", "radius", "attack")]
    note = ("Right by least (closest), right by most (safest), wrong by most. Attack: the smallest change that one found. Pairs are "
            "counted from 0, as in the .bin file.")
    return facts.of_table(f"Telling pairs{f': {one.name}' if named else ''}",
                          f"{note} {confidence.TELLING}" if one.found.smoothed else note, Table(columns, rows).without_empty())


def _compared(shown: Sequence[Result]) -> list[dict[str, Any]]:
    """Figures of all results at once, where there are several."""
    if len(shown) < 2:
        return []
    found = {one.name: one.found for one in shown}
    named = {"certified_accuracy": "what is proven"} if any(one.found.smoothed for one in shown) else {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [*smoothing.write_comparison([*found.items()], folder, "svg"), *sorted(plots.write_comparison(found, folder, "svg"))]
        return [_figure(path, named.get(path.stem, "all results"), f"all-{path.stem}-") for path in paths]


def _figures(shown: Sequence[Result]) -> list[dict[str, Any]]:
    """The figures of each result, those of one sort side by side."""
    found = []
    for number, one in enumerate(shown):
        with tempfile.TemporaryDirectory() as folder:
            paths = plots.write_plots(one.found, folder, kind="svg")
            found += [_figure(path, one.name, f"r{number}-{path.stem}-", one.found.smoothed) for path in paths
                      if len(shown) < 2 or path.stem not in COMPARED]
    order = list(FIGURES)
    return sorted(found, key=lambda figure: order.index(figure["kind"]))


def _in_rows(figures: list[dict[str, Any]], results: int) -> list[list[dict[str, Any]]]:
    """Figures of one sort together where there are several results, else all together."""
    return [[*group] for _, group in itertools.groupby(figures, lambda figure: figure["kind"] if results > 1 else "")]


def _figure(path: Path, name: str, prefix: str, smoothed: bool = False) -> dict[str, Any]:
    heading, caption = FIGURES[path.stem]
    caption = confidence.CAPTIONS.get(path.stem, caption) if smoothed else caption
    text = path.read_text(encoding="utf-8")
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups())
    return {"kind": path.stem, "heading": heading, "of": name, "caption": caption, "wide": width > 1.8 * height,
            "svg": Markup(svg.embedded(text, prefix, f"{heading}, {name}. {caption}"))}


def _examples(shown: Sequence[Result]) -> list[dict[str, str]]:
    """The pictures of adversarial examples in the folders; those of smoothed decisions are none, as `plot` draws none."""
    return [{"name": one.name, "source": _picture(path)} for one in shown if not one.found.smoothed
            for path in found_in(one.folder, EXAMPLES)]


def _picture(path: Path) -> str:
    """A PNG as an address that holds it. Raises InputError for what is none."""
    data = read_file(path, MAX_PICTURE)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: not a PNG: {error}") from None
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def glossary() -> list[tuple[str, str]]:
    """(word, meaning): the glossary of the README, which is its one home."""
    text = (_HERE.parents[2] / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Glossary$(.*?)(?=^#|^!|^\*\*|\Z)", text, re.DOTALL | re.MULTILINE)
    rows = [line.strip("| ").split(" | ") for line in section[1].splitlines() if line.startswith("|")][2:] if section else []
    return [(word.strip(), meaning.strip()) for word, meaning in rows]
