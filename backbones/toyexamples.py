"""Small networks for MNIST and CIFAR-10 (paper, Section 3.2): 1-Lipschitz ones and their unconstrained counterparts.

These take images with pixels in [0, 1] and return embeddings [N, 512]; a header makes the ten logits. Net_Small, made in the same way,
is the unconstrained counterpart of SLLNetSmall and takes faces as that does.
"""
from torch import Tensor, nn

from backbones.custom_layers import SLLConv2d, SLLLinear, SLLStage
from backbones.registry import register
from backbones.shapes import Downsize, PaddingChannels

EMBEDDING = 512


class _ToyNetwork(nn.Module):
    """neck(body(stem(x))), each given as the list of its layers."""

    def __init__(self, stem: list[nn.Module], body: list[nn.Module], neck: list[nn.Module]):
        super().__init__()
        self.stem = nn.Sequential(*stem)
        self.body = nn.Sequential(*body)
        self.neck = nn.Sequential(*neck)

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(self.body(self.stem(x)))


@register("sllnet_mnist", image_size=(1, 28, 28), lipschitz=True)
class SLLNet_MNIST(_ToyNetwork):
    """1-Lipschitz in l2: images [N, 1, 28, 28] -> embeddings [N, 512]. 1,745,248 parameters."""

    def __init__(self) -> None:
        super().__init__(
            stem=[PaddingChannels(16), SLLConv2d(16, 16, kernel_size=1, bias=True), Downsize(16, 32)],
            body=[SLLStage(32, 3), Downsize(32, 64), SLLStage(64, 3)],
            neck=[nn.Flatten(), SLLLinear(64 * 7 * 7, EMBEDDING)])


@register("sllnet_cifar", image_size=(3, 32, 32), lipschitz=True)
class SLLNet_CIFAR(_ToyNetwork):
    """1-Lipschitz in l2: images [N, 3, 32, 32] -> embeddings [N, 512]. 3,177,408 parameters."""

    def __init__(self) -> None:
        super().__init__(
            stem=[PaddingChannels(32), SLLConv2d(32, 32, bias=True), Downsize(32, 64)],
            body=[SLLStage(64, 1), Downsize(64, 128), SLLStage(128, 3), Downsize(128, 256), SLLStage(256, 1)],
            neck=[nn.Flatten(), SLLLinear(256 * 4 * 4, EMBEDDING)])


def _conv(in_channels: int, channels: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, channels, 3, stride, padding=1), nn.ReLU()]


def _conv_bn(in_channels: int, channels: int, stride: int = 1) -> list[nn.Module]:
    conv, relu = _conv(in_channels, channels, stride)
    return [conv, nn.BatchNorm2d(channels), relu]


class ConvBlock(nn.Module):
    """`depth` times conv3x3-BN-ReLU at constant width: [N, channels, H, W] -> the same shape."""

    def __init__(self, channels: int, depth: int):
        super().__init__()
        self.layer = nn.Sequential(*(layer for _ in range(depth) for layer in _conv_bn(channels, channels)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@register("net_mnist", image_size=(1, 28, 28), lipschitz=False)
class Net_MNIST(_ToyNetwork):
    """Unconstrained: images [N, 1, 28, 28] -> embeddings [N, 512]. 1,768,032 parameters."""

    def __init__(self) -> None:
        super().__init__(
            stem=[*_conv(1, 16), *_conv(16, 32, stride=2)],
            body=[ConvBlock(32, 3), *_conv(32, 64, stride=2), ConvBlock(64, 3)],
            neck=[nn.Flatten(), nn.Linear(64 * 7 * 7, EMBEDDING, bias=False)])


@register("net_cifar", image_size=(3, 32, 32), lipschitz=False)
class Net_CIFAR(_ToyNetwork):
    """Unconstrained: images [N, 3, 32, 32] -> embeddings [N, 512]. 3,567,008 parameters."""

    def __init__(self) -> None:
        super().__init__(
            stem=[*_conv_bn(3, 32), *_conv_bn(32, 32), *_conv_bn(32, 64, stride=2)],
            body=[ConvBlock(64, 1), *_conv_bn(64, 128, stride=2), ConvBlock(128, 3),
                  *_conv_bn(128, 256, stride=2), ConvBlock(256, 1)],
            neck=[nn.Flatten(), nn.Linear(256 * 4 * 4, EMBEDDING, bias=False)])


@register("net_small", lipschitz=False)
class Net_Small(_ToyNetwork):
    """Unconstrained counterpart of SLLNetSmall: [N, 3, 112, 112], pixels in [-0.5, 0.5] -> [N, emb_size]. 2,778,752 parameters."""

    def __init__(self, emb_size: int = 128):
        super().__init__(
            stem=[nn.PixelUnshuffle(4), *_conv_bn(48, 64)],
            body=[ConvBlock(64, 1), *_conv_bn(64, 128, stride=2), ConvBlock(128, 1), *_conv_bn(128, 256, stride=2), ConvBlock(256, 1)],
            neck=[nn.Flatten(), nn.Linear(256 * 7 * 7, emb_size, bias=False)])
