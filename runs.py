"""Runs of ablation.py and study.py: a network that is trained or fitted once, and evaluated, in a folder that is taken up again.

`train/` of the folder has the log, the weights and, once it is complete, the settings (complete.json); each evaluation has a results
folder. What is there is not made again, and refused where it is of other settings, data or code.
"""
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easydict import EasyDict

import lda
import train
from config import config as training_config
from eval import robustness
from eval.audit import driver
from eval.evaluation import Evaluation
from eval.smoothed import open_smoothed, smooth
from eval.smoothing import Smoothing
from eval.store import provenance, results
from eval.store.subject import Model, open_subject
from utils import InputError
from utils.files import found_in, read_json, write_json
from utils.utils_logging import read_cpu_seconds

STAMP = "complete.json"
WEIGHTS = "model_final.pt"
LOG = "training.log"

Limits = dict[str, int | None]  # attacks, or settings of an audit, each with its number; None: all


def trained(settings: Mapping[str, Any], data: str, folder: Path, **free: Any) -> dict[str, Any]:
    """Train a network with `settings` of train.py on the faces of `data`, unless that is done; returns its stamp.

    That is the settings, `data`, the fingerprint of the images, and `cpu_seconds`, what the steps took. free: settings that do not change
    what is computed. A network that is fitted, and not trained, is: of its settings the seed matters. Ends the process with the exit
    status of train.py where that is not 0. Raises InputError where the folder has a network of other settings or data.
    """
    asked = {**what_matters(settings), "data": fingerprint(data)}
    stamp = folder / STAMP
    if stamp.exists():
        refuse_other_settings(stamp, asked)
        return read_json(stamp)
    seconds = _fitted(settings, data, folder) if settings["backbone"] == lda.NETWORK else _trained(settings, data, folder, free)
    write_json(stamp, {**asked, "cpu_seconds": seconds})
    return read_json(stamp)


def fingerprint(data: str) -> str:
    """That of the images of `data`, as a stamp has it."""
    return train.get_dataset(data).fingerprint()


def what_matters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the result depends on, which a stamp has."""
    return {key: settings[key] for key in ("backbone", "seed")} if settings["backbone"] == lda.NETWORK else dict(settings)


def _trained(settings: Mapping[str, Any], data: str, folder: Path, free: Mapping[str, Any]) -> float | None:
    arguments = {**settings, "rec": data, "output": folder, "resume": "auto", **free}
    status = train.run(training_config, [f"{key}={value}" for key, value in arguments.items()])
    if status:
        sys.exit(status)
    return read_cpu_seconds(folder / LOG)


def _fitted(settings: Mapping[str, Any], data: str, folder: Path) -> float:
    began = time.process_time()
    lda.lda(EasyDict({**lda.config, "data": data, "output": str(folder / WEIGHTS), "seed": settings["seed"]}))
    return round(time.process_time() - began, 1)


def refuse_other_settings(stamp: Path, asked: Mapping[str, Any]) -> None:
    """Raise InputError where the training that `stamp` is of was another one."""
    found = read_json(stamp)
    other = [key for key in asked if not isinstance(found, dict) or found.get(key) != asked[key]]
    if other:
        differences = ", ".join(f"{key} {found.get(key) if isinstance(found, dict) else None}, not {asked[key]}" for key in other)
        raise InputError(f"{stamp.parent}: trained with {differences}; output=FOLDER keeps both")


def evaluated(model: Model, path: Path, bin_sha256: str, place: Path, given: Mapping[str, Any], attacks: Limits, audit: Limits, *,
              seed: int, device: Any, remarks: Mapping[str, Any], title: str) -> None:
    """Make the results of a .bin file in the folder `place`: records, the attacks and the audit, each unless it is there.

    given: fields of `Evaluation`, protocol and far among them. Raises InputError where the results that are there are of something else.
    """
    asked = {**model.origin, "bin_sha256": bin_sha256, "protocol": given["protocol"], "far_target": given["far"]}
    if complete(place, asked, attacks, audit):
        return
    print(title, flush=True)
    subject = open_subject(model, path, place, given, device=device, progress=title, remarks=remarks)
    for attack, limit in attacks.items():
        subject = subject.with_records(robustness.attack_records(subject, attack, limit=limit, seed=seed))
    if audit:
        driver.audit(subject, **audit, seed=seed)


def smoothed(model: Model, path: Path, bin_sha256: str, place: Path, given: Mapping[str, Any], settings: Smoothing, attacks: Limits, *,
             draws: int, device: Any, remarks: Mapping[str, Any], title: str) -> None:
    """As `evaluated`, of the decisions that randomised smoothing makes, with attacks through noise of so many draws in each step."""
    asked = {**model.origin, "bin_sha256": bin_sha256, "protocol": "strict", "far_target": given["far"]}
    if complete(place, asked, attacks, {}, draws=draws) and Smoothing.of(*results.read_summaries(place).values()) == settings:
        return
    print(title, flush=True)
    batch_size = 512 if device.type == "cuda" else 64  # a GPU makes the noisy images itself
    subject = open_smoothed(model, path, place, given, device=device, batch_size=batch_size, progress=title)
    subject = subject.with_records(smooth(subject, settings, Evaluation(**given), remarks))
    for attack, limit in attacks.items():
        subject = subject.with_records(robustness.attack_records(subject, attack, limit=limit, seed=settings.seed, draws=draws))


def complete(place: Path, asked: Mapping[str, Any], attacks: Limits, audit: Limits, **of_attacks: int) -> bool:
    """Whether a results folder has all that is wanted, attacks with these settings. Raises InputError where its results are of something
    else.
    """
    if not (place / results.SUMMARY).exists():
        return False
    (summary,) = results.read_summaries(place).values()
    provenance.refuse_others(place / results.SUMMARY, summary, asked)
    attacked, audit_file = summary.get("attacks", {}), place / results.AUDIT
    found: Any = read_json(audit_file) if audit_file.exists() else {}
    audited = found.get("settings", {})
    return (all({"limit": limit, **of_attacks}.items() <= attacked.get(name, {}).items() for name, limit in attacks.items())
            and all(key in audited and audited[key] == value for key, value in audit.items()))


def publish(folder: Path, name: str, logs: Path, group: str) -> None:
    """Copy the training log of a run, as training_{name}.log, and its summaries and audits, as {group}/{name}/{bin}/{evaluation}*.json."""
    logs.mkdir(parents=True, exist_ok=True)
    if (log := folder / "train" / LOG).exists():
        shutil.copyfile(log, logs / f"training_{name}.log")
    for file, ending in ((results.SUMMARY, ""), (results.AUDIT, "_audit")):
        for found in found_in(folder, f"*/*/{file}"):
            copy = logs / group / name / found.parent.parent.name / f"{found.parent.name}{ending}.json"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, copy)
