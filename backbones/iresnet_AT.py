"""IR-50 as the adversarially trained models of RobFR use it (PGD-Arc, PGD-Cos, TRADES-Arc, TRADES-Cos).

RobFR: Yang et al., "RobFR: Benchmarking Adversarial Robustness on Face Recognition" (2020). Its released state dicts
load with `strict=True`. It differs from `iresnet50` in names, parameter-free shortcuts and the range of its input. The deeper ones and
those with squeeze-and-excitation (Hu et al., CVPR 2018) are the further forms of the same architecture.
"""
from collections.abc import Sequence

from torch import Tensor, nn

from backbones.registry import register
from utils import InputError

WIDTHS = (64, 128, 256, 512)
DEPTHS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 152: (3, 8, 36, 3)}  # blocks in each stage, by the number of layers
EMBEDDING = 512
REDUCTION = 16
INPUT_SIZES = (112, 224)


class SEModule(nn.Module):
    """x -> x times a weight in (0, 1) for each channel, from the means of all channels: [N, channels, H, W] -> the same shape."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Block(nn.Module):
    """x -> BN-conv3x3-PReLU-conv3x3(stride)-BN of x, weighted by an `SEModule` with squeeze=True, plus a shortcut of x."""

    def __init__(self, in_channels: int, channels: int, stride: int, squeeze: bool = False):
        super().__init__()
        if in_channels == channels:
            # A pool of one pixel subsamples without parameters (the identity at stride 1).
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            *([SEModule(channels, REDUCTION)] if squeeze else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


def _body(depths: Sequence[int], squeeze: bool) -> nn.Sequential:
    blocks, in_channels = [], WIDTHS[0]
    for channels, depth in zip(WIDTHS, depths):
        blocks.append(Block(in_channels, channels, 2, squeeze))
        blocks += [Block(channels, channels, 1, squeeze) for _ in range(depth - 1)]
        in_channels = channels
    return nn.Sequential(*blocks)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Backbone(nn.Module):
    """Images [N, 3, *input_size] with pixels in [-0.5, 0.5] -> embeddings [N, 512].

    num_layers: 50, 100 or 152; mode: "ir", or "ir_se" with squeeze-and-excitation. The weights expect [-1, 1]: the network doubles its
    input itself, so that callers must not. Raises InputError (a ValueError) for other values, and where input_size is neither (112, 112)
    nor (224, 224).
    """

    def __init__(self, input_size: Sequence[int], num_layers: int, mode: str = "ir"):
        super().__init__()
        name = type(self).__name__
        if tuple(input_size) not in [(size, size) for size in INPUT_SIZES]:
            raise InputError(f"{name}: input_size is {tuple(input_size)}, expected (112, 112) or (224, 224)")
        if num_layers not in DEPTHS or mode not in ("ir", "ir_se"):
            raise InputError(f"{name}: num_layers {num_layers!r}, mode {mode!r}: expected {' or '.join(map(str, DEPTHS))}, and ir or ir_se")
        stem, channels = WIDTHS[0], WIDTHS[-1]
        side = input_size[0] // 2 ** len(WIDTHS)
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.PReLU(stem))
        # Before `body`, though it runs last: the released state dicts have it in this order.
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(channels), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(channels * side * side, EMBEDDING), nn.BatchNorm1d(EMBEDDING))
        self.body = _body(DEPTHS[num_layers], mode == "ir_se")
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_layer(self.body(self.input_layer(2 * x)))


@register("ir_50", lipschitz=False, arguments={"input_size": (112, 112)})
class IR_50(Backbone):
    """The 50 layers of RobFR. 43,574,976 parameters at 112 x 112."""

    def __init__(self, input_size: Sequence[int]):
        super().__init__(input_size, 50)
