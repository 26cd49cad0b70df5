"""The rescaling of an SLL layer from a power of W W^T, which is tighter than that from W W^T itself.

With A = W W^T, of a convolution the infinite autocorrelation (no zero padding), and an integer p >= 1,

    1 / t_i = ( sum_j |A^p|_ij exp(q_j - q_i) )^(1/p)                                                           (SLL-p)

keeps z - 2 W^T T relu(W z + b) 1-Lipschitz; p = 1 is equation (SLL) of rescaling.py. The proof is in docs/soundness.md: the weighted
row sums D of |A^p| bound A^p <= D, Loewner-Heinz takes the root, and zero padding compresses A.

A^p is computed at the frequencies of a discrete Fourier transform as long as the support of its kernel, 2p(k-1)+1, so that nothing wraps
around. With rows W_i = n_i V_i of norm 1, m = max n, s = n / m and d_i = s_i exp(q_i) up to a common factor,

    A^p = m^2p  S C S,    C = B (S^2 B)^(p-1),    B = V V^T,    r_i = sum_j,shifts |C|_ij d_j,    t_i = (d_i / r_i)^(1/p) / (m^2 s_i^(2/p)),

whose products neither overflow nor vanish, however the rows are scaled; every product is scaled again to a largest value of 1.
"""
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from utils.precision import full_precision

T = TypeVar("T")


def root_from_power(weight: Tensor, q: Tensor, power: int) -> Tensor:
    """sqrt(t) of equation (SLL-p), [C], from weight [C, Cin, k, k] and q [C] in float32 or float64, differentiable.

    Rows of zeros, and rows whose d or r is below rounding, get t_i = 0, which drops them: never unsound, as the bound of the others
    does not need them.
    """
    info = torch.finfo(weight.dtype)
    n, alive = _row_norms(weight.detach())
    m = torch.where(alive, n, info.tiny).amax()
    s = torch.where(alive, n / m, 0.0)
    log_d = torch.where(alive, q + torch.where(alive, s, 1.0).log(), -torch.inf)
    d = torch.exp(log_d - log_d.detach().amax().clamp_min(info.min))
    alive = alive & (d > info.tiny / info.eps)
    d, v = torch.where(alive, d, 0.0), torch.where(alive.view(-1, 1, 1, 1), weight / n.view(-1, 1, 1, 1), 0.0)
    with full_precision():
        size = 2 * power * (weight.shape[-1] - 1) + 1
        spectrum = _spectrum(v, size)
        base = _scaled(spectrum @ spectrum.mH, 0.0)
        c, log_scale = binary_power(base, lambda x, y: _scaled((x[0] * s.square()) @ y[0], x[1] + y[1]), power)
        r = _magnitudes(c, size) @ d
    alive = alive & (r > info.tiny / info.eps**1.5)
    ratio = torch.where(alive, d, 1.0) / torch.where(alive, r, 1.0)
    share = torch.where(alive, s, 1.0) ** (1 / power)
    root = torch.where(alive, ratio ** (1 / (2 * power)) * torch.exp(-log_scale / (2 * power)) / share, 0.0) / m
    return torch.where(root >= info.tiny, root, 0.0)


def binary_power(base: T, times: Callable[[T, T], T], power: int) -> T:
    """base * base * ... (`power` factors) with an associative product, in about log2(power) products."""
    found, square = None, base
    while True:
        if power & 1:
            found = square if found is None else times(found, square)
        power >>= 1
        if not power:
            return found
        square = times(square, square)


def _row_norms(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(|W_i|, whether it can be divided by) [C]; 1 where not. Neither squares of large nor of small values are lost."""
    rows, tiny = weight.flatten(1), torch.finfo(weight.dtype).tiny
    largest = rows.abs().amax(1)
    alive = largest >= tiny
    largest = torch.where(alive, largest, 1.0)
    return torch.where(alive, largest * (rows / largest[:, None]).norm(dim=1), 1.0), alive


def _spectrum(v: Tensor, size: int) -> Tensor:
    """The transform [frequencies, C, Cin] of kernels [C, Cin, k, k], one of each pair of conjugate frequencies."""
    if size == 1:
        return v[None, :, :, 0, 0]
    return torch.fft.rfft2(v, s=(size, size)).flatten(2).permute(2, 0, 1)


def _magnitudes(spectrum: Tensor, size: int) -> Tensor:
    """sum over the shifts of |kernel| [C, C], of a spectrum from `_spectrum`."""
    if size == 1:
        return spectrum[0].abs()
    rows = spectrum.permute(1, 2, 0).unflatten(2, (size, size // 2 + 1))
    return torch.fft.irfft2(rows, s=(size, size)).abs().sum((2, 3))


def _scaled(values: Tensor, log_scale: "Tensor | float") -> "tuple[Tensor, Tensor | float]":
    """(values / largest, log_scale + log largest): the pair stands for values * exp(log_scale)."""
    largest = values.detach().abs().amax()
    largest = torch.where(largest > 0, largest, 1.0)
    return values / largest, log_scale + largest.log()
