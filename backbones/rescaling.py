"""The rescaling T^(1/2) of the weights of an SLL layer.

For weights W [C, Cin, k, k] and free parameters q [C]

    1 / t_i = sum_j |W W^T|_ij exp(q_j - q_i),                                                                  (SLL)

where W W^T is, for a convolution, the zero-padded autocorrelation of the kernel, whose (2k-1)^2 shifts the sum runs over as well.
`plain_rescaling` is that, word for word. What the layers of custom_layers.py use is `rescaled`: the same t without overflow for any W, and
several times faster, of all layers of one shape at once (kernels.py). With a power p other than 1, t is that of powers.py.
"""
from collections.abc import Sequence

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


def rescaling(weight: Tensor, q: Tensor, power: int = 1) -> Tensor:
    """t of equation (SLL), or (SLL-p) of powers.py with p = `power`, [C], in float32 or better, differentiable.

    weight: [C, Cin, k, k] with odd or even k, or [C, Cin]; q: [C]. t_i is 0 where the sum is 0.
    """
    weight, q = at_least_float32(weight), at_least_float32(q)
    with torch.autocast(weight.device.type, enabled=False):
        return _roots(weight[None], q[None], power)[0].square()


def rescaled(weight: Tensor, bias: Tensor | None, q: Tensor, power: int = 1) -> tuple[Tensor, Tensor | None]:
    """T^(1/2) W and T^(1/2) b with t of `rescaling`, in float32 or better also under autocast, differentiable.

    weight: [C, Cin, k, k] or [C, Cin]; bias: C values in any shape, or None; q: [C]. The bias comes back as [C].
    """
    return rescaled_together([weight], [bias], [q], power)[0]


def rescaled_together(weights: Sequence[Tensor], biases: Sequence[Tensor | None], qs: Sequence[Tensor],
                      power: int = 1) -> list[tuple[Tensor, Tensor | None]]:
    """`rescaled` of layers of one shape, type and device, with a bias all or none: in as many kernels as one of them alone."""
    kept = weights[0].dtype
    weight, q = at_least_float32(_stacked(weights)), at_least_float32(_stacked(qs))
    with torch.autocast(weight.device.type, enabled=False):
        root = _roots(weight, q, power)
        folded = weight * root.view(*root.shape, *(1,) * (weight.dim() - 2))
        if weight.dim() == 5:  # convolutions take up to twice the time otherwise, whatever the layout of the images is
            folded = folded.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)  # in a form that torch.vmap takes
        folded = folded.to(kept)
        if biases[0] is None:
            return [(values, None) for values in folded.unbind()]
        bias = _stacked([bias.flatten() for bias in biases]).to(weight.dtype) * root
    return list(zip(folded.unbind(), bias.to(kept).unbind()))


def _roots(weight: Tensor, q: Tensor, power: int) -> Tensor:
    """sqrt(t) of L layers, [L, C], of weight [L, C, Cin, k, k] or [L, C, Cin] and q [L, C]."""
    weight = weight if weight.dim() == 5 else weight[..., None, None]
    if power == 1:
        return RootOfT.apply(weight, q)[0]
    return torch.stack([root_from_power(w, free, power) for w, free in zip(weight, q)])


def _stacked(values: Sequence[Tensor]) -> Tensor:
    return values[0][None] if len(values) == 1 else torch.stack([*values])


def at_least_float32(values: Tensor) -> Tensor:
    """The values, those of halves as float32."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
