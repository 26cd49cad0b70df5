"""sqrt(t) of equation (SLL) as fast as a training step needs it, with a backward pass of its own. rescaling.py has the plain form.

W W^T of a convolution is the zero-padded autocorrelation of its kernel, K[s] = sum_p V[p] V[p+s]^T over the taps p, with K[-s] = K[s]^T.
A discrete Fourier transform of length m = 2k-1 in both directions, in which nothing wraps around, turns it into products of matrices.
With sums R(w) and I(w) of the taps times cosines and sines, for one of each pair of frequencies w and -w, and a(w,s) = 2 pi w.s / m,

    R = sum_p cos a(w,p) V[p],    I = sum_p sin a(w,p) V[p],    G = (R + I)(R - I)^T,    H = I I^T    (at w = 0: H = R R^T),

the even part of G is R R^T - I I^T and its odd part I R^T - R I^T, of which the transform of K, R R^T + I I^T + i (I R^T - R I^T), is made:

    m^2 K[s] = H(0) + sum_w (cos a - sin a)(w,s) G(w) + (cos a + sin a)(w,s) G(w)^T + 4 cos a(w,s) H(w).

These are m^2 products of C x Cin matrices: 25 for 3x3 kernels, and 62 with the backward pass, where the shifts one by one take 45 and 135.
All of them, of all layers of one shape, are two batched products; the transforms are products with small matrices. Sines and cosines make
no value larger, so the rounding is that of the direct form.
"""
import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.precision import full_precision


class RootOfT(torch.autograd.Function):
    """sqrt(t) of equation (SLL) of L layers, [L, C], from weight [L, C, Cin, k, k] and q [L, C] in float32 or float64; what follows it is
    for backward.

    With W_i = n_i V_i, n_i = max|W_i|, and d_i = n_i exp(q_i) up to a common factor, the equation becomes

        t_i = d_i / (n_i^2 r_i),    r_i = sum_j B_ij d_j,    B_ij = sum_s |K_ij[s]|,    K_ij[s] = sum_{c,p} V[i,c,p] V[j,c,p+s],

    whose products neither overflow nor vanish, however the rows are scaled. Kept for backward are one of each pair of K[s] and K[-s].

    Rows of zeros, and rows whose d is below rounding next to the largest, get t_i = 0. That drops the row, which is never unsound: the
    bound for the other rows does not need it.
    """

    generate_vmap_rule = True  # torch.func works on the networks, so nothing here writes unbatched values into batched ones

    @staticmethod
    def forward(weight: Tensor, q: Tensor) -> tuple[Tensor, ...]:
        info = torch.finfo(weight.dtype)
        n = weight.abs().flatten(2).amax(2)
        dead = n < info.tiny
        d = torch.softmax((q + n.log()).masked_fill(dead, info.min), 1)
        dead = dead | (d <= info.tiny / info.eps)
        d, n = d.masked_fill(dead, 0), n.masked_fill(dead, math.inf)
        with _exact_products(weight):
            half = _correlations(_unit(weight, n))
            magnitudes = half.abs().sum(0)
            magnitudes = magnitudes + magnitudes.mT
            r = (magnitudes @ d[:, :, None])[:, :, 0]
        root = torch.sqrt(d / r.clamp_min(info.tiny)) / n
        root = root.masked_fill(root < info.tiny, 0)  # what is too small to be held with full precision
        return root, n, d, r, magnitudes, half

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:
        root, *others = output
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], root, *others)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor | None, *_):
        if grad is None:
            return None, None
        weight, root, n, d, r, magnitudes, half = ctx.saved_tensors
        tiny = torch.finfo(weight.dtype).tiny
        of_root = grad * root / 2  # 0 for dead rows, whose d and r may be 0 as well
        grad_r = of_root / -r.clamp_min(tiny)
        outer = grad_r[:, :, None] * d[:, None, :]
        with _exact_products(weight):
            grad_v = _correlations_backward(_unit(weight, n), half, outer + outer.mT)
            grad_d = of_root / d.clamp_min(tiny) + (magnitudes @ grad_r[:, :, None])[:, :, 0]
        # n needs no gradient, as the result does not depend on it
        return _unit(grad_v, n), grad_d * d


def _unit(weight: Tensor, n: Tensor) -> Tensor:
    """Rows of weight [L, C, ...] divided by n [L, C]."""
    return weight / n.view(*n.shape, *(1,) * (weight.dim() - 2))


def _correlations(v: Tensor) -> Tensor:
    """K[s] of v [L, C, Cin, k, k] for one of each pair of shifts, and half of K[0], which is its own: [(m^2+1)/2, L, C, C]."""
    layers, rows, _, k, _ = v.shape
    if k == 1:
        v = v.flatten(2)
        return (v @ v.mT / 2)[None]
    waves = _waves(k, v)
    plus, minus, alone = _transformed(waves, v)
    g, h = (plus @ minus.mT).view(len(waves.of_taps[0]), -1), (alone @ alone.mT).view(len(waves.of_taps[2]), -1)
    half = torch.addmm(waves.back @ g, waves.back_alone, h).view(-1, layers, rows, rows)
    return half + (waves.back_transposed @ g).view_as(half).mT


def _correlations_backward(v: Tensor, half: Tensor, outer: Tensor) -> Tensor:
    """The gradient of v, [L, C, Cin, k, k], where that of each |K_ij[s]| + |K_ji[s]| of `half` is outer_ij, [L, C, C] and symmetric."""
    _, rows, _, k, _ = v.shape
    grad = outer * half.sign()
    if k == 1:
        return (grad[0] @ v.flatten(2)).view_as(v)
    waves, grad = _waves(k, v), grad.flatten(1)
    of_g = (waves.back.T @ grad).view(-1, rows, rows) + (waves.back_transposed.T @ grad).view(-1, rows, rows).mT
    of_h = (waves.back_alone.T @ grad).view(-1, rows, rows)
    plus, minus, alone = _transformed(waves, v)
    parts = of_g @ minus, of_g.mT @ plus, (of_h + of_h.mT) @ alone
    of_plus, of_minus, of_alone = (part.view(len(wave), -1).T for part, wave in zip(parts, waves.of_taps))
    grad_v = torch.addmm(torch.addmm(of_alone @ waves.of_taps[2], of_plus, waves.of_taps[0]), of_minus, waves.of_taps[1])
    return grad_v.view_as(v)


def _transformed(waves: "_Waves", v: Tensor) -> list[Tensor]:
    """R + I, R - I, and R(0) and I, each [frequencies * L, C, Cin], of v [L, C, Cin, k, k]."""
    taps = v.reshape(-1, waves.of_taps[0].shape[1]).T
    return [(wave @ taps).view(-1, *v.shape[1:3]) for wave in waves.of_taps]


class _Waves(NamedTuple):
    """The transform and its inverse: matrices of the head of this file, with the shift 0 halved."""
    of_taps: tuple[Tensor, Tensor, Tensor]  # R + I, R - I, [frequencies, k * k], and R(0) and I, [1 + frequencies, k * k]
    back: Tensor  # what of G there is in K[s], [shifts, frequencies]
    back_transposed: Tensor  # of G^T
    back_alone: Tensor  # of H, [shifts, 1 + frequencies]


_made: dict[tuple, _Waves] = {}  # by k, dtype and device: a copy to a device waits for it


def _waves(k: int, like: Tensor) -> _Waves:
    """The matrices for k x k kernels, in the dtype and on the device of `like`."""
    key = k, like.dtype, like.device, getattr(like, "fake_mode", None)
    if key not in _made:
        with torch.inference_mode(False):
            made = _make_waves(k, like)
        if torch._C._are_functorch_transforms_active():  # tensors that are made within a transform are no good outside
            return made
        _made[key] = made
    return _made[key]


def _make_waves(k: int, like: Tensor) -> _Waves:
    m, side = 2 * k - 1, range(1 - k, k)
    half = np.array(sorted(place for place in itertools.product(side, side) if place >= (0, 0)))  # of frequencies, of shifts; 0 first
    at_taps, at_shifts = (2 * math.pi / m * (half @ places.T % m) for places in (np.indices((k, k)).reshape(2, -1).T, half))
    cosines, sines = np.cos(at_taps), np.sin(at_taps)
    back_cosines, back_sines = (np.where(half.any(1), 1, 0.5)[:, None] / m**2 * wave(at_shifts) for wave in (np.cos, np.sin))
    of_taps = cosines[1:] + sines[1:], cosines[1:] - sines[1:], np.concatenate([cosines[:1], sines[1:]])
    back = back_cosines - back_sines, back_cosines + back_sines, back_cosines * np.where(half.any(1), 4, 1)
    plus, minus, alone, g, transposed, h = (torch.tensor(values.tolist(), dtype=like.dtype, device=like.device)
                                            for values in (*of_taps, back[0][:, 1:], back[1][:, 1:], back[2]))
    return _Waves((plus, minus, alone), g, transposed, h)


@contextlib.contextmanager
def _exact_products(like: Tensor) -> Iterator[None]:
    """Products in the precision of their factors: no TF32, no autocast (which a backward pass may be called under)."""
    with full_precision(), torch.autocast(like.device.type, enabled=False):
        yield
