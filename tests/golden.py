"""The reference networks: how their state dicts are filled, what goes in, and how close the outputs must be."""
import json
import math
import zlib

import numpy as np
import torch
from conftest import SHARED
from torch import Tensor, nn

TOLERANCE = 1e-4  # of relative_error, in float32


def golden_layout() -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """For each network, the (name, shape) of its released state dict, in order."""
    layout = json.loads((SHARED / "golden" / "state_dict_layout.json").read_text())
    return {network: [(name, tuple(shape)) for name, shape in entries] for network, entries in layout.items()}


def golden_array(name: str) -> Tensor:
    """One array of the reference outputs."""
    with np.load(SHARED / "golden" / "golden.npz") as arrays:
        return torch.from_numpy(arrays[name])


def _fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if not shape:
        return np.zeros(shape, np.float32)
    r = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return np.abs(r) + np.float32(0.5)
    if len(shape) >= 2:
        return r / np.float32(math.sqrt(math.prod(shape[1:])))
    return np.float32(0.1) * r + np.float32(name.endswith("weight"))


def fill_by_rule(network: nn.Module) -> nn.Module:
    """Fills every floating-point entry of the state dict from its name and shape, in place. Returns it in eval mode."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.from_numpy(_fill(name, tuple(value.shape))))
    return network.eval()


def golden_input(channels: int, size: int) -> Tensor:
    """Images [2, channels, size, size], float32, uniform in [-0.5, 0.5]."""
    images = np.random.RandomState(0).uniform(-0.5, 0.5, (2, channels, size, size))
    return torch.from_numpy(images.astype(np.float32))


def relative_error(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|, b being the reference."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()
