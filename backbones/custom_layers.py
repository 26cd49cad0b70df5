"""Layers that are 1-Lipschitz in l2 by construction: SLL blocks. The shape changes between them, of shapes.py, have their names here too.

Source of the SLL layer: Araujo et al., "A Unified Algebraic Perspective on Lipschitz Neural Networks", ICLR 2023. For weights W and
free parameters q (one per inner channel)

    z  ->  z - 2 W^T T relu(W z + b),      T = diag(t),      1 / t_i = sum_j |W W^T|_ij exp(q_j - q_i)             (SLL)

is 1-Lipschitz for every W, q and b, because diag(1/t) - W W^T is then diagonally dominant after a diagonal scaling. For a convolution
W W^T is the zero-padded autocorrelation of the kernel and the sum runs over its (2k-1)^2 shifts as well.

The dense layer that ends the networks is  z -> T^(1/2) (W z + b)  with q = 0 in (SLL): in the published dense layer the factors of q
cancel, and the released checkpoints were trained and evaluated that way; its q is kept because it is in their state dicts.

T commutes with relu, so the block equals  z - 2 V^T relu(V z + c)  with  V = T^(1/2) W  and  c = T^(1/2) b: a plain convolution, relu
and transposed convolution with rescaled weights. That form is the one computed here: it needs no activation for T and cannot overflow
in half precision (||V|| <= 1). `rescaled` of rescaling.py is the one home of the formula.

Folded, a layer is that form with V and c as its weights; what is proven of it is proven of these numbers, whatever they came from:

    ||V z + c - (V y + c)|| <= ||V|| ||z - y||,      and the block's Jacobian I - 2 V^T D V, 0 <= D <= 1, lies between 1 - 2 ||V||^2 and 1,

so that its Lipschitz constant is max(1, 2 ||V||^2 - 1), whatever c is. norms.py bounds ||V||.

With `power=p` a layer takes its t from the p-th power of W W^T instead, see powers.py: less is lost, at a higher cost of the rescaling. The
parameters are the same.
"""
import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.kept import Pair, Rescaled, RescaledOnce
from backbones.norms import affine_rounding, half_shifts, norm_bound, taps
from backbones.proof import TOLERANCE, UNDERFLOW, UNIT, UP, Shape, State, gamma, norm_of_magnitudes
from backbones.rescaling import rescaled, rescaled_together, rescaling
from backbones.shapes import Downsize, FirstChannels, MaxMin, PaddingChannels
from backbones.spectra import of_kernel, of_matrix
from utils import InputError

# what code that was written for this module imports from it
__all__ = ["Downsize", "FirstChannels", "MaxMin", "PaddingChannels", "RescaledOnce", "SLLBlock", "SLLConv2d", "SLLLinear", "SLLStage",
           "half_shifts", "rescaled", "rescaling", "sll_block", "taps"]


class _SLL(Rescaled):
    """Weights W, bias b, free parameters q, and the rescaled weights while nothing asks for their gradient.

    power: p of the rescaling (SLL-p). Raises ValueError unless it is a positive integer.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    q: nn.Parameter

    def __init__(self, power: int):
        super().__init__()
        if not isinstance(power, int) or power < 1:
            raise ValueError(f"power is {power!r}: it must be a positive integer")
        self.power = power

    def sources(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias, self._free_parameters()

    def compute(self, weight: Tensor, bias: Tensor | None, q: Tensor) -> Pair:
        """T^(1/2) W and T^(1/2) b."""
        if weight.is_meta:  # shapes are all there is
            return weight, None if bias is None else bias.flatten()
        return rescaled(weight, bias, q, self.power)

    def alike(self) -> Hashable:
        """Shapes, type and device, for the powers whose rescaling is computed together."""
        if self.power > 1 or self.weight.is_meta:
            return None
        return self.weight.shape, self.bias is None, self.weight.dtype, self.weight.device

    @classmethod
    def compute_together(cls, layers: "Sequence[_SLL]") -> list[Pair]:
        """T^(1/2) W and T^(1/2) b of each layer."""
        weights, biases, qs = zip(*(layer.sources() for layer in layers))
        return rescaled_together(weights, biases, qs)

    def compute_t(self) -> Tensor:
        """t of the layer, [C], in float32 or better, differentiable."""
        return rescaling(self.weight, self._free_parameters(), self.power)

    def _free_parameters(self) -> Tensor:
        return self.q

    def _extra(self) -> str:
        return f", power={self.power}" if self.power > 1 else ""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        bias = state_dict.get(f"{prefix}bias")
        if bias is not None and self.bias is not None and bias.shape != self.bias.shape and bias.numel() == self.bias.numel():
            state_dict[f"{prefix}bias"] = bias.reshape(self.bias.shape)  # one value a channel is that, however many axes of length 1 it has
        super()._load_from_state_dict(state_dict, prefix, *rest)


def sll_block(z: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """z - 2 V^T relu(V * z + c) for images z [N, cin, H, W], V [C, cin, k, k] and c [C] from `rescaled`."""
    h = F.relu(F.conv2d(z, weight, bias, stride=stride, padding=padding), inplace=True)
    # a strided convolution forgets up to stride - 1 rows and columns, which its transpose has to give back
    lost = [(n + 2 * padding - weight.shape[-1]) % stride for n in z.shape[-2:]] if stride > 1 else 0
    step = F.conv_transpose2d(h, weight, stride=stride, padding=padding, output_padding=lost)
    # what is exported has no operations in place, which not every exporter gets right
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if traced or torch.is_grad_enabled() or step.dtype != z.dtype:
        return torch.sub(z, step, alpha=2)
    return step.mul_(-2).add_(z)  # the same, without memory for another image


class SLLConv2d(_SLL):
    """z -> z - 2 W^T T relu(W * z + b), equation (SLL), for images z [N, cin, H, W]; 1-Lipschitz in l2.

    cin: channels of the image; inner_dim: channels of W * z, -1 for as many; kernel_size: odd; stride: of the inner convolution (the image
    keeps its size); bias: one value per inner channel, [1, inner_dim, 1, 1]; power: p of (SLL-p). W starts orthogonal, q standard normal, b
    uniform in +-1/sqrt(fan in). Raises ValueError for an even kernel, whose zero padding would not be symmetric.
    """

    def __init__(self, cin: int, inner_dim: int, kernel_size: int = 3, stride: int = 1, bias: bool = False, power: int = 1):
        super().__init__(power)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}: it must be odd")
        inner_dim = cin if inner_dim == -1 else inner_dim
        self.stride, self.padding = stride, kernel_size // 2
        self.weight = nn.Parameter(torch.empty(inner_dim, cin, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(1, inner_dim, 1, 1)) if bias else None
        self.q = nn.Parameter(torch.empty(inner_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)
        nn.init.normal_(self.q)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, z: Tensor) -> Tensor:
        return sll_block(z, *self.rescaled(), self.stride, self.padding)

    def folded(self) -> "FoldedSLLConv2d":
        """The same with V and c as plain weights, to be multiplied with as they are."""
        return FoldedSLLConv2d(self)

    def proven_lipschitz(self, shape: Shape) -> float:
        """Raises InputError where ||V|| may be above 1 by more than rounding: the rescaling has not kept its promise."""
        return promised(self.folded())

    def extra_repr(self) -> str:
        inner, cin, k, _ = self.weight.shape
        return f"{cin}, {inner}, kernel_size={k}, stride={self.stride}, bias={self.bias is not None}{self._extra()}"


class FoldedSLLConv2d(nn.Module):
    """z -> z - 2 V^T relu(V z + c) with V = T^(1/2) W and c = T^(1/2) b as plain weights.

    root, power: what V was rescaled by, [C], and the p of that; they make the bound of ||V|| tight and have no part in the layer.
    """

    def __init__(self, layer: SLLConv2d):
        super().__init__()
        weight, bias = layer.rescaled()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone()) if bias is not None else None
        self.stride, self.padding = layer.stride, layer.padding
        self.root, self.power = row_quotients(weight, layer.weight), layer.power

    def forward(self, z: Tensor) -> Tensor:
        return sll_block(z, self.weight, self.bias, self.stride, self.padding)

    def norm(self) -> float:
        """At least ||V||, as an operator on images of any size. Raises InputError for values that are not finite."""
        return norm_bound(finite(self.weight), self.root, self.power)

    def proven_lipschitz(self, shape: Shape) -> float:
        return self.constant_of(self.norm())

    @staticmethod
    def constant_of(norm: float) -> float:
        """From at least ||V||; NaN of NaN, which `max` would drop in its second place."""
        return max((2 * norm**2 - 1) * (1 + 4 * UNIT), 1.0)

    def proven_rounding(self, state: State, shape: Shape) -> State:
        inner, cin, k, _ = self.weight.shape
        norm = self.norm()
        pixels = math.prod((n + 2 * self.padding - k) // self.stride + 1 for n in shape[-2:])
        bias = torch.zeros(1) if self.bias is None else self.bias
        shift, lifted = (math.sqrt(pixels) * values.norm().item() * UP for values in (bias, bias.clamp_min(0)))
        magnitude = norm_of_magnitudes(self.weight.abs().sum((2, 3)))
        of_relu = gamma(cin * k * k + 1) * (magnitude * state.size + shift)
        relu = norm * state.size + lifted + of_relu
        of_step = gamma(inner * k * k) * magnitude * relu + norm * of_relu
        step = norm * relu + of_step
        local = (2 * of_step + 2 * UNIT * (state.size + 2 * step)) * UP + UNDERFLOW
        constant = self.constant_of(norm)
        return State((constant * state.size + 2 * norm * lifted + local) * UP, (constant * state.error + local) * UP)

    def singular_values(self, shape: Shape) -> Tensor:
        """Those of V."""
        return of_kernel(self.weight, shape[-2:], self.stride)

    def preactivations(self, z: Tensor) -> Tensor:
        """V z + c, of which relu takes the sign."""
        return F.conv2d(z, self.weight, self.bias, stride=self.stride, padding=self.padding)


class SLLLinear(_SLL):
    """z -> T^(1/2) (W z + b), t of equation (SLL), or (SLL-p), with q = 0, for z [..., ic]; 1-Lipschitz in l2. W starts orthogonal.

    `q`, standard normal at the start, has no effect and asks for no gradient: see the head of this file.
    """

    def __init__(self, ic: int, oc: int, bias: bool = False, power: int = 1):
        super().__init__(power)
        self.weight = nn.Parameter(torch.empty(oc, ic))
        self.bias = nn.Parameter(torch.empty(oc)) if bias else None
        self.q = nn.Parameter(torch.empty(oc), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)
        nn.init.normal_(self.q)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight.shape[1])
            nn.init.uniform_(self.bias, -bound, bound)

    def _free_parameters(self) -> Tensor:
        return torch.zeros_like(self.q)

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, *self.rescaled())

    def folded(self) -> "FoldedSLLLinear":
        """The same with V and c as plain weights, to be multiplied with as they are."""
        return FoldedSLLLinear(self)

    def proven_lipschitz(self, shape: Shape) -> float:
        """Raises InputError where ||V|| may be above 1 by more than rounding: the rescaling has not kept its promise."""
        return promised(self.folded())

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}{self._extra()}"


class PlainLinear(nn.Linear):
    """z -> V z + c with V and c as they are: its constant is ||V||, whatever that is."""

    def norm(self) -> float:
        """At least ||V||. Raises InputError for values that are not finite."""
        return norm_bound(finite(self.weight))

    def proven_lipschitz(self, shape: Shape) -> float:
        return self.norm()

    @staticmethod
    def constant_of(norm: float) -> float:
        return norm

    def proven_rounding(self, state: State, shape: Shape) -> State:
        return affine_rounding(state, self.norm(), self.weight, self.bias, math.prod(shape[:-1]))

    def singular_values(self, shape: Shape) -> Tensor:
        """Those of V."""
        return of_matrix(self.weight)


class FoldedSLLLinear(PlainLinear):
    """z -> V z + c with V = T^(1/2) W and c = T^(1/2) b as plain weights."""

    def __init__(self, layer: SLLLinear):
        weight, bias = layer.rescaled()
        super().__init__(weight.shape[1], weight.shape[0], bias is not None, device="meta")  # no values are drawn for nothing
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone()) if bias is not None else None


@torch.no_grad()
def row_quotients(v: Tensor, w: Tensor) -> Tensor:
    """What each row of V is W's times, [C], in float64, or close to it; NaN for rows of zeros."""
    largest = [values.detach().flatten(1).abs().amax(1).cpu().double() for values in (v, w)]
    return largest[0] / largest[1]


def finite(weight: Tensor) -> Tensor:
    """The weights themselves. Raises InputError unless all are finite."""
    if not weight.isfinite().all():
        raise InputError("the rescaled weights are not finite")
    return weight


def promised(plain: "FoldedSLLConv2d | FoldedSLLLinear") -> float:
    """The constant of a layer that was rescaled. Raises InputError where ||V|| may be above 1 by more than rounding."""
    norm = plain.norm()
    constant = plain.constant_of(norm)
    if not norm <= 1 + TOLERANCE:
        raise InputError(f"its Lipschitz constant may be {constant:.6g}, expected at most 1: no certificate holds for it")
    return constant


class SLLStage(nn.Module):
    """`depth` blocks SLLConv2d(channels, channels, 3x3, bias) in a row, on [N, channels, H, W]."""

    def __init__(self, channels: int, depth: int, power: int = 1):
        super().__init__()
        self.layer = nn.Sequential(*(SLLConv2d(channels, channels, bias=True, power=power) for _ in range(depth)))

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z)


class SLLBlock(SLLStage):
    """`SLLStage` by its published name: n_blk blocks with nc channels."""

    def __init__(self, nc: int, n_blk: int):
        super().__init__(nc, n_blk)
