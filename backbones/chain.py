"""Whether a network applies its layers one after another, each once, with nothing in between: then its constant is their product.

The layers are those with a declaration (proof.py); what is around them (nn.Sequential, a stage, the network itself) must have nothing of
its own to compute with. Whether it only passes images on is seen by letting one through a copy that has shapes and no values: each layer
must get the very tensor that the one before returned, nothing may be written outside of layers, and a decision that depends on values
cannot be taken.
"""
import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from backbones import proof
from utils import InputError

_BATCHES = (1, 3)  # numbers of images that are let through: an embedding must not depend on how many there are


class CannotFollow(InputError):
    """A network of declared layers through which no image could be let: of another size, or it decides by values."""


class Step(NamedTuple):
    """A layer of a chain: its name, and the shape of its input without the batch."""
    name: str
    layer: nn.Module
    shape: torch.Size


def layers_of(network: nn.Module) -> "dict[str, nn.Module]":
    """The layers of a network by name, in the order of definition; what is inside a layer is not among them.

    Raises InputError, naming it, for a layer without a declaration or with one for another `forward`, for a module with hooks, and for
    parameters and buffers outside of layers.
    """
    found: dict[str, nn.Module] = {}
    _collect("", network, network, found, set())
    return found


def _collect(name: str, module: nn.Module, network: nn.Module, found: "dict[str, nn.Module]", seen: "set[int]") -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    if proof.is_declared(module):
        if why := proof.refusal(module):
            raise InputError(f"{proof.named(name, module)} {why}: it has no known Lipschitz constant")
        found[name] = module
        return
    own = [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]
    if module is network and own:
        raise InputError(f"{own[0]} of {type(module).__name__}: parameters outside of layers have no known Lipschitz constant")
    if own or not _is_container(module):
        raise InputError(f"{proof.named(name, module)} has no known Lipschitz constant, expected layers that declare one, as those of SLL "
                         "networks do")
    if why := proof.replacement(module):
        raise InputError(f"{proof.named(name, module)} {why}: it has no known Lipschitz constant")
    for child_name, child in module.named_children():
        _collect(f"{name}.{child_name}" if name else child_name, child, network, found, seen)


def _is_container(module: nn.Module) -> bool:
    """Whether it can do no more than apply others: it has some, or is a list of none."""
    return any(True for _ in module.children()) or type(module).forward in (nn.Sequential.forward, nn.Module.forward)


def chain(network: nn.Module, image_size: Sequence[int]) -> "list[Step]":
    """The layers of a network in the order in which it applies them to images [N, *image_size].

    Raises InputError as `layers_of`, where the network does anything else than apply each of them once, one after another, and where
    images of this size do not fit.
    """
    layers = layers_of(network)
    if "" in layers:  # the network is a layer: what it does inside is its own affair
        return [Step("", network, torch.Size(image_size))]
    orders = [_let_through(network, layers, (batch, *image_size)) for batch in _BATCHES]
    return [Step(name, layers[name], shape[1:]) for name, shape in orders[0]]


def followed(network: nn.Module, image_size: Sequence[int]) -> nn.Module:
    """The layers of a network one after another and nothing else of it: what its constant is proven of, for images [N, *image_size].

    What a forward pass of the network itself does with real images, with more of them or on another device, cannot be seen in a copy
    without values; so certificates are given for this. The layers are the network's own. A network that is a layer itself comes back as it
    is, with the networks inside it followed where it says how (`followed`). Raises InputError as `chain`.
    """
    steps = chain(network, image_size)
    if steps and not steps[0].name:
        return network.followed(image_size) if hasattr(type(network), "followed") else network
    found = nn.Sequential(*(step.layer for step in steps))
    found.training = network.training
    return found


def _let_through(network: nn.Module, layers: "dict[str, nn.Module]", size: Sequence[int]) -> "list[tuple[str, torch.Size]]":
    name = type(network).__name__
    with torch.inference_mode(False), torch.no_grad():
        twin = _without_values(network)
        watch = _Watch()
        for layer_name in layers:
            layer = twin.get_submodule(layer_name)
            layer.forward = watch.around(layer_name, layer.forward)
        like = next((value for value in twin.state_dict().values() if value.is_floating_point()), torch.empty(0))
        image = torch.empty(size, dtype=like.dtype, device="meta")
        try:
            with watch:
                result = twin(image)
        except Exception as error:  # of the network's own code: anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CannotFollow(f"{name} cannot be followed for images of {list(size[1:])}: they do not fit, or it decides by values "
                               f"({reason})") from error
    if problem := _problem(watch, layers, image, result):
        raise InputError(f"{name} does not apply its layers one after another, each once ({problem}): their constants say nothing of it, "
                         "and it declares none itself")
    return [(layer, into.shape) for layer, into, _ in watch.seen]


def _problem(watch: "_Watch", layers: "dict[str, nn.Module]", image: Tensor, result: Any) -> "str | None":
    """What makes the network something else than a chain of its layers, as seen with this image; None where nothing does."""
    calls = [name for name, *_ in watch.seen]
    for name in layers:
        if calls.count(name) != 1:
            return f"{name} is applied {calls.count(name)} times"
    if watch.written:
        return f"{watch.written} changes a tensor in between"
    if watch.further:
        return f"{watch.further} is called with more than its input"
    given, taken = [image, *(output for _, _, output in watch.seen)], [*(into for _, into, _ in watch.seen), result]
    for before, after, one, other in zip(["the image", *calls], [*calls, "the embedding"], given, taken):
        if one is not other:
            verb = "is not" if after == "the embedding" else "is not applied to"
            return f"{after} {verb} {f'what comes out of {before}' if before in layers else before}"
    if result.shape[:1] != image.shape[:1] or result.dtype != image.dtype:
        return f"{len(image)} images in {image.dtype} become {list(result.shape)} in {result.dtype}"
    return None


def _without_values(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose tensors have shapes, types and nothing else."""
    memo: dict[int, Any] = {}
    for value in (*network.parameters(), *network.buffers()):
        blank = torch.empty_like(value, device="meta")
        memo[id(value)] = nn.Parameter(blank, requires_grad=False) if isinstance(value, nn.Parameter) else blank
    try:
        return copy.deepcopy(network, memo).eval()
    except Exception as error:  # of the network's own code
        raise InputError(f"{type(network).__name__} cannot be copied, and so not be followed: {error}") from error


class _Watch(TorchDispatchMode):
    """seen: (layer, input, output) of every call of a layer; written: the first operation outside of layers that changes a tensor in place,
    also where its version does not say so (`.data`); further: a layer that was called with more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any, Any]] = []
        self.written, self.further, self._inside = "", "", False

    def around(self, name: str, forward: Callable) -> Callable:
        def followed(*inputs: Any, **settings: Any) -> Any:
            if len(inputs) != 1 or settings:
                self.further = name
            self._inside = True
            try:
                output = forward(*inputs, **settings)
            finally:
                self._inside = False
            self.seen.append((name, inputs[0] if inputs else None, output))
            return output
        return followed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable and not self._inside:
            self.written = self.written or func.overloadpacket.__name__
        return func(*args, **(kwargs or {}))
