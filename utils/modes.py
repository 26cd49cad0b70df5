"""Training and eval mode of modules."""
import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def evaluating(network: Any) -> Iterator[None]:
    """Eval mode inside, where it is a module; each part is put back into the mode it was found in, also after an error."""
    modes = [(module, module.training) for module in network.modules()] if isinstance(network, nn.Module) else []
    try:
        if any(training for _, training in modes):
            modes[0][0].eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
