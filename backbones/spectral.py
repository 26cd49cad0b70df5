"""The norm of a convolution from above by its values at a grid of frequencies: for kernels of which nothing else is known, with proof.

On infinite images, and so with zero padding on images of any size, ||V|| = sup ||V^(w)||, V^(w) = sum over taps s of V[s] e^(i w.s). For
every x, |V^(w) x|^2 is a trigonometric polynomial in each of the two frequencies, of degree k - 1 and without negative values, so that on
a grid of n x n frequencies

    ||V|| <= max over the grid of ||V^(w)|| / cos(pi (k - 1) / 2n)^2,

1.7 % above the largest value of the grid for n = 12 (k - 1). The row sums of norms.py are far above the norm of most kernels, unless these
were rescaled by them. docs/soundness.md has the proof, and that of what rounding adds.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.norms import fingerprint, float64, norm_bound, remembered
from backbones.proof import UNDERFLOW, UNIT, UP, UP_LITTLE, gamma, norm_of_magnitudes

_PART = 64  # frequencies at a time


def grid_size(kernel_size: int) -> int:
    """n, at least 12 (k - 1): a number 6 * 2^m, whose roots of unity take square roots only."""
    return 6 * 2 ** max(0, math.ceil(math.log2(2 * (kernel_size - 1)))) if kernel_size > 1 else 1


def grid_loss(kernel_size: int) -> float:
    """cos(pi (k - 1) / 2n)^2, rounded down: what the norm times this is at most the largest value on the grid."""
    return 1.0 if kernel_size == 1 else (1 + _roots(2 * grid_size(kernel_size))[kernel_size - 1].real) / 2 * (1 - 1e-12)


def grid_phases(kernel_size: int) -> Tensor:
    """e^(i w.s) at the frequencies of the grid, of each w and -w one at least, for the k^2 taps s of a kernel, [frequencies, k k]."""
    n, k = grid_size(kernel_size), kernel_size
    roots = torch.tensor(_roots(n), dtype=torch.complex128, device="cpu")
    phases = roots[torch.outer(torch.arange(n, device="cpu"), torch.arange(k, device="cpu")) % n]  # [n, k]
    return (phases[:, None, :, None] * phases[None, :n // 2 + 1, None, :]).reshape(-1, k * k)


@torch.no_grad()
def spectral_bound(weight: Tensor, guess: float = 0.0) -> float:
    """At least ||V|| of weights V [C, cin, k, k] as an operator on images of any size; NaN where that fails.

    guess: a number that may be such a bound. It is what comes back, or little more, where it is one; else a bound is found without it.
    """
    if weight.shape[-1] == 1:
        return norm_bound(weight)
    return remembered(fingerprint(weight, None, f"spectral {guess}"), lambda: _grid_bound(float64(weight), guess))


def _grid_bound(v: Tensor, guess: float) -> float:
    if not v.isfinite().all():
        return math.nan
    if not v.any():
        return 0.0
    scale = 2.0 ** (math.frexp(v.abs().amax().item())[1] - 1)  # a power of two, so that no square overflows or vanishes
    v, loss, error = v / scale, grid_loss(v.shape[-1]), 0.0
    level = min(guess / scale * loss, 1e100) ** 2
    for values in _spectrum(v).split(_PART):
        values = values if len(v) <= v.shape[1] else values.mH
        level, residual = _level(values @ values.mH, level)
        error = max(error, residual + gamma(4 * values.shape[2] + 4) * _largest_square(values))
    # phases are products of two roots, each off by n 2^-50, and there are k^2 of them to be added
    off = (grid_size(v.shape[-1]) * 2.0**-48 + gamma(2 * v[0, 0].numel() + 4)) * norm_of_magnitudes(v.abs().sum((2, 3)))
    return (math.sqrt((level + error) * UP_LITTLE + UNDERFLOW) + off) / loss * scale * UP_LITTLE


def _level(grams: Tensor, least: float) -> "tuple[float, float]":
    """(c, e) with eigenvalues of the Hermitian matrices [n, C, C] of at most c + e, and c >= least, which it is where that is enough.

    For L as it comes out of a decomposition of c I - G, right or wrong, x* G x = c |x|^2 - |L* x|^2 - x* R x <= (c + ||R||) |x|^2 with
    R = c I - G - L L*.
    """
    count, level, estimate, share = grams.shape[-1], least, math.nan, 1e-3
    identity = torch.eye(count, dtype=grams.dtype, device=grams.device)
    while not math.isinf(level):
        lower, failed = torch.linalg.cholesky_ex(level * identity - grams)
        if not failed.any():
            residual = level * identity - grams - lower @ lower.mH
            # each entry is off by gamma_4C of |L| |L*|, and what it is taken from is rounded twice
            sizes = _largest_square(lower) + level * math.sqrt(count) + math.sqrt(_largest_square(grams))
            return level, (math.sqrt(_largest_square(residual)) + gamma(4 * count + 4) * sizes) * UP
        estimate = max(_largest_eigenvalue(grams), UNIT) if math.isnan(estimate) else estimate  # 0 where a kernel ends low frequencies
        level, share = max(least, estimate * (1 + share)), 2 * share
    return math.nan, math.nan


def _largest_square(values: Tensor) -> float:
    """At least the largest squared Frobenius norm of matrices [n, ...]."""
    return values.abs().square().sum((1, 2)).amax().item() * UP


def _largest_eigenvalue(grams: Tensor) -> float:
    """About the largest eigenvalue of Hermitian matrices [n, C, C], by power iteration: a start, and no more."""
    x = torch.randn(grams.shape[-1], 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(grams)
    x = x.expand(len(grams), -1, -1)
    for _ in range(30):
        x = F.normalize(grams @ x, dim=1, eps=1e-300)
    return (grams @ x).norm(dim=1).amax().item()


def _spectrum(v: Tensor) -> Tensor:
    """V^ at the frequencies of the grid, [frequencies, C, cin]."""
    phases = grid_phases(v.shape[-1]).to(v.device)
    return (phases @ v.flatten(2).permute(2, 0, 1).flatten(1).to(phases)).unflatten(1, v.shape[:2])


def _roots(n: int) -> "list[complex]":
    """e^(2 pi i m / n) for m < n, n = 6 * 2^h or 1, by halves of angles and products without a claim on any library: the
    first is off by less than 3 u, u = 2^-53, and each product adds that and less than 3 u, so that all are off by less than n 2^-50.
    """
    root = complex(0.5, math.sqrt(0.75))
    for _ in range(round(math.log2(n / 6)) if n > 1 else 0):
        real = math.sqrt((1 + root.real) / 2)
        root = complex(real, root.imag / (2 * real))
    found = [complex(1)]
    for _ in range(n - 1):
        found.append(found[-1] * root)
    return found
