"""Improved residual networks for faces: the unconstrained baselines (ArcFace, AdaCos, ElasticFace).

The architecture of Deng et al., "ArcFace" (CVPR 2019) in the form of insightface's `iresnet`, whose released state
dicts load with `strict=True`. Trained on pixels in [-1, 1].
"""
from contextlib import nullcontext

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


def _shortcut(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=2, bias=False), nn.BatchNorm2d(channels))


class Block(nn.Module):
    """x -> bn3(conv2(prelu(bn2(conv1(bn1(x)))))) + shortcut(x), conv2 having stride 2 in the first block of a stage."""

    def __init__(self, in_channels: int, channels: int, first: bool):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2 if first else 1, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(self.bn1(x))
        residual = self.conv2(self.prelu(self.bn2(residual)))
        return self.bn3(residual) + self.downsample(x)


def _stage(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    rest = [Block(channels, channels, first=False) for _ in range(depth - 1)]
    return nn.Sequential(Block(in_channels, channels, first=True), *rest)


class IResNet(nn.Module):
    """Images [N, 3, 112, 112] with pixels in [-1, 1] -> embeddings [N, num_features].

    depths: blocks in each of the four stages, all of which halve the resolution (the stem does not).
    dropout: probability before the last layer.
    fp16: run the convolutions under float16 autocast; the last layer stays in the precision of its weights.
    """

    def __init__(self, depths: tuple[int, int, int, int], num_features: int = 512, dropout: float = 0.0,
                 fp16: bool = False):
        super().__init__()
        self.fp16 = fp16
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], depths[0])
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], depths[1])
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], depths[2])
        self.layer4 = _stage(WIDTHS[2], WIDTHS[3], depths[3])
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


def iresnet18(**kw) -> IResNet:
    """24,025,600 parameters; `kw` are those of `IResNet`."""
    return IResNet((2, 2, 2, 2), **kw)


def iresnet34(**kw) -> IResNet:
    """34,139,328 parameters; `kw` are those of `IResNet`."""
    return IResNet((3, 4, 6, 3), **kw)


def iresnet50(**kw) -> IResNet:
    """43,590,848 parameters; `kw` are those of `IResNet`."""
    return IResNet((3, 4, 14, 3), **kw)


def iresnet100(**kw) -> IResNet:
    """65,156,160 parameters; `kw` are those of `IResNet`."""
    return IResNet((3, 13, 30, 3), **kw)


def iresnet200(**kw) -> IResNet:
    """118,833,920 parameters; `kw` are those of `IResNet`."""
    return IResNet((6, 26, 60, 6), **kw)
