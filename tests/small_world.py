"""Small faces and networks that attacks and audits are tried on, registered as any project would register its own."""
import json
import pickle

import pytest
import torch
from torch import Tensor, nn

import eval.__main__ as command_line
from backbones import get_backbone, register
from backbones.custom_layers import SLLConv2d, SLLLinear
from utils.images import encode_image

SIZE = (3, 16, 16)


@register("tiny", image_size=SIZE, lipschitz=True)
class Tiny(nn.Sequential):
    """[N, 3, 16, 16] -> [N, 32], 1-Lipschitz, loosely."""

    def __init__(self):
        super().__init__(nn.PixelUnshuffle(4), SLLConv2d(48, 48, 3, bias=True), nn.Flatten(), SLLLinear(768, 32))


@register("tight", image_size=SIZE, lipschitz=True)
class Tight(nn.Sequential):
    """[N, 3, 16, 16] -> [N, 768]: an isometry wherever relu keeps its side. W is 1x1, orthogonal, q equal: t = 1."""

    def __init__(self):
        super().__init__(nn.PixelUnshuffle(4), SLLConv2d(48, 48, 1), nn.Flatten())
        with torch.no_grad():
            self[1].q.zero_()


@register("loose", image_size=SIZE, lipschitz=False)
class Loose(nn.Sequential):
    """[N, 3, 16, 16] -> [N, 32] without any bound."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(768, 64), nn.Tanh(), nn.Linear(64, 32, bias=False))


@register("partly", image_size=SIZE, lipschitz=True)
class Partly(Tiny):
    """Bright images have a zero embedding, dark ones none that is finite; it says that it is 1-Lipschitz, and nothing proves it."""

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.mean((1, 2, 3))[:, None]
        embeddings = torch.where(brightness > 0.45, 0., super().forward(images))
        return torch.where(brightness < -0.45, torch.nan, embeddings)


@register("invalid", image_size=SIZE, lipschitz=True)
class Invalid(Partly):
    """The same with a false declaration: for what is done with embeddings that are no numbers, whatever is proven of the others."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)

    def proven_lipschitz(self, shape) -> float:
        return 1.0


NETWORKS = ("tiny", "tight", "loose", "partly", "invalid")


@pytest.fixture
def world(tmp_path):
    """A folder with faces.bin (12 pairs of 12 images), and the networks above by name, each with its weights file."""
    for number, name in enumerate(NETWORKS):
        with torch.random.fork_rng():
            torch.manual_seed(number)
            torch.save(get_backbone(name).state_dict(), tmp_path / f"{name}.pt")
    write_bin(tmp_path / "faces.bin", faces(16))
    return tmp_path


def faces(size: int, people: int = 6, contrast: float = 1.0) -> Tensor:
    """Uint8 images [2 people, 3, size, size], two noisy ones of each person."""
    noise = torch.Generator().manual_seed(0)
    coarse = torch.rand(people, 3, 4, 4, generator=noise)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").repeat_interleave(2, 0)
    rough = smooth + 0.25 * torch.randn(smooth.shape, generator=noise)
    return ((rough - 0.5) * contrast + 0.5).clamp(0, 1).mul(255).byte()


def write_bin(path, images: Tensor, false_pairs: int = 6) -> None:
    """One true pair for each two images, then false ones."""
    count = len(images)
    pairs = [(2 * k, 2 * k + 1) for k in range(count // 2)] + [(k, (3 * k + 5) % count) for k in range(false_pairs)]
    same = [left // 2 == right // 2 for left, right in pairs]
    encoded = [encode_image(image, "png") for image in images]
    path.write_bytes(pickle.dumps(([encoded[k] for pair in pairs for k in pair], same), 2))


def summary_of(folder) -> dict:
    """summary.json, its lists of figures by budget as dicts, read without the product's code."""
    def plain(value):
        if isinstance(value, list) and value and all(isinstance(item, dict) and set(item) == {"eps", "value"} for item in value):
            return {item["eps"]: plain(item["value"]) for item in value}
        return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value
    return plain(json.loads((folder / "summary.json").read_text()))


def command(world, what, *more, backbone="tiny", out="out", bin="faces.bin", tau="0.3"):
    """Run `python -m eval` in process; returns its exit status."""
    argv = [what, "--bin", str(world / bin), "--backbone", backbone, "--weights", str(world / f"{backbone}.pt"),
            "--out", str(world / out), "--device", "cpu", "--num-workers", "0", "--batch-size", "5",
            *(["--tau", tau] if tau else []), *more]
    return command_line.main(argv)
