"""Records of an evaluation: one row a pair, one row an image, and the summary that is computed from these rows alone."""
import dataclasses
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from backbones import DividedOutput, FlipAveraged, averaged, lipschitz_bound
from backbones.bounds import at_most_one
from backbones.chain import followed
from eval import certification, verification
from eval.certificates import ONE, Case, Certificate, OneImage, certificate, checked
from eval.evaluation import DEFAULTS, Evaluation
from eval.summary import ByBudget, Summary
from eval.verification import PairSet
from utils import InputError
from utils.images import decode_image

FORMAT = 2  # of the files of a results folder
AUDITED = "audit"  # what stands for an attack where it was the audit
# attacks.csv, one row a single attack: see docs/columns.md
ATTACK_TYPES = {"kind": str, "row": int, "side": str, "attack": str, "eps": float, "success": bool, "norm": float, "seed": int,
                "settings": str}
CERTIFIED = tuple(f"{figure}_{kind}" for figure in ("cra", "med") for kind in "udi")
_CHUNK = 4096  # pairs whose embeddings are gathered at a time
_NONE = pd.Series(dtype=float)


@dataclasses.dataclass
class Records:
    """pairs: pair, flipped, same, left, right (image numbers), cosine, theta, norm_left, norm_right, accepted, radius, upper_bound (of the
    radius, where the pair is rejected) and a radius for each further certificate; images: image, flipped, norm, radius_u; attacks: the
    single attacks that were run (`ATTACK_TYPES`); summary: what `summarise` makes of them and where they come from. A wrong decision has
    radius 0. docs/columns.md has all columns.
    """
    pairs: pd.DataFrame
    images: pd.DataFrame
    summary: Summary
    attacks: pd.DataFrame = dataclasses.field(default_factory=lambda: pd.DataFrame(columns=list(ATTACK_TYPES)).astype(ATTACK_TYPES))

    @property
    def figures(self) -> dict[str, Any]:
        """The summary itself, for keys that are put together (f"era_{kind}")."""
        return cast(dict[str, Any], self.summary)

    @property
    def certified(self) -> bool:
        """Whether there are radii: the network is 1-Lipschitz, or its decisions are smoothed."""
        return "radius" in self.pairs

    @property
    def smoothed(self) -> bool:
        """Whether the radii are those of randomised smoothing, which norms and angles of embeddings have no part in."""
        return "smoothing" in self.summary


def certify(network: Callable[[Tensor], Tensor], pair_set: PairSet, evaluation: Evaluation = DEFAULTS, lipschitz: float | None = None,
            **embedding: Any) -> Records:
    """Embed the unique images of a pair set once, choose tau (unless given) and certify each pair and each image.

    Under protocol "paper" the mirrored copies are further pairs and images. Where the evaluation has `flip` "average", embeddings are means
    with those of mirror images, unless the network has that in it (`backbones.averaged`). The network must be 1-Lipschitz in l2: that its
    layers prove it is checked here. For one whose layers say nothing, `lipschitz` is the caller's own bound, by which its embeddings are
    divided; the summary says that it is assumed. `embedding` goes to `verification.embed_images`. Raises InputError where an image cannot
    be used, no threshold can be chosen, or nothing proves the network's constant.
    """
    mirrored = isinstance(network, nn.Module) and any(isinstance(module, FlipAveraged) for module in network.modules())
    network = network if mirrored else averaged(cast(nn.Module, network), evaluation.flip)
    network = proven_or_divided(network, pair_set.image_size, lipschitz)
    embeddings = verification.embed_images(network, pair_set.images, evaluation.views, describe=pair_set.describe,
                                           decode=decode_image, **embedding)
    found = evaluate(pair_set, embeddings, evaluation)
    found.summary.update({"lipschitz": 1.0 if lipschitz is None else float(lipschitz), "lipschitz_assumed": lipschitz is not None,
                          "flip": "average" if mirrored else evaluation.flip})
    return found


def proven_or_divided(network: Callable[[Tensor], Tensor], image_size: Iterable[int], lipschitz: float | None = None
                      ) -> Callable[[Tensor], Tensor]:
    """The chain of layers (`backbones.chain.followed`) of a network whose layers prove that it is 1-Lipschitz at images of this size
    [C, H, W]; another network with its embeddings divided by the constant `lipschitz` that the caller vouches for. Raises InputError where
    neither is so.
    """
    if lipschitz is not None:
        if not isinstance(lipschitz, Real) or not 0 < lipschitz < np.inf:
            raise InputError(f"lipschitz is {lipschitz!r}, expected a positive and finite number")
        return DividedOutput(cast(nn.Module, network), float(lipschitz)).eval()
    if not isinstance(network, nn.Module):
        name = getattr(network, "__name__", type(network).__name__)
        raise InputError(f"{name}: a function has no layers that prove a Lipschitz constant: give your own bound, lipschitz=")
    try:
        at_most_one(lipschitz_bound(network, tuple(image_size)))
        return followed(network, tuple(image_size))
    except InputError as error:
        raise InputError(f"{error}; your own bound for it is given by lipschitz=") from None


def evaluate(pair_set: PairSet, embeddings: Tensor, evaluation: Evaluation = DEFAULTS, certified: bool = True) -> Records:
    """The records of embeddings [flips, n, D] of a 1-Lipschitz network, of which the caller makes sure (`certify` does).

    Those of other networks (certified=False) have no radii, and None for every certified figure.
    """
    pairs, images = measure(pair_set, embeddings)
    protocol, tau = evaluation.protocol, evaluation.tau
    if tau is None:
        try:
            tau = verification.threshold_at_far(pairs["cosine"], pairs["same"], evaluation.far, protocol)
        except InputError as error:
            raise InputError(f"{pair_set.path}: {error}") from None
    pairs["accepted"] = pairs["cosine"] > tau
    further = [certificate(name) for name in evaluation.certificates]
    if certified:
        left, right_norm, theta = (pairs[name].to_numpy() for name in ("norm_left", "norm_right", "theta"))
        case = Case(left, right_norm, theta, tau, protocol, int(np.prod(pair_set.image_size)))
        right = pairs["accepted"] == pairs["same"]
        pairs["radius"] = np.where(right, ONE.radius(case).numpy(), 0.)
        distance = np.tile(image_distances(pair_set), 1 + pairs["flipped"].any())  # mirrored images are as far apart
        pairs["upper_bound"] = certification.upper_bound(distance, case.theta, tau, protocol).numpy()
        for one in further:
            if one.column in pairs:
                raise InputError(f"certificate {one.name}: there is a column {one.column} already, expected a name that no other has")
            pairs[one.column] = np.where(right, checked(one, one.radius(case), len(pairs)), 0.)
        images["radius_u"] = OneImage.untargeted(images["norm"].to_numpy(), tau, protocol).numpy()
    summary = summarise(pairs, images, dataclasses.replace(evaluation, tau=tau), further)
    summary.update({"format": FORMAT, "far_target": evaluation.far_target, "flip": evaluation.flip,
                    "image_size": list(pair_set.image_size)})
    if evaluation.far_target is None:
        summary["reasons"]["far_target"] = "tau was given"
    return Records(pairs, images, summary)


def image_distances(pair_set: PairSet) -> np.ndarray:
    """|x - y| [N] in float64 of the two images of each pair, in the scale of [-0.5, 0.5]. Decodes pair by pair."""
    def image(number: int) -> Tensor:
        return pair_set.decode(number).to(torch.int32)
    squares = [(image(left) - image(right)).square().sum().item() for left, right in zip(pair_set.left, pair_set.right)]
    return np.sqrt(np.array(squares, dtype=np.float64)) / 255


def measure(pair_set: PairSet, embeddings: Tensor) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(pairs, images) as far as they need no threshold, of embeddings [flips, n, D] of the unique images, flip 0 first.

    A zero or non-finite embedding has norm 0 and makes the cosine -inf.
    """
    left, right, pairs, images = pair_set.left, pair_set.right, [], []
    for flipped, rows in enumerate(embeddings):
        lengths = verification.norms(rows)
        rows = torch.where(lengths[:, None] > 0, rows.double(), 0.)
        parts = [slice(start, start + _CHUNK) for start in range(0, len(left), _CHUNK)]
        theta = torch.cat([certification.angle(rows[left[part]], rows[right[part]]) for part in parts])
        norm = lengths.numpy()
        pairs.append(pd.DataFrame({
            "pair": np.arange(len(left)), "flipped": bool(flipped), "same": pair_set.same, "left": left, "right": right,
            "cosine": verification.pair_cosines(rows, left, right), "theta": theta.numpy(), "norm_left": norm[left],
            "norm_right": norm[right]}))
        images.append(pd.DataFrame({"image": np.arange(len(norm)), "flipped": bool(flipped), "norm": norm}))
    return pd.concat(pairs, ignore_index=True), pd.concat(images, ignore_index=True)


def table_of(found: Records, kind: str) -> pd.DataFrame:
    """The rows that a kind is about: images (u), true pairs (d), false pairs (i)."""
    return found.images if kind == "u" else found.pairs[found.pairs["same"] == (kind == "d")]


def is_right(table: pd.DataFrame) -> pd.Series:
    """Which rows are right when clean: the decision is, and the embeddings have a direction."""
    if "same" not in table:
        return table["norm"] > 0
    return (table["accepted"] == table["same"]) & (table["norm_left"] > 0) & (table["norm_right"] > 0)


def summarise(pairs: pd.DataFrame, images: pd.DataFrame, evaluation: Evaluation, further: Iterable[Certificate] = ()) -> Summary:
    """The figures of a result at the threshold `evaluation.tau`, from its rows.

    A figure that cannot be computed is None and `reasons` says why. Accuracy (10-fold) is over the pairs as they are,
    everything else over all rows. Medians are the lower of two middle values.
    """
    tau = cast(float, evaluation.tau)
    original, true, false = pairs[~pairs["flipped"]], pairs[pairs["same"]], pairs[~pairs["same"]]
    cosines, same = pairs["cosine"].to_numpy(), pairs["same"].to_numpy()
    tar, far = verification.tar_far(cosines, same, tau)
    few = len(original) < 10
    one_kind = true.empty or false.empty
    accuracy, deviation = (None, None) if few else verification.ten_fold_accuracy(original["cosine"], original["same"])
    best, threshold = verification.best_accuracy(cosines, same)
    norms = np.concatenate([pairs["norm_left"], pairs["norm_right"]])
    reasons = dict.fromkeys(("accuracy", "accuracy_std"), "fewer than 10 pairs" if few else "")
    reasons |= dict.fromkeys(("tar", "cra_d", "med_d"), "no true pairs" if true.empty else "")
    reasons |= dict.fromkeys(("far", "cra_i", "med_i"), "no false pairs" if false.empty else "")
    reasons |= dict.fromkeys(("auc", "eer"), "only one kind of pairs" if one_kind else "")
    if "radius" not in pairs:
        reasons |= dict.fromkeys(CERTIFIED, "the network is not 1-Lipschitz: it has no certified radii")
    radius_u = images.get("radius_u", _NONE)
    figures: dict[str, Any] = dict(
        protocol=evaluation.protocol, tau=tau, tar=tar, far=far, accuracy=accuracy, accuracy_std=deviation,
        accuracy_at_tau=float(((cosines > tau) == same).mean()), best_accuracy=best, best_threshold=threshold,
        auc=None if one_kind else verification.auc(cosines, same), eer=None if one_kind else verification.eer(cosines, same),
        feature_norm=float(norms.mean()), cra_u=certified_accuracies(radius_u, evaluation.eps_u), med_u=_median(radius_u),
        **_dodging_impersonation(true, false, "radius", evaluation.eps),
        certificates={one.name: _dodging_impersonation(true, false, one.column, evaluation.eps)
                      for one in further if one.column in pairs},
        n_pairs=len(pairs), n_images=len(images), n_invalid_embeddings=int((images["norm"] == 0).sum()),
        reasons={key: reason for key, reason in reasons.items() if reason})
    return cast(Summary, figures)


def certified_accuracies(radius: Any, budgets: Iterable[float]) -> ByBudget:
    """Certified accuracy by budget: in the records a wrong decision has radius 0, so the radius says it all."""
    radius = np.asarray(radius)
    return {float(eps): certification.certified_accuracy(radius > 0, radius, eps) if len(radius) else None for eps in budgets}


def _dodging_impersonation(true: pd.DataFrame, false: pd.DataFrame, radius: str, eps: Iterable[float]) -> dict[str, Any]:
    """{cra_d, med_d, cra_i, med_i} of a column of radii."""
    figures: dict[str, Any] = {}
    for kind, table in (("d", true), ("i", false)):
        radii = table.get(radius, _NONE)
        figures |= {f"cra_{kind}": certified_accuracies(radii, eps), f"med_{kind}": _median(radii)}
    return figures


def _median(radius: pd.Series) -> float | None:
    return certification.lower_median(radius.to_numpy()) if len(radius) else None
