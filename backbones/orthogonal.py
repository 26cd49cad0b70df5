"""Layers of orthogonal matrices: what they are given they pass on at full length.

A matrix Q with Q Q^T = I is made of parameters W that may be anything, times a fixed orthogonal matrix B that training starts from:

    Q = (I - A) (I + A)^-1 B,            A = W - W^T       cayley       (Trockman and Kolter, ICLR 2021)
    Q = exp(A) B,                        A = W - W^T       exponential  (as SOC, Singla and Feizi, ICML 2021, of whole matrices)
    Q = (I - 2 W (W^T W)^-1 W^T) B,      W [C, C/2]        householder  (block reflectors: BRO, Lai et al., 2025)

They are orthogonal: A^T = -A, so the transpose of (I - A)(I + A)^-1 is (I - A)^-1 (I + A), its inverse, and that of exp(A) is exp(-A);
P = W (W^T W)^-1 W^T is a symmetric projection, and (I - 2 P)^2 = I - 4 P + 4 P^2 = I. They are computed in float64 and rounded once. What
is proven of a layer is proven of the rounded numbers, by their norm (norms.py) as it is, about 1 + 5e-8.

CPU milliseconds of Q, forward and backward, on one thread, the best of 25 (W standard normal times 0.1); and the most that a singular value
of Q is off 1 by, for W standard normal times 0.01, 0.1 and 1: as here, and were it computed in float32 throughout:

      C    cayley   exponential   householder    off by, all    in float32: cayley            exponential           householder
     64      0.35          2.7           0.34    5e-8           6e-7, 5e-7, 2e-6    4e-7, 3e-6, 8e-6    3e-6, 2e-6, 2e-6
    128      1.05         15.5           0.90    5e-8           6e-7, 8e-7, 3e-6    1e-6, 7e-6, 1e-5    3e-6, 4e-6, 3e-6
    256      5.8           114           5.0     5e-8           6e-7, 1e-6, 7e-6    2e-6, 1e-5, 2e-5    3e-6, 3e-6, 3e-6

Cayley is the default: it costs a tenth of the exponential, and reaches every Q for which Q B^T has no eigenvalue -1, all but a set of
measure 0 of those with the determinant of B; a block reflector costs the same and has half of its free parameters. All three start at a
matrix that mixes. To first order Q is B - 2 A B under cayley and B + A B under exponential: steps of the same size turn half as far there.
"""
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.custom_layers import FoldedSLLLinear
from backbones.kept import Pair, Rescaled
from backbones.norms import affine_rounding, norm_bound
from backbones.proof import UP_LITTLE, Shape, State
from backbones.spectra import of_matrix


def cayley(weight: Tensor, base: Tensor) -> Tensor:
    """(I - A) (I + A)^-1 B = 2 (I + A)^-1 B - B with A = W - W^T, [C, C]."""
    return 2 * _solved(_identity(base) + weight - weight.T, base) - base


def exponential(weight: Tensor, base: Tensor) -> Tensor:
    """exp(A) B with A = W - W^T, [C, C]."""
    return torch.matrix_exp(weight - weight.T) @ base


def householder(weight: Tensor, base: Tensor) -> Tensor:
    """(I - 2 W (W^T W)^-1 W^T) B with W [C, C/2], [C, C]."""
    return base - 2 * weight @ _solved(weight.T @ weight, weight.T @ base)


PARAMETRISATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cayley": cayley, "exponential": exponential, "householder": householder}


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """matrix^-1 right, not finite where there is none: to ask would be to wait for the device."""
    return torch.linalg.solve_ex(matrix, right)[0]


def _identity(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)


def _precise(values: Tensor) -> Tensor:
    """In float64 where the device has it: it costs half as much again for a layer's matrix, and saves a digit of the norm."""
    return values.double() if values.device.type in ("cpu", "cuda") else values.float()


class OrthogonalMixing(Rescaled):
    """[N, C, H, W] -> Q z + b at each pixel, Q [C, C] orthogonal for every W: a convolution of 1 x 1; an isometry.

    channels: C. parametrisation: how Q is made of W, a name of `PARAMETRISATIONS`. Q starts at B, a random orthogonal matrix in the state
    dict, or for "householder" at a reflection of it. bias: b, which starts at 0. Raises ValueError for a parametrisation of another name.
    """

    base: Tensor

    def __init__(self, channels: int, parametrisation: str = "cayley", bias: bool = True):
        super().__init__()
        if parametrisation not in PARAMETRISATIONS:
            raise ValueError(f"parametrisation is {parametrisation!r}: expected one of {', '.join(PARAMETRISATIONS)}")
        self.parametrisation = parametrisation
        self.weight = nn.Parameter(torch.empty(channels, channels // 2 if parametrisation == "householder" else channels))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.register_buffer("base", torch.empty(channels, channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.base.copy_(nn.init.orthogonal_(self.base.new_empty(self.base.shape, dtype=torch.float64)))
        nn.init.orthogonal_(self.weight) if self.parametrisation == "householder" else nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def sources(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.base, self.bias

    def compute(self, weight: Tensor, base: Tensor, bias: Tensor | None) -> Pair:
        """Q and b."""
        if weight.is_meta:  # shapes are all there is
            return base, bias
        with torch.autocast(weight.device.type, enabled=False):
            matrix = PARAMETRISATIONS[self.parametrisation](_precise(weight), _precise(base))
        return matrix.to(weight.dtype), bias

    def forward(self, z: Tensor) -> Tensor:
        weight, bias = self.rescaled()
        return F.conv2d(z, weight[:, :, None, None], bias)

    def folded(self) -> "FoldedMixing":
        """The same with Q as plain weights."""
        return FoldedMixing(self)

    def proven_lipschitz(self, shape: Shape) -> float:
        return norm_bound(self.rescaled()[0])

    def extra_repr(self) -> str:
        return f"{len(self.base)}, {self.parametrisation!r}, bias={self.bias is not None}"


class FoldedMixing(nn.Conv2d):
    """[N, C, H, W] -> Q z + b at each pixel, with Q as plain weights; its constant is ||Q||, whatever Q is."""

    def __init__(self, layer: OrthogonalMixing):
        weight, bias = layer.rescaled()
        super().__init__(len(weight), len(weight), 1, bias=bias is not None, device="meta")  # no values are drawn for nothing
        self.weight = nn.Parameter(weight.detach().clone()[:, :, None, None])
        self.bias = nn.Parameter(bias.detach().clone()) if bias is not None else None

    def proven_lipschitz(self, shape: Shape) -> float:
        return norm_bound(self.weight)

    def proven_rounding(self, state: State, shape: Shape) -> State:
        return affine_rounding(state, norm_bound(self.weight), self.weight.flatten(1), self.bias, math.prod(shape[-2:]))

    def singular_values(self, shape: Shape) -> Tensor:
        """Those of Q, which are the same at every pixel."""
        return of_matrix(self.weight.flatten(1))


class SpectralLinear(Rescaled):
    """z -> W z / sigma + b for z [..., ic], sigma the largest singular value of W; 1-Lipschitz. W starts orthogonal, b at 0.

    sigma = |u^T W| with u the leading eigenvector of the smaller one of W W^T and W^T W, whole and not by power iteration; as the gradient
    of sigma is that of |u^T W| for constant u, none goes through the decomposition. W = 0 stays 0.
    """

    def __init__(self, ic: int, oc: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(oc, ic)))
        self.bias = nn.Parameter(torch.zeros(oc)) if bias else None

    def sources(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias

    def compute(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """W / sigma and b."""
        if weight.is_meta:
            return weight, bias
        with torch.autocast(weight.device.type, enabled=False):
            wide = _precise(weight if weight.shape[0] <= weight.shape[1] else weight.T)
            leading = torch.linalg.eigh((wide @ wide.T).detach())[1][:, -1]
            sigma = (leading @ wide).norm()
            return (_precise(weight) / torch.where(sigma > 0, sigma, 1.0)).to(weight.dtype), bias

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, *self.rescaled())

    def folded(self) -> FoldedSLLLinear:
        """The same with W / sigma as plain weights."""
        return FoldedSLLLinear(self)

    def proven_lipschitz(self, shape: Shape) -> float:
        return norm_bound(self.rescaled()[0])

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"


class Lowpass(nn.Module):
    """[N, C, height, width] -> [N, C, size, size]: the lowest frequencies of an image, as a smaller image; 1-Lipschitz.

    z -> R z S^T with R = D_size^T D_height[:size] and S = D_size^T D_width[:size], D_n the orthonormal discrete cosine transform (DCT-II)
    of length n: the transform of rows and columns, its first size x size coefficients, and the inverse transform of those. As D_n is
    orthogonal, R R^T = D_size^T D_size = I: a projection, then an isometry.

    R and S are float32 numbers that are made with the layer and in no state dict; its constant is ||R|| ||S||, of them as they are. Raises
    ValueError unless size is 1 to height and width, and for images of another size.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size: int, height: int = 112, width: int | None = None):
        super().__init__()
        width = height if width is None else width
        if not 1 <= size <= min(height, width):
            raise ValueError(f"size is {size}: expected 1 to {min(height, width)} for images of {height} x {width}")
        for name, length in (("rows", height), ("columns", width)):
            self.register_buffer(name, (_cosines(size, size).T @ _cosines(size, length)).float(), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[-2:] != (self.rows.shape[1], self.columns.shape[1]):
            raise ValueError(f"Lowpass is for images of {self.rows.shape[1]} x {self.columns.shape[1]}, got {z.shape[-2]} x {z.shape[-1]}")
        return self.rows @ F.linear(z, self.columns)

    def proven_lipschitz(self, shape: Shape) -> float:
        return norm_bound(self.rows) * norm_bound(self.columns) * UP_LITTLE

    def proven_rounding(self, state: State, shape: Shape) -> State:
        """One product after the other, each a matrix at every row or column of pixels."""
        for matrix in (self.columns, self.rows):
            state = affine_rounding(state, norm_bound(matrix), matrix, None)
        return state

    def extra_repr(self) -> str:
        return f"{len(self.rows)}, {self.rows.shape[1]}, {self.columns.shape[1]}"


def _cosines(count: int, length: int) -> Tensor:
    """The first rows of D, [count, length] in float64: D_ki = sqrt(2 / n) cos(pi k (i + 1/2) / n), row 0 divided by sqrt 2; n = length."""
    k, i = torch.arange(count, dtype=torch.float64)[:, None], torch.arange(length, dtype=torch.float64)
    return torch.cos(math.pi * k * (i + 0.5) / length) * torch.where(k == 0, math.sqrt(1 / length), math.sqrt(2 / length))
