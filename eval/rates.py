"""Error rates, areas and thresholds of scores: pure functions of the cosines of pairs and of whether each shows one person.

A pair is accepted iff its cosine is > tau; -inf, of an embedding without direction, is rejected at every threshold and counts in every
denominator.
"""
import warnings

import numpy as np

from eval.certification import is_paper
from utils import InputError


def threshold_at_far(cosines: np.ndarray, same: np.ndarray, far: float, protocol: str = "strict",
                     names: tuple[str, str] = ("false pairs", "FAR")) -> float:
    """The threshold tau for the target false-acceptance rate `far`.

    strict: the smallest of the scores whose FAR is <= far. paper: the first of 1,000 even steps from 1 down to -1 whose
    FAR exceeds far (section 5 of the reproduced paper). names: what messages call the false ones and their rate. Warns where
    the set has too few false pairs to resolve `far`; raises InputError where there are none, where no threshold inside
    (-1, 1) exists, and unless 0 < far < 1.
    """
    if not 0 < far < 1:
        raise InputError(f"far is {far}, expected a number between 0 and 1")
    negatives = np.sort(np.asarray(cosines, dtype=np.float64)[~np.asarray(same, dtype=bool)])[::-1]
    count = len(negatives)
    if not count:
        raise InputError(f"no {names[0]}, so no threshold has a {names[1]}: give tau")
    if count * far < 1:
        warnings.warn(f"{count} {names[0]} are too few for {names[1]} {far:g}: the finest they support is {1 / count:.2g}",
                      stacklevel=2)
    if is_paper(protocol):
        grid = np.linspace(-1, 1, 1000)[::-1]
        accepted = count - np.searchsorted(negatives[::-1], grid, side="right")
        exceeding = accepted / count > far
        tau = grid[np.argmax(exceeding)] if exceeding.any() else -1.
    else:
        # FAR changes only at scores of false pairs: take the one with as many of them above itself as are tolerable
        tolerated = np.searchsorted(np.arange(count) / count, far, side="right") - 1
        tau = negatives[tolerated]
    if not -1 < tau < 1:
        raise InputError(f"no threshold inside (-1, 1) has {names[1]} {far:g}: the scores give {tau:g}; give tau")
    return float(tau)


def tar_far(cosines: np.ndarray, same: np.ndarray, tau: float) -> tuple[float | None, float | None]:
    """(TAR, FAR): shares of the true and of the false pairs with cosine > tau; None where there are no such pairs."""
    accepted, same = np.asarray(cosines) > tau, np.asarray(same, dtype=bool)
    return tuple(float(accepted[kind].mean()) if kind.any() else None for kind in (same, ~same))


def best_accuracy(cosines: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    """(accuracy, threshold): the largest share of right decisions that any threshold has on these very pairs, and that threshold, a score
    (or -1, at which all with a direction are accepted).
    """
    cosines, same = np.asarray(cosines, dtype=np.float64), np.asarray(same, dtype=bool)
    order = np.argsort(-cosines, kind="stable")
    scores = cosines[order]
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)  # equal scores pass together
    right = np.append(0, np.cumsum(np.where(same[order], 1, -1))[last]) + (~same).sum()  # with the first 0, 1, ... scores accepted
    right[-1] = -1 if np.isneginf(scores[-1]) else right[-1]  # which no threshold accepts
    thresholds = np.append(scores[np.append(0, last[:-1] + 1)], -1.)
    best = int(np.argmax(right))
    return float(right[best] / len(same)), float(max(thresholds[best], -1.))


def roc(cosines: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(FAR, TAR) at every distinct score, from (0, 0) to (1, 1). Raises InputError unless there are both true and
    false pairs.
    """
    cosines, same = np.asarray(cosines), np.asarray(same, dtype=bool)
    if same.all() or not same.any():
        raise InputError("a ROC curve needs both true and false pairs")
    order = np.argsort(-cosines)
    falling, same = cosines[order], same[order]
    ends = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)  # equal scores pass together
    far, tar = (np.append(0, np.cumsum(kind)[ends]) / kind.sum() for kind in (~same, same))
    return far, tar


def auc(cosines: np.ndarray, same: np.ndarray) -> float:
    """Area under the ROC curve. Raises InputError unless there are both true and false pairs."""
    far, tar = roc(cosines, same)
    return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1]) / 2))


def eer(cosines: np.ndarray, same: np.ndarray) -> float:
    """Equal error rate: FAR where it equals 1 - TAR, the ROC curve taken as straight between its points. Raises as
    `roc`.
    """
    far, tar = roc(cosines, same)
    return float(np.interp(0, far + tar - 1, far))
