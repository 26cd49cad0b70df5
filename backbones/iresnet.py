"""Improved residual networks for faces: the unconstrained baselines (ArcFace, AdaCos, ElasticFace).

The architecture of Deng et al., "ArcFace" (CVPR 2019) in the form of insightface's `iresnet`, whose released state
dicts load with `strict=True`. Trained on pixels in [-1, 1].
"""
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from backbones.registry import register

WIDTHS = (64, 128, 256, 512)


class IBasicBlock(nn.Module):
    """x -> bn3(conv2(prelu(bn2(conv1(bn1(x)))))) + downsample(x), conv2 having the stride; without a downsample x itself is added."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.prelu = nn.PReLU(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.downsample = nn.Identity() if downsample is None else downsample

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(self.bn1(x))
        residual = self.conv2(self.prelu(self.bn2(residual)))
        return self.bn3(residual) + self.downsample(x)


def _stage(block: Callable[..., nn.Module], inplanes: int, planes: int, depth: int) -> nn.Sequential:
    shortcut = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride=2, bias=False), nn.BatchNorm2d(planes))
    rest = [block(planes, planes) for _ in range(depth - 1)]
    return nn.Sequential(block(inplanes, planes, 2, shortcut), *rest)


class IResNet(nn.Module):
    """Images [N, 3, 112, 112] with pixels in [-1, 1] -> embeddings [N, num_features].

    block: what makes a residual block, as `IBasicBlock` does. layers: blocks in each of the four stages, all of which halve the resolution
    (the stem does not).
    dropout: probability before the last layer.
    fp16: run the convolutions under float16 autocast; the last layer stays in the precision of its weights.
    """

    def __init__(self, block: Callable[..., nn.Module], layers: Sequence[int], dropout: float = 0.0, num_features: int = 512,
                 fp16: bool = False):
        super().__init__()
        self.fp16 = fp16
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU(WIDTHS[0])
        self.layer1 = _stage(block, WIDTHS[0], WIDTHS[0], layers[0])
        self.layer2 = _stage(block, WIDTHS[0], WIDTHS[1], layers[1])
        self.layer3 = _stage(block, WIDTHS[1], WIDTHS[2], layers[2])
        self.layer4 = _stage(block, WIDTHS[2], WIDTHS[3], layers[3])
        self.bn2 = nn.BatchNorm2d(WIDTHS[3])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(WIDTHS[3] * 7 * 7, num_features)
        self.features = nn.BatchNorm1d(num_features)
        # A learnt scale per feature would distort the angles that the margin headers work on.
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        # Not autocast(enabled=False) when fp16 is off: that would switch off an autocast of the caller's.
        with torch.autocast(x.device.type, torch.float16) if self.fp16 else nullcontext():
            x = self.prelu(self.bn1(self.conv1(x)))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            x = self.dropout(self.bn2(x).flatten(1))
        return self.features(self.fc(x.to(self.fc.weight.dtype)))


def _iresnet(layers: Sequence[int], pretrained: bool, kw: dict) -> IResNet:
    """pretrained and `progress` (of a download) are the published arguments. Raises ValueError for pretrained=True."""
    if pretrained:
        raise ValueError("pretrained=True: no weights come with the networks, expected False")
    return IResNet(IBasicBlock, layers, **kw)


@register("iresnet18", scale=2.0, lipschitz=False)
def iresnet18(pretrained: bool = False, progress: bool = True, **kw: Any) -> IResNet:
    """24,025,600 parameters; `kw` are those of `IResNet`."""
    return _iresnet((2, 2, 2, 2), pretrained, kw)


@register("iresnet34", scale=2.0, lipschitz=False)
def iresnet34(pretrained: bool = False, progress: bool = True, **kw: Any) -> IResNet:
    """34,139,328 parameters; `kw` are those of `IResNet`."""
    return _iresnet((3, 4, 6, 3), pretrained, kw)


@register("iresnet50", scale=2.0, lipschitz=False)
def iresnet50(pretrained: bool = False, progress: bool = True, **kw: Any) -> IResNet:
    """43,590,848 parameters; `kw` are those of `IResNet`."""
    return _iresnet((3, 4, 14, 3), pretrained, kw)


@register("iresnet100", scale=2.0, lipschitz=False)
def iresnet100(pretrained: bool = False, progress: bool = True, **kw: Any) -> IResNet:
    """65,156,160 parameters; `kw` are those of `IResNet`."""
    return _iresnet((3, 13, 30, 3), pretrained, kw)


@register("iresnet200", scale=2.0, lipschitz=False)
def iresnet200(pretrained: bool = False, progress: bool = True, **kw: Any) -> IResNet:
    """118,833,920 parameters; `kw` are those of `IResNet`."""
    return _iresnet((6, 26, 60, 6), pretrained, kw)
