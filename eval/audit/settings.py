"""What all audits share."""
import math
from typing import NamedTuple

RESOLUTION = 1e-4  # a smaller radius cannot be told from the rounding of pixels near 0.5, and is not attacked
SHARE = 0.999  # of the radius: the budget of attacks with one
EXACT = 1e-9  # relative rounding of float64


class Settings(NamedTuple):
    """steps and restarts of each attack; limit: of the rows of each kind, None: all; seed: of all random starts."""
    steps: int = 100
    restarts: int = 3
    limit: int | None = None
    seed: int = 0


def finite(value: float) -> float | None:
    """A number for JSON: None where it is not finite."""
    return float(value) if math.isfinite(value) else None
