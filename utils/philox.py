"""Random numbers that are a function of their place: Philox4x32-10 (Salmon et al., SC 2011) in integer operations of torch.

Each number is keyed by itself, so that a part of them is made alone, and the integers are the same on every device. The generators of
torch are neither: their numbers follow one another, in an order that depends on the kind of device and on its size.
"""
import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 10
_MULTIPLIERS, _WEYL, _LOW = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 0xFFFFFFFF


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four random words of four words `counter`, int64 tensors that can be broadcast, and two words `key`, all in [0, 2**32)."""
    (a, b, c, d), (left, right) = counter, key
    for _ in range(ROUNDS):
        # int64 keeps the low 64 bits of a product, which are all there are, and `>>` repeats the highest, which the mask takes off again
        of_a, of_c = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (of_c >> 32 & _LOW) ^ b ^ left, of_c & _LOW, (of_a >> 32 & _LOW) ^ d ^ right, of_a & _LOW
        left, right = left + _WEYL[0] & _LOW, right + _WEYL[1] & _LOW
    return a, b, c, d


def normals(rows: Tensor, size: int, seed: int, step: int, stream: int) -> Tensor:
    """Standard normal numbers float32 [N, size], entry (i, j) a function of rows[i], j, seed, step and stream alone.

    rows int64 [N], step and stream in [0, 2**32), seed in [0, 2**64). By Box and Muller, of 32 bits each: at most 6.8 in absolute value.
    The host waits for no device.
    """
    blocks = torch.arange(math.ceil(size / 4), device=rows.device)
    when, which = (torch.full((), number, device=rows.device) for number in (step, stream))
    words = philox((blocks, rows[:, None], when, which), (seed & _LOW, seed >> 32))
    first, second = (_box_muller(*words[k:k + 2]) for k in (0, 2))
    return torch.stack([*first, *second], dim=-1).flatten(1)[:, :size]


def _box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent normal numbers of two independent words."""
    radius, angle = (-2 * torch.log(_uniform(a))).sqrt(), 2 * math.pi * _uniform(b)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def _uniform(word: Tensor) -> Tensor:
    """A word as a number in (0, 1], float32."""
    return (word.float() + 0.5) * 2.0**-32
