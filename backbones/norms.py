"""Bounds from above of the norms of matrices and of convolutions, with proof, in float64. docs/soundness.md has the proofs.

For a convolution V V^T has kernels K_ij, the zero-padded correlations of rows i and j of V, and for any diagonal S > 0

    ||V||^2 <= rho(M)^(1/p),    M = S^(p-1) (sum over shifts of |(K S^-2)^(p-1) K|) S^(p-1),

the spectral radius of a symmetric matrix without negative entries. For V = T^(1/2) W, S = T^(1/2) and the p of the layer make it the claim
of (SLL-p); p = 1 needs no S. Rounding is paid for: every sum of n products carries gamma_n = n u / (1 - n u) of the sum of its magnitudes,
u = 2^-53, in whatever order it was computed, and eigenvalues come with the residual of the whole decomposition.
"""
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from backbones.powers import binary_power
from backbones.proof import UNIT, UP, UP_LITTLE, State, gamma, multiplied, norm_of_magnitudes

_MANY = 4096
_Region = tuple[slice, slice]
_known: "dict[bytes, float]" = {}


@torch.no_grad()
def norm_bound(weight: Tensor, root: Tensor | None = None, power: int = 1) -> float:
    """At least ||V|| of weights V [C, n] or [C, cin, k, k], as an operator on vectors, or on images of any size. NaN where that fails.

    root: the diagonal of S, [C], positive but where rows of V are zero; needed for k > 1 and p > 1 only. The bound of the same numbers is
    not computed twice: what is known is looked up by their SHA-256.
    """
    v = float64(weight)
    if v.dim() == 2 or v.shape[-1] == 1:  # one matrix, at every pixel
        v, root, power = v.flatten(1), None, 1
    elif root is None:
        root = torch.ones(len(v))
    return remembered(fingerprint(weight, root, power),
                      lambda: _matrix_bound(v) if root is None else _kernel_bound(v, float64(root), power))


def remembered(key: bytes, compute: Callable[[], float]) -> float:
    """The bound of this key, see `fingerprint`: what `compute` gives, kept if it is finite."""
    if key in _known:
        return _known[key]
    bound = compute()
    if math.isfinite(bound):
        if len(_known) >= _MANY:
            _known.clear()
        _known[key] = bound
    return bound


def affine_rounding(state: State, norm: float, weight: Tensor, bias: Tensor | None, positions: int = 1) -> State:
    """The rounding of z -> V z + c with V [C, n] and c [C] at each of so many positions; norm: at least ||V||."""
    shift = 0.0 if bias is None else math.sqrt(positions) * bias.norm().item() * UP
    return multiplied(state, norm, norm_of_magnitudes(weight.abs()), weight.shape[1], shift)


def fingerprint(weight: Tensor, root: Tensor | None, how: "int | str") -> bytes:
    """SHA-256 of what a bound depends on: the numbers, and how they are looked at."""
    digest = hashlib.sha256(repr((weight.dtype, tuple(weight.shape), how)).encode())
    for values in (weight,) if root is None else (weight, root):
        digest.update(memoryview(values.detach().cpu().contiguous().view(torch.uint8).numpy()).cast("B"))
    return digest.digest()


def _matrix_bound(v: Tensor) -> float:
    return math.sqrt(_gram_bound(v)) * (1 + 8 * UNIT)


def _kernel_bound(v: Tensor, root: Tensor, power: int) -> float:
    alive = v.flatten(1).any(1)
    return _convolution_bound(v[alive], root[alive], power) if alive.any() else 0.0


def float64(values: Tensor) -> Tensor:
    """In float64, which not every device has."""
    return values.detach().to(values.device if values.device.type == "cuda" else "cpu", torch.float64)


def _gram_bound(v: Tensor) -> float:
    """At least ||V||^2 of a matrix [C, n]."""
    gram = v @ v.T
    # the magnitudes |V| |V|^T that the rounding is relative to have a Frobenius norm of at most that of V, squared
    return _largest_eigenvalue(gram) + gamma(v.shape[1]) * v.square().sum().item() * UP


def _largest_eigenvalue(matrix: Tensor) -> float:
    """At least the largest eigenvalue, or 0, of the symmetric matrix that the lower triangle of `matrix` [C, C] is half of.

    With Q and L of the whole decomposition as computed, x^T G x = (Q^T x)^T L (Q^T x) + x^T (G - Q L Q^T) x for every x, so

        largest eigenvalue <= max(L, 0) ||Q||^2 + ||G - Q L Q^T||,    ||Q||^2 = ||Q Q^T|| <= 1 + ||Q Q^T - I||,

    in Frobenius norms, plus what these products are rounded by. It is NaN, and so refused, for values that are not finite.
    """
    if not matrix.isfinite().all():
        return math.nan
    symmetric = matrix.tril() + matrix.tril(-1).T
    values, vectors = torch.linalg.eigh(symmetric)
    count, squares, scale = len(matrix), vectors.square().sum().item() * UP, values.abs().amax().item()
    residual = symmetric - (vectors * values) @ vectors.T
    defect = vectors @ vectors.T - torch.eye(count, dtype=values.dtype, device=values.device)
    rounding = gamma(count + 4) * squares
    residual, defect = (found.norm().item() * UP + rounding * size for found, size in ((residual, scale), (defect, 1.0)))
    return (values.amax().clamp_min(0).item() * (1 + defect) + residual) * UP_LITTLE


class _Kernel(NamedTuple):
    """Matrix-valued kernel by shift, of two opposite shifts one (the other is its transpose), and what bounds its rounding: the sum over
    all shifts of |computed - exact| is at most `error` [C, C].
    """
    half: "dict[tuple[int, int], Tensor]"
    error: Tensor

    def at(self, shift: "tuple[int, int]") -> "Tensor | None":
        opposite = self.half.get((-shift[0], -shift[1]))
        return self.half.get(shift, opposite.T if opposite is not None else None)

    def magnitudes(self) -> Tensor:
        """At least the sum over all shifts of |exact|, [C, C]."""
        total = sum(k.abs() if any(shift) else k.abs() / 2 for shift, k in self.half.items())
        return (total + total.T + self.error) * UP_LITTLE


def _convolution_bound(v: Tensor, root: Tensor, power: int) -> float:
    """At least ||V|| of a kernel [C, cin, k, k] without zero rows, by the M above with S = diag(root)."""
    root = root / root.amax()
    inverse = root**-2  # S is what makes this exact; that root is off by rounding is within UP_LITTLE
    kernel = binary_power(_autocorrelation(v), lambda x, y: _product(x, inverse, y), power)
    outer = root ** (power - 1)
    bound = _largest_eigenvalue(outer[:, None] * kernel.magnitudes() * outer * UP_LITTLE)
    return bound ** (0.5 / power) * (1 + 8 * UNIT)


def _autocorrelation(v: Tensor) -> _Kernel:
    v, half = v.permute(0, 2, 3, 1), {}
    for here, there in half_shifts(v.shape[1]):
        half[(there[0].start - here[0].start, there[1].start - here[1].start)] = taps(v, here) @ taps(v, there).T
    rows = v.abs().sum((1, 2))  # over all shifts the magnitudes of the products add up to those of the sums over the taps
    return _Kernel(half, gamma(v[0].numel()) * (rows @ rows.T) * UP)


def half_shifts(k: int) -> Iterator[tuple[_Region, _Region]]:
    """For a k x k kernel against itself: pairs of (rows, columns) slices that overlap under the shifts (0,0) and one of each pair s, -s."""
    for dy in range(k):
        for dx in range(-k + 1 if dy else 0, k):
            yield ((slice(0, k - dy), slice(max(0, -dx), k - max(0, dx))),
                   (slice(dy, k), slice(max(0, dx), k - max(0, -dx))))


def taps(v: Tensor, region: _Region) -> Tensor:
    """The taps of a kernel [C, k, k, Cin] in one of the regions of `half_shifts`, [C, taps * Cin]."""
    return v[:, region[0], region[1]].reshape(v.shape[0], -1)


def _product(x: _Kernel, weights: Tensor, y: _Kernel) -> _Kernel:
    """The kernel of x diag(weights) y, which is symmetric as both are powers of one."""
    reach = [max(shift[0] for shift in kernel.half) for kernel in (x, y)]
    every = [(dy, dx) for dy in range(-reach[0], reach[0] + 1) for dx in range(-reach[0], reach[0] + 1)]
    radius, half = sum(reach), {}
    for shift in [(dy, dx) for dy in range(radius + 1) for dx in range(-radius if dy else 0, radius + 1)]:
        total = torch.zeros_like(x.error)
        for first in every:
            second = y.at((shift[0] - first[0], shift[1] - first[1]))
            if second is not None:
                total.addmm_(x.at(first) * weights, second)
        half[shift] = total
    of_x, of_y = x.magnitudes(), y.magnitudes()
    # |x y - computed| <= |x - computed x| |computed y| + |x| |y - computed y| + the rounding of this product
    error = (x.error * weights) @ of_y + (of_x * weights) @ y.error + gamma(len(every) * len(weights) + 4) * (of_x * weights) @ of_y
    # the shifts that are transposes of others have the rounding of y x instead
    return _Kernel(half, (error if x is y else error + error.T) * UP)
