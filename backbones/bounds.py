"""The Lipschitz constant of a network, bounded from above with proof from the weights that it was given.

Each layer says its own (proof.py); where a network applies its layers one after another, each once (chain.py), the product of theirs is the
network's. docs/soundness.md has the proofs.
"""
from collections.abc import Sequence

import torch
from torch import nn

from backbones import proof
from backbones.chain import chain
from backbones.proof import TOLERANCE, UNIT, gamma, product
from utils import InputError
from utils.modes import evaluating

__all__ = ["TOLERANCE", "UNIT", "at_most_one", "gamma", "lipschitz_bound", "product"]
_ROUNDED = 1e-4  # more than what float32 makes of a hundred constants that are 1


@torch.no_grad()
def lipschitz_bound(network: nn.Module, image_size: Sequence[int]) -> float:
    """An upper bound of the Lipschitz constant in l2 of the network in eval mode, on images [N, *image_size].

    It may be below 1, as that of the last SLL layer is, and above it, as that of a network which says so itself is. Raises InputError,
    naming the layer, for one that declares no constant, for values that are not finite, for an SLL layer whose ||V|| is above 1 by more
    than rounding, and for a network that does anything else than apply its layers one after another, each once.
    """
    constants = []
    with evaluating(network):
        for name, layer, shape in chain(network, image_size):
            for key, value in layer.state_dict().items():
                if bad := int((~value.isfinite()).sum()):
                    raise InputError(f"{name}{'.' if name else ''}{key}: {bad} of {value.numel()} values are not finite: no certificate "
                                     "holds for such weights")
            constants.append(constant_of(name, layer, shape))
    return product(constants)


def constant_of(name: str, layer: nn.Module, shape: proof.Shape) -> float:
    """What a layer declares. Raises InputError, naming it, where it refuses to and where that is no number from 0 up."""
    try:
        constant = float(proof.constant(layer, shape))
    except InputError as error:
        raise InputError(f"layer {name}: {error}" if name else str(error)) from None
    except Exception as error:  # of a layer of somebody else's: anything
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{proof.named(name, layer)}: its proven_lipschitz is no number or fails: {reason}") from error
    if not 0 <= constant < float("inf"):
        raise InputError(f"{proof.named(name, layer)}: the bound of its Lipschitz constant is {constant}")
    return constant


def at_most_one(bound: float) -> None:
    """Raise InputError where the Lipschitz constant is above 1 by more than what float32 rounds a network by."""
    if not bound <= 1 + _ROUNDED:
        raise InputError(f"the Lipschitz constant of the network may be {bound:.6g}, expected at most 1: its embeddings are to be "
                         "divided by it")
