"""Every embedding network by its name."""
import contextlib
import difflib
import math
import os
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from backbones.bounds import lipschitz_bound
from utils import InputError
from utils.checkpoint import load_weights

MAX_FACE = 2**18  # pixels; the largest networks here take 112 x 112, and activations have 64 channels


class _Entry(NamedTuple):
    module: str
    builder: str
    arguments: tuple = ()
    options: "Mapping[str, Any]" = MappingProxyType({})
    lipschitz: bool = False
    scale: float = 1.0  # what pixels in [-0.5, 0.5] are multiplied by before they enter the network


_NETWORKS = {
    "sllnet": _Entry("sllnet", "SLLNet", lipschitz=True),
    "sllnet_small": _Entry("sllnet", "SLLNetSmall", lipschitz=True),
    "sllnet_p2": _Entry("sllnet", "SLLNet", options={"power": 2}, lipschitz=True),  # the rescaling of powers.py
    "sllnet_small_p2": _Entry("sllnet", "SLLNetSmall", options={"power": 2}, lipschitz=True),
    "sllnet_plus": _Entry("sllnet", "SLLNetPlus", lipschitz=True),
    "sllnet_mnist": _Entry("toyexamples", "SLLNet_MNIST", lipschitz=True),
    "sllnet_cifar": _Entry("toyexamples", "SLLNet_CIFAR", lipschitz=True),
    "net_mnist": _Entry("toyexamples", "Net_MNIST"),
    "net_cifar": _Entry("toyexamples", "Net_CIFAR"),
    "net_small": _Entry("toyexamples", "Net_Small"),
    **{f"iresnet{depth}": _Entry("iresnet", f"iresnet{depth}", scale=2.0) for depth in (18, 34, 50, 100, 200)},
    "ir_50": _Entry("iresnet_AT", "IR_50", arguments=((112, 112),)),  # doubles its input itself
}


def backbone_names() -> list[str]:
    """The names that `get_backbone` knows."""
    return list(_NETWORKS)


def _entry(name: str) -> _Entry:
    if name not in _NETWORKS:
        near = difflib.get_close_matches(name, _NETWORKS, n=1)
        raise InputError(f"backbone {name!r} is not known{f'; did you mean {near[0]!r}?' if near else ''} "
                         f"(there are {', '.join(_NETWORKS)})")
    return _NETWORKS[name]


def adversarially_trained(folder: "str | os.PathLike[str]" = "params") -> dict[str, dict[str, str]]:
    """{name: {"backbone", "weights"}} of RobFR's checkpoints (the paper's Appendix E) that are in a folder, as {name}.pt or .pth."""
    found = {path.stem: str(path) for path in sorted(Path(folder).glob("*.pt*"))}
    names = ("PGD-Arc", "PGD-Cos", "TRADES-Arc", "TRADES-Cos")
    return {name: {"backbone": "ir_50", "weights": found[name]} for name in names if name in found}


def get_backbone(name: str, **kw: Any) -> nn.Module:
    """The raw network `name` with fresh weights; `kw` goes to its constructor. Raises InputError for an unknown name.

    Its state dict is that of the released checkpoints. Pixels in [-0.5, 0.5] are to be multiplied by `input_scale(name)` first.
    """
    entry = _entry(name)
    builder: Callable[..., nn.Module] = getattr(import_module(f"backbones.{entry.module}"), entry.builder)
    return builder(*entry.arguments, **{**entry.options, **kw})


def input_scale(name: str) -> float:
    """The factor for pixels in [-0.5, 0.5]: 2 for networks that were trained on [-1, 1] and do not double by themselves, else 1."""
    return _entry(name).scale


def image_size(name: str) -> tuple[int, int, int]:
    return (3, 112, 112)


def is_lipschitz(name: str) -> bool:
    """Whether the network is 1-Lipschitz in l2 by construction, so that certificates hold for it."""
    return _entry(name).lipschitz


class ScaledInput(nn.Module):
    """network(scale * images): what lets every network here be fed with pixels in [-0.5, 0.5]."""

    def __init__(self, network: nn.Module, scale: float):
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images * self.scale)


@torch.no_grad()
def embedding_size(network: nn.Module, image_size: Sequence[int]) -> int:
    """Length of the embedding of an image of (C, H, W).

    Raises InputError where the network is made for another size, and where the image has more than MAX_FACE pixels.
    """
    if math.prod(image_size[1:]) > MAX_FACE:
        raise InputError(f"images of {list(image_size)}: expected at most {MAX_FACE} pixels for a network")
    weight, training = next(network.parameters()), network.training
    try:
        return network.eval()(torch.zeros(1, *image_size, device=weight.device, dtype=weight.dtype)).shape[1]
    except (RuntimeError, ValueError) as error:
        raise InputError(f"images of {list(image_size)} do not fit the backbone: {str(error).splitlines()[0]}") from error
    finally:
        network.train(training)


class FlipAveraged(nn.Module):
    """(network(images) + network(mirrored images)) / 2: as Lipschitz as the network is, and the same for an image and its mirror
    image.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return (self.network(images) + self.network(images.flip(-1))) / 2


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


def load_network(name: str, weights: "str | os.PathLike[str]", device: "torch.device | str" = "cpu",
                 dtype: torch.dtype = torch.float32, tight: bool = False, **kw: Any) -> nn.Module:
    """The network `name` with the checkpoint `weights`, in eval mode and frozen: images [N, 3, H, W] in [-0.5, 0.5] -> embeddings.

    With `tight` its embeddings are divided by its proven Lipschitz constant (`DividedOutput`), which the norm of the last layer makes
    smaller than 1. Raises InputError where the checkpoint is missing, damaged or of another network, where the layers of a network that
    is to be 1-Lipschitz are not so with these weights (see bounds.py), and for `tight` with a network that has no such constant.
    """
    network = stored_network(name, weights, **kw).to(device=device, dtype=dtype)
    if is_lipschitz(name):
        with naming(weights):
            bound = lipschitz_bound(network)
            if tight and not bound > 0:
                raise InputError("the last layer is zero: there is nothing to divide by")
        return DividedOutput(network, bound).eval() if tight else network
    if tight:
        raise InputError(f"backbone {name}: this network is not 1-Lipschitz, so it has no constant to divide by")
    return network if input_scale(name) == 1 else ScaledInput(network, input_scale(name)).eval()


def stored_network(name: str, weights: "str | os.PathLike[str]", **kw: Any) -> nn.Module:
    """The raw network `name` with the checkpoint `weights`, in eval mode and frozen, its Lipschitz constant not looked at."""
    network = get_backbone(name, **kw)
    load_weights(network, weights)
    return network.eval().requires_grad_(False)


@contextlib.contextmanager
def naming(weights: "str | os.PathLike[str]") -> Iterator[None]:
    """Messages of what is wrong with a network begin with the file of its weights."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{weights}: {error}") from None
