"""The same computations as their textbooks write them: what the benchmarks compare with. Nothing here is used elsewhere."""
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.custom_layers import SLLConv2d, SLLLinear
from backbones.shapes import Downsize


def plain_t(weight: Tensor, q: Tensor) -> Tensor:
    """1 / sum_j |W W^T|_ij exp(q_j - q_i) by convolving the weight with itself, padded by k - 1."""
    correlation = F.conv2d(weight, weight, padding=weight.shape[-1] - 1).abs().sum((2, 3))
    return 1 / (correlation * torch.exp(q[None] - q[:, None])).sum(1)


class _Alone:
    """A layer whose weights nobody else computes for it."""

    def asks_gradients(self) -> bool:
        return False


class PlainSLLConv2d(_Alone, SLLConv2d):
    """z - 2 W^T T relu(W z + b), t computed in every forward pass."""

    def t(self) -> Tensor:
        return plain_t(self.weight, self.q)

    def forward(self, z: Tensor) -> Tensor:
        inner = F.relu(F.conv2d(z, self.weight, padding=self.padding) + self.bias)
        return z - 2 * F.conv_transpose2d(self.t().view(-1, 1, 1) * inner, self.weight, padding=self.padding)


class PlainSLLLinear(_Alone, SLLLinear):
    """T^(1/2) (W z + b), t computed in every forward pass."""

    def t(self) -> Tensor:
        return 1 / (self.weight @ self.weight.T).abs().sum(1)

    def forward(self, z: Tensor) -> Tensor:
        return self.t().sqrt() * F.linear(z, self.weight, self.bias)


class PlainMaxMin(nn.Module):
    """Both halves by torch.maximum and torch.minimum, then the first channels, then PixelUnshuffle."""

    def __init__(self, kept: int):
        super().__init__()
        self.kept = kept

    def forward(self, z: Tensor) -> Tensor:
        a, b = z.chunk(2, dim=1)
        return F.pixel_unshuffle(torch.cat((torch.maximum(a, b), torch.minimum(a, b)), dim=1)[:, :self.kept], 2)


def plain(network: nn.Module) -> nn.Module:
    """A copy of an SLL network with the same weights, computed the plain way."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, Downsize):
                setattr(module, name, PlainMaxMin(child.kept))
            elif isinstance(child, SLLConv2d):
                child.__class__ = PlainSLLConv2d
            elif isinstance(child, SLLLinear):
                child.__class__ = PlainSLLLinear
    return network


def with_constant_t(network: nn.Module) -> nn.Module:
    """A copy that computes as this project does, but with T^(1/2) W as it is now for weights: t costs nothing."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, (SLLConv2d, SLLLinear)):
            with torch.no_grad():
                weight, bias = module.rescaled()
                module.weight.copy_(weight)
                if bias is not None:
                    module.bias.copy_(bias.view_as(module.bias))
            module.asks_gradients = lambda: False
            module.rescaled = lambda m=module: (m.weight, None if m.bias is None else m.bias.flatten())
    return network
