"""How many kernels a computation starts on a GPU, counted without one: tensors on a fake CUDA device have shapes and no values.

Every operator that is dispatched counts as one kernel, but for views, allocations and questions. That is what PyTorch's own operators start
at least; cuDNN and cuBLAS may start more, and a compiler may fuse some.
"""
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_NOTHING = ("aten._unsafe_view", "aten.empty", "aten.empty_like", "aten.empty_strided", "aten.new_empty", "aten.new_empty_strided",
            "aten.lift_fresh", "aten._reshape_alias", "aten.is_same_size", "aten.sym_size", "prim.device")

# kernels of a forward pass for training, and with its backward pass; the published code issues 351 and 981 for sllnet
CEILINGS = {"sllnet": (300, 690), "sllnet_small": (155, 340), "sllnet_plus": (220, 410), "orthonet": (190, 310)}


class Launches(TorchDispatchMode):
    """Counts kernels while it is active. counts: how often by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        view = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
        if not view and name not in _NOTHING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """Of all operators."""
        return self.counts.total()


def launches(make: Callable[[], Callable[[], Any]]) -> Counter[str]:
    """Kernels of the second call of what `make` makes, within a fake CUDA device: the first may copy constants there."""
    with FakeTensorMode(allow_non_fake_inputs=False), torch.device("cuda"):
        function = make()
        function()
        with Launches() as counted:
            function()
    return counted.counts
