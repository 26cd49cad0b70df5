"""All ranks go from step to step together: they stop at the same step, on a signal or when one of them cannot go on."""
import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

from utils import InputError
from utils.distributed import gather_objects, rank, sums_over_ranks
from utils.faults.signals import StopSignals

LOGGER = logging.getLogger("training")

Batch = TypeVar("Batch")


class Interrupted(Exception):
    """A signal asked one of the ranks to stop. Raised on all of them between the same two steps."""


class DataError(InputError):
    """One of the ranks has no batch. Raised on all of them between the same two steps."""


def in_lockstep(loader: Iterable[Batch], signals: StopSignals, max_bad_records: int) -> Iterator[Batch]:
    """The batches of a `Loader` (with `bad_records`, what it left out so far), each once every rank has one in its hands.

    Before each batch the ranks tell each other in one small message how they are. Raises, on all ranks: Interrupted where one of
    them received a signal, InputError where one of them has no batch (with its reason) and where together they left out more than
    `max_bad_records` different records.
    """
    iterator = iter(loader)
    while True:
        batch, error = None, None
        try:
            batch = next(iterator, None)
        except InputError as caught:
            error = caught
            signals.wait(0.5)  # a scheduler's signal may have reached the processes that load data before this one
        bad_records = getattr(loader, "bad_records", {})
        stopping, failing, bad = sums_over_ranks([signals.received is not None, error is not None, len(bad_records)])
        if stopping:  # first: the signal that stops a run also kills the processes that load its data
            raise Interrupted(next(filter(None, gather_objects(signals.received))))
        if failing:
            reasons = gather_objects(str(error) if error else None)
            raise DataError(str(error) if error else f"process {rank()} stops with another one: {next(filter(None, reasons))}")
        if bad > max_bad_records:  # or fewer, where ranks met the same one in different epochs
            bad_records = {name: reason for found in gather_objects(bad_records) for name, reason in found.items()}
            if len(bad_records) > max_bad_records:
                raise DataError(f"{len(bad_records)} bad records, expected at most max_bad_records={max_bad_records}; the last one: "
                                 f"{list(bad_records.values())[-1]}")
        if batch is None:
            _report(bad, bad_records)
            return
        yield batch


def _report(bad: int, bad_records: dict[str, str]) -> None:
    """What was left out so far, at the end of an epoch."""
    if bad:
        names = sorted({name for found in gather_objects(list(bad_records)) for name in found})
        LOGGER.warning("%d records left out so far: %s%s", len(names), ", ".join(names[:100]), ", ..." if len(names) > 100 else "")
