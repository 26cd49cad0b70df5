"""Empirical robust accuracy: attacks on the images and pairs of an evaluation, as further columns of its records.

A pair is robust only if attacks on either of its images fail. ERA is the share of robust rows among all true pairs
(dodging, D), all false pairs (impersonation, I) or all images (untargeted, U). A wrong decision is not robust, nor is
one about an embedding that is zero or not finite; a decision whose certificate covers the budget is robust without an
attack.

    pairs.csv, images.csv: robust_{attack}_{eps}   of attacks with a budget: True or False
                           norm_{attack}           of minimum-norm attacks: the smallest success, inf without one, 0 for
                                                   a decision that is wrong when clean
"""
import dataclasses
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import attacks
from eval import certification, records
from eval.store.journal import Journal, Outcome
from eval.records import Records
from eval.store.subject import OBJECTIVES, Subject, is_right, plan, table_of
from utils import InputError
from utils.distributed import barrier, rank, world_size
from utils.precision import full_precision

ATTACKS = ("pgd", "apgd", "cw", "ddn", "fgsm")
MINIMUM_NORM = ("cw", "ddn")


def attack_records(subject: Subject, name: str, eps_u: Sequence[float] = (1.5, 3.0),
                   eps: Sequence[float] = (0.25, 0.75), skip: bool = True, limit: "int | None" = None, seed: int = 0,
                   **settings: Any) -> Records:
    """Run an attack (a name of `attacks.preset`, `settings` for its class) and write its columns and figures.

    Results of the same attack under other settings are replaced; budgets that were attacked before are kept and not
    attacked again. skip=False also attacks what is certified; a certified decision that falls gives a warning.
    """
    records.check_budgets(eps_u, eps)
    protocol = subject.records.summary["protocol"]
    build = partial(_build, name, protocol, settings)
    settings = _settings(name, build, seed, limit, skip, subject)
    found = _without_other_settings(subject.records, name, settings)
    journal = Journal(subject.folder, f"attack_{name}", {**records.fingerprint(found.summary), **settings})
    entry = {**settings, "skipped": {}, **found.summary["attacks"].get(name, {})}
    entry["skipped"] = {**entry["skipped"]}
    fresh = {"u": _united(eps_u), "d": _united(eps), "i": _united(eps)}
    for kind in OBJECTIVES:
        skipped = attack_columns(subject._replace(records=found), name, build, kind, fresh[kind], settings, journal)
        skipped |= entry["skipped"].get(kind, {})
        entry["skipped"][kind] = dict(sorted(skipped.items(), key=lambda item: float(item[0].replace("all", "0"))))
    entry |= {"eps_u": _united(entry.get("eps_u", []), eps_u), "eps": _united(entry.get("eps", []), eps)}
    entry |= {way: count + entry.get(way, 0) for way, count in journal.passes.items()}
    found.summary["attacks"][name] = entry
    found.summary.update(summarise(found))
    if rank() == 0:
        records.write_records(subject.folder, found)
        journal.remove()
        _warn_of_fallen_certificates(found, name)
    barrier()
    return found


def _build(name: str, protocol: str, settings: Mapping[str, Any], eps: "float | Tensor | None") -> attacks.Attack:
    if name == "fgsm" and "steps" in settings:
        raise InputError("--steps: fgsm takes one step")
    try:
        return attacks.preset(name, eps, protocol, **settings)
    except TypeError:
        raise InputError(f"--attack {name} does not take {' and '.join(settings)}") from None


def _settings(name: str, build: Callable, seed: int, limit: "int | None", skip: bool, subject: Subject
              ) -> dict[str, Any]:
    """All that a result depends on, apart from budget and subject."""
    attack = build(None if name in MINIMUM_NORM else 1.)
    fields = {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack) if field.name != "eps"}
    fields |= {"minimum_norm": attack.minimum_norm, "published": attack.published, "seed": seed, "limit": limit,
               "skip": skip}
    return fields | ({"batch_size": subject.batch_size} if attack.published else {})


def _without_other_settings(found: Records, name: str, settings: Mapping[str, Any]) -> Records:
    """A copy without the columns of the attack `name`, unless they were made with the same settings."""
    pairs, images, summary = found.pairs.copy(), found.images.copy(), {**found.summary}
    summary["attacks"] = {**summary.get("attacks", {})}
    old = summary["attacks"].get(name, {})
    if {key: old.get(key) for key in settings} == settings:
        return Records(pairs, images, summary)
    summary["attacks"].pop(name, None)
    for table in (pairs, images):
        table.drop(columns=[c for c in table if c.startswith(f"robust_{name}_") or f"{c}_".startswith(f"norm_{name}_")],
                   inplace=True)
    return Records(pairs, images, summary)


def _united(*budgets: Sequence[float]) -> list[float]:
    return sorted({float(eps) for some in budgets for eps in some})


def attack_columns(subject: Subject, name: str, build: Callable[["float | None"], attacks.Attack], kind: str,
                   budgets: Sequence[float], settings: Mapping[str, Any], journal: Journal) -> dict[str, float]:
    """Attack the rows of a kind and set their columns; returns the share of rows that needed no attack, by budget
    ("all": of an attack without budgets).

    Unless the published attacks are reproduced: what fell at a budget falls at every larger one, and what has fallen on
    one side needs no attack on the other.
    """
    samples = plan(subject.records, kind, settings["limit"])
    table = subject.records.images if kind == "u" else subject.records.pairs
    rows = samples["row"].drop_duplicates()
    if settings["minimum_norm"]:
        if f"norm_{name}" in table and table.loc[rows, f"norm_{name}"].notna().all():
            return {}
        return _minimum_norms(subject, name, build(None), kind, samples, table, settings, journal)
    skipped = {}
    for eps in budgets:
        column = f"robust_{name}_{eps}"
        if column in table and table.loc[rows, column].notna().all():
            continue
        need = samples[samples["right"] & ~((samples["radius"] > eps) & settings["skip"])]
        robust = pd.Series(True, index=rows)
        robust[samples.loc[~samples["right"], "row"]] = False
        skipped[str(eps)] = _share(~rows.isin(need["row"]))
        for smaller in () if settings["published"] else _earlier(table, name, eps):
            robust &= table.loc[rows, smaller].astype(bool)
        for turn, chosen in _turns(need, settings["published"]):
            chosen = chosen[robust[chosen["row"]].to_numpy()]
            result = _run(subject, build(eps), kind, f"{kind}/{turn}/{eps}", chosen, settings, journal,
                          robust, f"{name} {kind.upper()} {eps}")
            robust[chosen["row"][result["success"].to_numpy(bool)]] = False
        _set(table, column, robust, object)
    return skipped


def _turns(samples: pd.DataFrame, published: bool) -> "list[tuple[int, pd.DataFrame]]":
    """The samples in two turns, so that a row that falls in the first one is spared the second: the image with the
    smaller radius first, which falls more often; in the published order, the left one.
    """
    turn = samples["side"] if published else samples.sort_values("radius", kind="stable").groupby("row").cumcount()
    return list(samples.groupby(turn.reindex(samples.index)))


def _earlier(table: pd.DataFrame, name: str, eps: float) -> list[str]:
    """The columns of the same attack at smaller budgets."""
    prefix = f"robust_{name}_"
    return [c for c in table if c.startswith(prefix) and float(c[len(prefix):]) < eps]


def _minimum_norms(subject: Subject, name: str, attack: attacks.Attack, kind: str, samples: pd.DataFrame,
                   table: pd.DataFrame, settings: Mapping[str, Any], journal: Journal) -> dict[str, float]:
    """Norms of the smallest successful perturbations: 0 where the decision is wrong when clean, inf without success.

    The published attack runs on wrong decisions too. Its further columns `_left` and `_right` have the norms that its
    median counts: in dodging, those of both images where the attack on the left one succeeds.
    """
    chosen = samples if attack.published else samples[samples["right"]]
    robust = samples.groupby("row")["right"].all()
    result = _run(subject, attack, kind, kind, chosen, settings, journal, robust, f"{name} {kind.upper()}")
    success = result["success"].astype(bool)
    norm = result["norm"].where(success, math.inf).reindex(samples.index).where(samples["right"], 0.)
    _set(table, f"norm_{name}", norm.groupby(samples["row"]).min(), float)
    if attack.published and kind != "u":
        left = chosen["side"] == 0
        if kind == "d":
            success = chosen["row"].map(success[left].set_axis(chosen["row"][left]))
        counted = result["norm"].where(success, math.inf)
        for mine, word in ((left, "left"), (~left, "right")):
            _set(table, f"norm_{name}_{word}", counted[mine].set_axis(chosen.loc[mine, "row"]), float)
    return {"all": _share(~robust.index.isin(chosen["row"]))}


def _set(table: pd.DataFrame, column: str, values: pd.Series, dtype: type) -> None:
    if column not in table:
        table[column] = pd.Series(np.nan, index=table.index, dtype=dtype)
    table.loc[values.index, column] = values.astype(dtype)


def _share(flags: Any) -> "float | None":
    return float(np.mean(flags)) if len(flags) else None


def _run(subject: Subject, attack: attacks.Attack, kind: str, stage: str, samples: pd.DataFrame,
         settings: Mapping[str, Any], journal: Journal, robust: pd.Series, title: str) -> pd.DataFrame:
    """success and norm of an attack on each sample. robust: what the rows are before, for the running ERA."""
    fallen: set = set(robust.index[~robust])
    certified = settings["skip"] and "radius" in subject.records.pairs
    radius = partial(certification.one_sided_radius, tau=subject.records.summary["tau"]) if certified else None
    work = partial(_attack, subject, attack, kind, settings["seed"], radius)
    with subject.bar(-(-len(samples) // world_size()), title) as bar:
        def show(rows: pd.DataFrame) -> None:
            if len(rows):
                fallen.update(samples["row"][rows.index[rows["success"].astype(bool)]])
            bar.update(len(rows))
            bar.set_postfix_str(f"ERA <= {1 - len(fallen) / max(1, len(robust)):.2%}")
        rows = journal.run(stage, samples, work, subject.batch_size, show)
    return rows if len(samples) else pd.DataFrame({"success": [], "norm": []}, index=samples.index)


def _attack(subject: Subject, attack: attacks.Attack, kind: str, seed: int, radius: "attacks.Radius | None",
            samples: pd.DataFrame) -> Outcome:
    """One batch. radius: the certificate that the attack may rely on to stop early; None where it has to try anyway."""
    images = subject.images(samples["image"], samples["flipped"])
    targets, clean = (subject.embedded(samples[of], samples["flipped"]) for of in ("target", "image"))
    with full_precision(), torch.autocast(images.device.type, enabled=False):
        result = attack(subject.network, images, targets, OBJECTIVES[kind], subject.records.summary["tau"], seed=seed,
                        sample_ids=samples.index.tolist(), clean=clean, radius=radius)
    norm = attacks.l2(result.adversarial.double() - images.double())
    return Outcome(pd.DataFrame({"success": result.success.tolist(), "norm": norm.tolist()}, index=samples.index),
                   result.forward_passes, result.backward_passes)


def keep_attacks(folder: Path, fresh: Records) -> Records:
    """A fresh certification with what attacks have found about the same decisions in a results folder.

    The folder has results of the same network and .bin, if any (`records.refuse_another_subject`). Raises InputError
    where it has attacks or an audit of a setting that is not that of `fresh`: these would be lost.
    """
    if not (folder / records.SUMMARY).is_file():
        return fresh
    found = records.read_records(folder)
    attacked = found.summary.get("attacks", {})
    if not attacked and not any((folder / name).exists() for name in (records.AUDIT, *records.AUDIT_OF.values())):
        return fresh
    records.refuse_others(folder, found.summary, records.fingerprint(fresh.summary))
    for name, table, old in zip((records.PAIRS, records.IMAGES), fresh, found):
        if len(table) != len(old):
            raise InputError(f"{folder / name}: {len(old)} rows, expected {len(table)}")
    for table, old in zip(fresh, found[:2]):
        for column in old.columns.difference([*table.columns, *records.SOUND]):
            table[column] = old[column]
    if attacked:
        fresh.summary["attacks"] = attacked
        fresh.summary.update(summarise(fresh))
    return fresh


def summarise(found: Records) -> dict[str, Any]:
    """era_u, era_d, era_i: {attack: {budget: share}}; cra_attacked_u, _d, _i: the certified shares of the same rows, which
    ERA cannot be below; med_attack_u, _d, _i: {minimum-norm attack: median}; reasons.

    All from the columns of the attacks in the summary; rows that were not attacked (a limit) are in no denominator.
    Medians are the lower of two middle values: over what is right when clean, failures as infinite; of the published
    attack over what counts as a success, on either side, clean errors included. None where there is none, with the
    reason.
    """
    summary: dict[str, Any] = {f"{what}_{kind}": {} for what in ("era", "cra_attacked", "med_attack")
                               for kind in OBJECTIVES}
    stale = tuple(summary)
    reasons = {key: why for key, why in found.summary.get("reasons", {}).items() if not key.startswith(stale)}
    for name, entry in found.summary.get("attacks", {}).items():
        if lacking := {"eps", "eps_u", "minimum_norm", "published"} - set(entry):
            raise InputError(f"attack {name} of the {records.SUMMARY} lacks {', '.join(sorted(lacking))}")
        for kind in OBJECTIVES:
            table, budgets = table_of(found, kind), entry["eps_u" if kind == "u" else "eps"]
            missing = sorted(_columns_of(name, entry, kind) - set(table.columns))
            if missing or entry["minimum_norm"] != (name in MINIMUM_NORM):
                raise InputError(f"attack {name} of the {records.SUMMARY}: the records lack {', '.join(missing) or 'its norms'}")
            era = summary[f"era_{kind}"][name] = {str(eps): _era(table, name, eps) for eps in budgets}
            if "radius" in found.pairs:
                radius = table["radius_u" if kind == "u" else "radius"]
                summary[f"cra_attacked_{kind}"][name] = {
                    str(eps): _share(radius[_outcomes(table, name, eps).index] > eps) for eps in budgets}
            if None in era.values():
                reasons[f"era_{kind}.{name}"] = "nothing of this kind was attacked"
            if entry["minimum_norm"]:
                median, why = _median(_successes(table, name) if entry["published"] else
                                      table.loc[is_right(table), f"norm_{name}"])
                summary[f"med_attack_{kind}"][name] = median
                reasons |= {f"med_attack_{kind}.{name}": why} if why else {}
    return {**summary, "reasons": reasons}


def _columns_of(name: str, entry: Mapping[str, Any], kind: str) -> set[str]:
    """The columns that an attack's entry in a summary promises."""
    if name in MINIMUM_NORM:
        both = entry["published"] and kind != "u"
        return {f"norm_{name}", *((f"norm_{name}_left", f"norm_{name}_right") if both else ())}
    return {f"robust_{name}_{eps}" for eps in entry["eps_u" if kind == "u" else "eps"]}


def _era(table: pd.DataFrame, name: str, eps: float) -> "float | None":
    outcomes = _outcomes(table, name, eps)
    if name in MINIMUM_NORM:
        return _share(is_right(table)[outcomes.index] & (outcomes > eps))
    return _share(outcomes.astype(bool))


def _outcomes(table: pd.DataFrame, name: str, eps: float) -> pd.Series:
    """What an attack came to, of the rows that were attacked."""
    return table[f"norm_{name}" if name in MINIMUM_NORM else f"robust_{name}_{eps}"].dropna()


def _successes(table: pd.DataFrame, name: str) -> pd.Series:
    columns = [f"norm_{name}"] if "same" not in table else [f"norm_{name}_left", f"norm_{name}_right"]
    norms = pd.concat([table[column] for column in columns])
    return norms[np.isfinite(norms)]


def _median(norms: pd.Series) -> "tuple[float | None, str]":
    norms = norms.dropna()
    if norms.empty:
        return None, "no norms to take the median of"
    median = certification.lower_median(norms.to_numpy())
    return (median, "") if math.isfinite(median) else (None, "infinite: half of the attacks or more fail")


def _percent(share: "float | None") -> str:
    return "-" if share is None else f"{share:.2%}"


def describe(found: Records, name: str) -> str:
    """The figures of an attack in a few lines."""
    summary, lines = found.summary, []
    entry = summary["attacks"][name]
    for kind, objective in OBJECTIVES.items():
        era = summary[f"era_{kind}"][name]
        certified = summary[f"cra_attacked_{kind}"].get(name, {})
        shares = [f"ERA {eps}: {_percent(share)}" + (f" (CRA {_percent(certified[eps])})" if eps in certified else "")
                  for eps, share in era.items()]
        if entry["minimum_norm"]:
            median = summary[f"med_attack_{kind}"][name]
            shares.append(f"median norm: {'-' if median is None else f'{median:.3f}'}")
        skipped = [_percent(share) for share in entry["skipped"][kind].values() if share is not None]
        lines.append(f"{objective}: {', '.join(shares)} (needed no attack: {', '.join(skipped) or '-'})")
    lines.append(f"{entry['forward_passes']} images forward, {entry['backward_passes']} backward")
    title = f"{summary.get('bin')}, {name}, {summary['protocol']} protocol, tau {summary['tau']:.3f}"
    return "\n".join([title, *lines])


def _warn_of_fallen_certificates(found: Records, name: str) -> None:
    """What was robust by its certificate and fell all the same can only have been attacked with skip=False, or for its
    norm.
    """
    for kind in OBJECTIVES if "radius" in found.pairs else ():
        table = table_of(found, kind)
        radius, right = table["radius_u" if kind == "u" else "radius"], is_right(table)
        for column in (c for c in table if f"{c}_".startswith((f"robust_{name}_", f"norm_{name}_"))):
            known = table[column].notna() & right
            if column.startswith("robust"):
                fell = ~table.loc[known, column].astype(bool) & (radius[known] > float(column.rsplit("_", 1)[1]))
            else:
                fell = table.loc[known, column] <= radius[known]
            if fell.any():
                warnings.warn(f"{int(fell.sum())} certified decisions fell ({column}): "
                              "the audit tells whether by rounding")
