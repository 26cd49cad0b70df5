"""CPL, the convex potential layer, with a norm that is proven.

Source: Meunier et al., "A Dynamical System Perspective for Lipschitz Neural Networks", ICML 2022. For weights W and b

    z  ->  z - 2 / ||W||^2  W^T relu(W z + b),                                                                  (CPL)

is equation (SLL) of custom_layers.py with T = I / ||W||^2 in place of a diagonal from row sums: z - 2 V^T relu(V z + c) with V = W / sigma,
c = b / sigma, is 1-Lipschitz for every sigma >= ||W||, and little is lost where sigma is close to ||W||.

sigma is the largest norm of the kernel's values W^(w) on a grid of frequencies, divided by the loss of that grid (spectral.py). That is at
least ||W|| for images of every size with zero padding: these are cut out of infinite ones. What differs is how the largest norm is found.

In training, by power iteration at all frequencies of the grid at once, one step for each step of training, from where the last one ended:
x <- W^* W^ x / |...|, and ||W^ x|| is a bound from below. So it is not always enough for ||V|| <= 1, but training needs no proof.

In eval mode, by `spectral_bound`, with proof, for which the power iteration is a guess. So a certificate never rests on it: for weights on
which it has not converged, V and its constant are right and the network is not quite the one that was trained.
"""
from typing import Any

import torch
from torch import Tensor

from backbones.custom_layers import FoldedSLLConv2d, SLLConv2d
from backbones.kept import Pair, mode
from backbones.rescaling import at_least_float32
from backbones.spectral import grid_loss, grid_phases, spectral_bound

_STEPS = 30  # of power iteration for fresh weights, and before a proof
_ROOM = 1 + 2.0**-9  # in eval mode, for a power iteration that is nearly at its end: what is within it need not be looked for


class CPLConv2d(SLLConv2d):
    """z -> z - 2 V^T relu(V z + c), V = W / sigma(W), for images z [N, cin, H, W]; in eval mode 1-Lipschitz in l2.

    cin, inner_dim, kernel_size and bias are those of SLLConv2d; there is no q. `directions`, the vectors x of the power iteration as
    [2, frequencies, cin], real and imaginary parts, are part of the state dict, so that training resumes as it went on. Raises ValueError
    for an even kernel.
    """

    def __init__(self, cin: int, inner_dim: int, kernel_size: int = 3, bias: bool = False):
        super().__init__(cin, inner_dim, kernel_size, bias=bias)
        self.q = None
        self.register_buffer("directions", torch.randn(2, len(grid_phases(kernel_size)), cin))
        with torch.no_grad():
            self.directions.copy_(_steps(self.weight, self.directions, 0 if self.weight.is_meta else _STEPS))

    def sources(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias, self.directions, mode(self)

    def compute(self, weight: Tensor, bias: Tensor | None, directions: Tensor, training: Tensor) -> Pair:
        """W / sigma and b / sigma; in training with a step of the power iteration. In eval mode sigma has the gradient of training."""
        flat = None if bias is None else bias.flatten()
        if weight.is_meta:
            return weight, flat
        kept, weight, directions = weight.dtype, at_least_float32(weight), at_least_float32(directions)
        with torch.autocast(weight.device.type, enabled=False):
            largest = weight.detach().abs().amax().clamp_min(torch.finfo(weight.dtype).tiny)  # so that no square overflows or vanishes
            scaled = weight / largest
            directions = self._stepped(scaled.detach(), directions) if training else _steps(scaled.detach(), directions, _STEPS)
            gain = _gain(scaled, directions)
            sigma = gain if training else _proven(scaled, gain)
            return (scaled / sigma).to(kept), None if flat is None else (flat.to(weight.dtype) / largest / sigma).to(kept)

    def _stepped(self, weight: Tensor, directions: Tensor) -> Tensor:
        if torch._C._are_functorch_transforms_active():  # what those see belongs to that call
            return directions
        directions = _steps(weight, directions, 1)
        self.directions.copy_(directions)
        return directions

    def compute_t(self) -> Tensor:
        """1 / sigma^2 for every inner channel, [C]."""
        weight = self.rescaled()[0]
        largest = [values.abs().amax() for values in (weight, self.weight)]
        return (largest[0] / largest[1]).square().expand(len(weight))

    def folded(self) -> "FoldedCPLConv2d":
        """The same with V and c as plain weights, to be multiplied with as they are."""
        return FoldedCPLConv2d(self)


class FoldedCPLConv2d(FoldedSLLConv2d):
    """z -> z - 2 V^T relu(V z + c) with V = W / sigma and c = b / sigma as plain weights."""

    def norm(self) -> float:
        """At least ||V||, which is at most 1 if sigma was right: whether it is so is looked at in the numbers that V has."""
        return spectral_bound(self.weight, guess=1.0)


def _times(weight: Tensor, directions: Tensor) -> Tensor:
    """W^ x at each frequency, [frequencies, C], of weight [C, cin, k, k]: all taps at once, and then their sum with the phases."""
    taps = weight.permute(1, 2, 3, 0).flatten(1)  # [cin, k k C]
    real, imaginary = (directions @ taps).unflatten(-1, (-1, len(weight)))  # [frequencies, k k, C] each
    return (torch.complex(real, imaginary) * _phases(weight)[..., None]).sum(1)


def _steps(weight: Tensor, directions: Tensor, count: int) -> Tensor:
    """Power iteration: x of norm 1 along (W^* W^)^count x; x itself where that is 0."""
    back = weight.permute(2, 3, 0, 1).flatten(0, 2)  # [k k C, cin]
    for _ in range(count):
        values = (_times(weight, directions)[:, None] * _phases(weight).conj()[..., None]).flatten(1)
        found = torch.stack((values.real, values.imag)) @ back
        norm = found.square().sum((0, 2), keepdim=True).sqrt()
        directions = torch.where(norm > 0, found / norm.clamp_min(torch.finfo(norm.dtype).tiny), directions)
    return directions


def _phases(weight: Tensor) -> Tensor:
    return grid_phases(weight.shape[-1]).to(weight.device, torch.complex128 if weight.dtype == torch.float64 else torch.complex64)


def _gain(weight: Tensor, directions: Tensor) -> Tensor:
    """The largest ||W^ x|| for x of norm 1, over the loss of the grid; 1 where it is 0."""
    values = _times(weight, directions)
    gain = (values.real.square() + values.imag.square()).sum(1).amax().sqrt() / grid_loss(weight.shape[-1])
    return torch.where(gain > 0, gain, 1.0)


def _proven(weight: Tensor, gain: Tensor) -> Tensor:
    """At least ||W||, with the gradient of its guess from below."""
    return _Sigma.apply(weight.detach(), gain.detach()) * (gain / gain.detach())


class _Sigma(torch.autograd.Function):
    """(W, a guess of sigma) -> sigma with ||W / sigma|| <= 1 for the quotients as they are computed, which is proven for little more than
    the guess, or found without it. An operation of its own, so that torch.func takes networks with it.
    """

    @staticmethod
    def forward(weight: Tensor, gain: Tensor) -> Tensor:
        sigma = _ROOM * gain
        excess = spectral_bound(weight / sigma, guess=1.0)
        return sigma if excess < 1 + 1e-9 else sigma * excess * (1 + 2.0**-19)  # for the rounding of another quotient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, weight: Tensor, gain: Tensor) -> tuple[Tensor, int]:
        weights, gains = (values.expand(info.batch_size, *values.shape) if axis is None else values.movedim(axis, 0)
                          for values, axis in zip((weight, gain), in_dims))
        return torch.stack([_Sigma.apply(*both) for both in zip(weights, gains)]), 0
