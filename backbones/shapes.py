"""Layers without parameters: they change the shape of an image, the number of its channels or its brightness; all are 1-Lipschitz in l2."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaxMin(nn.Module):
    """(a, b) -> (max(a, b), min(a, b)), a and b the two halves of the channels of [N, C, ...]; an isometry almost everywhere.

    Raises ValueError for an odd number of channels.
    """

    def forward(self, z: Tensor) -> Tensor:
        a, b = _halves(z)
        first = a >= b  # selecting keeps one byte for backward where torch.maximum keeps both of its inputs
        return torch.cat((torch.where(first, a, b), torch.where(first, b, a)), dim=1)


def _halves(z: Tensor) -> tuple[Tensor, ...]:
    if z.shape[1] % 2:
        raise ValueError(f"MaxMin needs an even number of channels, got {z.shape[1]}")
    return z.chunk(2, dim=1)


class RemoveMean(nn.Module):
    """[N, C, H, W] minus the mean of each channel of each image: the projection onto what brightness and colour casts do not change."""

    def forward(self, z: Tensor) -> Tensor:
        return z - z.mean((2, 3), keepdim=True)


class PaddingChannels(nn.Module):
    """[N, C, H, W] -> [N, ncout, H, W] by channels of zeros; an isometry. Raises ValueError where C > ncout."""

    def __init__(self, ncout: int):
        super().__init__()
        self.ncout = ncout

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[1] > self.ncout:
            raise ValueError(f"cannot pad {z.shape[1]} channels to {self.ncout}")
        return F.pad(z, (0, 0, 0, 0, 0, self.ncout - z.shape[1]))

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
        self.maxmin = MaxMin()

    def forward(self, z: Tensor) -> Tensor:
        a, b = _halves(z)
        if self.kept > a.shape[1]:
            return F.pixel_unshuffle(self.maxmin(z)[:, :self.kept], 2)
        a, b = a[:, :self.kept], b[:, :self.kept]  # only maxima are kept: the rest need not be computed
        return F.pixel_unshuffle(torch.where(a >= b, a, b), 2)

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
        top, bottom = z[:, :, ::2], z[:, :, 1::2]
        rows, steps = (top + bottom) / 2, (top - bottom)[:, :self.differences] / 2
        left, right = rows[..., ::2], rows[..., 1::2]
        return torch.cat((left + right, steps[..., ::2] + steps[..., 1::2], (left - right)[:, :self.differences]), dim=1)

    def extra_repr(self) -> str:
        return f"{self.differences} channels of differences"
