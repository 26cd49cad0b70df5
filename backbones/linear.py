"""Linear maps of images: the controls that a network with nonlinear layers has to beat."""
from torch import Tensor, nn

from backbones.custom_layers import PlainLinear, SLLLinear
from backbones.registry import register
from backbones.shapes import RemoveMean
from backbones.sllnet import dense_in_full


class _Linear(nn.Module):
    """[N, 3, 112, 112] -> embeddings: linear(stem(images)), where the stem is a projection."""
    pixels = 3 * 112 * 112
    linear: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(RemoveMean(), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return dense_in_full(self.linear, self.stem(x))


@register("linear_map", lipschitz=True)
class LinearMap(_Linear):
    """The dense layer of SLLNetPlus and nothing else: [N, 3, 112, 112] with pixels in [-0.5, 0.5] -> embeddings [N, emb_size],
    1-Lipschitz in l2.

    What a network gains over this one, trained in the same time, is what its blocks are worth. 4.8 million parameters.
    """

    def __init__(self, emb_size: int = 128):
        super().__init__()
        self.linear = SLLLinear(self.pixels, emb_size, power=8, bias=True)


@register("linear_lda", lipschitz=True)
class LinearLDA(_Linear):
    """The same with weights that are used as they are, and not to be trained: [N, 3, 112, 112] -> [N, emb_size], 1-Lipschitz in l2
    where they are. lda.py computes them.
    """
    linear: PlainLinear

    def __init__(self, emb_size: int = 128):
        super().__init__()
        self.linear = PlainLinear(self.pixels, emb_size)
