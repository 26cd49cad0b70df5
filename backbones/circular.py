"""Orthogonal convolutions of images that continue periodically: a unitary matrix at each frequency.

A circular convolution with real kernels is J* diag(Q(w)) J, J the orthonormal Fourier transform of each channel and Q(w) [C, C] what the
kernel is at the frequency w. It keeps norms if and only if every Q(w) is unitary, and such Q are made of any kernel W by its values W^(w):

    Q = (I + A)^-1 (I - A),      A = W^ - W^*                                                                   (Cayley)
    Q = I - 2 V (V* V)^-1 V*,    V = W^ [C, r], of half as many columns as rows                                 (BRO)

(Trockman and Kolter, "Orthogonalizing Convolutional Layers with the Cayley Transform", ICLR 2021; Lai et al., "Enhancing Certified
Robustness via Block Reflector Orthogonal Layers and Logit Annealing Loss", 2025, who pad with zeros around the image and cut it out
again). A is skew, so I + A has no eigenvalue below 1 in magnitude; V (V* V)^-1 V* is a projection. Q(-w) is the conjugate of Q(w), as it
is for W^, so real images stay real. The kernel of Q is as large as the image: there is no smaller form of it.

J is computed as two products with real and imaginary parts of matrices, not as a fast transform: an image of 28 x 28 pixels costs no more
that way than its Q, it works in every format, and it is sums of products, of which the rounding is proven. Half of the frequencies of rows
are left out, being conjugates; those that stand for two have the weight 2^(1/2), so that J keeps norms.

What is proven is proven of the matrices as computed: for J* Q J without the assumption that J and Q are unitary,

    ||J* Q J|| <= ||J||^2 max ||Q(w)||,      ||M||^2 <= 1 + ||M* M - I|| in the Frobenius norm.
"""
import math

import torch
from torch import Tensor, nn

from backbones.custom_layers import promised
from backbones.kept import Pair, Rescaled, mode
from backbones.proof import UP, Shape, State, gamma, multiplied, norm_of_magnitudes
from backbones.rescaling import at_least_float32


class _Orthogonal(Rescaled):
    """z -> Q z + b for images z [N, channels, *size]; an isometry. inner: the number of columns of W^.

    size: (H, W) of the images, which the kernel of Q depends on; kernel_size: of W. W starts orthogonal, b at 0.
    """

    def __init__(self, channels: int, inner: int, size: tuple[int, int], kernel_size: int):
        super().__init__()
        self.size = tuple(size)
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(channels, inner, kernel_size, kernel_size)))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.transforms = _transforms(self.size)  # in float64, whatever the layer is in

    def unitary(self, values: Tensor) -> Tensor:
        """Q [F, C, C] of W^ [F, C, inner]."""
        raise NotImplementedError

    def sources(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias, mode(self)

    def compute(self, weight: Tensor, bias: Tensor, training: Tensor) -> Pair:
        """The real parts of Q above the imaginary ones, [F, 2C, C], and b. In eval mode they are computed in float64, once."""
        if weight.is_meta:
            frequencies = self.size[0] * (self.size[1] // 2 + 1)
            return weight.new_empty(frequencies, 2 * len(weight), len(weight)), bias
        with torch.autocast(weight.device.type, enabled=False):
            full = at_least_float32(weight) if training or weight.device.type == "mps" else weight.double()
            matrices = self.unitary(_spectrum(full, self.size))
            return torch.cat((matrices.real, matrices.imag), 1).to(weight.dtype), bias

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[-2:] != self.size:
            raise ValueError(f"images of {list(z.shape[-2:])}: this layer is for {list(self.size)}")
        matrices, bias = self.rescaled()
        columns, rows = self.transforms
        return convolved(z, columns.to(z), rows.to(z), matrices, bias)

    def folded(self) -> "FoldedOrthogonal":
        """The same with J and Q as plain weights."""
        return FoldedOrthogonal(self)

    def proven_lipschitz(self, shape: Shape) -> float:
        """Raises InputError where the matrices may be further from unitary than by rounding."""
        return promised(self.folded())

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, size={self.size}, kernel_size={self.weight.shape[-1]}"


class CayleyConv2d(_Orthogonal):
    """z -> Q z + b, Q the Cayley transform of a convolution, for images z [N, channels, *size]; an isometry in l2."""

    def __init__(self, channels: int, size: tuple[int, int], kernel_size: int = 3):
        super().__init__(channels, channels, size, kernel_size)

    def unitary(self, values: Tensor) -> Tensor:
        identity = torch.eye(values.shape[1], dtype=values.dtype, device=values.device)
        return 2 * _inverse(identity + values - values.mH) - identity  # (I + A)^-1 (2 I - (I + A)), with half of the rounding


class BROConv2d(_Orthogonal):
    """z -> Q z + b, Q a block reflector of a convolution, for images z [N, channels, *size]; an isometry in l2."""

    def __init__(self, channels: int, size: tuple[int, int], kernel_size: int = 3):
        super().__init__(channels, channels // 2, size, kernel_size)

    def unitary(self, values: Tensor) -> Tensor:
        identity = torch.eye(values.shape[1], dtype=values.dtype, device=values.device)
        return identity - 2 * values @ _inverse(values.mH @ values) @ values.mH


def _inverse(matrices: Tensor) -> Tensor:
    """Whatever comes out for those without one: it is not unitary what is made of it, and a certificate says so."""
    return torch.linalg.inv_ex(matrices).inverse


class FoldedOrthogonal(nn.Module):
    """z -> J* Q J z + b with plain weights: `columns` and `rows` of J, see `_transforms`, `weight` as `compute` gives it, `bias`."""

    def __init__(self, layer: _Orthogonal):
        super().__init__()
        (matrices, bias), (columns, rows) = layer.rescaled(), layer.transforms
        self.weight, self.bias = nn.Parameter(matrices.detach().clone()), nn.Parameter(bias.detach().clone())
        self.columns, self.rows = nn.Parameter(columns.to(matrices)), nn.Parameter(rows.to(matrices))

    def forward(self, z: Tensor) -> Tensor:
        return convolved(z, self.columns, self.rows, self.weight, self.bias)

    def norms(self) -> "tuple[float, float, float]":
        """At least the norms of the two factors of J, and of all Q."""
        return _norm(self.columns.flatten(0, 1)), _norm(_complex(self.rows)), _norm(_complex(self.weight))

    def norm(self) -> float:
        """At least ||J* Q J||."""
        columns, rows, matrices = self.norms()
        return columns**2 * rows**2 * matrices * (1 + 1e-12)

    @staticmethod
    def constant_of(norm: float) -> float:
        return norm

    def proven_lipschitz(self, shape: Shape) -> float:
        return self.norm()

    def proven_rounding(self, state: State, shape: Shape) -> State:
        """Of five products, each of sums of as many products as its matrix has columns, twice that for complex numbers, and the bias."""
        columns, rows, matrices = self.norms()
        parts = self.columns.flatten(0, 1)
        first = (columns, norm_of_magnitudes(parts.abs()), max(parts.shape))
        second = (rows, _magnitudes(self.rows), self.rows.shape[1] * 2)
        third = (matrices, _magnitudes(self.weight), self.weight.shape[2] * 2)
        for step in (first, second, third, second, first):
            state = multiplied(state, *step)
        shift = math.sqrt(math.prod(shape[-2:])) * self.bias.norm().item() * UP
        return multiplied(state, 1.0, 1.0, 1, shift)

    def singular_values(self, shape: Shape) -> Tensor:
        """Those of all Q, twice where a frequency stands for two."""
        width = shape[-1]
        copies = torch.tensor([1 if 2 * v % width == 0 else 2 for v in range(width // 2 + 1)]).repeat(len(self.rows) // 2)
        return torch.linalg.svdvals(_complex(self.weight)).repeat_interleave(copies, 0).flatten().sort(descending=True).values


def convolved(z: Tensor, columns: Tensor, rows: Tensor, matrices: Tensor, bias: Tensor) -> Tensor:
    """J* Q J z + b of images [N, C, H, W]. columns [W', 2, W] and rows [2H, H] of J, matrices [F, 2C, C] of Q, F = H W', bias [C]."""
    n, c, h, w = z.shape
    half = len(columns)
    y = columns.flatten(0, 1) @ z.permute(3, 2, 1, 0).reshape(w, -1)
    y = y.view(half, 2, h, c, n).permute(2, 1, 0, 3, 4)  # [H, 2, W', C, N]: what is multiplied first, parts second
    y = _times(rows, y.reshape(h, 2, -1)).view(h, 2, half, c, n).permute(0, 2, 3, 1, 4)  # [H, W', C, 2, N]
    y = _times(matrices, y.reshape(h * half, c, 2, n)).view(h, half, c, 2, n).permute(0, 3, 1, 2, 4)  # [H, 2, W', C, N]
    real, imaginary = rows.chunk(2)
    y = _times(torch.cat((real.T, -imaginary.T)), y.reshape(h, 2, -1)).view(h, 2, half, c, n).permute(2, 1, 0, 3, 4)  # [W', 2, H, C, N]
    y = columns.flatten(0, 1).T @ y.reshape(2 * half, -1)
    return y.view(w, h, c, n).permute(3, 2, 1, 0) + bias[:, None, None]


def _times(matrix: Tensor, values: Tensor) -> Tensor:
    """The complex product of matrices [..., 2m, n], real parts above imaginary ones, and values [..., n, 2, r], as [..., m, 2, r]."""
    products = (matrix @ values.flatten(-2)).unflatten(-1, values.shape[-2:])
    real, imaginary = products.chunk(2, -3)
    return torch.stack((real[..., 0, :] - imaginary[..., 1, :], imaginary[..., 0, :] + real[..., 1, :]), -2)


def _waves(n: int, positions: Tensor) -> Tensor:
    """e^(2 pi i u x / n) for u < n and these positions x, [n, positions], complex128."""
    angles = 2 * math.pi / n * (torch.outer(torch.arange(n, device="cpu"), positions.cpu()) % n).double()
    return torch.complex(angles.cos(), angles.sin())


def _transforms(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """J of images of (H, W) in float64: for the axis of columns [W', 2, W] with W' = W // 2 + 1 real and imaginary rows, those that stand
    for two frequencies times 2^(1/2); for that of rows [2H, H], real parts above imaginary ones.
    """
    h, w = size
    weights = torch.tensor([1 if 2 * v % w == 0 else 2 for v in range(w // 2 + 1)], dtype=torch.float64, device="cpu")
    columns = (weights / w).sqrt()[:, None] * _waves(w, torch.arange(w, device="cpu"))[:w // 2 + 1].conj()
    rows = _waves(h, torch.arange(h, device="cpu")).conj() / math.sqrt(h)
    return torch.stack((columns.real, columns.imag), 1), torch.cat((rows.real, rows.imag))


def _spectrum(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """W^ [F, C, inner] at the frequencies of J: what F.conv2d with circular padding, its middle tap in place, multiplies them by."""
    taps = torch.arange(weight.shape[-1], device="cpu") - weight.shape[-1] // 2
    rows, columns = _waves(size[0], taps), _waves(size[1], taps)[:size[1] // 2 + 1]
    phases = (rows[:, None, :, None] * columns[None, :, None, :]).flatten(2).flatten(0, 1)  # [F, k k]
    kernel = weight.flatten(2).permute(2, 0, 1).flatten(1)
    real, imaginary = (part.to(kernel) @ kernel for part in (phases.real, phases.imag))
    return torch.complex(real, imaginary).unflatten(1, weight.shape[:2])


def _complex(parts: Tensor) -> Tensor:
    """Matrices [..., m, n] in complex128 of [..., 2m, n]."""
    return torch.complex(*parts.detach().cpu().double().chunk(2, -2))


def _norm(matrices: Tensor) -> float:
    """At least the largest norm of matrices [..., m, n] in float64 that are close to isometries; NaN for what is not finite."""
    matrices = matrices.detach().to("cpu", torch.complex128)
    defects = matrices.mH @ matrices - torch.eye(matrices.shape[-1], dtype=matrices.dtype)
    largest, squares = (torch.linalg.matrix_norm(values).amax().item() * UP for values in (defects, matrices))
    return math.sqrt(1 + largest + gamma(4 * matrices.shape[-2] + 8) * (1 + squares**2)) * (1 + 1e-15)


def _magnitudes(parts: Tensor) -> float:
    """At least the norm of the magnitudes of the real matrices [2m, 2n] that matrices [..., 2m, n] stand for, the largest of these."""
    real, imaginary = parts.detach().cpu().double().abs().chunk(2, -2)
    both = real + imaginary  # row and column sums of [[|A|, |B|], [|B|, |A|]] are those of |A| + |B|
    return math.sqrt(both.sum(-1).amax().item() * both.sum(-2).amax().item()) * UP
