"""What all audits share."""
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import pandas as pd

from eval.store.journal import Journal, Outcome
from eval.store.subject import Subject
from utils.distributed import per_rank
from utils.progress import Stage

RESOLUTION = 1e-4  # a smaller radius cannot be told from the rounding of pixels near 0.5, and is not attacked
SHARE = 0.999  # of the radius: the budget of attacks with one
EXACT = 1e-9  # relative rounding of float64


class Settings(NamedTuple):
    """steps and restarts of each attack; limit: of the rows of each kind, None: all; seed: of all random starts."""
    steps: int = 100
    restarts: int = 3
    limit: int | None = None
    seed: int = 0


def searched(subject: Subject, title: str, journal: Journal, every: Mapping[str, pd.DataFrame],
             attack: Callable[[str, Callable[[int], None], pd.DataFrame], Outcome], most_passes: int, batch_size: int
             ) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame, pd.DataFrame]]:
    """(kind, its samples, those that are attacked, what came of these) of each kind of decisions in `every`.

    A sample has a `radius`, and is attacked where that is above RESOLUTION: by attack(kind, tick, batch), which tells `tick` of each pass
    how many images it had, of at most `most_passes` for a sample.
    """
    resolved = {kind: samples[samples["radius"] > RESOLUTION] for kind, samples in every.items()}
    work = subject.work(title, sum(map(len, resolved.values())), most_passes)
    for kind, chosen in resolved.items():
        with work.stage(kind.upper(), per_rank(len(chosen))) as stage:
            def show(rows: pd.DataFrame, stage: Stage = stage) -> None:
                stage.update(len(rows))
            rows = journal.run(kind, chosen, partial(attack, kind, stage.tick), batch_size, show)
        yield kind, every[kind], chosen, rows


def finite(value: float) -> float | None:
    """A number for JSON: None where it is not finite."""
    return float(value) if math.isfinite(value) else None
