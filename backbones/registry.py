"""The registry of networks. A file of this package that defines one registers it there; adding a network is adding such a file."""
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from utils.registry import Registry


@dataclass(frozen=True)
class Backbone:
    """A network by its name, and what commands need to know of it.

    build(**arguments): the network with fresh weights. image_size: (C, H, W) of the images that it is made for. scale: what pixels in
    [-0.5, 0.5] are multiplied by before they enter. lipschitz: whether it is 1-Lipschitz in l2 by construction; None where its layers are
    to be asked. It is a claim that is checked with every checkpoint, and no certificate follows from it alone.
    """
    name: str
    build: Callable[..., nn.Module]
    image_size: tuple[int, int, int] = (3, 112, 112)
    scale: float = 1.0
    lipschitz: bool | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def described_by(self, arguments: Mapping[str, Any]) -> "tuple[Callable[..., nn.Module], Any]":
        """What this network with these arguments is, whatever it is called: what builds it, and all arguments of that."""
        given = {**self.arguments, **arguments}
        try:
            signature = inspect.signature(self.build)
            bound = signature.bind(**given)
            bound.apply_defaults()
            further = [key for key, parameter in signature.parameters.items() if parameter.kind is parameter.VAR_KEYWORD]
            named = {key: value for key, value in bound.arguments.items() if key not in further}
            given = {**named, **{key: value for kind in further for key, value in bound.arguments[kind].items()}}
        except (TypeError, ValueError):  # arguments that do not fit: building says so
            pass
        return self.build, plain(given)

    @property
    def outside(self) -> str:
        """How another project would name it: package.module:Name."""
        return f"{getattr(self.build, '__module__', '')}:{getattr(self.build, '__qualname__', '')}"


def plain(value: Any) -> Any:
    """A value in which a list and a tuple of the same are the same."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value


def _modules() -> Iterator[str]:
    import backbones
    return (f"backbones.{module.name}" for module in pkgutil.iter_modules(backbones.__path__))


BACKBONES: "Registry[Backbone]" = Registry("backbone", Backbone, _modules)
register = BACKBONES.register
