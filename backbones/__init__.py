"""Every embedding network by its name."""
import difflib
import math
import os
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from backbones.bounds import lipschitz_bound
from utils import InputError
from utils.utils_checkpoint import load_weights

MAX_FACE = 2**18  # pixels; the largest networks here take 112 x 112, and activations have 64 channels


class _Entry(NamedTuple):
    module: str
    builder: str
    arguments: tuple = ()
    lipschitz: bool = False
    scale: float = 1.0  # what pixels in [-0.5, 0.5] are multiplied by before they enter the network


_NETWORKS = {
    "sllnet": _Entry("sllnet", "SLLNet", lipschitz=True),
    "sllnet_small": _Entry("sllnet", "SLLNetSmall", lipschitz=True),
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
    return partial(builder, *entry.arguments)(**kw)


def input_scale(name: str) -> float:
    """The factor for pixels in [-0.5, 0.5]: 2 for networks that were trained on [-1, 1] and do not double by themselves, else 1."""
    return _entry(name).scale


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


def load_network(name: str, weights: "str | os.PathLike[str]", device: "torch.device | str" = "cpu",
                 dtype: torch.dtype = torch.float32, **kw: Any) -> nn.Module:
    """The network `name` with the checkpoint `weights`, in eval mode and frozen: images [N, 3, H, W] in [-0.5, 0.5] -> embeddings.

    Raises InputError where the checkpoint is missing, damaged or of another network, and where the layers of a network that is to be
    1-Lipschitz are not so with these weights (see bounds.py).
    """
    network = get_backbone(name, **kw)
    load_weights(network, weights)
    network = network.to(device=device, dtype=dtype).eval().requires_grad_(False)
    if is_lipschitz(name):
        try:
            lipschitz_bound(network)
        except InputError as error:
            raise InputError(f"{weights}: {error}") from None
    return network if input_scale(name) == 1 else ScaledInput(network, input_scale(name)).eval()
