"""State dicts as common tools write them: in a wrapper, under prefixes, without counters, as safetensors."""
import os
import struct
from collections.abc import Collection, Mapping
from typing import Any

import torch

from utils import InputError
from utils.files import require_file

# what wrappers call the weights of the network, most telling first
_WRAPPERS = ("state_dict", "model_state_dict", "state_dict_backbone", "backbone", "model", "network", "net", "weights", "params",
             "state_dict_ema", "model_ema", "ema")
# what torch.compile, FSDP and activation checkpointing put before the names of what they wrap, wherever that is
_WRAPPED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_AVERAGED = "n_averaged"  # a counter beside the weights of torch's AveragedModel
_COUNTER = "num_batches_tracked"  # of BatchNorm: written since PyTorch 0.4.1, and used by nothing that is not trained
_OUR_STATE = {"format", "settings", "progress", "random", "model"}
_MOST_PREFIXES = 4
_LONGEST_HEADER = 2**24  # bytes of the JSON text of safetensors; that of a network here has some ten thousand


def is_state(content: Any) -> bool:
    """Whether it is a state dict: tensors by name, and at least one."""
    return isinstance(content, dict) and bool(content) and all(isinstance(value, torch.Tensor) for value in content.values())


def is_training_state(content: Any) -> bool:
    """Whether it is a training state of this project, which has more than weights and is for `resume`."""
    return isinstance(content, dict) and content.keys() >= _OUR_STATE


def unwrapped(content: Any) -> "tuple[Any, list[str]]":
    """(the state dict inside a wrapper, remarks); what is none, and holds none, comes back as it is.

    So does a training state of this project: `resume` takes it, and its weights are in a file of their own beside it.
    """
    if is_state(content) or not isinstance(content, dict) or is_training_state(content):
        return content, []
    inside = [key for key, value in content.items() if isinstance(key, str) and is_state(value)]
    chosen = next((key for key in _WRAPPERS if key in inside), inside[0] if len(inside) == 1 else None)
    return (content, []) if chosen is None else (content[chosen], [f"the weights are those under {chosen!r}"])


def renamed(state: Mapping[Any, torch.Tensor], expected: Collection[str]) -> "tuple[dict[str, torch.Tensor], list[str]]":
    """(the same tensors under the names that a module has, remarks).

    Where names are not those of the module, `_orig_mod.` and its like are taken out of them, and a first part that all of them share and
    the module has not (`module.` of DistributedDataParallel, `model.`, `backbone.`, ...) is taken off.
    """
    named = {str(key): value for key, value in state.items()}
    remarks: list[str] = []
    if named.keys() <= set(expected):
        return named, remarks
    if _AVERAGED in named and _AVERAGED not in expected:
        del named[_AVERAGED]
        remarks.append(f"{_AVERAGED!r} is left out")
    for part in _WRAPPED:
        if any(part in key for key in named):
            named = _with_names(named, [key.replace(part, "") for key in named])
            remarks.append(f"{part!r} is taken out of its names")
    for _ in range(_MOST_PREFIXES):
        first = {key.partition(".")[0] for key in named if "." in key}
        prefix = f"{min(first, default='')}."
        if len(first) != 1 or not all(key.startswith(prefix) for key in named) or any(key.startswith(prefix) for key in expected):
            break
        named = _with_names(named, [key.removeprefix(prefix) for key in named])
        remarks.append(f"{prefix!r} is taken off its names")
    return named, remarks


def _with_names(state: "dict[str, torch.Tensor]", names: "list[str]") -> "dict[str, torch.Tensor]":
    """Raises InputError where two would have one name."""
    changed = dict(zip(names, state.values()))
    if len(changed) < len(state):
        raise InputError(f"{len(state)} entries would have {len(changed)} names without their prefixes: not one state dict")
    return changed


def with_counters(state: "dict[str, torch.Tensor]", module: "Mapping[str, torch.Tensor]") -> "tuple[dict[str, torch.Tensor], list[str]]":
    """(the state with BatchNorm's counters, where it has none of them, taken from the module's own, remarks)."""
    counters = {key: value for key, value in module.items() if key.rpartition(".")[2] == _COUNTER}
    if not counters or counters.keys() & state.keys():
        return state, []
    return {**state, **counters}, [f"there is no {_COUNTER} in it, which stays as it was"]


def is_safetensors(path: "str | os.PathLike[str]") -> bool:
    """Whether a file begins as one of safetensors: the length of a JSON text that is in the file, and its bracket."""
    size = require_file(path)
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and 2 <= struct.unpack("<Q", start[:8])[0] <= size - 8


def load_safetensors(path: "str | os.PathLike[str]", device: "torch.device | str") -> "dict[str, torch.Tensor]":
    """The tensors of such a file by name, read by the library of that name, which compares all sizes with the file.

    Raises InputError, naming the file, where the library is missing or finds the file damaged.
    """
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
    if length > _LONGEST_HEADER:
        raise InputError(f"{path}: a header of {length} bytes, expected at most {_LONGEST_HEADER}")
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise InputError(f"{path}: safetensors, which are read by the package of that name: pip install safetensors") from None
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: not a checkpoint, or damaged: {str(error).splitlines()[0]}") from None
