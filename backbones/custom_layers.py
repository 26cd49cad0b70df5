"""Layers that are 1-Lipschitz in l2 by construction: SLL blocks and the shape changes between them.

Source of the SLL layer: Araujo et al., "A Unified Algebraic Perspective on Lipschitz Neural Networks", ICLR 2023. For weights W and
free parameters q (one per inner channel)

    z  ->  z - 2 W^T T relu(W z + b),      T = diag(t),      1 / t_i = sum_j |W W^T|_ij exp(q_j - q_i)             (SLL)

is 1-Lipschitz for every W, q and b, because diag(1/t) - W W^T is then diagonally dominant after a diagonal scaling. For a convolution
W W^T is the zero-padded autocorrelation of the kernel and the sum runs over its (2k-1)^2 shifts as well.

The dense layer that ends the networks is  z -> T^(1/2) (W z + b)  with q = 0 in (SLL): in the published dense layer the factors of q
cancel, and the released checkpoints were trained and evaluated that way; its q is kept because it is in their state dicts.

T commutes with relu, so the block equals  z - 2 V^T relu(V z + c)  with  V = T^(1/2) W  and  c = T^(1/2) b: a plain convolution, relu
and transposed convolution with rescaled weights. That form is the one computed here: it needs no activation for T and cannot overflow
in half precision (||V|| <= 1). `rescaled` is the one home of the formula.

With `power=p` a layer takes its t from the p-th power of W W^T instead, see powers.py: less is lost, at a higher cost of the rescaling. The
parameters are the same.
"""
import contextlib
import itertools
import math
from typing import Iterator, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.powers import root_from_power
from utils.utils_precision import full_precision

# Up to here one convolution of a kernel with itself is faster than a product for each shift. Forward and backward on a CPU core, in ms:
# 1.4 by products and 0.8 by convolution for 32 channels, 2.5 and 1.8 for 64, 4.8 and 4.6 for 96; forward alone, 3.9 and 5.2 for 128.
FEW_CHANNELS = 96


class _RootOfT(torch.autograd.Function):
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
    def backward(ctx, grad: Optional[Tensor], *_):
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
                grad_weight = torch.cat([_mix(grad_k, part) * scale for part in _parts(weight, n)], 1)[:, :, None, None]
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
    multiply-adds for few channels."""
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
    grad_v, grad_d = torch.zeros_like(grad_r).view(-1, 1).repeat(*v.shape[:2], 1, v.shape[-1]), torch.zeros_like(grad_r)
    for shift, k in zip(half_shifts(v.shape[0]), correlations):
        magnitude = k.abs()
        grad_d += grad_r @ magnitude
        grad_k = outer * k.sign()
        pairs = [*_tap_pairs(*shift)]
        for here, there in pairs:
            grad_v[here] += _mix(grad_k, v[there])
        if shift[0] != shift[1]:  # K[0] is symmetric: the product above already is the gradient of both its factors
            grad_d += magnitude @ grad_r
            grad_k = grad_k.T.contiguous()
            for here, there in pairs:
                grad_v[there] += _mix(grad_k, v[here])
    return grad_v.permute(2, 3, 0, 1), grad_d


def _tap_pairs(here, there) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """The taps (row, column) of two regions of `half_shifts` that meet."""
    one, two = (itertools.product(*(range(part.start, part.stop) for part in region)) for region in (here, there))
    return zip(one, two)


# Products of matrices as 1x1 convolutions on a CPU, in parts that stay in the cache: oneDNN is faster than MKL on processors that are not
# Intel's. On two cores of an AMD EPYC `_product` reached 345 GFLOP/s and `_mix` 436 for 512 x 512 x 512, the matrix product 228.
_PART = 1024


def _is_for_onednn(a: Tensor) -> bool:
    return a.device.type == "cpu" and a.dtype == torch.float32


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T [m, n] of a [m, l] and b [n, l]."""
    if not _is_for_onednn(a):
        return a @ b.T
    parts = zip(a.split(_PART, 1), b.split(_PART, 1))
    # an image of m pixels, channels last
    return sum(F.conv2d(x.contiguous().T[None, :, None], y[:, :, None, None])[0, :, 0].T for x, y in parts)


def _mix(g: Tensor, v: Tensor) -> Tensor:
    """g v [m, n] of g [m, l] and v [l, n]."""
    if not _is_for_onednn(g):
        return g @ v
    # an image of n pixels, channels first
    parts = [F.conv2d(part[None, :, None], g[:, :, None, None])[0, :, 0] for part in v.split(_PART, 1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


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


def _root(weight: Tensor, q: Tensor, power: int) -> Tensor:
    weight = weight if weight.dim() == 4 else weight[:, :, None, None]
    return _RootOfT.apply(weight, q)[0] if power == 1 else root_from_power(weight, q, power)


def rescaling(weight: Tensor, q: Tensor, power: int = 1) -> Tensor:
    """t of equation (SLL), or (SLL-p) of powers.py with p = `power`, [C], in float32 or better, differentiable.

    weight: [C, Cin, k, k] with odd or even k, or [C, Cin]; q: [C]. t_i is 0 where the sum is 0.
    """
    weight, q = _at_least_float32(weight), _at_least_float32(q)
    with torch.autocast(weight.device.type, enabled=False):
        return _root(weight, q, power).square()


def rescaled(weight: Tensor, bias: Optional[Tensor], q: Tensor, power: int = 1) -> tuple[Tensor, Optional[Tensor]]:
    """T^(1/2) W and T^(1/2) b with t of `rescaling`, in float32 or better also under autocast, differentiable.

    weight: [C, Cin, k, k] or [C, Cin]; bias: C values in any shape, or None; q: [C]. The bias comes back as [C].
    """
    kept = weight.dtype
    weight, q = _at_least_float32(weight), _at_least_float32(q)
    with torch.autocast(weight.device.type, enabled=False):
        root = _root(weight, q, power)
        folded_weight = weight * root.view(-1, *(1,) * (weight.dim() - 1))
        if weight.dim() == 4:  # convolutions take up to twice the time otherwise, whatever the layout of the images is
            folded_weight = folded_weight.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # in a form that torch.vmap takes
        folded_bias = None if bias is None else bias.flatten().to(weight.dtype) * root
    return folded_weight.to(kept), None if folded_bias is None else folded_bias.to(kept)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _equal(kept: "tuple[Optional[Tensor], ...]", now: "tuple[Optional[Tensor], ...]") -> bool:
    """Whether values, types and devices are the same.

    Their versions would be cheaper to compare, but miss edits through `.data` or numpy. Reading the values takes a sixth of the
    time of one image in SLLNet, and 2 % of a batch of 16; `backbones.export.fold` makes a network without it.
    """
    kept, now = ([p for p in parameters if p is not None] for parameters in (kept, now))
    if [(p.dtype, p.device, p.shape) for p in kept] != [(p.dtype, p.device, p.shape) for p in now]:
        return False
    if now[0].device.type == "cpu":
        return all(map(torch.equal, kept, now))
    return not torch.stack([(a != b).any() for a, b in zip(kept, now)]).any()  # waits for the device once, not once a parameter


class _SLL(nn.Module):
    """Weights W, bias b, free parameters q, and the rescaled weights while nothing asks for their gradient.

    power: p of the rescaling (SLL-p). Raises ValueError unless it is a positive integer.
    """

    weight: nn.Parameter
    bias: Optional[nn.Parameter]
    q: nn.Parameter
    _kept = None  # (copies of the parameters, T^(1/2) W, T^(1/2) b)
    _shared = None  # T^(1/2) W and T^(1/2) b of this optimiser step, see `RescaledOnce`

    def __init__(self, power: int):
        super().__init__()
        if not isinstance(power, int) or power < 1:
            raise ValueError(f"power is {power!r}: it must be a positive integer")
        self.power = power

    def fresh(self) -> tuple[Tensor, Optional[Tensor]]:
        """T^(1/2) W and T^(1/2) b, computed anew."""
        return rescaled(self.weight, self.bias, self._free_parameters(), self.power)

    def rescaled(self) -> tuple[Tensor, Optional[Tensor]]:
        """T^(1/2) W and T^(1/2) b; computed anew whenever a gradient of the parameters may be asked for or a parameter changed."""
        return self._shared if self._shared is not None else self._rescaled_now()

    @torch.compiler.disable  # a compiler would freeze what is kept, or compile t for each of the shifts
    def _rescaled_now(self) -> tuple[Tensor, Optional[Tensor]]:
        parameters = (self.weight, self.bias, self._free_parameters())
        gradients = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parameters)
        if gradients or torch._C._are_functorch_transforms_active():  # what a transform of torch.func sees belongs to that call
            return self.fresh()
        if self._kept is None or not _equal(self._kept[0], parameters):
            with torch.no_grad(), torch.inference_mode(False):
                copies = tuple(None if p is None else p.detach().clone() for p in parameters)
                self._kept = (copies, *rescaled(*copies, self.power))
        return self._kept[1], self._kept[2]

    def _free_parameters(self) -> Tensor:
        return self.q

    def _extra(self) -> str:
        return f", power={self.power}" if self.power > 1 else ""

    def train(self, mode: bool = True):
        self._kept = None
        return super().train(mode)

    def _apply(self, *args, **kw):
        self._kept = None
        return super()._apply(*args, **kw)

    def __getstate__(self):
        state = dict(self.__dict__)
        state.pop("_kept", None)
        state.pop("_shared", None)
        return state


def sll_block(z: Tensor, weight: Tensor, bias: Optional[Tensor], stride: int, padding: int) -> Tensor:
    """z - 2 V^T relu(V * z + c) for images z [N, cin, H, W], V [C, cin, k, k] and c [C] from `rescaled`."""
    h = F.relu(F.conv2d(z, weight, bias, stride=stride, padding=padding), inplace=True)
    # a strided convolution forgets up to stride - 1 rows and columns, which its transpose has to give back
    lost = [(n + 2 * padding - weight.shape[-1]) % stride for n in z.shape[-2:]] if stride > 1 else 0
    step = F.conv_transpose2d(h, weight, stride=stride, padding=padding, output_padding=lost)
    # what is exported has no operations in place, which not every exporter gets right
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if traced or torch.is_grad_enabled() or step.dtype != z.dtype:
        return torch.sub(z, step, alpha=2)
    return step.mul_(-2).add_(z)  # the same, without memory for another image


class SLLConv2d(_SLL):
    """z -> z - 2 W^T T relu(W * z + b), equation (SLL), for images z [N, cin, H, W]; 1-Lipschitz in l2.

    cin: channels of the image; inner_dim: channels of W * z; kernel_size: odd; stride: of the inner convolution (the image keeps its
    size); bias: one value per inner channel, [1, inner_dim, 1, 1]; power: p of (SLL-p). W starts orthogonal, q standard normal, b uniform
    in +-1/sqrt(fan in). Raises ValueError for an even kernel, whose zero padding would not be symmetric.
    """

    def __init__(self, cin: int, inner_dim: int, kernel_size: int = 3, stride: int = 1, bias: bool = False, power: int = 1):
        super().__init__(power)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}: it must be odd")
        self.stride, self.padding = stride, kernel_size // 2
        self.weight = nn.Parameter(torch.empty(inner_dim, cin, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(1, inner_dim, 1, 1)) if bias else None
        self.q = nn.Parameter(torch.empty(inner_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)
        nn.init.normal_(self.q)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, z: Tensor) -> Tensor:
        return sll_block(z, *self.rescaled(), self.stride, self.padding)

    def extra_repr(self) -> str:
        inner, cin, k, _ = self.weight.shape
        return f"{cin}, {inner}, kernel_size={k}, stride={self.stride}, bias={self.bias is not None}{self._extra()}"


class SLLLinear(_SLL):
    """z -> T^(1/2) (W z + b), t of equation (SLL), or (SLL-p), with q = 0, for z [..., ic]; 1-Lipschitz in l2. W starts orthogonal.

    `q`, standard normal at the start, has no effect and asks for no gradient: see the head of this file.
    """

    def __init__(self, ic: int, oc: int, bias: bool = False, power: int = 1):
        super().__init__(power)
        self.weight = nn.Parameter(torch.empty(oc, ic))
        self.bias = nn.Parameter(torch.empty(oc)) if bias else None
        self.q = nn.Parameter(torch.empty(oc), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)
        nn.init.normal_(self.q)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight.shape[1])
            nn.init.uniform_(self.bias, -bound, bound)

    def _free_parameters(self) -> Tensor:
        return torch.zeros_like(self.q)

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, *self.rescaled())

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}{self._extra()}"


class RescaledOnce:
    """Compute the rescaling of every SLL layer once for all forward and backward passes between two changes of the weights.

        with RescaledOnce(network) as rescaling:
            for number, part in enumerate(parts):
                if number == len(parts) - 1:
                    rescaling.last()
                loss(network(part)).backward()

    Until `last` is called the passes use leaves with the values of T^(1/2) W and T^(1/2) b, whose gradients add up; the last backward pass
    adds these to its own and goes on through t to the parameters. So the parameters receive all gradients in one backward pass, the
    only one whose gradients DDP has to average. With nothing left to compute in a layer but convolutions, a compiled network has no
    graph breaks.
    """

    def __init__(self, network: nn.Module):
        self.layers = [module for module in network.modules() if isinstance(module, _SLL)]

    def __enter__(self) -> "RescaledOnce":
        with torch.enable_grad():
            self.live = [layer.fresh() for layer in self.layers]
        for layer, live in zip(self.layers, self.live):
            layer._shared = tuple(None if value is None else value.detach().requires_grad_() for value in live)
        return self

    def last(self) -> None:
        """The next backward pass is the last one."""
        for layer, live in zip(self.layers, self.live):
            for value, leaf in zip(live, layer._shared):
                if leaf is not None and leaf.grad is not None:
                    value.register_hook(leaf.grad.add)
            layer._shared = live

    def __exit__(self, *_) -> None:
        for layer in self.layers:
            layer._shared = None


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


class SLLStage(nn.Module):
    """`depth` blocks SLLConv2d(channels, channels, 3x3, bias) in a row, on [N, channels, H, W]."""

    def __init__(self, channels: int, depth: int, power: int = 1):
        super().__init__()
        self.layer = nn.Sequential(*(SLLConv2d(channels, channels, bias=True, power=power) for _ in range(depth)))

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z)
