"""The zoo: one layout of a face network, its layer chosen by name, so that 1-Lipschitz layers are compared at equal everything else."""
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from backbones.aol import AOLConv2d
from backbones.circular import BROConv2d, CayleyConv2d
from backbones.cpl import CPLConv2d
from backbones.custom_layers import SLLConv2d, SLLLinear
from backbones.orthogonal import Lowpass, OrthogonalMixing
from backbones.registry import register
from backbones.shapes import Absolute, HaarDownsize, MaxMin, PaddingChannels, RemoveMean, Shift
from backbones.sllnet import dense_in_full
from utils import InputError

Size = tuple[int, int]
_IMAGE = (3, 112, 112)

# a block of each layer, for (channels, (H, W)): [N, channels, H, W] -> the same shape; linear ones end with an activation that keeps norms
LAYERS: "dict[str, Callable[[int, Size], nn.Module]]" = {
    "sll": lambda channels, size: SLLConv2d(channels, channels, bias=True),
    "sll_p2": lambda channels, size: SLLConv2d(channels, channels, bias=True, power=2),
    "cpl": lambda channels, size: CPLConv2d(channels, channels, bias=True),
    "aol": lambda channels, size: nn.Sequential(AOLConv2d(channels, channels), MaxMin()),
    "cayley": lambda channels, size: nn.Sequential(CayleyConv2d(channels, size), MaxMin()),
    "bro": lambda channels, size: nn.Sequential(BROConv2d(channels, size), MaxMin()),
    "orthogonal": lambda channels, size: nn.Sequential(Shift(), OrthogonalMixing(channels), Absolute()),
}
# what makes at most 64 channels of an image, all of it 1-Lipschitz
STEMS: "dict[str, Callable[[], nn.Module]]" = {
    "pixels": lambda: nn.Sequential(RemoveMean(), nn.PixelUnshuffle(4)),
    "lowpass": lambda: nn.Sequential(Lowpass(32), RemoveMean(), nn.PixelUnshuffle(4)),
}


class ZooNet(nn.Module):
    """[N, 3, 112, 112] with pixels in [-0.5, 0.5] -> embeddings [N, emb_size], 1-Lipschitz in l2: the layout of SLLNetPlus
    after the stem of OrthoNet.

    layer: a name of LAYERS, what the blocks are made of; depth: how many have 64 channels and how many 128, with half as many pixels a
    side; stem: a name of STEMS, "pixels" for that of SLLNetPlus, with 28 x 28 pixels after it in place of 8 x 8. Raises InputError for
    other names.
    """

    def __init__(self, layer: str = "sll", depth: Sequence[int] = (4, 4), emb_size: int = 128, stem: str = "lowpass"):
        super().__init__()
        if len(depth) != 2:
            raise ValueError(f"depth has {len(depth)} stages, expected 2: {depth}")
        block, first = _chosen("layer", layer, LAYERS), _chosen("stem", stem, STEMS)()
        self.stem = nn.Sequential(first, PaddingChannels(64))
        size, half = _sizes(self.stem)
        self.layer1 = nn.Sequential(*(block(64, size) for _ in range(depth[0])))
        self.pool1 = HaarDownsize(64, 128)
        self.layer2 = nn.Sequential(*(block(128, half) for _ in range(depth[1])))
        self.flatten = nn.Flatten()
        self.linear = SLLLinear(128 * math.prod(half), emb_size, power=8)

    def forward(self, x: Tensor) -> Tensor:
        return dense_in_full(self.linear, self.flatten(self.layer2(self.pool1(self.layer1(self.stem(x))))))


def _chosen(what: str, name: str, known: "dict[str, Callable]") -> Callable:
    if name not in known:
        raise InputError(f"{what} {name!r}: expected one of {', '.join(known)}")
    return known[name]


def _sizes(stem: nn.Module) -> tuple[Size, Size]:
    """(H, W) of what comes out of a stem, and half of that."""
    h, w = stem(torch.empty(1, *_IMAGE, device="meta")).shape[-2:]
    return (h, w), (h // 2, w // 2)


for _name in LAYERS:
    register(f"zoo_{_name}", lipschitz=True, arguments={"layer": _name})(ZooNet)
