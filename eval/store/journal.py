"""Long runs over many samples: dealt out to the ranks in batches, and written down batch by batch, so that an
interrupted run goes on where it was.
"""
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from utils.distributed import barrier, gather_objects, rank, world_size


class Outcome(NamedTuple):
    """What a batch came to: one row a sample (with the index of the samples), and the images passed through the
    network forward and backward.
    """
    rows: pd.DataFrame
    forward_passes: int
    backward_passes: int


class Journal:
    """The finished batches of a run, one JSON line each, in a hidden file a rank inside the results folder.

    Lines of a run with other settings are dropped; those of the same run are taken up, whatever its number of ranks
    was. All ranks must make the same calls.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]):
        self._settings = json.loads(json.dumps(settings))
        self._pattern, self._folder = f".{name}.rank*.jsonl", folder
        self._entries: list[dict[str, Any]] = []
        for path in folder.glob(self._pattern):
            lines = _lines(path)
            self._entries += filter(_is_entry, lines[1:]) if lines[:1] == [self._settings] else []
        barrier()  # every rank has read what there is before one of them writes
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / self._pattern.replace("*", str(rank()))
        if _lines(self._path)[:1] != [self._settings]:
            self._path.unlink(missing_ok=True)
            self._write(self._settings)
        elif not self._path.read_bytes().endswith(b"\n"):
            with open(self._path, "ab") as file:
                file.write(b"\n")  # a line that a crash cut short stays alone

    def run(self, stage: str, samples: pd.DataFrame, work: Callable[[pd.DataFrame], Outcome], batch_size: int,
            on_rows: Callable[[pd.DataFrame], None]) -> pd.DataFrame:
        """The rows of all samples (index: their ids), in their order, from all ranks: the known ones, and `work` for
        the others in batches of `batch_size`.

        Which samples share a batch depends neither on the number of ranks nor on an interruption, so that not even the
        rounding of a network does, whose kernels differ between batch sizes. on_rows sees the rows as they come on
        this rank.
        """
        known = [_frame(entry) for entry in self._entries if entry["stage"] == stage]
        rows = pd.concat(known).loc[lambda found: found.index.isin(samples.index)] if known else pd.DataFrame()
        on_rows(rows)
        left, ranks = samples[~samples.index.isin(rows.index)], world_size()
        fresh = []
        for start in range(rank() * batch_size, len(left), ranks * batch_size):
            outcome = work(left.iloc[start:start + batch_size])
            entry = {"stage": stage, "forward": outcome.forward_passes, "backward": outcome.backward_passes,
                     "id": outcome.rows.index.tolist(), "rows": outcome.rows.to_dict("list")}
            self._write(entry)
            fresh.append(entry)
            on_rows(outcome.rows)
        fresh = [entry for entries in gather_objects(fresh) for entry in entries]
        self._entries += fresh
        rows = pd.concat([rows, *map(_frame, fresh)])
        return rows.loc[samples.index] if len(samples) else rows

    @property
    def passes(self) -> dict[str, int]:
        """Images passed through the network by all batches so far, also by those of the interrupted run."""
        return {f"{way}_passes": sum(entry[way] for entry in self._entries) for way in ("forward", "backward")}

    def remove(self) -> None:
        """The results are safe elsewhere. To be called on one rank."""
        for path in self._folder.glob(self._pattern):
            path.unlink()

    def _write(self, line: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _is_entry(line: Any) -> bool:
    """Whether a line is a finished batch: what is not, in a file from elsewhere, is work that was not done."""
    if not isinstance(line, dict) or not isinstance(line.get("rows"), dict) or not isinstance(line.get("id"), list):
        return False
    return isinstance(line.get("stage"), str) and all(type(line.get(way)) is int for way in ("forward", "backward")) \
        and all(type(number) is int for number in line["id"]) and len(set(line["id"])) == len(line["id"]) \
        and all(isinstance(column, list) and len(column) == len(line["id"]) for column in line["rows"].values())


def _frame(entry: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(entry["rows"], index=entry["id"])


def _lines(path: Path) -> list[dict[str, Any]]:
    """What the whole lines of a file hold; a torn one is left out, and with a torn first line there is nothing."""
    lines = []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else []):
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):
            if not number:
                return []
    return lines
