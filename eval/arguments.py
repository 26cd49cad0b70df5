"""Types of command-line arguments. Nothing heavy is imported, so that help is instant."""
import argparse
from typing import Any, Callable

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
