"""Weights that are computed from others are not computed twice: kept while nothing changes, or once for an optimiser step.

What is kept is never stale: it is compared with the values that it was computed from. In training `RescaledOnce` shares it between the
passes of one step, with all gradients.
"""

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor | None]


def _equal(kept: "tuple[Tensor | None, ...]", now: "tuple[Tensor | None, ...]") -> bool:
    """Whether values, types and devices are the same.

    Their versions would be cheaper to compare, but miss edits through `.data` or numpy. Reading the values takes a sixth of the
    time of one image in SLLNet, and 2 % of a batch of 16; `backbones.export.fold` makes a network without it.
    """
    kept, now = ([p for p in parameters if p is not None] for parameters in (kept, now))
    if [(p.dtype, p.device, p.shape) for p in kept] != [(p.dtype, p.device, p.shape) for p in now]:
        return False
    pairs = [*zip(kept, now)]
    elsewhere = [torch.ne(a, b).any() for a, b in pairs if b.device.type != "cpu"]
    if not all(torch.equal(a, b) for a, b in pairs if b.device.type == "cpu"):
        return False
    return not elsewhere or not torch.stack(elsewhere).any()  # waits for the device once, not once a parameter


def mode(layer: nn.Module) -> Tensor:
    """Whether a layer is in training mode, as a source of weights that are computed otherwise then; on the CPU, where it is asked for."""
    return torch.tensor(layer.training, device="cpu")


class Rescaled(nn.Module):
    """A layer whose weights are rescaled: weight and bias are computed from parameters by `compute`, and kept while nothing asks for a
    gradient.
    """

    _kept = None  # (copies of the parameters, weight, bias)
    _shared = None  # weight and bias of this optimiser step, see `RescaledOnce`

    def sources(self) -> "tuple[Tensor | None, ...]":
        """The parameters that weight and bias are computed from."""
        raise NotImplementedError

    def compute(self, *sources: Tensor | None) -> Pair:
        """Weight and bias from `sources`."""
        raise NotImplementedError

    def alike(self) -> Hashable:
        """Equal for layers that `compute_together` can take together; None: this one is computed by itself."""
        return None

    @classmethod
    def compute_together(cls, layers: "Sequence[Any]") -> list[Pair]:
        """`compute` of layers that are `alike`, in as few kernels as one of them."""
        raise NotImplementedError

    def fresh(self) -> Pair:
        """Weight and bias, computed anew."""
        return self.compute(*self.sources())

    def rescaled(self) -> Pair:
        """Weight and bias; computed anew whenever a gradient of the parameters may be asked for or a parameter changed."""
        return self._shared if self._shared is not None else self._rescaled_now()

    def asks_gradients(self) -> bool:
        """Whether gradients of the parameters may be asked for."""
        return torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in self.sources())

    @torch.compiler.disable  # a compiler would freeze what is kept, or compile t for each of the shifts
    def _rescaled_now(self) -> Pair:
        parameters = self.sources()
        if parameters[0].is_meta:  # shapes cannot be compared, and cost nothing
            return self.fresh()
        if self.asks_gradients() or torch._C._are_functorch_transforms_active():  # what a transform of torch.func sees belongs to that call
            return self.fresh()
        if self._kept is None or not _equal(self._kept[0], parameters):
            with torch.no_grad(), torch.inference_mode(False):
                copies = tuple(None if p is None else p.detach().clone() for p in parameters)
                self._kept = (copies, *self.compute(*copies))
        return self._kept[1], self._kept[2]

    def train(self, mode: bool = True):
        self._kept = None
        return super().train(mode)

    def _apply(self, *args, **kw):
        self._kept = None
        return super()._apply(*args, **kw)

    def __getstate__(self):
        state = dict(self.__dict__)
        state.pop("_kept", None)
        state.pop("_shared", None)
        return state


def all_fresh(layers: Sequence[Rescaled]) -> list[Pair]:
    """Weight and bias of each layer, computed anew: of those that are alike, together."""
    groups: dict[Any, list[Rescaled]] = {}
    for layer in layers:
        key = layer.alike()
        groups.setdefault(layer if key is None else (type(layer), key), []).append(layer)
    found: dict[Rescaled, Pair] = {}
    for group in groups.values():
        found |= zip(group, group[0].compute_together(group) if len(group) > 1 else [group[0].fresh()])
    return [found[layer] for layer in layers]


def together(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """For the `forward` of a network: where gradients of its weights may be asked for, those of all its layers are computed at once, as
    on a GPU starting them one by one takes longer than they do.
    """
    @functools.wraps(forward)
    def with_all_weights(network: nn.Module, *args: Any) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return forward(network, *args)
        with _sharing(network):
            return forward(network, *args)
    return with_all_weights


@contextlib.contextmanager
def _sharing(network: nn.Module) -> Iterator[None]:
    """Within, the layers of `network` that would be computed in each forward pass have their weights. Within `RescaledOnce` they have."""
    layers = [module for module in network.modules() if isinstance(module, Rescaled) and module._shared is None and module.asks_gradients()]
    for layer, pair in zip(layers, all_fresh(layers)):
        layer._shared = pair
    try:
        yield
    finally:
        for layer in layers:
            layer._shared = None


class Observing(nn.Module):
    """A layer that learns from what passes through it in training, without gradients: once an optimiser step, however many passes that has.

    Outside of `RescaledOnce` each forward pass is a step.
    """

    _gathering = False  # more passes of this step may come

    def settle(self) -> None:
        """Learn from what was seen since the last time."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drop it."""
        raise NotImplementedError


class RescaledOnce:
    """Compute the rescaling of every SLL layer once for all forward and backward passes between two changes of the weights.

        with RescaledOnce(network) as rescaling:
            for number, part in enumerate(parts):
                if number == len(parts) - 1:
                    rescaling.last()
                loss(network(part)).backward()

    Until `last` is called the passes use leaves with the values of T^(1/2) W and T^(1/2) b, whose gradients add up; the last backward pass
    adds these to its own and goes on through t to the parameters. So the parameters receive all gradients in one backward pass, the
    only one whose gradients DDP has to average. With nothing left to compute in a layer but convolutions, a compiled network has no
    graph breaks. Layers that learn from what passes through them (`Observing`) do so when it ends, and not where that is by an error.
    """

    def __init__(self, network: nn.Module):
        self.layers = [module for module in network.modules() if isinstance(module, Rescaled)]
        self.observing = [module for module in network.modules() if isinstance(module, Observing)]

    def __enter__(self) -> "RescaledOnce":
        with torch.enable_grad():
            # no leaves: a parameter that is used as it is would keep the hook of `last` for all steps to come
            self.live = [tuple(None if value is None else value.view_as(value) for value in pair) for pair in all_fresh(self.layers)]
        for layer, live in zip(self.layers, self.live):
            layer._shared = tuple(None if value is None else value.detach().requires_grad_() for value in live)
        for module in self.observing:
            module._gathering = True
        return self

    def last(self) -> None:
        """The next backward pass is the last one."""
        for layer, live in zip(self.layers, self.live):
            for value, leaf in zip(live, layer._shared):
                if leaf is not None and leaf.grad is not None:
                    value.register_hook(leaf.grad.add)
            layer._shared = live

    def __exit__(self, error: "type[BaseException] | None", *_) -> None:
        for layer in self.layers:
            layer._shared = None
        for module in self.observing:
            module._gathering = False
            module.settle() if error is None else module.forget()
