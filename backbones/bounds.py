"""The Lipschitz constant of a network of SLL layers, bounded from above with proof from the weights that it was given.

Each layer is one whose bound is known: SLL layers, for which it is computed here in float64 from the rescaled weights V that the
forward pass uses, and layers without parameters that are 1-Lipschitz as they are. Anything else has no bound. docs/soundness.md has the
proofs.

A dense layer V z + c has the constant ||V||, whose square is the largest eigenvalue of the Gram matrix V V^T. An SLL block
z - 2 V^T relu(V z + c) has max(1, 2 ||V||^2 - 1), whatever c is: its Jacobian I - 2 V^T D V, 0 <= D <= 1, lies between 1 - 2 ||V||^2
and 1. For a convolution V V^T has kernels K_ij, the zero-padded correlations of rows i and j of V, and for any diagonal S > 0

    ||V||^2 <= rho(M)^(1/p),    M = S^(p-1) (sum over shifts of |(K S^-2)^(p-1) K|) S^(p-1),

the spectral radius of a symmetric matrix without negative entries. S = T^(1/2) and the p of the layer make it the claim of (SLL-p); p = 1
needs no S. Rounding is paid for: every sum of n products carries gamma_n = n u / (1 - n u) of the sum of its magnitudes, u = 2^-53, in
whatever order it was computed, and eigenvalues come with the residual of the whole decomposition.
"""
import math
from typing import Iterator, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from backbones.custom_layers import SLLConv2d, SLLLinear, SLLStage
from backbones.powers import binary_power
from backbones.rescaling import half_shifts, taps
from backbones.shapes import Downsize, FirstChannels, HaarDownsize, MaxMin, PaddingChannels, RemoveMean
from utils import InputError

# of ||V|| in float32: the entries of V are off by 6e-8 of themselves each, and so is the norm, a few times over
TOLERANCE = 1e-5
NON_EXPANSIVE = (RemoveMean, PaddingChannels, FirstChannels, MaxMin, Downsize, HaarDownsize, nn.PixelUnshuffle, nn.Flatten, nn.Identity)
_CONTAINERS = (SLLStage, nn.Sequential)
UNIT = 2.0**-53
_UP = 1 + 1e-9  # more than the rounding of the norms and of the sums without cancellation that make an error bound here
_UP_LITTLE = 1 + 1e-12  # the same for a handful of operations


def gamma(n: int) -> float:
    """At least n u / (1 - n u): the relative error of a sum of n products in float64, in any order, of the sum of their magnitudes."""
    return 1.001 * n * UNIT


def lipschitz_bound(network: nn.Module) -> float:
    """An upper bound of the Lipschitz constant in l2 of a network that applies its layers one after another: the product of theirs.

    It may be below 1, as the last layer's is. Raises InputError, naming the layer, for values that are not finite, for a layer of another
    kind than those above and for an SLL layer whose ||V|| is above 1 by more than rounding.
    """
    constants = []
    for name, layer in sll_layers(network):
        norm = norm_bound(name, layer, layer.rescaled()[0])
        constants.append(layer_constant(layer, norm))
        if not norm <= 1 + TOLERANCE:
            raise InputError(f"layer {name}: its Lipschitz constant may be {constants[-1]:.6g}, expected at most 1: "
                             "no certificate holds for it")
    return product(constants)


def product(constants: Sequence[float]) -> float:
    """Of at most a thousand constants, rounded up."""
    return math.prod(constants) * _UP_LITTLE


def layer_constant(layer: "SLLConv2d | SLLLinear", norm: float) -> float:
    """The Lipschitz constant of an SLL layer whose ||V|| is at most `norm`; NaN of NaN, which `max` would drop in its second place."""
    return norm if isinstance(layer, SLLLinear) else max((2 * norm**2 - 1) * (1 + 4 * UNIT), 1.0)


def sll_layers(network: nn.Module) -> "Iterator[tuple[str, SLLConv2d | SLLLinear]]":
    """The SLL layers by name. Raises InputError where there is anything else that could change a Lipschitz constant."""
    for name, layer in network.named_modules():
        if layer is network or type(layer) in (*_CONTAINERS, *NON_EXPANSIVE):
            continue
        if type(layer) not in (SLLConv2d, SLLLinear):
            raise InputError(f"layer {name}: {type(layer).__name__} has no known Lipschitz constant, expected layers of SLL networks")
        yield name, layer
    own = dict(network.named_parameters(recurse=False)) | dict(network.named_buffers(recurse=False))
    if own:
        raise InputError(f"{next(iter(own))} of {type(network).__name__}: parameters outside of layers have no known Lipschitz constant")


@torch.no_grad()
def norm_bound(name: str, layer: "SLLConv2d | SLLLinear", weight: Tensor) -> float:
    """At least ||V|| of the rescaled weights V of an SLL layer, as an operator on images or vectors of any size.

    Raises InputError for values that are not finite.
    """
    for key, value in layer.state_dict().items():
        if bad := int((~value.isfinite()).sum()):
            raise InputError(f"{name}.{key}: {bad} of {value.numel()} values are not finite: no certificate holds for such weights")
    if not weight.isfinite().all():
        raise InputError(f"layer {name}: the rescaled weights are not finite")
    v, w = (_float64(values) for values in (weight, layer.weight))
    if weight.dim() == 2 or weight.shape[-1] == 1:  # one matrix, at every pixel
        return math.sqrt(_gram_bound(v.flatten(1))) * (1 + 8 * UNIT)
    alive = v.flatten(1).any(1)
    if not alive.any():
        return 0.0
    largest = [values[alive].flatten(1).abs().amax(1) for values in (v, w)]
    return _convolution_bound(v[alive], largest[0] / largest[1], layer.power)  # the quotient is the root of t, or close to it


def _float64(values: Tensor) -> Tensor:
    """In float64, which not every device has."""
    return values.detach().to(values.device if values.device.type == "cuda" else "cpu", torch.float64)


def _gram_bound(v: Tensor) -> float:
    """At least ||V||^2 of a matrix [C, n]."""
    gram = v @ v.T
    # the magnitudes |V| |V|^T that the rounding is relative to have a Frobenius norm of at most that of V, squared
    return _largest_eigenvalue(gram) + gamma(v.shape[1]) * v.square().sum().item() * _UP


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
    count, squares, scale = len(matrix), vectors.square().sum().item() * _UP, values.abs().amax().item()
    residual = symmetric - (vectors * values) @ vectors.T
    defect = vectors @ vectors.T - torch.eye(count, dtype=values.dtype, device=values.device)
    rounding = gamma(count + 4) * squares
    residual, defect = (found.norm().item() * _UP + rounding * size for found, size in ((residual, scale), (defect, 1.0)))
    return (values.amax().clamp_min(0).item() * (1 + defect) + residual) * _UP_LITTLE


class _Kernel(NamedTuple):
    """Matrix-valued kernel by shift, of two opposite shifts one (the other is its transpose), and what bounds its rounding: the sum over
    all shifts of |computed - exact| is at most `error` [C, C].
    """
    half: "dict[tuple[int, int], Tensor]"
    error: Tensor

    def at(self, shift: "tuple[int, int]") -> "Tensor | None":
        opposite = self.half.get((-shift[0], -shift[1]))
        return self.half[shift] if shift in self.half else opposite.T if opposite is not None else None

    def magnitudes(self) -> Tensor:
        """At least the sum over all shifts of |exact|, [C, C]."""
        total = sum(k.abs() if any(shift) else k.abs() / 2 for shift, k in self.half.items())
        return (total + total.T + self.error) * _UP_LITTLE


def _convolution_bound(v: Tensor, root: Tensor, power: int) -> float:
    """At least ||V|| of a kernel [C, cin, k, k] without zero rows, by the M above with S = diag(root)."""
    root = root / root.amax()
    inverse = root**-2  # S is what makes this exact; that root is off by rounding is within _UP_LITTLE
    kernel = binary_power(_autocorrelation(v), lambda x, y: _product(x, inverse, y), power)
    outer = root ** (power - 1)
    bound = _largest_eigenvalue(outer[:, None] * kernel.magnitudes() * outer * _UP_LITTLE)
    return bound ** (0.5 / power) * (1 + 8 * UNIT)


def _autocorrelation(v: Tensor) -> _Kernel:
    v, half = v.permute(0, 2, 3, 1), {}
    for here, there in half_shifts(v.shape[1]):
        half[(there[0].start - here[0].start, there[1].start - here[1].start)] = taps(v, here) @ taps(v, there).T
    rows = v.abs().sum((1, 2))  # over all shifts the magnitudes of the products add up to those of the sums over the taps
    return _Kernel(half, gamma(v[0].numel()) * (rows @ rows.T) * _UP)


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
    return _Kernel(half, (error if x is y else error + error.T) * _UP)
