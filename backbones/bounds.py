"""Whether the weights that a network was given make it 1-Lipschitz, found out from these weights instead of believed.

Each layer is one whose bound is known: SLL layers, for which it is recomputed here in float64 from the rescaled weights V that the
forward pass uses, and layers without parameters that are 1-Lipschitz as they are. Anything else has no bound.

An SLL block z - 2 V^T relu(V z + c) is 1-Lipschitz iff ||V|| <= 1, whatever c is, and so is the dense layer V z + c. For a matrix,
||V||^2 is the largest eigenvalue of V V^T. For a convolution, V V^T is the operator of the kernels K_ij, the zero-padded correlations of
the kernels of rows i and j of V, and

    ||V||^2 <= rho(M),    M_ij = sum_s |K_ij[s]|,

the spectral radius of a symmetric matrix without negative entries: the best of the bounds max_i sum_j M_ij d_j / d_i over all d > 0, of
which the rescaling of SLL makes one equal to 1 (Gershgorin; d depends on q).
"""
import math

import torch
from torch import Tensor, nn

from backbones.custom_layers import Downsize, FirstChannels, MaxMin, PaddingChannels, SLLConv2d, SLLLinear, SLLStage, half_shifts, taps
from utils import InputError

# of one layer, in float32: the entries of V are off by 6e-8 of themselves each, and so is the bound, a few times over
TOLERANCE = 1e-5
_NON_EXPANSIVE = (PaddingChannels, FirstChannels, MaxMin, Downsize, nn.PixelUnshuffle, nn.Flatten, nn.Identity)
_CONTAINERS = (SLLStage, nn.Sequential)


@torch.no_grad()
def lipschitz_bound(network: nn.Module) -> float:
    """An upper bound of the Lipschitz constant in l2 of a network that applies its layers one after another: the product of theirs.

    Raises InputError, naming the layer, for values that are not finite, for a layer of another kind than those above and for an SLL
    layer whose bound is above 1 by more than rounding.
    """
    product = 1.0
    for name, layer in network.named_modules():
        if layer is network or type(layer) in (*_CONTAINERS, *_NON_EXPANSIVE):
            continue
        if type(layer) not in (SLLConv2d, SLLLinear):
            raise InputError(f"layer {name}: {type(layer).__name__} has no known Lipschitz constant, expected layers of SLL networks")
        bound = _sll_bound(name, layer)
        if not bound <= 1 + TOLERANCE:
            raise InputError(f"layer {name}: its Lipschitz constant may be {bound:.6g}, expected at most 1: no certificate holds for it")
        product *= bound
    own = dict(network.named_parameters(recurse=False)) | dict(network.named_buffers(recurse=False))
    if own:
        raise InputError(f"{next(iter(own))} of {type(network).__name__}: parameters outside of the layers have no known Lipschitz constant")
    return product


def _sll_bound(name: str, layer: "SLLConv2d | SLLLinear") -> float:
    for key, value in layer.state_dict().items():
        if bad := int((~value.isfinite()).sum()):
            raise InputError(f"{name}.{key}: {bad} of {value.numel()} values are not finite: no certificate holds for such weights")
    weight = layer.rescaled()[0]
    if not weight.isfinite().all():
        raise InputError(f"layer {name}: the rescaled weights are not finite")
    # float64, which not every device has
    weight = weight.to(weight.device if weight.device.type == "cuda" else "cpu", torch.float64)
    products = weight @ weight.T if weight.dim() == 2 else _sums_of_correlations(weight)
    return math.sqrt(torch.linalg.eigvalsh(products)[-1].clamp_min(0).item())


def _sums_of_correlations(weight: Tensor) -> Tensor:
    """M [C, C] of a kernel [C, cin, k, k]."""
    v, sums = weight.permute(0, 2, 3, 1), weight.new_zeros(len(weight), len(weight))
    for here, there in half_shifts(weight.shape[-1]):  # of two opposite shifts one: the other is its transpose
        products = (taps(v, here) @ taps(v, there).T).abs()
        sums += products if here != there else products / 2
    return sums + sums.T
