"""Layers that are 1-Lipschitz in l2 by construction: SLL blocks. The shape changes between them, of shapes.py, have their names here too.

Source of the SLL layer: Araujo et al., "A Unified Algebraic Perspective on Lipschitz Neural Networks", ICLR 2023. For weights W and
free parameters q (one per inner channel)

    z  ->  z - 2 W^T T relu(W z + b),      T = diag(t),      1 / t_i = sum_j |W W^T|_ij exp(q_j - q_i)             (SLL)

is 1-Lipschitz for every W, q and b, because diag(1/t) - W W^T is then diagonally dominant after a diagonal scaling. For a convolution
W W^T is the zero-padded autocorrelation of the kernel and the sum runs over its (2k-1)^2 shifts as well.

The dense layer that ends the networks is  z -> T^(1/2) (W z + b)  with q = 0 in (SLL): in the published dense layer the factors of q
cancel, and the released checkpoints were trained and evaluated that way; its q is kept because it is in their state dicts.

T commutes with relu, so the block equals  z - 2 V^T relu(V z + c)  with  V = T^(1/2) W  and  c = T^(1/2) b: a plain convolution, relu
and transposed convolution with rescaled weights. That form is the one computed here: it needs no activation for T and cannot overflow
in half precision (||V|| <= 1). `rescaled` of rescaling.py is the one home of the formula.

With `power=p` a layer takes its t from the p-th power of W W^T instead, see powers.py: less is lost, at a higher cost of the rescaling. The
parameters are the same.
"""
import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.rescaling import half_shifts, rescaled, rescaling, taps
from backbones.shapes import Downsize, FirstChannels, MaxMin, PaddingChannels

# what code that was written for this module imports from it
__all__ = ["Downsize", "FirstChannels", "MaxMin", "PaddingChannels", "RescaledOnce", "SLLConv2d", "SLLLinear", "SLLStage", "half_shifts",
           "rescaled", "rescaling", "sll_block", "taps"]


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


class SLLStage(nn.Module):
    """`depth` blocks SLLConv2d(channels, channels, 3x3, bias) in a row, on [N, channels, H, W]."""

    def __init__(self, channels: int, depth: int, power: int = 1):
        super().__init__()
        self.layer = nn.Sequential(*(SLLConv2d(channels, channels, bias=True, power=power) for _ in range(depth)))

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z)
