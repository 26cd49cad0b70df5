"""Answers about photos: whether two show one person, and up to which size no change of the network's input turns that.

The certificates are those of records.py and certificates.py, at a threshold that is given. A radius here is that of the decision as it is:
nobody knows whether it is right.
"""
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import attacks
from backbones.sound import Proof
from datasets import to_float
from eval import records, robustness, verification
from eval.alignment import Crop
from eval.audit import sound
from eval.certification import lower_median
from eval.evaluation import Evaluation
from eval.records import Records
from eval.sizes import rounded_down, rounded_up, size_in_words
from eval.verification import PairSet
from utils import printable
from utils.files import sha256
from utils.precision import full_precision

SCOPE = ("The certificate is about the network's input: the aligned and resized images, and changes of their pixel values. Finding the "
         "face, aligning it, decoding the photo and the camera are outside of it; and it does not say that the decision is right.")
_COLUMNS = ("accepted", "cosine", "norm_left", "norm_right", "radius", "radius_both", "radius_joint", "radius_sound")
_LARGEST = 2.0**10  # l2: more than black and white images of 112 x 112 are apart
_BISECTIONS = 12


class Answers(NamedTuple):
    """found: the records of the pairs, in which each decision counts as right; embeddings [n, D] of the unique images; network: what made
    them, its layers one after another, on a device.
    """
    found: Records
    embeddings: Tensor
    network: Callable[[Tensor], Tensor]
    device: "torch.device | str"
    pair_set: PairSet


def pair_set_of(crops: Sequence[Crop], left: Sequence[int], right: Sequence[int], side: int) -> PairSet:
    """The pairs (left[k], right[k]) of some crops, as a .bin has them; smaller crops are brought to side x side as `--resize` does."""
    images = [crop.encoded for crop in crops]
    numbers = np.arange(len(images))
    pairs = PairSet("photos", images, np.array(left), np.array(right), np.ones(len(left), dtype=bool), numbers)
    return verification.resized(pairs, (side, side))


def answer(network: Callable[[Tensor], Tensor], pair_set: PairSet, evaluation: Evaluation, proof: "Proof | None" = None,
           lipschitz: float | None = None, device: "torch.device | str" = "cpu", **embedding: Any) -> Answers:
    """Decide and certify pairs at the threshold `evaluation.tau`, as `records.certify` does; raises as it does.

    proof: of the network's rounding, for radius_sound. lipschitz, embedding: as `records.certify`.
    """
    network = records.proven_or_divided(network, pair_set.image_size, lipschitz)
    embeddings = verification.embed_images(network, pair_set.images, describe=pair_set.describe, device=device, **embedding)
    accepted = verification.pair_cosines(embeddings[0], pair_set.left, pair_set.right) > evaluation.tau
    decided = dataclasses.replace(pair_set, same=accepted)
    found = records.evaluate(decided, embeddings, evaluation)
    if proof is not None:
        sound.add(found, proof)
    return Answers(found, embeddings[0], network, device, decided)


def table_of(answers: Answers) -> pd.DataFrame:
    """A row a pair: accepted, cosine, norms of the embeddings, radii."""
    return answers.found.pairs[[name for name in _COLUMNS if name in answers.found.pairs]]


class Success(NamedTuple):
    """The smallest change of one image with which an attack turned the decision. attack: its name and settings; side: left or right; norm:
    its l2, infinite where there was none; adversarial [3, H, W] in [-0.5, 0.5], or None.
    """
    attack: dict[str, Any]
    side: str
    norm: float
    adversarial: "Tensor | None"


def smallest_attack(answers: Answers, name: str, pair: int = 0, seed: int = 0, **settings: Any) -> Success:
    """Attack the left and the right image of a pair, and keep the smaller success.

    A minimum-norm attack looks for it by itself; one with a budget is run at several, which bisection chooses. settings go to the class.
    Raises InputError for an unknown attack and for settings that it does not take.
    """
    build = partial(robustness.build_attack, name, "strict", settings)
    pairs, sides = answers.pair_set, ("left", "right")
    numbers = [int(pairs.left[pair]), int(pairs.right[pair])]
    row, clean = answers.found.pairs.iloc[pair], answers.embeddings[numbers].to(answers.device)
    images = to_float(torch.stack([pairs.decode(number) for number in numbers]), answers.device, clean.dtype)
    objective = "dodging" if row["accepted"] else "impersonation"

    def run(eps: float | None) -> tuple[Tensor, Tensor]:
        with full_precision(), torch.autocast(images.device.type, enabled=False):
            result = build(eps)(answers.network, images, clean.flip(0), objective, answers.found.summary["tau"], seed=seed, clean=clean)
        norms = attacks.l2(result.adversarial.double() - images.double())
        return torch.where(result.success.cpu(), norms.cpu(), math.inf), result.adversarial

    norms, adversarial = run(None) if attacks.ATTACKS.find(name).minimum_norm else _by_bisection(run, max(float(row["radius"]), 1e-3))
    best = int(norms.argmin())
    norm = norms[best].item()
    return Success({"name": name, "seed": seed, **settings}, sides[best], norm, adversarial[best].cpu() if math.isfinite(norm) else None)


def _by_bisection(run: Callable[[float], tuple[Tensor, Tensor]], start: float) -> tuple[Tensor, Tensor]:
    """The smallest success over budgets: doubled from `start` until one is enough, then halving what is between."""
    low, high = 0.0, start
    best = run(high)
    while not best[0].isfinite().any() and high < _LARGEST:
        low, high = high, 2 * high
        best = run(high)
    for _ in range(_BISECTIONS if best[0].isfinite().any() else 0):
        middle = (low + high) / 2
        found = run(middle)
        if found[0].isfinite().any():
            high, best = middle, min(found, best, key=lambda one: one[0].min().item())
        else:
            low = middle
    return best


def compared(cosine: float, tau: float) -> tuple[str, str]:
    """Both with three places, or so many more that they still compare as they do."""
    for places in range(3, 18):
        said = f"{cosine:.{places}f}", f"{tau:.{places}f}"
        if (float(said[0]) > float(said[1])) == (cosine > tau):
            return said
    return repr(cosine), repr(tau)


def document(answers: Answers, crops: Sequence[Crop], origin: Mapping[str, Any], success: "Success | None") -> dict[str, Any]:
    """All that there is to say of the first pair, as plain data: docs/verify.md has the keys."""
    row: dict[str, Any] = table_of(answers).iloc[:1].to_dict("records")[0]
    row["cosine"] = row["cosine"] if math.isfinite(row["cosine"]) else None
    dimension = math.prod(answers.pair_set.image_size)
    return {**row, **origin, "in_words": sentence(row, origin["tau"], dimension), "scope": SCOPE,
            "attack": None if success is None else _described(success, _radius(row)),
            "photos": [{"path": printable(crop.path), "sha256": sha256(crop.path), "size": crop.size, "remarks": crop.remarks,
                        "crop": crop.outline.tolist(), "points": None if crop.points is None else crop.points.tolist(),
                        "faces": [face.box for face in crop.faces], "face": crop.chosen + 1 if crop.faces else None} for crop in crops]}


def _radius(row: Mapping[str, Any]) -> float:
    """That of a change of one image: the one that is proven in floating point, where there is one."""
    return row.get("radius_sound", row["radius"])


def _described(success: Success, radius: float) -> dict[str, Any]:
    there = success.adversarial is not None
    return {**success.attack, "success": there, "side": success.side if there else None, "norm": success.norm if there else None,
            "in_words": attack_in_words(success, radius)}


def describe(document: Mapping[str, Any]) -> str:
    """A document in a few lines."""
    lines = [document["in_words"], *([document["attack"]["in_words"]] if document["attack"] else []), _of_threshold(document)]
    lines += [f"{photo['path']}: {remark}." for photo in document["photos"] for remark in photo["remarks"]]
    return "\n".join([*lines, document["scope"]])


def describe_many(table: pd.DataFrame, origin: Mapping[str, Any]) -> str:
    """How many pairs of a table of answers are accepted, and how sure that is. same: where known, how many are right."""
    good = table[table["accepted"].notna()]
    lines = [f"{len(good)} of {len(table)} pairs: {int(good['accepted'].sum())} accepted, median radius "
             f"{rounded_down(lower_median(good['radius'].to_numpy(float)))}"]
    if "same" in good:
        right = good["accepted"] == good["same"]
        lines += [f"{'true' if same else 'false'} pairs: {int(right[rows].sum())} of {int(rows.sum())} decided rightly"
                  for same, rows in ((True, good["same"]), (False, ~good["same"]))]
    return "\n".join([*lines, _of_threshold(origin), SCOPE])


def _of_threshold(origin: Mapping[str, Any]) -> str:
    return f"Threshold: {origin['tau']:g}, {origin['tau_from']}."


def sentence(row: Mapping[str, Any], tau: float, numbers: int) -> str:
    """Decision and certificate in words, which rounding keeps true. numbers: values of an image."""
    if row["cosine"] is None:
        return "REJECTED: one of the two images has an embedding without a direction (zero, or not finite). Nothing is certified."
    cosine, threshold = compared(row["cosine"], tau)
    verdict = f"ACCEPTED, as one person: their cosine, {cosine}, is above the threshold, {threshold}." if row["accepted"] else \
        f"REJECTED, as two people: their cosine, {cosine}, is not above the threshold, {threshold}."
    radius = _radius(row)
    if not radius > 0:
        return f"{verdict} Nothing is certified: the cosine is too close to the threshold."
    size, sound = rounded_down(radius), "radius_sound" in row
    return (f"{verdict} No change of either aligned image below l2 {size} turns this decision{', in floating point' * sound}: as much as "
            f"{size_in_words(size, numbers)}. Nor does {'(in exact arithmetic) ' * sound}a change of both, of each below "
            f"{rounded_down(row['radius_both'])}, or of the two together below {rounded_down(row['radius_joint'])}.")


def attack_in_words(success: Success, radius: float) -> str:
    """What an attack came to."""
    name = success.attack["name"]
    if success.adversarial is None:
        return f"Attack {name}: no change was found that turns it."
    said = f"Attack {name}: a change of the {success.side} image of l2 {rounded_up(success.norm, 3)} turns it"
    if success.norm < radius:
        return f"{said}, BELOW the certified radius {radius:.9g}: by rounding, or the certificate is wrong; `python -m eval audit` tells."
    times = f", {success.norm / radius:.1f} times the certified radius" if radius > 0 else ""
    return f"{said}{times}: between the two nobody knows."

