"""The rescaling T^(1/2) of the weights of an SLL layer.

For weights W [C, Cin, k, k] and free parameters q [C]

    1 / t_i = sum_j |W W^T|_ij exp(q_j - q_i),                                                                  (SLL)

where W W^T is, for a convolution, the zero-padded autocorrelation of the kernel, whose (2k-1)^2 shifts the sum runs over as well.
`plain_rescaling` is that, word for word. What the layers of custom_layers.py use is `rescaled`: the same t without overflow for any W, and
several times faster (kernels.py). With a power p other than 1, t is that of powers.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.kernels import RootOfT
from backbones.powers import root_from_power


def plain_rescaling(weight: Tensor, q: Tensor) -> Tensor:
    """t of equation (SLL), [C], of weight [C, Cin, k, k] and q [C]: to be read, and to compare the fast forms with."""
    correlation = F.conv2d(weight, weight, padding=weight.shape[-1] - 1)  # [C, C, 2k - 1, 2k - 1]: W W^T, a row of C kernels for each i
    sums = (correlation.abs().sum((2, 3)) * torch.exp(q[None, :] - q[:, None])).sum(1)
    return torch.where(sums > 0, 1 / sums, 0.0)


def _root(weight: Tensor, q: Tensor, power: int) -> Tensor:
    weight = weight if weight.dim() == 4 else weight[:, :, None, None]
    return RootOfT.apply(weight, q)[0] if power == 1 else root_from_power(weight, q, power)


def rescaling(weight: Tensor, q: Tensor, power: int = 1) -> Tensor:
    """t of equation (SLL), or (SLL-p) of powers.py with p = `power`, [C], in float32 or better, differentiable.

    weight: [C, Cin, k, k] with odd or even k, or [C, Cin]; q: [C]. t_i is 0 where the sum is 0.
    """
    weight, q = at_least_float32(weight), at_least_float32(q)
    with torch.autocast(weight.device.type, enabled=False):
        return _root(weight, q, power).square()


def rescaled(weight: Tensor, bias: Tensor | None, q: Tensor, power: int = 1) -> tuple[Tensor, Tensor | None]:
    """T^(1/2) W and T^(1/2) b with t of `rescaling`, in float32 or better also under autocast, differentiable.

    weight: [C, Cin, k, k] or [C, Cin]; bias: C values in any shape, or None; q: [C]. The bias comes back as [C].
    """
    kept = weight.dtype
    weight, q = at_least_float32(weight), at_least_float32(q)
    with torch.autocast(weight.device.type, enabled=False):
        root = _root(weight, q, power)
        folded_weight = weight * root.view(-1, *(1,) * (weight.dim() - 1))
        if weight.dim() == 4:  # convolutions take up to twice the time otherwise, whatever the layout of the images is
            folded_weight = folded_weight.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # in a form that torch.vmap takes
        folded_bias = None if bias is None else bias.flatten().to(weight.dtype) * root
    return folded_weight.to(kept), None if folded_bias is None else folded_bias.to(kept)


def at_least_float32(values: Tensor) -> Tensor:
    """The values, those of halves as float32."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
