"""The files of a results folder: written whole or not at all, and read as they were written, to the last bit."""
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eval.evaluation import Evaluation
from eval.records import ATTACK_TYPES, Records
from eval.store import provenance, schema, votes
from eval.summary import Summary
from eval.verification import PairSet
from utils import InputError
from utils.faults.signals import unbroken
from utils.files import found_in, write_csv

PAIRS, IMAGES, ATTACKS, SUMMARY, AUDIT = "pairs.csv", "images.csv", "attacks.csv", "summary.json", "audit.json"
SOUND = ("radius_sound", "radius_u_sound")  # columns of the pairs and of the images that eval/audit/sound.py adds
_COLUMNS = {
    PAIRS: {"pair", "flipped", "same", "left", "right", "cosine", "theta", "norm_left", "norm_right", "accepted", "radius"},
    IMAGES: {"image", "flipped", "norm", "radius_u"}, ATTACKS: set(ATTACK_TYPES)}
_RADII = {"radius", "radius_u"}
_SMOOTHED = {  # what smoothed decisions have besides, by the threat
    "one": {PAIRS: {"radius_left", "radius_right", "radius_mean", "radius", "votes_left", "votes_right", "cosine_left", "cosine_right"},
            IMAGES: {"radius_u", "radius_u_mean", "votes"}},
    "joint": {PAIRS: {"radius_joint", "radius_mean", "radius", "votes"}}}


def audit_file(geometry: str) -> str:
    """The name of the report of an audit: audit.json of attacks on one image, audit_{certificate}.json of the others."""
    return AUDIT if geometry == "one" else f"audit_{geometry.rpartition(':')[2]}.json"


def write_records(folder: str | os.PathLike[str], records: Records) -> None:
    """Write pairs.csv, images.csv, attacks.csv (where there were attacks, if only on nothing) and, last, summary.json to `folder`."""
    with unbroken():
        for name, table in ((PAIRS, records.pairs), (IMAGES, records.images), (ATTACKS, records.attacks)):
            if name != ATTACKS or len(table) or records.summary.get("attacks") or (Path(folder) / name).exists():
                write_csv(Path(folder) / name, table)
        schema.write_summary(Path(folder) / SUMMARY, records.summary)


def read_records(folder: str | os.PathLike[str], certified: bool = True, smoothed: bool = False) -> Records:
    """What `write_records` wrote, to the last bit. Raises InputError where a file or a column is missing; with
    certified=False the radii may be. Only with `smoothed` are those of randomised smoothing taken, whose radii mean something else.
    """
    folder = Path(folder)
    summary = schema.read_summary(folder / SUMMARY)
    if "smoothing" in summary and not smoothed:
        raise InputError(f"{folder / SUMMARY}: results of randomised smoothing, expected those of python -m eval certify or attack "
                         "(smooth, attack, audit, table, plot and report take them)")
    tables = {}
    for name in _COLUMNS:
        if name == ATTACKS and not (folder / name).exists() and not summary.get("attacks"):
            continue
        table = tables[name] = schema.read_table(folder / name, rows=name != ATTACKS)
        if missing := sorted(_needed(name, summary, certified) - set(table.columns)):
            raise InputError(f"{folder / name}: columns {', '.join(missing)} missing")
    found = Records(tables[PAIRS], tables[IMAGES], summary)
    if found.smoothed:
        votes.refuse_other_votes(folder / PAIRS, folder / IMAGES, found)
    if ATTACKS in tables:
        found.attacks = tables[ATTACKS].astype(ATTACK_TYPES)
        schema.refuse_other_rows(folder / ATTACKS, found)
    return found


def _needed(name: str, summary: Summary, certified: bool) -> set[str]:
    """The columns that a table of a result must have."""
    if "smoothing" in summary:
        return _COLUMNS[name] - _RADII | _SMOOTHED[summary["smoothing"]["threat"]].get(name, set())
    return _COLUMNS[name] - (set() if certified else _RADII)


def is_smoothed(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has results of randomised smoothing; False where it has none at all."""
    place = Path(folder) / SUMMARY
    return place.is_file() and "smoothing" in schema.read_summary(place)


def read_summaries(*given: str | os.PathLike[str]) -> dict[Path, Summary]:
    """The summaries in results folders, or in the folders inside each, by folder; a file is a summary under a name of its own. Raises
    InputError where one has none.

    Those of identify, which are not of pairs, are left out with a warning, or refused where there are no others.
    """
    files = {file: path for folder in given for file, path in places_in(folder).items()}
    others = [path for file, path in files.items() if schema.is_of_identify(file)]
    if 0 < len(others) < len(files):
        warnings.warn(f"{', '.join(map(str, others))}: left out, being results of identify and not of pairs", stacklevel=2)
        files = {file: path for file, path in files.items() if path not in others}
    return {path: schema.read_summary(file) for file, path in files.items()}


def places_in(folder: str | os.PathLike[str]) -> dict[Path, Path]:
    """The files of summaries in a results folder, or in the folders inside it, each with the path that its result is known by."""
    folder = Path(folder)
    if folder.is_file() and folder.name != SUMMARY:
        return {folder: folder}
    files = [folder] if folder.is_file() else [folder / SUMMARY] if (folder / SUMMARY).is_file() else found_in(folder, f"*/{SUMMARY}")
    if not files:
        raise InputError(f"{folder}: no {SUMMARY} in it or in the folders inside it")
    return {file: file.parent for file in files}


def read_audits(folder: str | os.PathLike[str], found: Records) -> dict[str, dict[str, Any]]:
    """The reports of audits in a results folder, by the names of their files. Raises InputError where one is none, or of another result
    than these records.
    """
    reports = {}
    for path in found_in(folder, "audit*.json"):
        report = reports[path.name] = schema.read_audit(path)
        provenance.refuse_others(path, report, provenance.fingerprint(found.summary))
        if report.get("smoothing") != found.summary.get("smoothing"):
            raise InputError(f"{path}: smoothing is {report.get('smoothing')}, expected that of these results: "
                             f"{found.summary.get('smoothing')}")
    return reports


def refuse_another_subject(folder: str | os.PathLike[str], asked: Mapping[str, Any]) -> None:
    """Raise InputError where a folder has results of another network or .bin than is asked for, whatever their settings."""
    place = Path(folder) / SUMMARY
    if place.is_file():
        provenance.refuse_others(place, schema.read_summary(place), {key: asked[key] for key in provenance.SUBJECT})


def refuse_other_pairs(folder: str | os.PathLike[str], found: Records, pair_set: PairSet, evaluation: Evaluation) -> None:
    """Raise InputError unless the rows of records are those of the pairs and images of a .bin, in their order."""
    views, pairs, images = evaluation.views, len(pair_set.left), len(pair_set.images)
    expected = {
        PAIRS: (found.pairs, {"pair": np.arange(pairs), "same": pair_set.same, "left": pair_set.left, "right": pair_set.right}),
        IMAGES: (found.images, {"image": np.arange(images)})}
    for name, (table, columns) in expected.items():
        for column, values in columns.items():
            if not np.array_equal(table[column], np.tile(values, len(views))):
                raise InputError(f"{Path(folder) / name}: column {column} is not that of {pair_set.path}; choose another folder (--out)")
        if not np.array_equal(table["flipped"], np.repeat(views, len(table) // len(views))):
            raise InputError(f"{Path(folder) / name}: column flipped is not that of the {evaluation.protocol} protocol")
