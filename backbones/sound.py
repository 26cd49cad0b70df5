"""A network of SLL layers whose embeddings are known up to a proven error, with a proven Lipschitz constant.

The function is that of the float32 weights V = T^(1/2) W and c = T^(1/2) b which the float32 network multiplies with, and which
export.py writes; how these came about does not matter any more. It is computed in float64, and docs/soundness.md bounds by how much that
differs from exact arithmetic, at any image whose pixels are in [-0.5, 0.5], in whatever order sums are computed.
"""
import math
import os
from typing import Any, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from backbones import naming, stored_network
from backbones.bounds import NON_EXPANSIVE, UNIT, gamma, layer_constant, norm_bound, product, sll_layers
from backbones.export import FoldedSLLConv2d, fold
from backbones.shapes import HaarDownsize, RemoveMean
from utils import InputError

_UP = 1 + 1e-9  # more than the rounding of the float64 arithmetic that the bounds themselves are computed in
_UNDERFLOW = 1e-280  # more than what products below the smallest float64 can add up to
_LARGEST_PIXEL = 0.5


class Proof(NamedTuple):
    """What is proven of a network. lipschitz: L, at least the Lipschitz constant in l2 in exact arithmetic; error: E, at least what the
    embedding of an image, its pixels rounded to float64, is off by in l2; dimension: length of an embedding.
    """
    lipschitz: float
    error: float
    dimension: int


class Sound(nn.Module):
    """Images [N, C, H, W] in [-0.5, 0.5], float64 -> embeddings in float64, of a network of SLL layers with float32 weights.

    lipschitz: at least the Lipschitz constant in l2 of the function in exact arithmetic. Raises InputError where a layer has none.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.folded = fold(network)
        layers, plain = dict(sll_layers(network)), dict(self.folded.named_modules())
        self.norms = {name: norm_bound(name, layer, plain[name].weight) for name, layer in layers.items()}
        self.lipschitz = product([layer_constant(layer, self.norms[name]) for name, layer in layers.items()])
        if not 0 < self.lipschitz < math.inf:
            raise InputError(f"the bound of the Lipschitz constant is {self.lipschitz}: no radius can be divided by it")
        self.folded.double()

    def forward(self, images: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=False):  # the bound holds for sums of products, not for fast transforms
            return self.folded(images)

    @torch.no_grad()
    def prove(self, image_size: Sequence[int]) -> "Proof":
        """What holds for every image [C, H, W] = image_size with pixels in [-0.5, 0.5], those of uint8 images among them.

        Raises InputError where the network does not apply its layers one after another, each once, and where the bound is not finite.
        """
        size = math.sqrt(math.prod(image_size)) * _LARGEST_PIXEL * _UP
        state = _State(size, 3 * UNIT * size)  # (x - 127.5) / 255 is rounded twice where it is a product with 1 / 255
        layers, dimension = self._chain(image_size)
        for name, layer, shape in layers:
            if isinstance(layer, FoldedSLLConv2d):
                state = _after_block(state, layer, self.norms[name], shape)
            elif isinstance(layer, nn.Linear):
                state = _after_dense(state, layer, self.norms[name])
            elif isinstance(layer, RemoveMean):
                state = _after_mean(state, shape)
            elif isinstance(layer, HaarDownsize):
                state = _after_haar(state)
        # with room for the rounding of the mean of two embeddings, of an image and its mirror image say
        error = (state.error + 8 * UNIT * state.size) * _UP
        if not error < math.inf:
            raise InputError(f"the bound of the error of embeddings is {error}: no radius can be proven")
        return Proof(self.lipschitz, error, dimension)

    def _chain(self, image_size: Sequence[int]) -> "tuple[list[tuple[str, nn.Module, torch.Size]], int]":
        """(name, layer, shape of its input) in the order of evaluation, found by one pass, and the length of an embedding."""
        seen, handles = [], []
        for name, layer in self._leaves():
            handles.append(layer.register_forward_hook(
                lambda layer, inputs, output, name=name: seen.append((name, layer, _as_it_is(inputs[0]), _as_it_is(output)))))
        try:
            image = next(self.folded.parameters()).new_zeros(1, *image_size)
            given = [_as_it_is(image)]
            result = self(image)
        finally:
            for handle in handles:
                handle.remove()
        given += [output for *_, output in seen]
        taken = [*(into for _, _, into, _ in seen), _as_it_is(result)]
        unchanged = all(one is other and before == after for (one, before), (other, after) in zip(given, taken))
        once = sorted(name for name, layer, *_ in seen if isinstance(layer, (FoldedSLLConv2d, nn.Linear))) == sorted(self.norms)
        if not (unchanged and once and result.dtype == torch.float64):
            raise InputError(f"{type(self.folded).__name__} does not apply its layers one after another, each once, in float64: "
                             "its rounding has no bound")
        return [(name, layer, into.shape) for name, layer, (into, _), _ in seen], result.shape[-1]

    def _leaves(self) -> "list[tuple[str, nn.Module]]":
        inside = [f"{name}." for name, layer in self.folded.named_modules() if type(layer) in NON_EXPANSIVE]
        return [(name, layer) for name, layer in self.folded.named_modules()
                if type(layer) in (FoldedSLLConv2d, nn.Linear, *NON_EXPANSIVE) and not name.startswith(tuple(inside))]


def load_sound(name: str, weights: "str | os.PathLike[str]", device: "torch.device | str" = "cpu", **kw: Any) -> Sound:
    """The network `name` with the checkpoint `weights`; the rescaling is always computed on the CPU, so that every device has the same
    function. Raises InputError as `load_network`, but takes any finite Lipschitz constant.
    """
    with naming(weights):
        return Sound(stored_network(name, weights, **kw)).to(device).eval()


def _as_it_is(tensor: Tensor) -> "tuple[Tensor, int]":
    """A tensor and how often it was written to so far."""
    return tensor, tensor._version


class _State(NamedTuple):
    """Bounds in l2 after a layer, over all images: of what was computed, and of its difference from exact arithmetic."""
    size: float
    error: float


def _after_block(state: _State, layer: FoldedSLLConv2d, norm: float, shape: Sequence[int]) -> _State:
    """z - 2 V^T relu(V z + c) on z of this shape [1, cin, H, W]."""
    inner, cin, k, _ = layer.weight.shape
    pixels = math.prod((n + 2 * layer.padding - k) // layer.stride + 1 for n in shape[-2:])
    bias = torch.zeros(1) if layer.bias is None else layer.bias
    shift, lifted = (math.sqrt(pixels) * values.norm().item() * _UP for values in (bias, bias.clamp_min(0)))
    magnitude = _norm_of_magnitudes(layer.weight.abs().sum((2, 3)))
    of_relu = gamma(cin * k * k + 1) * (magnitude * state.size + shift)
    relu = norm * state.size + lifted + of_relu
    of_step = gamma(inner * k * k) * magnitude * relu + norm * of_relu
    step = norm * relu + of_step
    local = (2 * of_step + 2 * UNIT * (state.size + 2 * step)) * _UP + _UNDERFLOW
    constant = layer_constant(layer, norm)
    return _State((constant * state.size + 2 * norm * lifted + local) * _UP, (constant * state.error + local) * _UP)


def _after_dense(state: _State, layer: nn.Linear, norm: float) -> _State:
    """V z + c."""
    shift = 0.0 if layer.bias is None else layer.bias.norm().item() * _UP
    local = gamma(layer.in_features + 1) * (_norm_of_magnitudes(layer.weight.abs()) * state.size + shift) * _UP + _UNDERFLOW
    return _State((norm * state.size + shift + local) * _UP, (norm * state.error + local) * _UP)


def _after_mean(state: _State, shape: Sequence[int]) -> _State:
    """z - mean(z) over the n pixels of each channel of z [1, C, H, W]: the mean, n - 1 sums and a division or a product with 1 / n, is
    off by gamma_(n+1) sum|z| / n, which makes gamma_(n+1) |z| in l2 of all pixels together, and the difference is rounded once more.
    """
    return _projected(state, math.prod(shape[-2:]) + 4)


def _after_haar(state: _State) -> _State:
    """Halved sums, with signs, of the 4 entries z of a block of pixels: each is rounded twice, off by gamma_2 sum|z| / 2 <= gamma_2 |z|,
    and there are at most three for a block.
    """
    return _projected(state, 4)


def _projected(state: _State, terms: int) -> _State:
    """z under a projection that is computed up to gamma_terms |z|."""
    local = gamma(terms) * state.size * _UP + _UNDERFLOW
    return _State((state.size + local) * _UP, (state.error + local) * _UP)


def _norm_of_magnitudes(values: Tensor) -> float:
    """At least the norm of |V|, from values [C, cin] >= 0: sums of its taps, which are what it can do to a constant image."""
    return math.sqrt(values.sum(0).amax().item() * values.sum(1).amax().item()) * _UP
