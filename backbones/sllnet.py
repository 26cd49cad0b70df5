"""1-Lipschitz face networks of SLL blocks: the paper's SLLNet, and a small one for machines without a GPU."""
import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backbones.custom_layers import SLLBlock, SLLConv2d, SLLLinear, SLLStage
from backbones.kept import together
from backbones.registry import register
from backbones.shapes import Downsize, FirstChannels, HaarDownsize, PaddingChannels, RemoveMean

# what code that was written for the published module imports from it
__all__ = ["Downsize", "FirstChannels", "SLLBlock", "SLLNet", "SLLNetPlus", "SLLNetSmall"]


@register("sllnet", lipschitz=True)
class SLLNet(nn.Module):
    """The paper's network: [N, 3, 112, 112] with pixels in [-0.5, 0.5] -> embeddings [N, emb_size], 1-Lipschitz in l2.

    config: the number of SLL blocks in each of the four stages, [3, 4, 6, 3] in the paper. emb_size: length of an embedding. fp16: run
    the convolutions under float16 autocast on CUDA; the rescaling and the dense layer stay in float32. power: p of the rescaling
    (powers.py), 1 in the paper; the parameters are the same. 24,179,648 parameters at the published setting.
    """

    def __init__(self, config: Sequence[int] = (3, 4, 6, 3), emb_size: int = 512, fp16: bool = False, power: int = 1):
        super().__init__()
        if len(config) != 4:
            raise ValueError(f"config has {len(config)} stages, expected 4: {config}")
        self.fp16 = fp16
        self.stem = nn.Sequential(PaddingChannels(32), SLLConv2d(32, 32, bias=True, power=power), Downsize(32, 64))
        self.layer1 = SLLStage(64, config[0], power)
        self.pool1 = Downsize(64, 128)
        self.layer2 = SLLStage(128, config[1], power)
        self.pool2 = Downsize(128, 256)
        self.layer3 = SLLStage(256, config[2], power)
        self.pool3 = Downsize(256, 512)
        self.layer4 = SLLStage(512, config[3], power)
        self.flatten = nn.Flatten()
        self.linear = SLLLinear(512 * 7 * 7, emb_size, power=power)

    def features(self, x: Tensor) -> Tensor:
        """[N, 3, 112, 112] -> [N, 25088], everything before the dense layer."""
        x = self.stem(x)
        x = self.pool1(self.layer1(x))
        x = self.pool2(self.layer2(x))
        x = self.pool3(self.layer3(x))
        return self.flatten(self.layer4(x))

    @together
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.float16) if self.fp16 and not x.is_meta else contextlib.nullcontext():
            features = self.features(x)
        return dense_in_full(self.linear, features)


def dense_in_full(linear: SLLLinear, features: Tensor) -> Tensor:
    """The embedding in the precision of the weights, also under autocast: its norm is the radius, and a half has 11 bits."""
    with contextlib.nullcontext() if features.is_meta else torch.autocast(features.device.type, enabled=False):
        return linear(features.to(linear.weight.dtype))


@register("sllnet_small", lipschitz=True)
class SLLNetSmall(nn.Module):
    """A CPU-sized SLLNet: [N, 3, 112, 112] with pixels in [-0.5, 0.5] -> embeddings [N, emb_size], 1-Lipschitz in l2.

    PixelUnshuffle(4), an isometry, takes the place of the first two downsizings, which would cost most of the time and lose half of
    the channels each; then stages of 64, 128 and 256 channels at 28, 14 and 7 pixels, `config` blocks each. power: as for SLLNet. 2.4
    million parameters.
    """

    def __init__(self, config: Sequence[int] = (1, 1, 1), emb_size: int = 128, power: int = 1):
        super().__init__()
        if len(config) != 3:
            raise ValueError(f"config has {len(config)} stages, expected 3: {config}")
        self.stem = nn.Sequential(nn.PixelUnshuffle(4), PaddingChannels(64))
        self.layer1 = SLLStage(64, config[0], power)
        self.pool1 = Downsize(64, 128)
        self.layer2 = SLLStage(128, config[1], power)
        self.pool2 = Downsize(128, 256)
        self.layer3 = SLLStage(256, config[2], power)
        self.flatten = nn.Flatten()
        self.linear = SLLLinear(256 * 7 * 7, emb_size, power=power)

    @together
    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.layer1(self.stem(x)))
        x = self.layer3(self.pool2(self.layer2(x)))
        return dense_in_full(self.linear, self.flatten(x))


@register("sllnet_plus", lipschitz=True)
class SLLNetPlus(nn.Module):
    """A better network of the size of SLLNetSmall: [N, 3, 112, 112] with pixels in [-0.5, 0.5] -> embeddings [N, emb_size], 1-Lipschitz
    in l2. Its steps take about 1.5 times as long; README.md has what it gains in the same time.

    What differs: the mean of each colour is taken out of an image; the blocks stand where the rescaling is cheap, `config` of them with
    64 channels at 28 pixels and with 128 at 14; the downsizing between them keeps the sums of all channels instead of dropping half of
    the channels; the dense layer, whose W W^T is small, is rescaled from its eighth power, so that its norm is nearly 1. 3.6 million
    parameters.
    """

    def __init__(self, config: Sequence[int] = (3, 2), emb_size: int = 128):
        super().__init__()
        if len(config) != 2:
            raise ValueError(f"config has {len(config)} stages, expected 2: {config}")
        self.stem = nn.Sequential(RemoveMean(), nn.PixelUnshuffle(4), PaddingChannels(64))
        self.layer1 = SLLStage(64, config[0])
        self.pool1 = HaarDownsize(64, 128)
        self.layer2 = SLLStage(128, config[1])
        self.flatten = nn.Flatten()
        self.linear = SLLLinear(128 * 14 * 14, emb_size, power=8)

    @together
    def forward(self, x: Tensor) -> Tensor:
        return dense_in_full(self.linear, self.flatten(self.layer2(self.pool1(self.layer1(self.stem(x))))))


# the rescaling of powers.py
register("sllnet_p2", lipschitz=True, arguments={"power": 2})(SLLNet)
register("sllnet_small_p2", lipschitz=True, arguments={"power": 2})(SLLNetSmall)
