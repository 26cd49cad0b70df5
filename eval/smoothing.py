"""Certified radii of randomised smoothing: pure functions of how a decision fares under Gaussian noise. No network has to be Lipschitz.

A score h of images, in [0, 1], is smoothed to p(x) = E h(x + sigma Z), Z standard normal. Phi^-1(p) changes by |x' - x| / sigma at most, so
that p stays above a threshold t while

    |x' - x| < sigma (Phi^-1(p(x)) - Phi^-1(t)).

Of majorities, h is whether the noisy pair is decided as it was and t = 1/2; of means, h is (1 + cos) / 2. p is bounded from samples, with
confidence 1 - alpha. Everything is float64, and rounded down: never above the exact value for the true p if the bound is below that.

docs/certificates.md, section 7, has the proofs; eval/noise.py draws the samples, eval/smoothed.py makes records of them.
"""
import dataclasses
import math
from collections.abc import Mapping
from decimal import ROUND_DOWN, Context, Decimal
from typing import Any

import numpy as np
from scipy.special import betaincinv, ndtri

from utils import InputError

# More than the rounding of betaincinv and of ndtri, relative: tests compare them with 50 digits.
_QUANTILE, _ROUNDING = 1e-9, 2.0 ** -46
_BISECTIONS = 60
THREATS = ("one", "joint")
SIGMAS = 1e-3, 1e3  # what float32 has room for beside an image


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """How decisions are smoothed and certified.

    sigma: of the noise, in the scale of pixels in [-0.5, 0.5]. n0, n: samples that select, and samples that certify. alpha: the chance that
    a radius is too large. limit: only the first so many true and so many false pairs, and their images. threat: "one" image is presented
    and attacked, or both are and share a budget, "joint". Raises InputError, naming the setting, for what cannot be used.
    """
    sigma: float
    n0: int = 100
    n: int = 1000
    alpha: float = 1e-3
    seed: int = 0
    limit: int | None = None
    threat: str = "one"

    def __post_init__(self) -> None:
        if not SIGMAS[0] <= self.sigma <= SIGMAS[1]:
            raise InputError(f"sigma is {self.sigma}, expected a number from {SIGMAS[0]:g} to {SIGMAS[1]:g}")
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha is {self.alpha}, expected a number between 0 and 1")
        if not 1 <= self.n0 <= self.n:
            raise InputError(f"n0 is {self.n0} and n is {self.n}, expected at least one sample that selects, and no fewer that certify")
        if not lower_probability(self.n, self.n, self.alpha) > 0.5:
            raise InputError(f"n is {self.n}: not even samples that all agree certify anything at alpha {self.alpha:g}, expected at least "
                             f"{math.floor(math.log2(1 / self.alpha)) + 1}")
        if self.threat not in THREATS:
            raise InputError(f"threat is {self.threat!r}, expected one of {', '.join(THREATS)}")
        if self.seed < 0 or self.limit is not None and self.limit < 1:
            raise InputError(f"seed is {self.seed} and limit is {self.limit}, expected a number from 0, and one from 1 or none")

    def radius(self, accepts: Any, votes: Any) -> np.ndarray:
        """l2 radii [...] of decisions that accept [...], or reject, where so many of n samples accept, votes [...]; 0: they abstain."""
        probability = lower_probability(np.where(accepts, votes, self.n - np.asarray(votes)), self.n, self.alpha)
        return smoothed_radius(probability, self.applied)

    @property
    def applied(self) -> float:
        """sigma as it is multiplied with the noise, in float32."""
        return float(np.float32(self.sigma))

    @property
    def label(self) -> str:
        """What tables call the certificate."""
        both = " of both images" if self.threat == "joint" else ""
        return f"smoothing{both}, sigma {self.sigma:g}, {confidence(self.alpha)} confidence"

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> "Smoothing":
        """The settings that a result was made with, from its summary."""
        return cls(**{field.name: summary["smoothing"][field.name] for field in dataclasses.fields(cls)})


def confidence(alpha: float) -> str:
    """1 - alpha as text, in percent, and never more."""
    exact = Context(rounding=ROUND_DOWN).subtract(Decimal(100), 100 * Decimal(repr(alpha)))
    return f"{exact.normalize():f} %"


def lower_probability(votes: Any, draws: int, alpha: float) -> np.ndarray:
    """The one-sided lower bound of Clopper and Pearson at confidence 1 - alpha of a probability, from `votes` [...] of `draws` samples.

    The p at which so many votes or more have probability alpha: a quantile of the beta distribution; 0 without votes.
    """
    votes = np.asarray(votes, dtype=np.float64)
    found = betaincinv(np.maximum(votes, 1), draws - votes + 1, alpha)
    return np.where(votes > 0, found * (1 - _QUANTILE), 0.)


def smoothed_radius(probability: Any, sigma: float, threshold: Any = 0.5) -> np.ndarray:
    """l2 radii [...]: sigma (Phi^-1(p) - Phi^-1(t)) for p [...] above the threshold t [...], both in [0, 1], else 0; of p = 1, which no
    samples prove, that of the number below.

    By the lemma of Neyman and Pearson there is a score with this p for which any larger change brings it to t.
    """
    probability = np.minimum(np.asarray(probability, dtype=np.float64), np.nextafter(1, 0))
    quantile, least = ndtri(probability), ndtri(threshold)
    apart = (quantile - np.abs(quantile) * _ROUNDING) - (least + np.abs(least) * _ROUNDING)
    return np.where(probability > threshold, sigma * np.maximum(np.nan_to_num(apart), 0.) * (1 - _ROUNDING), 0.)


def stake(variance: Any, draws: int, alpha: float) -> np.ndarray:
    """What `lower_mean` is to bet on scores of about this variance, in [0, 1]: about the best, and no other makes its bound wrong."""
    wanted = 2 * np.log(1 / alpha) / draws
    return np.sqrt(wanted / np.maximum(np.asarray(variance, dtype=np.float64), wanted))


def lower_mean(scores: np.ndarray, bet: float, alpha: float) -> float:
    """A lower bound at confidence 1 - alpha of the mean of scores in [0, 1], from independent samples [n] of it.

    The m at which prod_i (1 + bet (score_i - m)) is 1 / alpha. Were the mean at most m, each factor would have mean 1 or less, and the
    product would reach 1 / alpha with probability alpha at most (Markov). bet in [0, 1] must not depend on these samples.
    """
    low, high, needed = 0., float(scores.mean()), np.log(1 / alpha) * (1 + _ROUNDING)
    if not np.log1p(bet * scores).sum() >= needed:
        return 0.
    for _ in range(_BISECTIONS):  # the product falls as m rises, and at the mean of the samples it is 1 at most
        middle = (low + high) / 2
        with np.errstate(divide="ignore"):
            enough = np.log1p(bet * (scores - middle)).sum() >= needed
        low, high = (middle, high) if enough else (low, middle)
    return low
