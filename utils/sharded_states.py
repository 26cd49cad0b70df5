"""The rows of a sharded header in a training state: a file a shard, beside that of all else, which is written last.

    state_00002000.pt                   all else; its "header" has the number of files under SHARDS
    state_00002000.shard_0_of_8.pt      {"first": 0, "weight": rows, "exp_avg": ..., "exp_avg_sq": ...}

Rank 0 writes them all, of what the others send one after another, so that it never holds more than two shards. A run with any number of
processes, or with a header that is not sharded, takes the rows that it needs.
"""
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils import InputError, checkpoint
from utils.distributed import rank, world_size
from utils.faults.machines import file_of_first_rank
from utils.files import found_in

SHARDS = "_shards"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_NAME = re.compile(r"(state_\d+)\.shard_(\d+)_of_(\d+)\.pt")


class Rows:
    """The rows of a header that this process has, and what its optimiser keeps for them.

    header: with `weight`, [rows, D], and `shard`, None where those are all rows. optimizer: that of the weight, of AdamW's kind.
    """

    def __init__(self, header: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.weight, self.shard = header.weight, header.shard
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.number = next((number for number, parameter in enumerate(trained) if parameter is self.weight), None)
        self.first = self.shard.first if self.shard else 0
        self.last = self.first + len(self.weight)

    def take(self, states: MutableMapping[str, Any]) -> dict[str, Any]:
        """Take the rows out of the state dicts "header" and "optimizer", and return them as a shard's file has them."""
        rows = {"first": self.first, "weight": states["header"].pop("weight").detach().cpu()}
        moments = states["optimizer"]["state"].get(self.number)
        if moments is not None:  # the optimiser goes on with this dictionary
            rows |= {name: moments[name].cpu() for name in _MOMENTS if name in moments}
            rest = {name: value for name, value in moments.items() if name not in _MOMENTS}
            states["optimizer"] = {**states["optimizer"], "state": {**states["optimizer"]["state"], self.number: rest}}
        return rows

    def put(self, states: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
        """Put rows back where `take` took them from."""
        states["header"]["weight"] = rows["weight"]
        states["optimizer"]["state"].get(self.number, {}).update({name: rows[name] for name in _MOMENTS if name in rows})

    def of_state(self, state: MutableMapping[str, Any], path: Path, checked: bool) -> None:
        """Give a state that was read from `path` the rows of this process, from the files of its shards or from among all its rows.

        checked: compare the files with their checksums. All ranks call it. Raises InputError for files that are missing, damaged, or no
        shards of such a header.
        """
        header = state["header"]
        if not isinstance(header, dict) or not (SHARDS in header or self.shard):
            return
        if SHARDS in header:
            self.put(state, self._from_files(path, header.pop(SHARDS), checked))
        elif "weight" in header:
            rows = self.take(state)
            self.put(state, {name: value[self.first:self.last] for name, value in rows.items() if name != "first"})

    def _from_files(self, path: Path, count: Any, checked: bool) -> dict[str, Tensor]:
        if type(count) is not int or not 0 < count < 2**20:
            raise InputError(f"{path}: says that its header is in {count!r} files: damaged")
        parts: dict[str, list[Tensor]] = {}
        there = 0
        for number in range(count):
            name = _shard_file(path, number, count)
            with file_of_first_rank(name) as file:
                rows = checkpoint.load(file, whole=checked)
            there = _check(name, rows, there, self.weight.shape[1])
            low, high = (min(max(end, rows["first"]), there) - rows["first"] for end in (self.first, self.last))
            for key, value in rows.items():
                if key != "first" and low < high:
                    parts.setdefault(key, []).append(value[low:high].clone())
        return {key: torch.cat(values) for key, values in parts.items()}


def save(path: Path, rows: dict[str, Any]) -> None:
    """Write the rows of every rank beside `path`; all ranks call it. Raises OSError on rank 0 where that cannot be."""
    failure = None
    for number in range(world_size()):
        part = _at_first(rows, number)
        if rank() == 0 and failure is None:
            try:
                checkpoint.save(_shard_file(path, number, world_size()), part)
            except OSError as error:  # the others are to send what they send
                failure = error
    if failure is not None:
        raise failure


def whole(header: nn.Module) -> "dict[str, Tensor] | None":
    """The state dict of a header with the rows of all ranks, on rank 0; None elsewhere. All ranks call it."""
    parts = [_at_first({"weight": header.weight.detach().cpu()}, number) for number in range(world_size())]
    return {**header.state_dict(), "weight": torch.cat([part["weight"] for part in parts])} if rank() == 0 else None


def files_of(path: Path) -> list[Path]:
    """The files of the shards of a state, in order. Raises InputError where some of them are missing."""
    matches = [(file, _NAME.fullmatch(file.name)) for file in found_in(path.parent, f"{path.stem}.shard_*.pt")]
    found = {int(match[2]): (file, int(match[3])) for file, match in matches if match}
    counts = {count for _, count in found.values()}
    if found and (len(counts) > 1 or set(found) != set(range(max(counts)))):
        raise InputError(f"{path}: {len(found)} files of shards of its header, expected {max(counts)}")
    return [found[number][0] for number in sorted(found)]


def remove_orphans(folder: Path) -> None:
    """Remove files of shards whose state is no longer there."""
    for file in found_in(folder, "state_*.shard_*.pt"):
        match = _NAME.fullmatch(file.name)
        if match and not (folder / f"{match[1]}.pt").exists():
            file.unlink(missing_ok=True)


def _shard_file(path: Path, number: int, count: int) -> Path:
    return path.with_name(f"{path.stem}.shard_{number}_of_{count}.pt")


def _check(path: Path, rows: Any, first: int, length: int) -> int:
    """Where the rows of the next shard begin. Raises InputError unless these are rows of that length from `first` on."""
    tensors = {key: value for key, value in rows.items() if key != "first"} if isinstance(rows, dict) else {}
    shapes = {tuple(value.shape) for value in tensors.values() if isinstance(value, Tensor)}
    if not tensors or rows.get("first") != first or len(shapes) != 1 or tensors.keys() - {"weight", *_MOMENTS} or "weight" not in tensors:
        raise InputError(f"{path}: no shard of a header from row {first} on")
    shape, = shapes
    if len(shape) != 2 or shape[1] != length:
        raise InputError(f"{path}: rows of {list(shape)}, expected {length} numbers in each")
    return first + shape[0]


def _at_first(values: dict[str, Any], number: int) -> dict[str, Any]:
    """On rank 0 the `values` of rank `number`, tensors on the CPU and numbers; all ranks call it."""
    if number == 0 or world_size() == 1:
        return values if rank() == 0 else {}
    if rank() == number:
        described = {key: (value.shape, value.dtype) if isinstance(value, Tensor) else value for key, value in values.items()}
        dist.send_object_list([described], 0, device=torch.device("cpu"))
        for value in values.values():
            if isinstance(value, Tensor):
                dist.send(value.contiguous(), 0)
        return {}
    if rank() != 0:
        return {}
    described = [None]
    dist.recv_object_list(described, number, device=torch.device("cpu"))
    found = {}
    for key, value in described[0].items():
        if isinstance(value, tuple):
            found[key] = torch.empty(value[0], dtype=value[1])
            dist.recv(found[key], number)
        else:
            found[key] = value
    return found
