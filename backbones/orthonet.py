"""Face networks that lose no length on the way: orthogonal mixing of channels, shifts of pixels, absolute values."""
from collections.abc import Sequence

from torch import Tensor, nn

from backbones.centre import Centre
from backbones.custom_layers import SLLLinear
from backbones.orthogonal import Lowpass, OrthogonalMixing
from backbones.registry import register
from backbones.shapes import Absolute, FirstChannels, Haar, HaarDownsize, PaddingChannels, RemoveMean, Shift
from backbones.sllnet import dense_in_full


@register("orthonet", lipschitz=True)
class OrthoNet(nn.Module):
    """[N, 3, image, image] with pixels in [-0.5, 0.5] -> embeddings [N, emb_size], 1-Lipschitz in l2.

    An image is reduced to its lowest size x size frequencies (`Lowpass`; they hold what moves a 1-Lipschitz network most), and its
    colours to mean 0; PixelUnshuffle(unshuffle) makes channels of blocks of pixels. Then stages of `depth[i]` blocks with `channels[i]`
    channels, a Haar transform between them, which halves the height and width. A block is

        z -> |Q S z + b|, the absolute value of the first `share` of the channels,

    with S shifting `shift` of the channels by a pixel, and Q orthogonal (`parametrisation`): LipNeXt's (ICLR 2026) with one matrix for two
    and no learnt positions. Its Jacobians are orthogonal, where those of an SLL block z - 2 V^T relu(V z + c) are near the identity if V is
    small. Length is lost by Lowpass, where a Haar transform has more channels than the next stage takes, and in the dense layer, of
    power 8. centre: whether a running mean of the embeddings is subtracted from them.

    Any number of stages. Raises ValueError where channels and depth differ in length, size cannot be divided, or channels are too few.
    """

    def __init__(self, size: int = 16, unshuffle: int = 2, channels: Sequence[int] = (128,), depth: Sequence[int] = (4,),
                 share: float = 0.5, shift: float = 0.5, emb_size: int = 128, parametrisation: str = "cayley", centre: bool = False,
                 image: int = 112):
        super().__init__()
        if len(channels) != len(depth) or not channels:
            raise ValueError(f"{len(channels)} stages have channels and {len(depth)} a depth: {channels}, {depth}")
        if size % (unshuffle * 2 ** (len(channels) - 1)):
            raise ValueError(f"size is {size}: {unshuffle} x 2^{len(channels) - 1} must divide it")
        if channels[0] < 3 * unshuffle**2:
            raise ValueError(f"channels begins with {channels[0]}: expected at least {3 * unshuffle**2}, those of the image")
        # after Lowpass a mean is that of fewer pixels, and the same: the constant image is the first of its frequencies
        self.stem = nn.Sequential(Lowpass(size, image), RemoveMean(), nn.PixelUnshuffle(unshuffle), PaddingChannels(channels[0]))
        self.stages = nn.Sequential()
        for count, following, blocks in zip(channels, [*channels[1:], None], depth):
            for _ in range(blocks):
                self.stages.extend([Shift(shift), OrthogonalMixing(count, parametrisation), Absolute(share)])
            if following is not None:
                self.stages.extend(_halving(count, following))
        self.flatten = nn.Flatten()
        self.linear = SLLLinear(channels[-1] * (size // unshuffle // 2 ** (len(channels) - 1)) ** 2, emb_size, power=8)
        self.centre = Centre(emb_size) if centre else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.centre(dense_in_full(self.linear, self.flatten(self.stages(self.stem(x)))))


def _halving(ic: int, oc: int) -> list[nn.Module]:
    """[N, ic, H, W] -> [N, oc, H/2, W/2] by the Haar transform: sums first, then as many differences as there is room for."""
    if ic <= oc <= 3 * ic and (oc - ic) % 2 == 0:
        return [HaarDownsize(ic, oc)]
    return [Haar(), PaddingChannels(oc) if oc >= 4 * ic else FirstChannels(oc)]
