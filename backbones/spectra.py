"""How nonlinear a layer is: what it says of that, beside its `forward`, and the singular values of matrices and convolutions.

    singular_values(shape) -> Tensor     optional: those of its linear part V for inputs [N, *shape], float64, the largest first
    preactivations(z) -> Tensor          optional: [N, ...], the numbers whose signs choose the linear piece that it applies to z

A layer that is folded for export (proof.py) says them in its folded form. Where singular values are small, a block z - 2 V^T relu(V z + c)
is nearly the identity; where no sign differs between two images, a layer is one affine map for both. eval/spectrum.py measures both.
"""
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def of_matrix(v: Tensor) -> Tensor:
    """Singular values of V [C, n], the min(C, n) largest."""
    return torch.linalg.svdvals(v.detach().cpu().double())


@torch.no_grad()
def of_kernel(v: Tensor, size: Sequence[int], stride: int = 1) -> Tensor:
    """Singular values of the convolution by V [C, cin, k, k] of images of `size` (H, W) that go on at their other end, all of them.

    The Fourier transform takes it apart into a matrix [C, cin] at each frequency (Sedghi et al., ICLR 2019); with a stride s, the
    s^2 frequencies that fall together on the coarser grid stand side by side, divided by s. Zero padding differs from this at the borders.
    Raises ValueError where the kernel is larger than the image, and where the stride does not divide its sides.
    """
    (height, width), k = size, v.shape[-1]
    if k > min(size) or height % stride or width % stride:
        raise ValueError(f"a kernel of {k} x {k} with stride {stride} on images of {height} x {width}")
    spectrum = torch.fft.fft2(v.detach().cpu().double(), s=(height, width)).unflatten(3, (stride, -1)).unflatten(2, (stride, -1))
    matrices = spectrum.permute(3, 5, 0, 1, 2, 4).flatten(3) / stride  # [H/s, W/s, C, cin s^2]
    columns = width // stride
    half = columns // 2 + 1  # the others are conjugates of these
    copies = torch.tensor([1 if 2 * column % columns == 0 else 2 for column in range(half)])
    return torch.linalg.svdvals(matrices[:, :half]).repeat_interleave(copies, 1).flatten().sort(descending=True).values
