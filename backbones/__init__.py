"""Every embedding network by its name.

A network registers itself where it is defined (registry.py); that of another project is named `package.module:Name`.
"""
import contextlib
import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from backbones import models
from backbones.bounds import at_most_one, lipschitz_bound
from backbones.chain import CannotFollow, chain
from backbones.proof import fold
from backbones.registry import BACKBONES, Backbone, register
from backbones.wrappers import DividedOutput, FlipAveraged, ScaledInput, averaged
from utils import InputError
from utils.checkpoint import Stored, fitting, is_plain, put, read_weights
from utils.files import found_in

__all__ = ["BACKBONES", "DividedOutput", "FlipAveraged", "ScaledInput", "adversarially_trained", "averaged", "backbone_names",
           "embedding_size", "get_backbone", "image_size", "input_scale", "is_lipschitz", "lipschitz_bound", "load_network", "naming",
           "register", "stored_network"]
MOST_SAID = 2**14  # the sum of all whole numbers among the arguments that a file says its network has
ALWAYS_ROOM = 2**20  # numbers of such a network, where its file has fewer bytes
MAX_FACE = 2**18  # pixels; the largest networks here take 112 x 112, and activations have 64 channels


def backbone_names() -> list[str]:
    """The names that `get_backbone` knows, besides those of other projects."""
    return BACKBONES.names()


def adversarially_trained(folder: "str | os.PathLike[str]" = "params") -> dict[str, dict[str, str]]:
    """{name: {"backbone", "weights"}} of RobFR's checkpoints (the paper's Appendix E) that are in a folder, as {name}.pt or .pth."""
    found = {path.stem: str(path) for path in found_in(folder, "*.pt*")}
    names = ("PGD-Arc", "PGD-Cos", "TRADES-Arc", "TRADES-Cos")
    return {name: {"backbone": "ir_50", "weights": found[name]} for name in names if name in found}


def get_backbone(name: str, **kw: Any) -> nn.Module:
    """The raw network `name` with fresh weights; `kw` goes to its constructor. Raises InputError for an unknown name.

    Its state dict is that of the released checkpoints. Pixels in [-0.5, 0.5] are to be multiplied by `input_scale(name)` first. Its
    attribute `built_as` is (name, kw), if `kw` is plain data, which `checkpoint.save_weights` writes beside its weights.
    """
    entry = BACKBONES.find(name)
    try:
        network = entry.build(**{**entry.arguments, **kw})
    except TypeError as error:
        if ":" not in name:
            raise
        raise InputError(f"backbone {name}: cannot be made with these arguments: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"backbone {name}: makes a {type(network).__name__}, expected an nn.Module")
    if is_plain(kw):
        network.built_as = (name, kw)
    return network


def input_scale(name: str) -> float:
    """The factor for pixels in [-0.5, 0.5]: 2 for networks that were trained on [-1, 1] and do not double by themselves, else 1."""
    return BACKBONES.find(name).scale


def image_size(name: str) -> tuple[int, int, int]:
    """(C, H, W) of the images that the network is made for."""
    return BACKBONES.find(name).image_size


def is_lipschitz(name: str) -> bool:
    """Whether the network is 1-Lipschitz in l2 by construction, so that certificates may hold for it: `load_network` proves it of weights.

    Without a word in its registration that is found out: whether it applies layers that declare a Lipschitz constant one after another.
    Raises InputError where it has such layers only, but images of its registered size cannot be followed through it.
    """
    entry = BACKBONES.find(name)
    return _is_chain(entry.name) if entry.lipschitz is None else entry.lipschitz


@functools.cache
def _is_chain(name: str) -> bool:
    with torch.device("meta"):
        network = get_backbone(name)
    try:
        chain(network, image_size(name))
    except CannotFollow as error:
        raise InputError(f"backbone {name}: {error}; a network for images of another size is registered with its image_size, and one that "
                         "is not 1-Lipschitz with lipschitz=False") from None
    except InputError:
        return False
    return True


@torch.no_grad()
def embedding_size(network: nn.Module, image_size: Sequence[int], name: str | None = None, otherwise: str = "") -> int:
    """Length of the embedding of an image of (C, H, W).

    Raises InputError where the network is made for another size, and where the image has more than MAX_FACE pixels. name: of the network,
    for that message; otherwise: what it is to say that can be done.
    """
    if math.prod(image_size[1:]) > MAX_FACE:
        raise InputError(f"images of {list(image_size)}: expected at most {MAX_FACE} pixels for a network")
    weight, training = next(network.parameters()), network.training
    try:
        return network.eval()(torch.zeros(1, *image_size, device=weight.device, dtype=weight.dtype)).shape[1]
    except (RuntimeError, ValueError) as error:
        made_for = list(BACKBONES.find(name).image_size if name else image_size)
        if made_for != list(image_size):
            raise InputError(f"images of {list(image_size)} do not fit {name}, which is made for {made_for}{otherwise}") from error
        raise InputError(f"images of {list(image_size)} do not fit the backbone: {str(error).splitlines()[0]}") from error
    finally:
        network.train(training)


def load_network(name: str, weights: "str | os.PathLike[str] | None" = None, device: "torch.device | str" = "cpu",
                 dtype: torch.dtype = torch.float32, tight: bool = False, **kw: Any) -> nn.Module:
    """The network `name` with the checkpoint `weights`, in eval mode and frozen: images [N, 3, H, W] in [-0.5, 0.5] -> embeddings.

    Without weights, `name` is that of a trained model (models.py), whose file is found and compared with its SHA-256; it averages over
    mirror images where its thresholds are for that (`FlipAveraged`).
    It is to be evaluated and attacked: the layers of one that is 1-Lipschitz are folded (`proof.fold`), each the plain weights that are
    proven, which no other parameters are behind. To train, use `stored_network`.
    With `tight` its embeddings are divided by its proven Lipschitz constant (`DividedOutput`), which the norm of the last layer makes
    smaller than 1. Raises InputError where the checkpoint is missing, damaged or of another network, where a network that is to be
    1-Lipschitz is not proven to be so with these weights (see bounds.py), and for `tight` with a network that has no such constant.
    """
    if weights is None:
        model = models.find(name)
        network = load_network(model.backbone, models.weights_of(model), device, dtype, tight, **{**model.arguments, **kw})
        return averaged(network, model.flip)
    network = stored_network(name, weights, **kw).to(device=device, dtype=dtype)
    if is_lipschitz(name):
        with naming(weights):
            bound = lipschitz_bound(network, image_size(name))
            if tight and not bound > 0:
                raise InputError("the last layer is zero: there is nothing to divide by")
            if not tight:
                at_most_one(bound)
            network = fold(network)
        return DividedOutput(network, bound).eval() if tight else network
    if tight:
        raise InputError(f"backbone {name}: this network is not 1-Lipschitz, so it has no constant to divide by")
    return network


def stored_network(name: str, weights: "str | os.PathLike[str]", **kw: Any) -> nn.Module:
    """As `load_network`, the Lipschitz constant not looked at.

    Arguments that are not in `kw` are those that the checkpoint says, if it is one of the registered network `name`, and its defaults
    otherwise. Raises InputError where the checkpoint is missing or damaged, does not fit, or says that it is of another network.
    """
    BACKBONES.find(name)
    stored = read_weights(weights)
    kw = {**_said_arguments(name, stored, kw), **kw}
    network = get_backbone(name, **kw)
    put(network, stored, functools.partial(_refuse_another, name, kw))
    network = network if input_scale(name) == 1 else ScaledInput(network, input_scale(name))
    return network.eval().requires_grad_(False)


def _said_arguments(name: str, stored: Stored, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments that a checkpoint says its network was built with, where that is `name` and registered; none otherwise.

    A file may come from anyone. It chooses arguments, plain data, of a network of this project or of one that was imported already, and
    nothing is computed with them before a network of that layout, without memory for its weights, has been found to be that of the file.
    """
    entry = BACKBONES.find(name)
    said, arguments = stored.network or ("", {})
    if not arguments or ":" in entry.name or _entry_said(said, name) is not entry:
        return {}
    with naming(stored.path):
        if _whole_numbers(arguments) > MOST_SAID:
            raise InputError(f"holds {_call(said, arguments)}, whole numbers that are {MOST_SAID} in all at most were expected")
        try:
            with torch.device("meta"):
                sketch = get_backbone(name, **{**arguments, **given})
        except Exception as error:  # whatever a constructor raises for what it cannot use
            raise InputError(f"holds {_call(said, arguments)}, which cannot be made: {error}") from error
        numbers, room = sum(value.numel() for value in (*sketch.parameters(), *sketch.buffers())), os.stat(stored.path).st_size
        if numbers > max(room, ALWAYS_ROOM):  # tensors of a file may share their numbers, and some are in no file
            raise InputError(f"holds {_call(said, arguments)}, a network of {numbers} numbers, in {room} bytes")
    fitting(sketch, stored)
    return arguments


def _whole_numbers(value: Any) -> int:
    """The sum of the absolute values of the integers in plain data."""
    if isinstance(value, Mapping):
        return sum(map(_whole_numbers, value.values()))
    return abs(value) if isinstance(value, int) else sum(map(_whole_numbers, value)) if isinstance(value, (list, tuple)) else 0


def _refuse_another(name: str, arguments: Mapping[str, Any], stored: str, stored_arguments: Mapping[str, Any]) -> None:
    """Raise InputError unless a checkpoint of `stored` is one of `name`, under another name perhaps."""
    expected, found = BACKBONES.find(name), _entry_said(stored, name)
    if found is None or found.described_by(stored_arguments) != expected.described_by(arguments):
        raise InputError(f"holds {_call(stored, stored_arguments)}, expected {_call(name, arguments)}")


def _entry_said(stored: str, name: str) -> "Backbone | None":
    """The network that a checkpoint calls `stored`, where `name` is asked for. No code of others is imported, whatever a file says."""
    expected = BACKBONES.find(name)
    return expected if stored in (name, expected.outside) else None if ":" in stored else _registered(stored)


def _registered(name: str) -> "Backbone | None":
    with contextlib.suppress(InputError):
        return BACKBONES.find(name)
    return None


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"[:200] if arguments else name


@contextlib.contextmanager
def naming(weights: "str | os.PathLike[str]") -> Iterator[None]:
    """Messages of what is wrong with a network begin with the file of its weights."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{weights}: {error}") from None
