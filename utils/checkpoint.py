"""Checkpoints: plain state dicts, read without running code and checked before anything is changed."""
import contextlib
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from utils import InputError
from utils.files import atomic_write, found_in
from utils.foreign_weights import is_safetensors, is_state, is_training_state, load_safetensors, renamed, unwrapped, with_counters
from utils.untrusted import torchfile

_NETWORK = "network"  # the key of what a state dict says of its network, in the metadata of its root
_LONGEST = 300  # characters of a text in it


def save(path: "str | os.PathLike[str]", content: Any) -> None:
    """Write `content` (tensors, numbers, strings and containers of them) so that `path` is either the old file or the whole new one.

    Raises OSError, naming the file, where there is no room for it or it may not be written.
    """
    try:
        with atomic_write(path, "wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch's own RuntimeError hides what happened
        raise OSError(f"{path}: cannot be written: {getattr(cause, 'strerror', None) or str(cause).splitlines()[0]}") from error


def load(path: "str | os.PathLike[str]", device: "torch.device | str" = "cpu", whole: bool = False) -> Any:
    """Read a file of torch.save with weights_only=True, tensors and plain containers, never code, and no more than the file has; or one
    of safetensors, by its library.

    whole: compare it with the checksums that torch wrote. Raises InputError naming the file where it is missing, truncated, not a
    checkpoint, or holds anything else.
    """
    try:
        if is_safetensors(path):
            return load_safetensors(path, device)
        torchfile.check(path, whole)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old formats make torch.load warn about itself; what matters is said by the error
            return torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()
        found = next((line for line in reason if "GLOBAL" in line or "Unsupported" in line), reason[0] if reason else "unreadable")
        raise InputError(f"{path}: not a plain state dict of tensors: {found.strip()}") from error
    except Exception as error:  # torch.load raises RuntimeError, EOFError, KeyError, ... on damaged files
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path}: not a checkpoint, or damaged: {first[0]}") from error


def save_weights(path: "str | os.PathLike[str]", module: nn.Module, name: str = "", arguments: "Mapping[str, Any] | None" = None) -> None:
    """Write the state dict of `module`, with the name and the arguments of the network that it is of, if a name is given.

    Those are in the metadata that a state dict has of its versions: other readers of the file find the plain state dict that they expect.
    Raises ValueError for arguments that are not plain data (numbers, texts, None, and lists, tuples and dictionaries of those), OSError as
    `save`.
    """
    state: Any = module.state_dict()
    if name:
        record = {"name": name, "arguments": dict(arguments or {})}
        if not _is_record(record):
            raise ValueError(f"{name}: expected plain data as arguments, got {arguments!r}"[:300])
        state._metadata = {**state._metadata, "": {**state._metadata.get("", {}), _NETWORK: record}}
    save(path, state)


def network_of(state: Any, path: "str | os.PathLike[str]" = "state dict") -> "tuple[str, dict[str, Any]] | None":
    """(name, arguments) of the network that a state dict from `load` was written of, None where it does not say.

    Raises InputError, naming `path`, where what it says is not of the kind that `save_weights` writes.
    """
    metadata = getattr(state, "_metadata", None)
    root = metadata.get("") if isinstance(metadata, dict) else None
    if not isinstance(root, dict) or _NETWORK not in root:
        return None
    if not _is_record(root[_NETWORK]):
        raise InputError(f"{path}: what it says of its network is not a name and arguments of plain data: damaged")
    return root[_NETWORK]["name"], root[_NETWORK]["arguments"]


class Stored(NamedTuple):
    """A state dict that was read: its file, what it holds, what to say about that, and of which network it says it is (`network_of`)."""
    path: "str | os.PathLike[str]"
    state: Any
    remarks: list[str]
    network: "tuple[str, dict[str, Any]] | None"


def read_weights(path: "str | os.PathLike[str]") -> Stored:
    """Read a state dict file for `put`. Raises InputError naming the file, as `load`, and where it is no state dict."""
    state, remarks = unwrapped(load(path))
    if is_training_state(state):
        beside = max(found_in(Path(path).parent, "model_*.pt"), key=os.path.getmtime, default="model_*.pt, which training writes")
        raise InputError(f"{path}: expected a state dict, found a training state, for `resume`; its network's weights are {beside}")
    if not is_state(state):
        raise InputError(f"{path}: expected a state dict (names to tensors), found {_describe(state)}")
    return Stored(path, state, [*remarks], network_of(state, path))


def load_weights(module: nn.Module, path: "str | os.PathLike[str]",
                 accept: "Callable[[str, Mapping[str, Any]], None] | None" = None) -> None:
    """Load a state dict file into `module`, strictly.

    What other tools put around a state dict (one wrapper, prefixes of all names), or left out of it (BatchNorm's counters), is seen to
    with a warning that says so: see foreign_weights.py.

    accept: is called with name and arguments of the network where the file says them (`save_weights`), and raises InputError for another
    one. Raises InputError naming the file and the first missing, unexpected or wrongly shaped entries; the module is then unchanged.
    """
    put(module, read_weights(path), accept)


def put(module: nn.Module, stored: Stored, accept: "Callable[[str, Mapping[str, Any]], None] | None" = None) -> None:
    """As `load_weights`, of a file that was read."""
    if stored.network and accept is not None:
        with _naming(stored.path):
            accept(*stored.network)
    state, remarks = fitting(module, stored)
    module.load_state_dict(state, strict=True)
    for remark in (*stored.remarks, *remarks):
        warnings.warn(f"{stored.path}: {remark}", stacklevel=3)


def fitting(module: nn.Module, stored: Stored) -> "tuple[dict[str, Any], list[str]]":
    """The state for `module`, by its names and in its shapes, and what to say about that. Raises InputError where it is of another one.

    The weights of the module are not looked at: they may be on the device "meta".
    """
    expected = module.state_dict()
    with _naming(stored.path):
        state, remarks = renamed(stored.state, expected)
    state, without = with_counters(state, expected)
    problems = []
    for what, keys in (("missing", expected.keys() - state.keys()), ("unexpected", state.keys() - expected.keys())):
        if keys:
            problems.append(f"{len(keys)} {what} ({_some(sorted(keys))})")
    shapes = [f"{key} is {list(state[key].shape)}, expected {list(expected[key].shape)}"
              for key in expected if key in state and not _fits(key, state[key], expected[key])]
    if shapes:
        problems.append(f"{len(shapes)} of another shape ({_some(shapes)})")
    if problems:
        raise InputError(f"{stored.path}: not a checkpoint of {type(module).__name__}: {'; '.join(problems)}")
    return {key: value.reshape(expected[key].shape) for key, value in state.items()}, [*remarks, *without]


@contextlib.contextmanager
def _naming(path: "str | os.PathLike[str]") -> "Iterator[None]":
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _fits(key: str, value: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether it has the shape; a bias, one value a channel, may have any number of axes of length 1 (published layers differ in that)."""
    is_bias = key.rpartition(".")[2] == "bias"
    return value.shape == expected.shape or is_bias and value.squeeze().shape == expected.squeeze().shape


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and record.keys() == {"name", "arguments"} and isinstance(record["name"], str) \
        and 0 < len(record["name"]) <= _LONGEST and isinstance(record["arguments"], dict) and is_plain(record["arguments"])


def is_plain(value: Any) -> bool:
    """Whether it is made of numbers, short texts, None, and containers of those with at most a thousand of them."""
    waiting, count = [value], 0
    while waiting:
        item, count = waiting.pop(), count + 1
        if isinstance(item, dict):
            waiting += [*item, *item.values()][:1001]
        elif isinstance(item, (list, tuple)):
            waiting += item[:1001]
        elif not _is_small(item):
            return False
        if count > 1000:
            return False
    return True


def _is_small(item: Any) -> bool:
    if type(item) is str:
        return len(item) <= _LONGEST
    return item is None or type(item) in (bool, float) or type(item) is int and abs(item) < 2**63


def _some(items: list, most: int = 3) -> str:
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")


def _describe(state: Any) -> str:
    if not isinstance(state, dict):
        return f"a {type(state).__name__}"
    odd = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    return f"a dict with entries that are no tensors ({_some(odd)})" if odd else "an empty dict"
