"""Layers without parameters: they change the shape of an image, the number of its channels or its brightness; all are 1-Lipschitz in l2,
and each says what float64 rounds in it (proof.py).
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.proof import Shape, State, exactly, projected


class MaxMin(nn.Module):
    """(a, b) -> (max(a, b), min(a, b)), a and b the two halves of the channels of [N, C, ...]; an isometry almost everywhere.

    axis: which axis has the channels. Raises ValueError for an odd number of them.
    """

    def forward(self, z: Tensor, axis: int = 1) -> Tensor:
        return _max_min(z, axis)

    def proven_lipschitz(self, shape: Shape) -> float:
        return 1.0

    def proven_rounding(self, state: State, shape: Shape) -> State:
        return exactly(state, shape)

    def preactivations(self, z: Tensor) -> Tensor:
        """a - b, whose sign says which of the two is larger."""
        a, b = _halves(z)
        return a - b


def _max_min(z: Tensor, axis: int = 1) -> Tensor:
    a, b = _halves(z, axis)
    first = a >= b  # selecting keeps one byte for backward where torch.maximum keeps both of its inputs
    return torch.cat((torch.where(first, a, b), torch.where(first, b, a)), dim=axis)


def _halves(z: Tensor, axis: int = 1) -> tuple[Tensor, ...]:
    if z.shape[axis] % 2:
        raise ValueError(f"MaxMin needs an even number of channels, got {z.shape[axis]}")
    return z.chunk(2, dim=axis)


class RemoveMean(nn.Module):
    """[N, C, H, W] minus the mean of each channel of each image: the projection onto what brightness and colour casts do not change."""

    def forward(self, z: Tensor) -> Tensor:
        return z - z.mean((2, 3), keepdim=True)

    def proven_lipschitz(self, shape: Shape) -> float:
        return 1.0

    def proven_rounding(self, state: State, shape: Shape) -> State:
        """Of z - mean(z) over the n pixels of each channel: the mean, n - 1 sums and a division or a product with 1 / n, is off by
        gamma_(n+1) sum|z| / n, which makes gamma_(n+1) |z| in l2 of all pixels together, and the difference is rounded once more.
        """
        return projected(state, math.prod(shape[-2:]) + 4)


class PaddingChannels(nn.Module):
    """[N, C, H, W] -> [N, ncout, H, W] by channels of zeros; an isometry. Raises ValueError where C > ncout.

    ncin and mode are the published arguments: the image says how many channels it has, and "zero" is what is known of the modes.
    """

    def __init__(self, ncout: int, ncin: int = 3, mode: str = "zero"):
        super().__init__()
        if mode != "zero":
            raise ValueError(f"mode is {mode!r}: expected 'zero'")
        self.ncout = ncout

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[1] > self.ncout:
            raise ValueError(f"cannot pad {z.shape[1]} channels to {self.ncout}")
        return F.pad(z, (0, 0, 0, 0, 0, self.ncout - z.shape[1]))

    def proven_lipschitz(self, shape: Shape) -> float:
        return 1.0

    def proven_rounding(self, state: State, shape: Shape) -> State:
        return exactly(state, shape)

    def extra_repr(self) -> str:
        return f"{self.ncout}"


class FirstChannels(nn.Module):
    """[N, C, H, W] -> its first ncout channels; a projection. Raises ValueError where C < ncout."""

    def __init__(self, ncout: int):
        super().__init__()
        self.ncout = ncout

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[1] < self.ncout:
            raise ValueError(f"cannot keep {self.ncout} of {z.shape[1]} channels")
        return z[:, :self.ncout]

    def proven_lipschitz(self, shape: Shape) -> float:
        return 1.0

    def proven_rounding(self, state: State, shape: Shape) -> State:
        return exactly(state, shape)

    def extra_repr(self) -> str:
        return f"{self.ncout}"


class Downsize(nn.Module):
    """[N, ic, H, W] -> [N, oc, H/2, W/2]: MaxMin, the first oc/4 channels, PixelUnshuffle(2); 1-Lipschitz, without parameters.

    Raises ValueError unless oc is a multiple of 4 and at most 4 ic.
    """

    def __init__(self, ic: int, oc: int):
        super().__init__()
        if oc % 4 or oc > 4 * ic:
            raise ValueError(f"Downsize({ic}, {oc}): {oc} must be a multiple of 4 and at most {4 * ic}")
        self.kept = oc // 4

    def forward(self, z: Tensor) -> Tensor:
        a, b = _halves(z)
        if self.kept > a.shape[1]:
            return F.pixel_unshuffle(_max_min(z)[:, :self.kept], 2)
        a, b = a[:, :self.kept], b[:, :self.kept]  # only maxima are kept: the rest need not be computed
        return F.pixel_unshuffle(torch.where(a >= b, a, b), 2)

    def proven_lipschitz(self, shape: Shape) -> float:
        return 1.0

    def proven_rounding(self, state: State, shape: Shape) -> State:
        return exactly(state, shape)

    def preactivations(self, z: Tensor) -> Tensor:
        """a - b of the pairs of which something is kept."""
        a, b = _halves(z)
        return (a - b)[:, :self.kept]

    def extra_repr(self) -> str:
        return f"{4 * self.kept} channels"


class HaarDownsize(nn.Module):
    """[N, ic, H, W] -> [N, oc, H/2, W/2]: an orthogonal transform of each 2 x 2 block of pixels, the Haar wavelet's, of which the sums of
    all channels are kept and, of the first (oc - ic)/2, the differences of the rows and those of the columns; 1-Lipschitz, without
    parameters. Neighbouring pixels are alike, so that little of the norm is lost.

    Raises ValueError unless oc - ic is even and ic <= oc <= 3 ic, and RuntimeError for an odd height or width.
    """

    def __init__(self, ic: int, oc: int):
        super().__init__()
        if (oc - ic) % 2 or not ic <= oc <= 3 * ic:
            raise ValueError(f"HaarDownsize({ic}, {oc}): {oc} must be {ic} to {3 * ic} and differ from {ic} by an even number")
        self.differences = (oc - ic) // 2

    def forward(self, z: Tensor) -> Tensor:
        rows, steps = _pairs_of_rows(z, self.differences)
        left, right = rows[..., ::2], rows[..., 1::2]
        return torch.cat((left + right, steps[..., ::2] + steps[..., 1::2], (left - right)[:, :self.differences]), dim=1)

    def proven_lipschitz(self, shape: Shape) -> float:
        return 1.0

    def proven_rounding(self, state: State, shape: Shape) -> State:
        """Of halved sums, with signs, of the 4 entries z of a block of pixels: each is rounded twice, off by gamma_2 sum|z| / 2, at most
        gamma_2 |z|, and there are at most three for a block.
        """
        return projected(state, 4)

    def extra_repr(self) -> str:
        return f"{self.differences} channels of differences"


class Haar(nn.Module):
    """[N, C, H, W] -> [N, 4 C, H/2, W/2]: the orthonormal Haar transform of each 2 x 2 block of pixels, all of it; an isometry.

    The channels are the sums of all C, the differences of their rows, those of their columns and those of both. Raises RuntimeError for an
    odd height or width.
    """

    def forward(self, z: Tensor) -> Tensor:
        rows, steps = _pairs_of_rows(z, z.shape[1])
        halves = [(part[..., ::2], part[..., 1::2]) for part in (rows, steps)]
        return torch.cat([left + right for left, right in halves] + [left - right for left, right in halves], dim=1)

    def proven_lipschitz(self, shape: Shape) -> float:
        return 1.0

    def proven_rounding(self, state: State, shape: Shape) -> State:
        """As of `HaarDownsize`, with four of them for a block: 2 gamma_2 |z|."""
        return projected(state, 4)


def _pairs_of_rows(z: Tensor, differences: int) -> tuple[Tensor, Tensor]:
    """Half the sums of rows 0 and 1, 2 and 3, ..., and, of the first channels, half their differences."""
    top, bottom = z[:, :, ::2], z[:, :, 1::2]
    return (top + bottom) / 2, (top - bottom)[:, :differences] / 2


class Shift(nn.Module):
    """[N, C, H, W] -> the same, a share of its channels moved by one pixel, in a circle: a quarter of them down, up, right and left each.

    It permutes the entries of an image, so it is an isometry, and nothing is rounded; a rotation of the channels at each pixel then mixes
    neighbours (LipNeXt, ICLR 2026). share: of the first channels, in 0 to 1; share C / 4, rounded down, move in each direction. Raises
    ValueError for another share.
    """

    def __init__(self, share: float = 0.5):
        super().__init__()
        self.share = _a_share(share)

    def forward(self, z: Tensor) -> Tensor:
        count = int(self.share * z.shape[1] / 4)
        # split and not four slices: its gradient is one concatenation, where each slice has an image of zeros to add
        down, up, right, left, rest = z.split((count, count, count, count, z.shape[1] - 4 * count), dim=1)
        return torch.cat((down.roll(1, 2), up.roll(-1, 2), right.roll(1, 3), left.roll(-1, 3), rest), dim=1)

    def proven_lipschitz(self, shape: Shape) -> float:
        return 1.0

    def proven_rounding(self, state: State, shape: Shape) -> State:
        return exactly(state, shape)

    def extra_repr(self) -> str:
        return f"share={self.share}"


class Absolute(nn.Module):
    """[N, C, ...] -> the same with |z| in the first share of the channels; its Jacobians are diagonal with entries 1 and -1, so it is an
    isometry wherever the signs of two images agree, and 1-Lipschitz.

    With rotations around it, it contains MaxMin: of s = (a + b) / sqrt 2 and d = (a - b) / sqrt 2, (s + |d|) / sqrt 2 = max(a, b) and
    (s - |d|) / sqrt 2 = min(a, b). share: in 0 to 1; share C, rounded down, channels. Raises ValueError for another share.
    """

    def __init__(self, share: float = 0.5):
        super().__init__()
        self.share = _a_share(share)

    def forward(self, z: Tensor) -> Tensor:
        count = int(self.share * z.shape[1])
        folded, rest = z.split((count, z.shape[1] - count), dim=1)
        return torch.cat((folded.abs(), rest), dim=1)

    def proven_lipschitz(self, shape: Shape) -> float:
        return 1.0

    def proven_rounding(self, state: State, shape: Shape) -> State:
        return exactly(state, shape)

    def preactivations(self, z: Tensor) -> Tensor:
        """The channels of which it takes the absolute values."""
        return z[:, :int(self.share * z.shape[1])]

    def extra_repr(self) -> str:
        return f"share={self.share}"


def _a_share(share: float) -> float:
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share!r}: it must be from 0 to 1")
    return share
