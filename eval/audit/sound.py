"""Certified radii that hold in floating point: proven bounds for the network, its rounding and the rounding of every decision.

With u and v the embeddings as computed, E the bound of their error, L the Lipschitz constant and D their length, the decision of a pair
does not change while one image moves by less than

    R = (||u|| (sin(min(delta, pi/2)) - 4 E / ||v||) - 2 E) / L,

delta from the cosine and tau, each widened by what a cosine is rounded by, and every operation rounded down. docs/soundness.md has the
proof and says which function and which arithmetic this is about. Only +, -, *, / and square roots are used, which IEEE 754 rounds
correctly.
"""
import dataclasses
from typing import Any

import numpy as np

from backbones.bounds import UNIT, gamma
from backbones.sound import Proof, Sound
from eval import records
from eval.evaluation import Evaluation
from eval.records import Records
from eval.store.results import SOUND
from eval.verification import PairSet

_SUFFIX = "_sound"
_SMALLEST, _LARGEST = 1e-140, 1e140  # norms whose squares are ordinary numbers, those of their entries that matter as well


def prove(network: Sound, pair_set: PairSet) -> Proof:
    """The proof for images of the size of the first one, which all images of a pair set have."""
    return network.prove(pair_set.image_size)


def add(result: Records, proof: Proof) -> None:
    """Add radius_sound to the pairs and radius_u_sound to the images of a result made with a `Sound` network, and to its summary
    their figures (cra_u_sound ... med_i_sound), sound_lipschitz (L) and sound_error (E).
    """
    pairs, images, tau = result.pairs, result.images, result.summary["tau"]
    left, right, cosine, accepted = (pairs[name].to_numpy() for name in ("norm_left", "norm_right", "cosine", "accepted"))
    radius = np.minimum(*(pair_radius(*norms, cosine, accepted, tau, proof) for norms in ((left, right), (right, left))))
    of_pairs, of_images = SOUND
    pairs[of_pairs] = np.where(pairs["accepted"] == pairs["same"], radius, 0.)
    images[of_images] = untargeted_radius(images["norm"].to_numpy(), tau, proof)
    figures = records.summarise(pairs.assign(radius=pairs[of_pairs]), images.assign(radius_u=images[of_images]),
                                dataclasses.replace(Evaluation.of(result.summary), tau=tau))
    result.figures.update({f"{key}{_SUFFIX}": value for key, value in figures.items() if key.startswith(("cra_", "med_"))})
    result.summary.update({"sound_lipschitz": proof.lipschitz, "sound_error": proof.error})


def pair_radius(norm: Any, other_norm: Any, cosine: Any, accepted: Any, tau: float, proof: Proof) -> np.ndarray:
    """R [N] for an attack on the image whose embedding has `norm`; 0 where nothing is proven.

    norm, other_norm, cosine: as `verification.norms` and `pair_cosines` compute them; accepted: whether cosine > tau.
    """
    cosine, accepted = np.asarray(cosine, dtype=np.float64), np.asarray(accepted, dtype=bool)
    rounding, side = _cosine_error(proof.dimension), np.where(accepted, 1., -1.)
    # towards each other: the exact cosine may be nearer to the threshold, and so may cosines that will be computed be to theirs
    return _radius(norm, other_norm, cosine - side * rounding, tau + side * rounding, side, proof)


def untargeted_radius(norm: Any, tau: float, proof: Proof) -> np.ndarray:
    """R [N] for an attack on an image that is compared with itself as it was: the exact cosine is 1."""
    norm = np.asarray(norm, dtype=np.float64)
    return _radius(norm, norm, np.ones_like(norm), tau + _cosine_error(proof.dimension), 1., proof)


def _cosine_error(dimension: int) -> float:
    """What a computed cosine of two vectors may be off by, twice over: 2D + 8 roundings of numbers up to 1."""
    return gamma(4 * dimension + 32)


def _radius(norm: Any, other_norm: Any, cosine: np.ndarray, tau: Any, side: Any, proof: Proof) -> np.ndarray:
    norm, other_norm = (np.asarray(values, dtype=np.float64) for values in (norm, other_norm))
    usable = (np.minimum(norm, other_norm) > _SMALLEST) & (np.maximum(norm, other_norm) < _LARGEST)
    usable &= (side * (cosine - tau) > 0) & (abs(tau) < 1)
    cosine, tau = np.where(usable, cosine, 0.).clip(-1, 1), np.where(usable, tau, 0.)
    norm, other_norm = np.where(usable, norm, 1.), np.where(usable, other_norm, 1.)
    sines = [np.sqrt((1 - value) * (1 + value)) for value in (cosine, tau)]
    # each product is off by less than 4 units of itself, and is at most 1 in size: 16 units pay for both and the sum
    sine = side * (sines[1] * cosine - tau * sines[0]) - 16 * UNIT
    beyond = cosine * tau + sines[0] * sines[1] + 16 * UNIT <= 0  # delta is at least 90 degrees: the origin is the nearest point
    sine = np.where(beyond, 1., sine) - 4 * proof.error / other_norm * (1 + 8 * UNIT)
    usable &= 2 * proof.error < other_norm
    norm = norm * (1 - gamma(proof.dimension + 8))
    # a few more operations, each off by one unit of its terms
    reach = norm * (sine - 4 * UNIT) - 2 * proof.error * (1 + 8 * UNIT) - 4 * UNIT * norm
    return np.where(usable & (reach > 0), reach / proof.lipschitz * (1 - 8 * UNIT), 0.)
