"""Linear maps of images: the controls that a network with nonlinear layers has to beat."""
from torch import Tensor, nn

from backbones.custom_layers import PlainLinear, SLLLinear
from backbones.orthogonal import Lowpass
from backbones.registry import register
from backbones.shapes import RemoveMean
from backbones.sllnet import dense_in_full


class _Linear(nn.Module):
    """[N, 3, 112, 112] -> embeddings: linear(stem(images)), where the stem is a projection: the lowest size x size frequencies of each
    colour, without its mean.
    """
    linear: nn.Module

    def __init__(self, size: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(Lowpass(size), RemoveMean(), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return dense_in_full(self.linear, self.stem(x))


@register("linear_map", lipschitz=True)
class LinearMap(_Linear):
    """The dense layer of SLLNetPlus on low frequencies, and nothing else: [N, 3, 112, 112] with pixels in [-0.5, 0.5] -> embeddings
    [N, emb_size], 1-Lipschitz in l2.

    What a network gains over this one, trained in the same time, is what its blocks are worth. size: of the image that is left; with 12,
    which is the default, held-out people are told apart better than with 16, 24 or 32. 55 thousand parameters.
    """

    def __init__(self, emb_size: int = 128, size: int = 12):
        super().__init__(size)
        self.linear = SLLLinear(3 * size**2, emb_size, power=8, bias=True)


@register("linear_lda", lipschitz=True)
class LinearLDA(_Linear):
    """The same with weights that are used as they are, and not to be trained: [N, 3, 112, 112] -> [N, emb_size], 1-Lipschitz in l2
    where they are. lda.py computes them.
    """
    linear: PlainLinear

    def __init__(self, emb_size: int = 128, size: int = 12):
        super().__init__(size)
        self.linear = PlainLinear(3 * size**2, emb_size)
