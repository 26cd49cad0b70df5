"""Checkpoints: plain state dicts, read without running code and checked before anything is changed."""
import os
import pickle
import warnings
from typing import Any

import torch
from torch import nn

from utils import InputError
from utils.untrusted import torchfile
from utils.files import atomic_write


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
    """Read a file of torch.save with weights_only=True: tensors and plain containers, never code, and no more than the file has.

    whole: compare it with the checksums that torch wrote. Raises InputError naming the file where it is missing, truncated, not a
    checkpoint, or holds anything else.
    """
    try:
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


def load_weights(module: nn.Module, path: "str | os.PathLike[str]") -> None:
    """Load a state dict file into `module`, strictly; keys may carry the `module.` prefix that DDP adds.

    Raises InputError naming the file and the first missing, unexpected or wrongly shaped entries; the module is then unchanged.
    """
    state = load(path)
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"{path}: expected a state dict (names to tensors), found {_describe(state)}")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    expected = module.state_dict()
    problems = []
    for what, keys in (("missing", expected.keys() - state.keys()), ("unexpected", state.keys() - expected.keys())):
        if keys:
            problems.append(f"{len(keys)} {what} ({_some(sorted(keys))})")
    shapes = [f"{key} is {list(state[key].shape)}, expected {list(expected[key].shape)}"
              for key in expected if key in state and state[key].shape != expected[key].shape]
    if shapes:
        problems.append(f"{len(shapes)} of another shape ({_some(shapes)})")
    if problems:
        raise InputError(f"{path}: not a checkpoint of {type(module).__name__}: {'; '.join(problems)}")
    module.load_state_dict(state, strict=True)


def _some(items: list, most: int = 3) -> str:
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")


def _describe(state: Any) -> str:
    if not isinstance(state, dict):
        return f"a {type(state).__name__}"
    odd = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    return f"a dict with entries that are no tensors ({_some(odd)})" if odd else "an empty dict"
