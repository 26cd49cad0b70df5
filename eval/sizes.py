"""Numbers and sizes in words, rounded so that what is said of them stays true."""
from decimal import ROUND_DOWN, ROUND_UP, Decimal

from eval.budgets import GREY


def rounded_down(value: "float | Decimal", places: int = 2) -> str:
    """The number with two places, or so many more that two digits are not 0, and never above its value."""
    return _rounded(value, ROUND_DOWN, places)


def rounded_up(value: "float | Decimal", places: int = 2) -> str:
    """The same, and never below its value."""
    return _rounded(value, ROUND_UP, places)


def _rounded(value: "float | Decimal", way: str, places: int) -> str:
    exact = Decimal(value)
    if exact:
        places = max(places, 1 - exact.adjusted())
    return f"{exact.quantize(Decimal(1).scaleb(-places), rounding=way):f}"


def size_in_words(size: str, numbers: int) -> str:
    """What else has this l2 size, a number as it is written, in an image of so many values (pixels times channels), rounded down."""
    one = Decimal(size)
    levels = one * GREY
    every = f"all {numbers:,} values by {rounded_down(levels / Decimal(numbers).sqrt())} levels"
    if one >= 1:
        count = int(one * one)
        return f"changing {'one value of one pixel' if count == 1 else f'{count:,} values of its pixels'} from 0 to {GREY}, or {every}"
    return f"changing one value of one pixel by {rounded_down(levels, 1)} of {GREY} levels, or {every}"
