"""Networks around a network: what is done to its input or its embeddings, and what that makes of its Lipschitz constant."""
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from backbones.bounds import lipschitz_bound
from backbones.chain import followed
from backbones.proof import UP_LITTLE, Shape

T = TypeVar("T", bound=nn.Module)


class ScaledInput(nn.Module):
    """network(scale * images): what lets every network here be fed with pixels in [-0.5, 0.5]."""

    def __init__(self, network: nn.Module, scale: float):
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images * self.scale)

    def proven_lipschitz(self, shape: Shape) -> float:
        return lipschitz_bound(self.network, shape) * abs(self.scale) * UP_LITTLE

    def followed(self, image_size: Sequence[int]) -> "ScaledInput":
        """The same around the layers of the network alone."""
        return _like(self, ScaledInput(followed(self.network, image_size), self.scale))


class FlipAveraged(nn.Module):
    """(network(images) + network(mirrored images)) / 2: as Lipschitz as the network is, and the same for an image and its mirror
    image.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return (self.network(images) + self.network(images.flip(-1))) / 2

    def proven_lipschitz(self, shape: Shape) -> float:
        return lipschitz_bound(self.network, shape)

    def followed(self, image_size: Sequence[int]) -> "FlipAveraged":
        """The same around the layers of the network alone."""
        return _like(self, FlipAveraged(followed(self.network, image_size)))


def averaged(network: nn.Module, flip: str) -> nn.Module:
    """The network, or with flip="average" the mean of its embeddings of an image and its mirror image."""
    return FlipAveraged(network).eval() if flip == "average" else network


class DividedOutput(nn.Module):
    """network(images) / lipschitz: 1-Lipschitz where `lipschitz` is a bound for the network. No cosine changes, and every radius grows
    by 1 / lipschitz, as the norms do.
    """

    def __init__(self, network: nn.Module, lipschitz: float):
        super().__init__()
        self.network, self.lipschitz = network, lipschitz

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images) / self.lipschitz

    def proven_lipschitz(self, shape: Shape) -> float:
        return lipschitz_bound(self.network, shape) / abs(self.lipschitz) * UP_LITTLE

    def followed(self, image_size: Sequence[int]) -> "DividedOutput":
        """The same around the layers of the network alone."""
        return _like(self, DividedOutput(followed(self.network, image_size), self.lipschitz))


def _like(wrapper: nn.Module, other: T) -> T:
    """The other one in the mode of the first."""
    other.training = wrapper.training
    return other
