"""Types of command-line arguments, and what they name. Nothing heavy is imported before it is used, so that help is instant."""
import argparse
from typing import Any, Callable

from utils import InputError

ATTACKS = ("pgd", "apgd", "cw", "ddn", "fgsm")


def inside(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    """An argument type: numbers strictly between low and high."""
    def number(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low < value < high:
            raise argparse.ArgumentTypeError(f"{text} is not inside ({low:g}, {high:g})")
        return value
    return number


def order(text: str) -> float:
    """An argument type: the p of an l_p norm, from 1 up to inf."""
    try:
        p = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not p >= 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return p


def share(text: str) -> float:
    """An argument type: a part of a whole, from 0 up to but not including 1."""
    return 0. if text == "0" else inside(float, 0, 1)(text)


def device_named(name: "str | None") -> Any:
    """The torch.device of --device; None: cuda where there is one. Raises InputError for one that is not there."""
    import torch
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # an unknown name, a missing device, a build without CUDA
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def load(backbone: str, weights: str, device: Any, flip: str = "none", tight: bool = False) -> Any:
    """The network that is evaluated: with flip="average" the averaging is part of it, so that attacks see it too; tight: as
    `backbones.load_network`.
    """
    from backbones import averaged, load_network
    return averaged(load_network(backbone, weights, device=device, tight=tight), flip)
