"""IR-50 as the adversarially trained models of RobFR use it (PGD-Arc, PGD-Cos, TRADES-Arc, TRADES-Cos).

RobFR: Yang et al., "RobFR: Benchmarking Adversarial Robustness on Face Recognition" (2020). Its released state dicts
load with `strict=True`. It differs from `iresnet50` in names, parameter-free shortcuts and the range of its input.
"""
from collections.abc import Sequence

from torch import Tensor, nn

from utils import InputError

STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))  # (channels, blocks)
EMBEDDING = 512
INPUT_SIZES = (112, 224)


class Block(nn.Module):
    """x -> BN-conv3x3-PReLU-conv3x3(stride)-BN of x, plus a shortcut of x."""

    def __init__(self, in_channels: int, channels: int, stride: int):
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
            nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


def _body() -> nn.Sequential:
    blocks, in_channels = [], STAGES[0][0]
    for channels, depth in STAGES:
        blocks.append(Block(in_channels, channels, stride=2))
        blocks += [Block(channels, channels, stride=1) for _ in range(depth - 1)]
        in_channels = channels
    return nn.Sequential(*blocks)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class IR_50(nn.Module):
    """Images [N, 3, *input_size] with pixels in [-0.5, 0.5] -> embeddings [N, 512]. 43,574,976 parameters at 112 x 112.

    The weights expect [-1, 1]: the network doubles its input itself, so that callers must not.
    Raises InputError (a ValueError) when input_size is neither (112, 112) nor (224, 224).
    """

    def __init__(self, input_size: Sequence[int]):
        super().__init__()
        if tuple(input_size) not in [(size, size) for size in INPUT_SIZES]:
            raise InputError(f"IR_50: input_size is {tuple(input_size)}, expected (112, 112) or (224, 224)")
        stem, channels = STAGES[0][0], STAGES[-1][0]
        side = input_size[0] // 2 ** len(STAGES)
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.PReLU(stem))
        # Before `body`, though it runs last: the released state dicts have it in this order.
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(channels), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(channels * side * side, EMBEDDING), nn.BatchNorm1d(EMBEDDING))
        self.body = _body()
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_layer(self.body(self.input_layer(2 * x)))
