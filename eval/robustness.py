"""Empirical robust accuracy: attacks on the images and pairs of an evaluation.

A pair is robust only if attacks on either of its images fail. ERA is the share of robust rows among all true pairs
(dodging, D), all false pairs (impersonation, I) or all images (untargeted, U). A wrong decision is not robust, nor is
one about an embedding that is zero or not finite; a decision whose certificate covers the budget is robust without an
attack. Every single attack that was run is a row of attacks.csv; outcomes.py says what they come to.
"""
import dataclasses
import hashlib
import inspect
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import attacks
from eval import certification, outcomes
from eval.certificates import OneImage
from eval.evaluation import Evaluation, budgets
from eval.records import ATTACK_TYPES, Records, is_right
from eval.smoothing import Smoothing
from eval.store import provenance, results
from eval.store.journal import Journal, Outcome
from eval.store.subject import OBJECTIVES, Subject, plan, side_name
from eval.through_noise import DRAWS, NoiseSearch, most_passes
from utils import InputError
from utils.distributed import barrier, per_rank, rank
from utils.faults.signals import unbroken
from utils.files import found_in
from utils.precision import full_precision
from utils.progress import Stage, Work


def attack_records(subject: Subject, name: str, eps_u: Iterable[float] = Evaluation.eps_u, eps: Iterable[float] = Evaluation.eps,
                   skip: bool = True, limit: int | None = None, seed: int = 0, draws: int | None = None, **settings: Any) -> Records:
    """Run an attack (a name of `attacks.preset`, `settings` for its class) and write its rows and figures.

    Results of the same attack under other settings are replaced; budgets that were attacked before are kept and not
    attacked again. skip=False also attacks what is certified; a certified decision that falls gives a warning. draws: of noise in each
    step, for smoothed decisions (`eval.through_noise`), which are attacked with a budget. Raises InputError for what cannot be used.
    """
    eps_u, eps = budgets(eps_u), budgets(eps)
    build = partial(build_attack, name, subject.records.summary["protocol"], settings)
    settings = _settings(name, build, seed, limit, skip, subject, _draws(subject.records, name, draws))
    found = _without_other_settings(subject.records, name, settings)
    entry = found.summary["attacks"].setdefault(name, {**settings, "eps_u": [], "eps": [], "skipped": {}})
    journal = Journal(subject.folder, f"attack_{name.replace(':', '_')}", {**provenance.fingerprint(found.summary), **settings})
    subject = subject.with_records(found)
    wanted = {kind: eps_u if kind == "u" else eps for kind in OBJECTIVES}
    attack = build(None if entry["minimum_norm"] else 1.)
    each = most_passes(Smoothing.of(found.summary), entry["draws"], attack) if "draws" in entry else attack.most_passes
    work = subject.work(f"attack {name}", sum(map(len, (samples for kind in OBJECTIVES for _, samples in
                                                        _needed(found, name, kind, wanted[kind])))), each)
    for kind in OBJECTIVES:
        skipped = attack_kind(subject, name, build, kind, wanted[kind], journal, work)
        entry["skipped"][kind] = dict(sorted({**skipped, **entry["skipped"].get(kind, {})}.items(), key=lambda item: item[0] or 0))
    entry |= {"eps_u": _united(entry["eps_u"], eps_u), "eps": _united(entry["eps"], eps)}
    entry |= {way: count + entry.get(way, 0) for way, count in journal.passes.items()}
    found.figures.update(summarise(found))
    if rank() == 0:
        with unbroken():
            results.write_records(subject.folder, found)
            journal.remove()
        _warn_of_fallen_certificates(found, name)
    barrier()
    return found


def build_attack(name: str, protocol: str, settings: Mapping[str, Any], eps: float | Tensor | None) -> attacks.Attack:
    """`attacks.preset` with settings of a command line. Raises InputError for one that the attack does not take."""
    if name == "fgsm" and "steps" in settings:
        raise InputError("--steps: fgsm takes one step")
    taken = inspect.signature(attacks.ATTACKS.find(name).form(protocol)).parameters
    if other := [setting for setting in settings if setting not in taken]:
        raise InputError(f"--attack {name} does not take {' and '.join(other)}")
    return attacks.preset(name, eps, protocol, **settings)


def _draws(found: Records, name: str, draws: int | None) -> dict[str, Any]:
    """The setting of attacks through noise."""
    if not found.smoothed:
        if draws is not None:
            raise InputError("--draws: nothing of these results is smoothed, leave it out")
        return {}
    if attacks.ATTACKS.find(name).minimum_norm:
        raise InputError(f"--attack {name}: smoothed decisions are attacked with a budget, as pgd does")
    if found.summary["smoothing"]["threat"] != "one":
        raise InputError("decisions of which both images are smoothed are attacked by python -m eval audit only")
    return {"draws": DRAWS if draws is None else draws}


def _settings(name: str, build: Callable, seed: int, limit: int | None, skip: bool, subject: Subject, further: Mapping[str, Any]
              ) -> dict[str, Any]:
    """All that a result depends on, apart from budget and subject, and `settings`, what these are known by."""
    attack = build(None if attacks.ATTACKS.find(name).minimum_norm else 1.)
    fields = {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack) if field.name != "eps"}
    fields |= {"minimum_norm": attack.minimum_norm, "published": attack.published, "seed": seed, "limit": limit,
               "skip": skip, **further} | ({"batch_size": subject.batch_size} if attack.published else {})
    return {**fields, "settings": hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]}


def _without_other_settings(found: Records, name: str, settings: Mapping[str, Any]) -> Records:
    """A copy without the rows of the attack `name`, unless they were made with the same settings."""
    known = {key: {**entry, "skipped": {**entry["skipped"]}} for key, entry in found.summary.get("attacks", {}).items()}
    if known.get(name, {}).get("settings") != settings["settings"]:
        known.pop(name, None)
        found = dataclasses.replace(found, attacks=found.attacks[found.attacks["attack"] != name])
    return dataclasses.replace(found, summary={**found.summary, "attacks": known})


def _united(*some: Iterable[float]) -> list[float]:
    return sorted({float(eps) for budgets in some for eps in budgets})


def _needed(found: Records, name: str, kind: str, eps: Iterable[float]) -> Iterator[tuple[float | None, pd.DataFrame]]:
    """(budget, single attacks) that are still to be run on a kind, before any has succeeded; None: of an attack without budgets, of which
    the published one runs on wrong decisions too.
    """
    entry = found.summary["attacks"][name]
    samples = plan(found, kind, entry["limit"])
    if entry["minimum_norm"]:
        yield from () if kind in entry["skipped"] else ((None, samples if entry["published"] else samples[samples["right"]]),)
        return
    for budget in eps:
        if budget not in outcomes.budgets(found, name, kind):
            yield budget, samples[samples["right"] & ~((samples["radius"] > budget) & entry["skip"])]


def attack_kind(subject: Subject, name: str, build: Callable[[float | None], attacks.Attack], kind: str, eps: Iterable[float],
                journal: Journal, work: Work) -> dict[float | None, float | None]:
    """Attack the rows of a kind and add what comes of it to the records of the subject; returns the share of rows that needed no attack,
    by budget (None: of an attack without budgets).

    Unless the published attacks are reproduced: what fell at a budget falls at every larger one, and what has fallen on
    one side needs no attack on the other.
    """
    found, entry = subject.records, subject.records.summary["attacks"][name]
    samples = plan(found, kind, entry["limit"])
    rows = samples["row"].drop_duplicates()
    skipped: dict[float | None, float | None] = {}
    for budget, need in _needed(found, name, kind, eps):
        skipped[budget] = _share(~rows.isin(need["row"]))
        if budget is None:
            _minimum_norms(subject, name, build(None), kind, need, samples.groupby("row")["right"].all(), journal, work)
            continue
        robust = outcomes.robust(found, name, kind, budget)
        for turn, chosen in _turns(need, entry["published"]):
            planned, chosen = len(chosen), chosen[robust[chosen["row"]].to_numpy()]
            result = _run(subject, build(budget), kind, f"{kind}/{turn}/{budget}", chosen, entry, journal, robust,
                          partial(work.stage, f"{kind.upper()} {budget}", planned=per_rank(planned)))
            robust[chosen["row"][result["success"].to_numpy(bool)]] = False
            _add(found, name, kind, budget, chosen, result)
    return skipped


def _turns(samples: pd.DataFrame, published: bool) -> list[tuple[int, pd.DataFrame]]:
    """The samples in two turns, so that a row that falls in the first one is spared the second: the image with the
    smaller radius first, which falls more often; in the published order, the left one.
    """
    turn = samples["side"] if published else samples.sort_values("radius", kind="stable").groupby("row").cumcount()
    return list(samples.groupby(turn.reindex(samples.index)))


def _minimum_norms(subject: Subject, name: str, attack: attacks.Attack, kind: str, chosen: pd.DataFrame, robust: pd.Series,
                   journal: Journal, work: Work) -> None:
    """As a budget of `attack_kind`, of an attack without them."""
    entry = subject.records.summary["attacks"][name]
    result = _run(subject, attack, kind, kind, chosen, entry, journal, robust, partial(work.stage, kind.upper()))
    _add(subject.records, name, kind, None, chosen, result.assign(norm=result["norm"].where(result["success"].astype(bool), math.inf)))


def _add(found: Records, name: str, kind: str, eps: float | None, samples: pd.DataFrame, result: pd.DataFrame) -> None:
    """Add single attacks and what they came to (success, norm) to the table of attacks."""
    entry = found.summary["attacks"][name]
    found.attacks = with_attacks(found.attacks, samples.assign(success=result["success"].astype(bool), norm=result["norm"]), kind=kind,
                                 attack=name, eps=math.nan if eps is None else eps, seed=entry["seed"], settings=entry["settings"])


def with_attacks(table: pd.DataFrame, samples: pd.DataFrame, **constant: Any) -> pd.DataFrame:
    """The table of single attacks and below it those of `samples` (of `plan`, with columns success and norm)."""
    sides = [side_name(constant["kind"], side) for side in samples["side"]]
    fresh = samples[["row", "success", "norm"]].assign(side=sides, **constant)[list(ATTACK_TYPES)].astype(ATTACK_TYPES)
    return pd.concat([table, fresh], ignore_index=True) if len(table) else fresh.reset_index(drop=True)


def _share(flags: Any) -> float | None:
    return float(np.mean(flags)) if len(flags) else None


def _run(subject: Subject, attack: attacks.Attack, kind: str, key: str, samples: pd.DataFrame, settings: Mapping[str, Any],
         journal: Journal, robust: pd.Series, stage: Callable[..., Stage]) -> pd.DataFrame:
    """success and norm of an attack on each sample. robust: what the rows are before, for the running ERA; stage: `Work.stage`, but for
    how much there is to be done.
    """
    fallen: set = set(robust.index[~robust])
    certified = settings["skip"] and subject.records.certified
    radius = partial(OneImage.side, tau=subject.tau) if certified else None
    with stage(items=per_rank(len(samples))) as told:
        def show(rows: pd.DataFrame) -> None:
            if len(rows):
                fallen.update(samples["row"][rows.index[rows["success"].astype(bool)]])
            told.update(len(rows), f"ERA <= {1 - len(fallen) / max(1, len(robust)):.2%}")
        work, size = partial(_attack, subject, attack, kind, settings["seed"], radius, told), subject.batch_size
        if "draws" in settings:
            search = NoiseSearch(subject, settings["draws"], settings["seed"])
            work, size = partial(search.attack, kind, attack, told.tick), search.group
        rows = journal.run(key, samples, work, size, show)
    return rows if len(samples) else pd.DataFrame({"success": [], "norm": []}, index=samples.index)


def _attack(subject: Subject, attack: attacks.Attack, kind: str, seed: int, radius: attacks.Radius | None, told: Stage,
            samples: pd.DataFrame) -> Outcome:
    """One batch. radius: the certificate that the attack may rely on to stop early; None where it has to try anyway. told: of each pass."""
    images = subject.images(samples["image"], samples["flipped"])
    targets, clean = (subject.embedded(samples[of], samples["flipped"]) for of in ("target", "image"))
    with full_precision(), torch.autocast(images.device.type, enabled=False):
        result = attack(subject.network, images, targets, OBJECTIVES[kind], subject.tau, seed=seed,
                        sample_ids=samples.index.tolist(), clean=clean, radius=radius,
                        on_iterate=lambda points, index, margins: told.tick(len(index)))
    norm = attacks.l2(result.adversarial.double() - images.double())
    return Outcome(pd.DataFrame({"success": result.success.tolist(), "norm": norm.tolist()}, index=samples.index),
                   result.forward_passes, result.backward_passes)


def keep_attacks(folder: Path, fresh: Records) -> Records:
    """A fresh certification with what attacks have found about the same decisions in a results folder.

    The folder has results of the same network and .bin, if any (`results.refuse_another_subject`). Raises InputError
    where it has attacks or an audit of a setting that is not that of `fresh`: these would be lost.
    """
    place = folder / results.SUMMARY
    if not place.is_file():
        return fresh
    found = results.read_records(folder)
    attacked = found.summary.get("attacks", {})
    if not attacked and not found_in(folder, "audit*.json"):
        return fresh
    provenance.refuse_others(place, found.summary, provenance.fingerprint(fresh.summary))
    for name, table, old in ((results.PAIRS, fresh.pairs, found.pairs), (results.IMAGES, fresh.images, found.images)):
        if len(table) != len(old):
            raise InputError(f"{folder / name}: {len(old)} rows, expected {len(table)}")
    fresh = dataclasses.replace(fresh, attacks=found.attacks)
    if attacked:
        fresh.summary["attacks"] = attacked
        fresh.figures.update(summarise(fresh))
    return fresh


def summarise(found: Records) -> dict[str, Any]:
    """era_u, era_d, era_i: {attack: {budget: share}}; cra_attacked_u, _d, _i: the certified shares of the same rows, which
    ERA cannot be below; med_attack_u, _d, _i: {minimum-norm attack: median}; never_u, _d, _i: {minimum-norm attack: share}; reasons.

    All from the single attacks; rows that were not attacked (a limit) are in no denominator.
    Medians are the lower of two middle values: over what is right when clean, failures as infinite; of the published
    attack over all successes, clean errors included. None where there is none, with the reason.
    """
    figures = ("era", "cra_attacked", "med_attack", "never")
    summary: dict[str, Any] = {f"{what}_{kind}": {} for what in figures for kind in OBJECTIVES}
    reasons = {key: why for key, why in found.summary.get("reasons", {}).items() if not key.startswith(tuple(summary))}
    for name in outcomes.attack_names(found):
        entry = found.summary["attacks"][name]
        for kind in OBJECTIVES:
            rows, eps = outcomes.attacked(found, name, kind), outcomes.budgets(found, name, kind)
            era = {budget: _share(outcomes.robust(found, name, kind, budget)) for budget in eps}
            summary[f"era_{kind}"][name] = era
            if found.certified:
                radius = rows["radius_u" if kind == "u" else "radius"]
                summary[f"cra_attacked_{kind}"][name] = {budget: _share(radius > budget) for budget in eps}
            if None in era.values():
                reasons[f"era_{kind}.{name}"] = "nothing of this kind was attacked"
            if entry["minimum_norm"]:
                norms = (outcomes.successes(found, name, kind) if entry["published"]
                         else outcomes.norms(found, name, kind)[is_right(rows)].to_numpy())
                summary[f"med_attack_{kind}"][name], why = _median(norms)
                reasons |= {f"med_attack_{kind}.{name}": why} if why else {}
                summary[f"never_{kind}"][name] = outcomes.never_turned(found, name, kind)
    return {**summary, "reasons": reasons}


def _median(norms: np.ndarray) -> tuple[float | None, str]:
    if not len(norms):
        return None, "no norms to take the median of"
    median = certification.lower_median(norms)
    return (median, "") if math.isfinite(median) else (None, "infinite: half of the attacks or more fail")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def describe(found: Records, name: str) -> str:
    """The figures of an attack in a few lines."""
    summary, lines = found.figures, []
    entry = summary["attacks"][name]
    for kind, objective in OBJECTIVES.items():
        era = summary[f"era_{kind}"][name]
        certified = summary[f"cra_attacked_{kind}"].get(name, {})
        shares = [f"ERA {eps}: {_percent(share)}" + (f" (CRA {_percent(certified[eps])})" if eps in certified else "")
                  for eps, share in era.items()]
        if entry["minimum_norm"]:
            median = summary[f"med_attack_{kind}"][name]
            shares.append(f"median norm: {'-' if median is None else f'{median:.3f}'}")
            shares.append(f"never turned: {_percent(summary[f'never_{kind}'][name])}")
        skipped = [_percent(share) for share in entry["skipped"][kind].values() if share is not None]
        lines.append(f"{objective}: {', '.join(shares)} (needed no attack: {', '.join(skipped) or '-'})")
    lines.append(f"{entry['forward_passes']} images forward, {entry['backward_passes']} backward")
    title = f"{summary.get('bin')}, {name}, {summary['protocol']} protocol, tau {summary['tau']:.3f}"
    return "\n".join([title, *lines])


def _warn_of_fallen_certificates(found: Records, name: str) -> None:
    """What was robust by its certificate and fell all the same can only have been attacked with skip=False, or for its
    norm.
    """
    for kind, eps, number in outcomes.fallen_certificates(found, name) if found.certified else ():
        at = "" if eps is None else f" at {eps}"
        warnings.warn(f"{number} certified decisions fell ({name}, {OBJECTIVES[kind]}{at}): the audit tells whether by rounding",
                      stacklevel=2)
