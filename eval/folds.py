"""k-fold verification accuracy as the field computes it, and the functions of embeddings that forks of insightface call.

Two embeddings, a row each of embeddings1 and embeddings2 [N, D], are taken as one person's iff their squared distance is below a threshold:
rows are unit vectors, so it is 2 - 2 cos. Where one has no direction (`utils.directions`) the distance is infinite: rejected at every
threshold. docs/published_names.md says where results differ from what these names returned elsewhere.
"""
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from utils import InputError
from utils.directions import norms

FAR_TARGET = 1e-3  # of `evaluate`


def ten_fold_accuracy(cosines: np.ndarray, same: np.ndarray, folds: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over ten folds of the accuracy at the threshold that is best on the other nine.

    As the field does it: consecutive folds, thresholds 0, 0.01, ..., 3.99 on the squared distance 2 - 2 cos of unit embeddings, the first
    of the best ones, same iff the distance is below it. Raises InputError for fewer pairs than folds.
    """
    same = np.asarray(same, dtype=bool)
    accepted = 2 - 2 * np.asarray(cosines, dtype=np.float64) < np.arange(0, 4, 0.01)[:, None]
    accuracies = [_test_accuracy(accepted == same, *fold) for fold in LFold(folds).split(same)]
    return float(np.mean(accuracies)), float(np.std(accuracies))


class LFold:
    """Consecutive folds, the first ones longer by one where they are not equal; one fold alone is both trained and tested on."""

    def __init__(self, n_splits: int = 2, shuffle: bool = False):
        if n_splits < 1 or shuffle:
            raise InputError(f"n_splits is {n_splits} and shuffle {shuffle}, expected 1 or more folds, not shuffled")
        self.n_splits = n_splits

    def split(self, indices: Sequence) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(train, test), numbers of elements, for each fold. Raises InputError for fewer elements than folds."""
        numbers = np.arange(len(indices))
        if len(numbers) < self.n_splits:
            raise InputError(f"{self.n_splits}-fold accuracy needs at least {self.n_splits} pairs, found {len(numbers)}")
        for test in np.array_split(numbers, self.n_splits):
            yield (numbers if self.n_splits == 1 else np.setdiff1d(numbers, test)), test


def evaluate(embeddings: np.ndarray, actual_issame: Sequence[bool], nrof_folds: int = 10, pca: int = 0) -> tuple:
    """(tpr, fpr, accuracy, val, val_std, far) of unit embeddings [2 N, D], those of a pair one after the other.

    tpr, fpr [400], accuracy [folds]: of `calculate_roc` at the thresholds 0, 0.01, ..., 3.99; the others of `calculate_val` for FAR 1e-3 at
    0, 0.001, ..., 3.999. Raises InputError for another number of embeddings than two for each label, and for fewer pairs than folds.
    """
    left, right = embeddings[0::2], embeddings[1::2]
    rates = calculate_roc(np.arange(0, 4, 0.01), left, right, actual_issame, nrof_folds, pca)
    return *rates, *calculate_val(np.arange(0, 4, 0.001), left, right, actual_issame, FAR_TARGET, nrof_folds)


def calculate_roc(thresholds: np.ndarray, embeddings1: np.ndarray, embeddings2: np.ndarray, actual_issame: Sequence[bool],
                  nrof_folds: int = 10, pca: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tpr [T], fpr [T], accuracy [folds]): rates at each threshold, the mean over the folds, and the accuracy of each at the threshold
    that is best on the others. pca > 0: of so many principal components, found on the others, normalised again.
    """
    same, thresholds = _labels(embeddings1, embeddings2, actual_issame), np.asarray(thresholds)
    rates, accuracies = [], []
    distances = _distances(embeddings1, embeddings2)
    for train, test in LFold(nrof_folds).split(same):
        if pca:
            distances = _distances(*_principal(embeddings1, embeddings2, train, pca))
        accepted = distances < thresholds[:, None]
        rates.append([[_share(row[test], kind[test]) for row in accepted] for kind in (same, ~same)])
        accuracies.append(_test_accuracy(accepted == same, train, test))
    tpr, fpr = np.mean(rates, 0)
    return tpr, fpr, np.array(accuracies)


def calculate_accuracy(threshold: float, dist: np.ndarray, actual_issame: Sequence[bool]) -> tuple[float, float, float]:
    """(tpr, fpr, accuracy) of squared distances [N] at a threshold; a rate of no pairs is 0."""
    accepted, same = np.less(dist, threshold), np.asarray(actual_issame, dtype=bool)
    return _share(accepted, same), _share(accepted, ~same), float(np.mean(accepted == same))


def calculate_val(thresholds: np.ndarray, embeddings1: np.ndarray, embeddings2: np.ndarray, actual_issame: Sequence[bool],
                  far_target: float, nrof_folds: int = 10) -> tuple[float, float, float]:
    """(val, val_std, far): mean and deviation over the folds of the share of true pairs accepted, and the mean share of false ones, at the
    largest threshold whose FAR on the other folds is at most far_target; at 0 where none is.
    """
    same, thresholds = _labels(embeddings1, embeddings2, actual_issame), np.asarray(thresholds)
    distances, found = _distances(embeddings1, embeddings2), []
    for train, test in LFold(nrof_folds).split(same):
        false = np.sort(distances[train][~same[train]])
        far = np.searchsorted(false, thresholds) / max(1, len(false))
        threshold = max(thresholds[far <= far_target], default=0.)
        found.append(calculate_val_far(threshold, distances[test], same[test]))
    vals, fars = np.transpose(found)
    return float(vals.mean()), float(vals.std()), float(fars.mean())


def calculate_val_far(threshold: float, dist: np.ndarray, actual_issame: Sequence[bool]) -> tuple[float, float]:
    """(val, far): the shares of the true and of the false pairs with a squared distance [N] below the threshold; 0 of no pairs."""
    return calculate_accuracy(threshold, dist, actual_issame)[:2]


def _test_accuracy(right: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """The share of right decisions [T, N] of the test pairs, at the first of the thresholds that are best for the others."""
    best = np.argmax(right[:, train].sum(1))
    return right[best, test].mean()


def _share(accepted: np.ndarray, kind: np.ndarray) -> float:
    return float(accepted[kind].mean()) if kind.any() else 0.


def _labels(embeddings1: np.ndarray, embeddings2: np.ndarray, actual_issame: Sequence[bool]) -> np.ndarray:
    same = np.asarray(actual_issame, dtype=bool)
    if not len(embeddings1) == len(embeddings2) == len(same):
        raise InputError(f"{len(embeddings1)} and {len(embeddings2)} embeddings for {len(same)} labels, expected one of each")
    return same


def _distances(embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
    u, v = (torch.as_tensor(embeddings).double() for embeddings in (embeddings1, embeddings2))
    return torch.where((norms(u) > 0) & (norms(v) > 0), (u - v).square().sum(1), torch.inf).numpy()


def _principal(embeddings1: np.ndarray, embeddings2: np.ndarray, train: np.ndarray, count: int) -> list[np.ndarray]:
    sides = [np.asarray(embeddings, dtype=np.float64) for embeddings in (embeddings1, embeddings2)]
    known = np.concatenate([side[train] for side in sides])
    known = known[np.isfinite(known).all(1)]
    centre = known.mean(0)
    axes = np.linalg.svd(known - centre, full_matrices=False)[2][:count]
    reduced = [(side - centre) @ axes.T for side in sides]
    return [side / np.linalg.norm(side, axis=1, keepdims=True) for side in reduced]
