"""What is certified is a network's chain of layers, whatever else its own forward pass does where it cannot be watched."""
import pytest
import torch
from small_world import SIZE, Tiny, command, faces, world, write_bin  # noqa: F401
from torch import nn

from backbones import DividedOutput, FlipAveraged, ScaledInput, get_backbone, lipschitz_bound, load_network, register
from backbones.chain import followed
from backbones.custom_layers import SLLLinear
from backbones.sound import Sound
from eval import records
from eval.evaluation import Evaluation
from eval.verification import read_bin
from utils import InputError

FACTOR = 20.0


class ManyImages(Tiny):
    """Larger embeddings in batches that are larger than those which are let through to watch."""

    def forward(self, x):
        y = super().forward(x)
        return FACTOR * y if len(x) > 4 else y


class ByData(Tiny):
    """Another tensor put in the place of the one that is returned."""

    def forward(self, x):
        y = super().forward(x)
        y.data = FACTOR * y
        return y


class ByValues(Tiny):
    """A decision by values that falls back where there are none."""

    def forward(self, x):
        y = super().forward(x)
        try:
            return FACTOR * y if float(x.max()) > -1 else y
        except RuntimeError:
            return y


class OnRealDevices(Tiny):
    """Another function where tensors have values."""

    def forward(self, x):
        y = super().forward(x)
        return y if x.is_meta else FACTOR * y


NETWORKS = {"many_images": ManyImages, "by_data": ByData, "by_values": ByValues, "on_real_devices": OnRealDevices}
for _name, _network in NETWORKS.items():
    register(_name, image_size=SIZE, lipschitz=True)(_network)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("options", [(), ("--sound",), ("--tight",), ("--flip", "average")])
def test_radii_are_those_of_the_layers_whatever_the_network_does(world, name, options):  # noqa: F811
    write_bin(world / "faces.bin", faces(16, people=10))
    assert command(world, "certify", *options, "--batch-size", "16", out="plain") == 0
    (world / f"{name}.pt").write_bytes((world / "tiny.pt").read_bytes())
    assert command(world, "certify", *options, "--batch-size", "16", backbone=name, out=name) == 0
    for file in ("pairs.csv", "images.csv"):
        assert (world / name / file).read_bytes() == (world / "plain" / file).read_bytes()
    assert command(world, "audit", *[word for word in options if word != "--sound"], "--steps", "3", "--limit", "4", backbone=name,
                   out=f"{name}_audit") == 0


def test_what_is_followed_is_the_network_itself_bitwise():
    torch.manual_seed(0)
    images = torch.rand(5, *SIZE) - 0.5
    tiny = Tiny().eval().requires_grad_(False)
    for network in (tiny, FlipAveraged(tiny), DividedOutput(FlipAveraged(tiny), 0.5), ScaledInput(tiny, 0.5)):
        assert torch.equal(followed(network, SIZE)(images), network(images))
    sound = Sound(tiny)
    assert torch.equal(followed(sound, SIZE)(images.double()), sound(images.double()))
    for name in ("sllnet_mnist", "sllnet_small", "sllnet_plus", "orthonet"):
        network = get_backbone(name).eval().requires_grad_(False)
        size = (1, 28, 28) if name == "sllnet_mnist" else (3, 112, 112)
        images = torch.rand(2, *size) - 0.5
        assert torch.equal(followed(network, size)(images), network(images))
    tiny.train()
    assert followed(tiny, SIZE).training and followed(FlipAveraged(tiny).train(), SIZE).training


class Moody(SLLLinear):
    """Ten times smaller in training, with a declaration that says so."""

    def forward(self, z):
        return super().forward(z) * (0.1 if self.training else 1.0)

    def proven_lipschitz(self, shape):
        return super().proven_lipschitz(shape) * (0.1 if self.training else 1.0)


def test_a_constant_is_that_of_eval_mode_and_modes_are_left_as_found():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), Moody(768, 8))
    expected = lipschitz_bound(network.eval(), SIZE)
    assert lipschitz_bound(network.train(), SIZE) == expected and all(module.training for module in network.modules())


def test_a_layer_that_was_compiled_or_is_called_otherwise_is_refused():
    for change in (lambda layer: setattr(layer, "_compiled_call_impl", lambda z: 20 * layer.forward(z)),
                   lambda layer: setattr(layer, "_call_impl", lambda z: 20 * layer.forward(z))):
        network = Tiny().eval()
        change(network[1])
        with pytest.raises(InputError, match="no known Lipschitz constant"):
            lipschitz_bound(network, SIZE)
        wrapper = ScaledInput(Tiny().eval(), 1.0)
        change(wrapper)
        with pytest.raises(InputError, match="no known Lipschitz constant"):
            lipschitz_bound(wrapper, SIZE)


def test_evaluations_take_no_decoder_and_embeddings_are_rows(world):  # noqa: F811
    pair_set, network = read_bin(world / "faces.bin"), load_network("tiny", world / "tiny.pt")
    with pytest.raises(TypeError, match="decode"):
        records.certify(network, pair_set, Evaluation(tau=0.3), decode=lambda data, name: None)
    with pytest.raises(InputError, match="expected embeddings"):
        records.certify(nn.Sequential(), pair_set, Evaluation(tau=0.3))


class Wordy(nn.Flatten):
    """A declaration that is no number."""

    def forward(self, z):
        return super().forward(z)

    def proven_lipschitz(self, shape):
        return "one"


class Failing(Wordy):
    def proven_lipschitz(self, shape):
        raise RuntimeError("boom")


@pytest.mark.parametrize("layer", [Wordy, Failing])
def test_declarations_that_are_none_end_in_one_line(layer):
    with pytest.raises(InputError, match="proven_lipschitz is no number or fails"):
        lipschitz_bound(nn.Sequential(layer()), SIZE)
