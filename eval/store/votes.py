"""Whether the radii of smoothed decisions in a results folder are those of their votes: a file from anywhere could state larger ones."""
from pathlib import Path

import numpy as np

from eval.records import Records
from eval.smoothing import Smoothing
from utils import InputError

_OTHER_SCIPY = 1e-9  # relative difference of radii that another version may have computed


def refuse_other_votes(pairs: Path, images: Path, found: Records) -> None:
    """Raise InputError, naming the file and the column, where the radii of smoothed decisions are not those of their votes."""
    settings, tau = Smoothing.of(found.summary), found.summary["tau"]
    sides = [("", "_joint")] if settings.threat == "joint" else [("_left", "_left"), ("_right", "_right")]
    of_tables = [(pairs, found.pairs, sides), *([] if settings.threat == "joint" else [(images, found.images, [("", "_u")])])]
    for path, table, columns in of_tables:
        for name, expected in (("samples", settings.n), ("alpha", settings.alpha)):
            if not (name in table and (table[name] == expected).all()):
                raise InputError(f"{path}: column {name}, expected {expected} in all rows, as the summary says")
        same = table.get("same", True)
        for column, radius in columns:
            votes, accepts = table[f"votes{column}"], table[f"cosine{column}"] > tau
            proven = np.where(accepts == same, settings.radius(accepts, votes.clip(upper=settings.n)), 0.)
            if (votes > settings.n).any() or not np.allclose(table[f"radius{radius}"], proven, _OTHER_SCIPY, 0):
                raise InputError(f"{path}: column radius{radius} is not that of the votes{column} of {settings.n} samples")
    weaker = np.stack([found.pairs[f"radius{radius}"] for _, radius in sides]).min(0)
    if not np.array_equal(found.pairs["radius"], weaker):
        raise InputError(f"{pairs}: column radius is not the smaller one of the sides of a pair")
