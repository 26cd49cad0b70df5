"""Random changes of training images, on the device: which ones is keyed by (seed, step) and the sample's place in the whole batch."""
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.distributed import rank, world_size
from utils.philox import normals

TURN, ZOOM, SHIFT = 0.12, 0.08, 0.03  # at most, at amount 1: radians, share of the size, share of a side
# behind (seed, step), so that the numbers are not those of a header's margins
_JITTER = 2
NOISE, START = 0, 1  # streams of normal numbers: what is added to images, and where the attack of a training starts


def jittered(images: Tensor, amount: float, seed: int, step: int) -> Tensor:
    """Each image under a similarity transform of its own, or the images themselves where `amount` is 0.

    images: float32 [N, C, H, W] of this rank; amount: of the limits TURN, ZOOM, SHIFT. What is at x, in pixels from the centre, was at

        (1 + zoom) R(turn) x + (W right, H down)

    with turn, zoom, right and down uniform between minus and plus their limits. Bilinear; what lies outside is mirrored at the border.
    Returns [N, C, H, W] in channels-last order, as the loader has them. Sample k of rank r gets numbers k * world + r of the step, so the
    result does not depend on the number of processes.
    """
    if amount == 0:
        return images
    grid = _places(_numbers(len(images), seed, step).to(images) * amount, *images.shape[2:])
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


def noisy(images: Tensor, sigma: float, seed: int, step: int) -> Tensor:
    """images + sigma z with standard normal z, or the images themselves where `sigma` is 0.

    images: float32 [N, C, H, W] of this rank with pixels in [-0.5, 0.5]; what is returned, in channels-last order, is not clipped to
    that, as randomised smoothing (Cohen et al., ICML 2019) shows a network images with all of the noise.
    """
    if sigma == 0:
        return images
    return (images + sigma * normals_like(images, seed, step, NOISE)).contiguous(memory_format=torch.channels_last)


def normals_like(images: Tensor, seed: int, step: int, stream: int) -> Tensor:
    """Standard normal numbers [N, C, H, W]. Sample k of rank r gets those of number k * world + r of the step, as `jittered` has it."""
    count, world = len(images), world_size()
    rows = torch.arange(rank(), rank() + count * world, world, device=images.device)
    return normals(rows, images[0].numel(), seed, step, stream).view(images.shape)


def _numbers(count: int, seed: int, step: int) -> Tensor:
    """turn, zoom, right and down at amount 1 of this rank's samples, float64 [count, 4]."""
    uniform = np.random.default_rng([seed, step, _JITTER]).uniform(-1, 1, (count * world_size(), 4))[rank()::world_size()]
    return torch.from_numpy(uniform * (TURN, ZOOM, SHIFT, SHIFT))


def _places(numbers: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel is taken from, [N, H, W, 2] as grid_sample counts: (x, y) from -1 to 1, edge to edge, of numbers [N, 4]."""
    turn, zoom, right, down = numbers[:, :, None, None].unbind(1)
    x = (2 * torch.arange(width, device=numbers.device, dtype=numbers.dtype) + 1) / width - 1
    y = ((2 * torch.arange(height, device=numbers.device, dtype=numbers.dtype) + 1) / height - 1)[:, None]
    cos, sin = (1 + zoom) * turn.cos(), (1 + zoom) * turn.sin()
    # planes of x and of y, one behind the other: a tenth of the time of affine_grid, and the same for any part of a batch; a side is 2 long
    across = cos * x + (2 * right - sin * (height / width) * y)
    along = sin * (width / height) * x + (2 * down + cos * y)
    return torch.stack([across, along], 1).permute(0, 2, 3, 1)
