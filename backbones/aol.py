"""AOL, the almost orthogonal layer: a convolution whose inputs are rescaled.

Source: Prach and Lampert, "Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks", ECCV 2022. For weights W and b

    z  ->  W D z + b,      D = diag(d),      d_i = ( sum_j |W^T W|_ij )^(-1/2),                                 (AOL)

where W^T W is, for a convolution, the autocorrelation of the kernels of the input channels, whose shifts the sum runs over as well, is
1-Lipschitz: D^-2 - W^T W is diagonally dominant. As d is T^(1/2) of equation (SLL) for W^T with q = 0, `rescaled` of rescaling.py is its
home.

What is proven of it is proven of V = W D as computed, by what holds for V^T: ||V|| <= 1 as the rescaling says it, and less where the
spectrum of the kernel is smaller than that, as it is when rows of W^T overlap with both signs. MaxMin follows in the blocks of the zoo.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.custom_layers import finite, promised, row_quotients
from backbones.kept import Pair, Rescaled
from backbones.norms import norm_bound
from backbones.proof import UP, Shape, State, multiplied, norm_of_magnitudes
from backbones.rescaling import rescaled
from backbones.spectra import of_kernel
from backbones.spectral import spectral_bound


class AOLConv2d(Rescaled):
    """z -> W D z + b, equation (AOL), for images z [N, cin, H, W] -> [N, cout, H, W] with zero padding; 1-Lipschitz in l2.

    kernel_size: odd. W starts with an orthogonal matrix in the middle and zeros around it, so that d = 1 and nothing is lost: with an
    orthogonal kernel of 3 x 3 and 64 channels the norm of each layer would be a third. b starts at 0. Raises ValueError for an even kernel,
    whose zero padding would not be symmetric.
    """

    def __init__(self, cin: int, cout: int, kernel_size: int = 3):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}: it must be odd")
        self.weight = nn.Parameter(torch.zeros(cout, cin, kernel_size, kernel_size))
        with torch.no_grad():
            self.weight[..., kernel_size // 2, kernel_size // 2] = nn.init.orthogonal_(torch.empty(cout, cin))
        self.bias = nn.Parameter(torch.zeros(cout))

    def sources(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias

    def compute(self, weight: Tensor, bias: Tensor) -> Pair:
        """W D and b."""
        if weight.is_meta:
            return weight, bias
        transposed, _ = rescaled(weight.transpose(0, 1), None, weight.new_zeros(weight.shape[1]))
        return transposed.transpose(0, 1).contiguous(), bias

    def forward(self, z: Tensor) -> Tensor:
        weight, bias = self.rescaled()
        return F.conv2d(z, weight, bias, padding=weight.shape[-1] // 2)

    def folded(self) -> "FoldedAOLConv2d":
        """The same with V = W D as plain weights."""
        return FoldedAOLConv2d(self)

    def proven_lipschitz(self, shape: Shape) -> float:
        """Raises InputError where ||V|| may be above 1 by more than rounding: the rescaling has not kept its promise."""
        return promised(self.folded())

    def extra_repr(self) -> str:
        cout, cin, k, _ = self.weight.shape
        return f"{cin}, {cout}, kernel_size={k}"


class FoldedAOLConv2d(nn.Module):
    """z -> V z + b with V = W D as plain weights. root: what V^T was rescaled by, [cin]; it makes the bound of ||V|| tight and has no part
    in the layer.
    """

    def __init__(self, layer: AOLConv2d):
        super().__init__()
        weight, bias = layer.rescaled()
        self.weight, self.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
        self.root = row_quotients(weight.transpose(0, 1), layer.weight.transpose(0, 1))

    def forward(self, z: Tensor) -> Tensor:
        return F.conv2d(z, self.weight, self.bias, padding=self.weight.shape[-1] // 2)

    def norm(self) -> float:
        """At least ||V||, as an operator on images of any size: V^T has the same norm with its taps in either order. Raises InputError for
        values that are not finite.
        """
        transposed = finite(self.weight).transpose(0, 1)
        return min(norm_bound(transposed, self.root), spectral_bound(transposed))

    @staticmethod
    def constant_of(norm: float) -> float:
        return norm

    def proven_lipschitz(self, shape: Shape) -> float:
        return self.norm()

    def proven_rounding(self, state: State, shape: Shape) -> State:
        _, cin, k, _ = self.weight.shape
        shift = math.sqrt(math.prod(shape[-2:])) * self.bias.norm().item() * UP
        return multiplied(state, self.norm(), norm_of_magnitudes(self.weight.abs().sum((2, 3))), cin * k * k, shift)

    def singular_values(self, shape: Shape) -> Tensor:
        """Those of V for images that go on at their other end."""
        return of_kernel(self.weight, shape[-2:])
