"""Whether one network is better than another on the same pairs, or which pairs there were decides: a paired bootstrap over people.

Pairs are not independent of each other: those of one person succeed and fail together. So people are drawn, with replacement, as many as
there are, and each pair counts as often as its people were drawn: a pair of one person as often as that one, m_a, and a pair of two people
m_a m_b times. Every result is looked at with the same draw, and chooses its threshold anew on the false pairs of that draw, at the same
FAR: what is compared includes the choice of the threshold. A smoothed result keeps its threshold, which its votes are of, and the others
choose theirs for the FAR that it has in the draw.
"""
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from eval import certification
from utils import InputError

_ROUNDING = 1 + 1e-9  # of a mean of FARs that are all the same share


class Comparison(NamedTuple):
    """A figure of two sides: on the pairs as they are, the first, the second and their difference, first minus second; the interval
    [low, high] that holds 95 % of the differences of the samples, and the share of samples with a difference above 0.
    """
    first: float
    second: float
    difference: float
    low: float
    high: float
    above: float


def people_of(left: np.ndarray, right: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The people, numbered from 0, of the images left[k] and right[k] of pairs, int64 [N] each.

    A .bin does not say who is on an image. Two images show one person where a chain of true pairs connects them; an image that is in no
    true pair counts as a person of its own.
    """
    images, numbers = np.unique(np.concatenate([left, right]), return_inverse=True)
    left, right = numbers.reshape(2, -1)
    person = np.arange(len(images))
    while True:  # each image takes the smallest number among those it is connected with, and of the image of that number
        before = person.copy()
        smaller = np.minimum(person[left[same]], person[right[same]])
        np.minimum.at(person, left[same], smaller)
        np.minimum.at(person, right[same], smaller)
        person = person[person]
        if np.array_equal(person, before):
            break
    person = np.unique(person, return_inverse=True)[1]
    return person[left], person[right]


class Result:
    """The pairs of one result, ready for many samples.

    pairs: same, cosine, theta, norm_left and norm_right, [N] each, of a 1-Lipschitz network; budgets: of dodging.
    """

    def __init__(self, pairs: pd.DataFrame, budgets: Sequence[float]):
        same = pairs["same"].to_numpy()
        self.true, self.budgets = np.flatnonzero(same), budgets
        cosine = pairs["cosine"].to_numpy()
        self.false = np.flatnonzero(~same)[np.argsort(-cosine[~same], kind="stable")]
        self.scores, self.cosine = cosine[self.false], cosine[self.true]
        self.theta, self.norm = pairs["theta"].to_numpy()[self.true], pairs[["norm_left", "norm_right"]].min(axis=1).to_numpy()[self.true]

    def figures(self, weights: np.ndarray, far: float) -> np.ndarray:
        """TAR and, for each budget, CRA_D at a target FAR, where the pairs count as often as `weights` [N] says, some true and some false
        ones at all.
        """
        tau = self.threshold(weights[self.false], far)
        weights, accepted = weights[self.true], self.cosine > tau
        radius = np.zeros(len(accepted))
        radius[accepted] = certification.one_sided_radius(self.norm[accepted], self.theta[accepted], tau).numpy()
        kept = [accepted, *(radius > eps for eps in self.budgets)]
        return np.array([weights[chosen].sum() for chosen in kept]) / weights.sum()

    def threshold(self, weights: np.ndarray, far: float) -> float:
        """`rates.threshold_at_far` under "strict", where the false pairs, in falling order, count so often: the smallest of their scores
        above which at most the share `far` of them is. One outside (-1, 1) is brought inside, next to its end.
        """
        above = np.cumsum(weights) - weights
        tau = self.scores[np.searchsorted(above / weights.sum(), far, side="right") - 1]
        return float(np.clip(tau, np.nextafter(-1, 0), np.nextafter(1, 0)))


class Smoothed:
    """The pairs of a result of randomised smoothing: same and radius, [N] each, 0 for what is wrong or abstains; budgets: of dodging."""

    def __init__(self, pairs: pd.DataFrame, budgets: Sequence[float]):
        self.same, self.radius, self.budgets = pairs["same"].to_numpy(), pairs["radius"].to_numpy(), budgets

    def far(self, weights: np.ndarray) -> float:
        """The share of false pairs that are not rejected with confidence."""
        return float(weights[~self.same & (self.radius == 0)].sum() / weights[~self.same].sum())

    def figures(self, weights: np.ndarray, far: float) -> np.ndarray:
        """As those of `Result`, at its own threshold, whatever `far` is."""
        weights, radius = weights[self.same], self.radius[self.same]
        return np.array([weights[radius > eps].sum() for eps in (0., *self.budgets)]) / weights.sum()


def compare(first: Sequence[pd.DataFrame], second: Sequence[pd.DataFrame], far: float, budgets: Sequence[float], samples: int = 2000,
            seed: int = 0) -> tuple[list[Comparison], int, float]:
    """(TAR and, for each budget, CRA_D of two sides, number of people, FAR). Each side is one result or several, of other seeds say, over
    which figures are averaged within each sample.

    first, second: the pairs of results (`eval.records.Records.pairs`), the same pairs in the same order; far: the target FAR, in place of
    which that of smoothed results, their mean, is taken and returned where there are any. Raises InputError unless they are, and there are
    true and false ones.
    """
    tables = [*first, *second]
    for table in tables:
        if any(not np.array_equal(table[name], tables[0][name]) for name in ("left", "right", "same")):
            raise InputError("the results are not of the same pairs")
    left, right, same = (tables[0][name].to_numpy() for name in ("left", "right", "same"))
    if same.all() or not same.any():
        raise InputError(f"{same.sum()} true and {(~same).sum()} false pairs, expected some of both")
    people = people_of(left, right, same)
    results = [Smoothed(table, budgets) if "samples" in table else Result(table, budgets) for table in tables]
    sides, smoothed = np.repeat([0, 1], [len(first), len(second)]), [result for result in results if isinstance(result, Smoothed)]

    def target(weights: np.ndarray) -> float:
        return float(np.mean([result.far(weights) for result in smoothed])) * _ROUNDING if smoothed else far

    def of_sides(weights: np.ndarray) -> np.ndarray:
        reached = target(weights)
        found = np.array([result.figures(weights, reached) for result in results])
        return np.array([found[sides == side].mean(0) for side in (0, 1)])
    (ours, theirs), drawn = of_sides(np.ones(len(same))), np.array([of_sides(weights) for weights in draws(*people, same, samples, seed)])
    differences = drawn[:, 0] - drawn[:, 1]
    low, high = np.quantile(differences, (0.025, 0.975), axis=0)
    columns = (ours, theirs, ours - theirs, low, high, (differences > 0).mean(0))
    return ([Comparison(*map(float, figure)) for figure in zip(*columns)], int(max(map(np.max, people))) + 1,
            target(np.ones(len(same))))


def draws(left: np.ndarray, right: np.ndarray, same: np.ndarray, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each pair of the people left[k] and right[k] counts in each sample, [N]; a sample without true or without false pairs is
    drawn again.
    """
    generator = np.random.default_rng(seed)
    count = max(left.max(), right.max()) + 1
    while samples:
        times = np.bincount(generator.integers(count, size=count), minlength=count).astype(float)
        weights = np.where(left == right, times[left], times[left] * times[right])
        if weights[same].any() and weights[~same].any():
            samples -= 1
            yield weights
