"""A network of SLL layers whose embeddings are known up to a proven error, with a proven Lipschitz constant.

The function is that of the float32 weights V = T^(1/2) W and c = T^(1/2) b which the float32 network multiplies with, and which
export.py writes; how these came about does not matter any more. It is computed in float64, and docs/soundness.md bounds by how much that
differs from exact arithmetic, at any image whose pixels are in [-0.5, 0.5], in whatever order sums are computed.
"""
import copy
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backbones import naming, proof, stored_network
from backbones.bounds import constant_of, product
from backbones.chain import chain, followed, layers_of
from backbones.export import fold
from backbones.proof import UNIT, UP, Shape, State
from utils import InputError

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

    lipschitz: at least the Lipschitz constant in l2 of the function in exact arithmetic. Raises InputError where a layer has none, or says
    nothing of its rounding.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        layers_of(network)  # before folding: what is not as it was declared must not be replaced by what is
        self.folded = fold(network)
        for name, layer in layers_of(self.folded).items():
            if proof.rounding(layer) is None:
                raise InputError(f"{proof.named(name, layer)} says nothing of its rounding: no radius can be proven")
        self.lipschitz = product([constant_of(name, layer, None) for name, layer in layers_of(self.folded).items()])
        if not 0 < self.lipschitz < math.inf:
            raise InputError(f"the bound of the Lipschitz constant is {self.lipschitz}: no radius can be divided by it")
        self.folded.double()

    def forward(self, images: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=False):  # the bound holds for sums of products, not for fast transforms
            return self.folded(images)

    def proven_lipschitz(self, shape: Shape) -> float:
        chain(self.folded, shape)
        return self.lipschitz

    def followed(self, image_size: Sequence[int]) -> "Sound":
        """The same around the layers of the network alone."""
        found = copy.copy(self)
        found._modules = {**self._modules, "folded": followed(self.folded, image_size)}
        return found

    @torch.no_grad()
    def prove(self, image_size: Sequence[int]) -> "Proof":
        """What holds for every image [C, H, W] = image_size with pixels in [-0.5, 0.5], those of uint8 images among them.

        Raises InputError where the network does not apply its layers one after another, each once, and where the bound is not finite.
        """
        size = math.sqrt(math.prod(image_size)) * _LARGEST_PIXEL * UP
        state = State(size, 3 * UNIT * size)  # (x - 127.5) / 255 is rounded twice where it is a product with 1 / 255
        for _, layer, shape in chain(self.folded, image_size):
            state = proof.rounding(layer)(state, shape)
        # with room for the rounding of the mean of two embeddings, of an image and its mirror image say
        error = (state.error + 8 * UNIT * state.size) * UP
        if not error < math.inf:
            raise InputError(f"the bound of the error of embeddings is {error}: no radius can be proven")
        dimension = self(next(self.folded.parameters()).new_zeros(1, *image_size)).shape[-1]
        return Proof(self.lipschitz, error, dimension)


def load_sound(name: str, weights: "str | os.PathLike[str]", device: "torch.device | str" = "cpu", **kw: Any) -> Sound:
    """The network `name` with the checkpoint `weights`; the rescaling is always computed on the CPU, so that every device has the same
    function. Raises InputError as `load_network`, but takes any finite Lipschitz constant.
    """
    with naming(weights):
        return Sound(stored_network(name, weights, **kw)).to(device).eval()
