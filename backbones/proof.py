"""What a layer says is proven of it, and how it is asked: the one place that knows which layers have a proof.

A layer is an nn.Module with, beside its `forward`,

    proven_lipschitz(shape) -> float             at least its Lipschitz constant in l2, rounded up, for inputs [N, *shape]; shape is None
                                                 where one constant for inputs of every shape is asked for
    proven_rounding(state, shape) -> State       optional: bounds of its output as float64 computes it, from those of its input
    folded() -> nn.Module                        optional: the layer as plain weights, which has a proof of its own

The first may raise InputError, saying what is wrong with the weights. What it says covers the `forward` that stands in the same class or
further up; a subclass with a `forward` of its own says it anew, or has no proof. Classes of others say it by `declare`. A network that
does not apply its layers one after another (a sum of branches, say) is a layer as well: it has `proven_lipschitz`, and what is inside it
is its own affair; `bounds.lipschitz_bound` gives it the constants of its parts.
"""
import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils import InputError
from utils.modes import evaluating

# of ||V|| in float32: the entries of V are off by 6e-8 of themselves each, and so is the norm, a few times over
TOLERANCE = 1e-5
UNIT = 2.0**-53
UP = 1 + 1e-9  # more than the rounding of norms and of sums without cancellation that make an error bound, in float64
UP_LITTLE = 1 + 1e-12  # the same for a handful of operations
UNDERFLOW = 1e-280  # more than what products below the smallest float64 can add up to

Shape = Sequence[int] | None


class State(NamedTuple):
    """Bounds in l2 after a layer, over all images: of what was computed, and of its difference from exact arithmetic."""
    size: float
    error: float


class _Declaration(NamedTuple):
    forward: Callable
    lipschitz: float
    rounding: Callable[[State, Shape], State] | None


_OTHERS: dict[type, _Declaration] = {}


def declare(kind: type[nn.Module], lipschitz: float, rounding: Callable[[State, Shape], State] | None = None) -> None:
    """Say for a class of PyTorch, or of others, what a layer says by methods of its own."""
    _OTHERS[kind] = _Declaration(kind.forward, lipschitz, rounding)


def gamma(n: int) -> float:
    """At least n u / (1 - n u): the relative error of a sum of n products in float64, in any order, of the sum of their magnitudes."""
    return 1.001 * n * UNIT


def product(constants: Sequence[float]) -> float:
    """Of at most a thousand constants, rounded up."""
    return math.prod(constants) * UP_LITTLE


def exactly(state: State, shape: Shape) -> State:
    """The rounding of a layer that computes nothing: values move, or the larger one of two is taken; 1-Lipschitz, with value 0 at 0."""
    return state


def projected(state: State, terms: int) -> State:
    """The rounding of a projection that is computed up to gamma_terms |z|."""
    local = gamma(terms) * state.size * UP + UNDERFLOW
    return State((state.size + local) * UP, (state.error + local) * UP)


def multiplied(state: State, norm: float, magnitude: float, terms: int, shift: float = 0.0) -> State:
    """The rounding of V z + c, sums of `terms` products and a value of c: from at least ||V||, || |V| || and |c|."""
    local = gamma(terms + 1) * (magnitude * state.size + shift) * UP + UNDERFLOW
    return State((norm * state.size + shift + local) * UP, (norm * state.error + local) * UP)


def norm_of_magnitudes(values: Tensor) -> float:
    """At least the norm of |V|, from values [C, cin] >= 0: sums of its taps, which are what it can do to a constant image."""
    return math.sqrt(values.sum(0).amax().item() * values.sum(1).amax().item()) * UP


def is_declared(layer: nn.Module) -> bool:
    """Whether anything says a Lipschitz constant for this layer, rightly or for another `forward`."""
    return hasattr(type(layer), "proven_lipschitz") or _declared_elsewhere(layer) is not None


def refusal(layer: nn.Module) -> str | None:
    """Why what is declared of this layer's kind does not hold for it, as the end of a sentence; None where it does."""
    if replaced := replacement(layer):
        return replaced
    if layer._compiled_call_impl is not None:
        return "is called by what module.compile() left, which may be anything"
    if type(layer)._call_impl is not nn.Module._call_impl:
        return "has a _call_impl of its own, which may change what it computes"
    if covers(layer, "proven_lipschitz") or _is_of_its_kind(layer):
        return None
    return "has another forward than the one that its Lipschitz constant was declared for, and declares none itself"


def replacement(module: nn.Module) -> str | None:
    """What stands between calling this module and the `forward` of its class; None where nothing does."""
    if "forward" in vars(module) or "_call_impl" in vars(module):
        return "had its forward replaced"
    if module._forward_hooks or module._forward_pre_hooks:
        return "has hooks, which may change what it computes"
    return None


def covers(layer: nn.Module, method: str) -> bool:
    """Whether what `method` says is said of the `forward` that the layer has: it is defined in the same class, or in a subclass of that."""
    classes = type(layer).__mro__
    place = {name: next((n for n, kind in enumerate(classes) if name in vars(kind)), None) for name in ("forward", "__call__", method)}
    return place[method] is not None and place[method] <= min(place["forward"], place["__call__"])


def constant(layer: nn.Module, shape: Shape) -> float:
    """The declared Lipschitz constant for inputs [N, *shape] of a layer for which `refusal` is None."""
    found = _declared_elsewhere(layer)
    return found.lipschitz if found else layer.proven_lipschitz(shape)


def rounding(layer: nn.Module) -> Callable[[State, Shape], State] | None:
    """The declared rounding of a layer for which `refusal` is None; None where it declares none."""
    found = _declared_elsewhere(layer)
    return found.rounding if found else layer.proven_rounding if covers(layer, "proven_rounding") else None


def _declared_elsewhere(layer: nn.Module) -> _Declaration | None:
    if hasattr(type(layer), "proven_lipschitz"):
        return None
    return next((_OTHERS[kind] for kind in type(layer).__mro__ if kind in _OTHERS), None)


def _is_of_its_kind(layer: nn.Module) -> bool:
    found = _declared_elsewhere(layer)
    return found is not None and type(layer).forward is found.forward and type(layer).__call__ is nn.Module.__call__


def named(name: str, layer: nn.Module) -> str:
    """How messages call a layer: by its name in the network, if it is not that itself, and its class."""
    return f"layer {name}: {type(layer).__name__}" if name else type(layer).__name__


def folded_layers(network: nn.Module) -> "dict[int, Any]":
    """{id of a layer: the layer as plain weights} for all layers that have such a form. Raises InputError for one that has it of another
    `forward` than its own.
    """
    forms = {}
    for name, layer in network.named_modules():
        if hasattr(type(layer), "folded"):
            if not covers(layer, "folded") or replacement(layer):
                raise InputError(f"{named(name, layer)} has another forward than the one that can be folded")
            forms[id(layer)] = layer.folded()
    return forms


@torch.no_grad()
def fold(network: nn.Module) -> nn.Module:
    """A copy of `network` in eval mode, frozen, whose layers are plain ones with folded weights where they have such a form; same outputs,
    to rounding.

    What it has are those weights and not what they were computed from, so that nothing is to be computed, or compared, in a forward pass.
    Raises InputError for a layer whose `forward` is not the one that its folded form was written for.
    """
    with evaluating(network):  # layers may have other weights in training, of which nothing is proven
        plain = folded_layers(network)
    return copy.deepcopy(network, plain).eval().requires_grad_(False)


# PyTorch's own layers that move values and compute nothing
for _kind in (nn.PixelUnshuffle, nn.Flatten, nn.Identity):
    declare(_kind, 1.0, exactly)
