"""Certified verification by randomised smoothing, of any network: records with the columns of those of a 1-Lipschitz one.

What is smoothed is a decision about a pair: with noise on the image that is presented, the other one as it is (threat "one"), or on both
(threat "joint"). In the first case a pair is two decisions, as either image may be the one that is presented, and counts as the worse one.
A first set of samples chooses the threshold and says what each decision seems to be; a second one certifies the decisions at that
threshold. docs/certificates.md, section 7, says what holds then, and with which confidence.
"""
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from eval import certification, records, smoothing, verification
from eval.certificates import Certificate
from eval.evaluation import Evaluation
from eval.noise import Sampler
from eval.records import Records
from eval.smoothing import Smoothing
from eval.store import provenance, results, schema
from eval.store.journal import Journal
from eval.store.subject import Model, Subject, open_pairs
from eval.summary import Summary
from utils import InputError
from utils.distributed import barrier, rank
from utils.faults.signals import unbroken
from utils.files import found_in

_ORIGIN = (*provenance.SUBJECT, "lipschitz", "lipschitz_assumed", "image_size", "protocol", "code_sha256", "code_version", "bin", "resized")


def open_smoothed(model: Model, path: Any, folder: Path, given: Mapping[str, Any] = {}, *, device: torch.device | str = "cpu",
                  batch_size: int = 64, num_workers: int = 0, resize: tuple[int, int] | None = None, progress: str = "") -> Subject:
    """The pairs of a .bin with the clean embeddings of a network, and the records of a folder; where there are none, or they are of other
    code, ones without decisions.

    given: fields of `Evaluation`. Raises InputError where the folder holds results of something else, and under protocol "paper".
    """
    place = folder / results.SUMMARY
    found = results.read_records(folder, certified=False, smoothed=True) if place.is_file() else None
    if found is not None and not found.smoothed:
        raise InputError(f"{place}: results of python -m eval certify or attack, expected another folder for those of smooth")
    if Evaluation(**given).protocol != "strict":
        raise InputError("protocol is 'paper', expected strict: smoothed decisions follow the definitions")
    pair_set, origin = open_pairs(model, path, "strict", resize)
    if found is not None:
        provenance.refuse_others(place, found.summary, {key: origin[key] for key in provenance.SUBJECT})
    embeddings = verification.embed_images(model.network, pair_set.images, (False,), batch_size, device, describe=pair_set.describe,
                                           progress=progress, num_workers=num_workers, distributed=True)
    if found is None or found.summary.get("code_sha256") != origin["code_sha256"]:
        found = Records(*records.measure(pair_set, embeddings), cast(Summary, {**origin, "protocol": "strict"}))
    barrier()  # every rank has looked for records before one of them writes
    return Subject(model.network, pair_set, embeddings, found, folder, torch.device(device), batch_size, progress)


def smooth(subject: Subject, settings: Smoothing, evaluation: Evaluation, remarks: Mapping[str, Any] = {}) -> Records:
    """Smooth and certify the decisions about the pairs of `open_smoothed`, and write them to its folder.

    What its records were sampled for with the same settings is not sampled again: only figures are computed anew, at the budgets of
    the evaluation. remarks: what else the summary is to say. Raises InputError where no threshold has the FAR that is asked for.
    """
    found = subject.records
    asked = {**{key: found.summary.get(key) for key in _ORIGIN}, "tau": evaluation.tau, "far_target": evaluation.far_target}
    journal = Journal(subject.folder, "smooth", {**asked, **dataclasses.asdict(settings)})
    if not (found.smoothed and Smoothing.of(found.summary) == settings and _same_threshold(found.summary, asked)):
        _refuse_to_lose(subject)
        found = _sampled(subject, settings, evaluation, journal, asked)
    found.figures.update({**_figures(found, evaluation), **remarks})
    if rank() == 0:
        with unbroken():
            results.write_records(subject.folder, found)
            journal.remove()
    barrier()
    return found


def _refuse_to_lose(subject: Subject) -> None:
    """Raise InputError where attacks or an audit in the folder are of decisions that new ones would replace."""
    place = subject.folder / results.SUMMARY
    if place.is_file() and (schema.read_summary(place).get("attacks") or found_in(subject.folder, "audit*.json")):
        raise InputError(f"{place}: there are attacks or an audit of these results, which are of other settings or other code; "
                         "expected another folder")


def _same_threshold(summary: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    return asked["far_target"] == summary["far_target"] and asked["tau"] in (None, summary["tau"])


def _sampled(subject: Subject, settings: Smoothing, evaluation: Evaluation, journal: Journal, asked: Mapping[str, Any]) -> Records:
    """The records of decisions that are sampled now, their summary without the figures that rows are enough for."""
    sampler = Sampler(subject, settings)
    found = sampler.decisions.join(sampler.run(journal, "select", sampler.select, settings.n0))
    found["mean"] = 2 * found["mean"] - 1  # as a cosine
    tau, tau_mean = (_threshold(subject, found, score, evaluation) for score in ("median", "mean"))
    sampler.decisions = found.assign(low=found["mean"] <= tau_mean, bet=smoothing.stake(found["variance"], settings.n, settings.alpha))
    found = sampler.decisions.join(sampler.run(journal, "certify", lambda unit: sampler.certify(unit, tau), settings.n))
    found = _decided(found, settings, tau, tau_mean)
    pairs, images = _tables(subject, found, settings)
    said = {**dataclasses.asdict(settings), "tau_mean": tau_mean, "abstained": float(found["abstains"].mean()),
            "forward_passes": journal.passes["forward_passes"]}
    return Records(pairs, images, cast(Summary, {**asked, "format": records.FORMAT, "tau": tau, "certificate": settings.label,
                                                 "smoothing": said}))


def _threshold(subject: Subject, found: pd.DataFrame, score: str, evaluation: Evaluation) -> float:
    """That of the evaluation, or the one at which the scores of false pairs, on the side that is nearer to acceptance, have its FAR."""
    if evaluation.tau is not None:
        return evaluation.tau
    worse = found[found["kind"] == "pair"].groupby("row").agg({score: "max", "same": "first"})
    try:
        return verification.threshold_at_far(worse[score], worse["same"], evaluation.far)
    except InputError as error:
        raise InputError(f"{subject.pair_set.path}: {error}") from None


def _decided(found: pd.DataFrame, settings: Smoothing, tau: float, tau_mean: float) -> pd.DataFrame:
    """With what the samples prove of each decision: abstains; radius of the majority and radius_mean, 0 unless the decision is right."""
    accepts, same = found["median"] > tau, found["same"]
    radius = settings.radius(accepts, found["votes"])
    threshold = np.nextafter((1 + np.where(found["low"], -tau_mean, tau_mean)) / 2, 1)  # rounded up
    radius_mean = smoothing.smoothed_radius(found["bound"], settings.applied, threshold)
    return found.assign(abstains=radius == 0, radius=np.where(accepts == same, radius, 0.),
                        radius_mean=np.where(found["low"] != same, radius_mean, 0.))


def _tables(subject: Subject, found: pd.DataFrame, settings: Smoothing) -> tuple[pd.DataFrame, pd.DataFrame]:
    """pairs and images, those that are about any decision, as docs/columns.md has them."""
    pairs, images = records.measure(subject.pair_set, subject.embeddings)
    of_pairs, of_images = (found[found["kind"] == kind] for kind in ("pair", "image"))
    pairs = pairs.iloc[sorted(set(of_pairs["row"]))].reset_index(drop=True)
    images = images.iloc[sorted({*of_pairs["image"], *of_pairs["other"]})].reset_index(drop=True)
    sides = [of_pairs[of_pairs["side"] == side].set_index("row").loc[pairs["pair"]].reset_index() for side in sorted(set(of_pairs["side"]))]
    scores = np.stack([side["median"] for side in sides])
    pairs["cosine"] = np.where(pairs["same"], scores.min(0), scores.max(0))
    for column in ("radius", "radius_mean"):
        pairs[column] = np.stack([side[column] for side in sides]).min(0)
    pairs["accepted"] = (pairs["radius"] > 0) == pairs["same"]
    if settings.threat == "joint":
        pairs = pairs.assign(radius_joint=pairs["radius"], votes=sides[0]["votes"])
    else:
        for name, side in zip(("left", "right"), sides):
            pairs = pairs.assign(**{f"{column}_{name}": side[of] for column, of in
                                    (("cosine", "median"), ("votes", "votes"), ("radius", "radius"))})
        itself = of_images.set_index("row").loc[images["image"]].reset_index()
        images = images.assign(cosine=itself["median"], votes=itself["votes"], radius_u=itself["radius"],
                               radius_u_mean=itself["radius_mean"])
    return tuple(table.assign(samples=settings.n, alpha=settings.alpha) for table in (pairs, images))


def _figures(found: Records, evaluation: Evaluation) -> dict[str, Any]:
    """What `records.summarise` says, with TAR and FAR of the certified decisions: one that is not certified counts as wrong."""
    pairs, images = found.pairs, found.images
    further = [_column(name) for name in ("mean", "joint") if f"radius_{name}" in pairs]
    figures: Any = records.summarise(pairs, images, dataclasses.replace(evaluation, tau=found.summary["tau"]), further)
    (tar, far), (tar_mean, far_mean) = (_rates(radius > 0, pairs["same"]) for radius in (pairs["radius"], pairs["radius_mean"]))
    figures |= {"tar": tar, "far": far, "accuracy_at_tau": float((pairs["radius"] > 0).mean())}
    figures["certificates"]["mean"] |= {"tau": found.figures["smoothing"]["tau_mean"], "tar": tar_mean, "far": far_mean}
    if "radius_u" in images:
        of_images = images["radius_u_mean"]
        figures["certificates"]["mean"] |= {"cra_u": records.certified_accuracies(of_images, evaluation.eps_u),
                                            "med_u": certification.lower_median(of_images.to_numpy())}
    else:
        figures["reasons"] |= dict.fromkeys(("cra_u", "med_u"), "both images of a pair are smoothed: none is compared with itself")
    return figures


def _column(name: str) -> Certificate:
    """What names the column radius_{name}."""
    found = Certificate()
    found.name = name
    return found


def _rates(right: pd.Series, same: pd.Series) -> tuple[float | None, float | None]:
    """(TAR, FAR) of decisions that are right, or count as wrong."""
    return verification.tar_far(np.where(right == same, 1., 0.), same.to_numpy(), 0.5)


def describe(found: Records) -> str:
    """What was certified, and with what confidence, in a few lines."""
    summary, settings = found.figures, Smoothing.of(found.summary)
    mean = summary["certificates"]["mean"]
    shares = [f"CRA_{kind.upper()} {eps}: {'-' if share is None else f'{share:.2%}'}" for kind in "udi" if f"cra_{kind}" in mean
              for eps, share in mean[f"cra_{kind}"].items()]
    return "\n".join([
        f"{summary['bin']}: {settings.label} for each radius, of {settings.n} samples after {settings.n0} that selected; "
        f"{summary['smoothing']['abstained']:.2%} of the decisions abstain and count as wrong",
        f"mean of cosines in place of the majority, tau {mean['tau']:.3f}: {', '.join(shares)}"])
