"""sqrt(t) of equation (SLL) as fast as a training step needs it, with a backward pass of its own. rescaling.py has the plain form.

W W^T of a convolution is the zero-padded autocorrelation of its kernel, of whose shifts s and -s one is enough. It is computed by one
convolution for few channels, and by a product of matrices a shift for many; on a CPU such products are written as 1x1 convolutions.
"""
import contextlib
import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.precision import full_precision

# Up to here one convolution of a kernel with itself is faster than a product for each shift. Forward and backward on one core of an AMD
# EPYC, in ms: 8.2 by products and 2.4 by convolution for 96 channels, 11.0 and 6.3 for 128, 14.7 and 12.6 for 160, 37 and 45 for 256.
FEW_CHANNELS = 160


class RootOfT(torch.autograd.Function):
    """sqrt(t) of equation (SLL), [C], from weight [C, Cin, k, k] and q [C] in float32 or float64; what follows it is for backward.

    With W_i = n_i V_i, n_i = max|W_i|, and d_i = n_i exp(q_i) up to a common factor, the equation becomes

        t_i = d_i / (n_i^2 r_i),    r_i = sum_{j,s} |K_ij[s]| d_j,    K_ij[s] = sum_{c,p} V[i,c,p] V[j,c,p+s],

    whose products neither overflow nor vanish, however the rows are scaled. As K_ij[-s] = K_ji[s], one of each pair of shifts s is
    enough, and a shift by (dy, dx) has (k-|dy|)(k-|dx|) overlapping taps only: 45 C^2 Cin multiply-adds for 3x3 kernels, against 225
    when the weight is convolved with itself, which is done all the same for few channels: see `_is_small`. Only the K are kept for
    backward, which costs twice the forward, or as much where the K of all shifts are known.

    Rows of zeros, and rows whose d is below rounding next to the largest, get t_i = 0. That drops the row, which is never unsound: the
    bound for the other rows does not need it.
    """

    generate_vmap_rule = True  # torch.func works on the networks, so nothing here writes unbatched values into batched ones

    @staticmethod
    def forward(weight: Tensor, q: Tensor) -> tuple[Tensor, ...]:
        info = torch.finfo(weight.dtype)
        n = weight.abs().flatten(1).amax(1)
        log_d = torch.where(n >= info.tiny, q + n.clamp_min(info.tiny).log(), -math.inf)
        d = torch.exp(log_d - log_d.amax().clamp_min(info.min))
        d = torch.where(d > info.tiny / info.eps, d, 0.0)
        n = torch.where(d > 0, n, 1.0)
        with _exact_products(weight):
            if weight.shape[-1] == 1:
                correlations = [sum(_product(part, part) for part in _parts(weight, n))]
                r = correlations[0].abs() @ d
            elif _is_small(weight):
                v = weight / n.view(-1, 1, 1, 1)
                correlations = [F.conv2d(v, v, padding=weight.shape[-1] - 1)]
                r = correlations[0].abs().sum((2, 3)) @ d
            else:
                r, correlations = _by_half_shifts(_by_taps(weight, n), d)
        root = torch.where(d > 0, torch.sqrt(d / torch.where(d > 0, r, 1.0)), 0.0) / n
        root = torch.where(root >= info.tiny, root, 0.0)  # too small to be held with full precision: drop the row as well
        return root, n, d, r, *correlations

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
        weight, root, n, d, r, *correlations = ctx.saved_tensors
        alive = root > 0
        half = grad * root / 2
        grad_r = torch.where(alive, -half / torch.where(alive, r, 1.0), 0.0)
        grad_d = torch.where(alive, half / torch.where(alive, d, 1.0), 0.0)
        outer = torch.outer(grad_r, d)
        outer = outer + outer.T
        with _exact_products(weight):
            if weight.shape[-1] == 1:
                k, = correlations
                grad_k, scale = outer * k.sign(), 1 / n[:, None]
                grad_weight = torch.cat([_product(grad_k, part.T.contiguous()) * scale for part in _parts(weight, n)], 1)[:, :, None, None]
                return grad_weight, (grad_d + k.abs() @ grad_r) * d
            if _is_small(weight):
                k, = correlations
                # K_ij[s] = K_ji[-s] makes V as input and V as kernel have the same gradient: `outer` holds both
                grad_v = F.conv_transpose2d(outer[:, :, None, None] * k.sign(), weight / n.view(-1, 1, 1, 1), padding=weight.shape[-1] - 1)
                grad_d = grad_d + k.abs().sum((2, 3)) @ grad_r
            else:
                grad_v, more = _half_shifts_backward(_by_taps(weight, n), correlations, outer, grad_r)
                grad_d = grad_d + more
        # n needs no gradient, as the result does not depend on it
        return grad_v / n.view(-1, 1, 1, 1), grad_d * d


def _is_small(weight: Tensor) -> bool:
    """Whether one convolution of the weight with itself is faster than a product a shift, whose fixed costs outweigh five times fewer
    multiply-adds for few channels.
    """
    return weight.shape[0] * weight.shape[1] <= FEW_CHANNELS**2


def _parts(weight: Tensor, n: Tensor) -> Iterator[Tensor]:
    """V [C, at most _PART] part by part, of a weight [C, Cin, 1, 1]: of a dense layer, the whole is too large for the cache."""
    return (part / n[:, None] for part in weight[:, :, 0, 0].split(_PART, 1))


def _by_half_shifts(v: Tensor, d: Tensor) -> tuple[Tensor, list[Tensor]]:
    """r [C] and the K [C, C] of one of each pair of shifts, of v [k, k, C, Cin]."""
    r, correlations = torch.zeros_like(d), []
    for shift in half_shifts(v.shape[0]):
        k = sum(_product(v[here], v[there]) for here, there in _tap_pairs(*shift))
        magnitude = k.abs()
        r += magnitude @ d
        if shift[0] != shift[1]:
            r += d @ magnitude
        correlations.append(k)
    return r, correlations


def _half_shifts_backward(v: Tensor, correlations: list[Tensor], outer: Tensor, grad_r: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of V [C, Cin, k, k] and, through r, of d [C]."""
    columns = v.transpose(2, 3).contiguous()
    grad_v, grad_d = torch.zeros_like(grad_r).view(-1, 1).repeat(*v.shape[:2], 1, v.shape[-1]), torch.zeros_like(grad_r)
    for shift, k in zip(half_shifts(v.shape[0]), correlations):
        magnitude = k.abs()
        grad_d += grad_r @ magnitude
        grad_k = outer * k.sign()
        pairs = [*_tap_pairs(*shift)]
        for here, there in pairs:
            grad_v[here] += _product(grad_k, columns[there])
        if shift[0] != shift[1]:  # K[0] is symmetric: the product above already is the gradient of both its factors
            grad_d += magnitude @ grad_r
            grad_k = grad_k.T.contiguous()
            for here, there in pairs:
                grad_v[there] += _product(grad_k, columns[here])
    return grad_v.permute(2, 3, 0, 1), grad_d


def _tap_pairs(here, there) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """The taps (row, column) of two regions of `half_shifts` that meet."""
    one, two = (itertools.product(*(range(part.start, part.stop) for part in region)) for region in (here, there))
    return zip(one, two)


# Products of matrices as 1x1 convolutions on a CPU, in parts that stay in the cache: oneDNN is faster than MKL on processors that are not
# Intel's. torch gives it a convolution in a single thread for 16 images or more only. On one core of an AMD EPYC, 512 x 512 x 512 ran at
# 190 GFLOP/s as 16 images, at 80 as one image, and at 100 as a product of matrices.
_PART, _IMAGES = 1024, 16


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T [m, n] of a [m, l] and b [n, l], both best contiguous."""
    if a.device.type != "cpu" or a.dtype != torch.float32:
        return a @ b.T
    return sum(_convolved(x, y) for x, y in zip(a.split(_PART, 1), b.split(_PART, 1)))


def _convolved(a: Tensor, b: Tensor) -> Tensor:
    """`_product` by a convolution of images, channels last, whose pixels are the rows of a."""
    m, n = a.shape
    images = a.contiguous().reshape(_IMAGES if m % _IMAGES == 0 else 1, -1, 1, n).permute(0, 3, 1, 2)
    return F.conv2d(images, b[:, :, None, None]).permute(0, 2, 3, 1).reshape(m, -1)


@contextlib.contextmanager
def _exact_products(like: Tensor) -> Iterator[None]:
    """Products in the precision of their factors: no TF32, no autocast (which a backward pass may be called under)."""
    with full_precision(), torch.autocast(like.device.type, enabled=False):
        yield


def _by_taps(weight: Tensor, n: Tensor) -> Tensor:
    """V as [k, k, C, Cin], contiguous: a matrix a tap."""
    return (weight / n.view(-1, 1, 1, 1)).permute(2, 3, 0, 1).contiguous()


def half_shifts(k: int):
    """For a k x k kernel against itself: pairs of (rows, columns) slices that overlap under the shifts (0,0) and one of each pair s, -s."""
    for dy in range(k):
        for dx in range(-k + 1 if dy else 0, k):
            yield ((slice(0, k - dy), slice(max(0, -dx), k - max(0, dx))),
                   (slice(dy, k), slice(max(0, dx), k - max(0, -dx))))


def taps(v: Tensor, region) -> Tensor:
    """The taps of a kernel [C, k, k, Cin] in one of the regions of `half_shifts`, [C, taps * Cin]."""
    return v[:, region[0], region[1]].reshape(v.shape[0], -1)
