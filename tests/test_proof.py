"""What layers declare, what covers it, and networks of another shape that say their own rule: against brute force."""
import copy

import pytest
import torch
from small_world import SIZE, Tiny, faces
from torch import nn

from backbones import DividedOutput, FlipAveraged, ScaledInput, get_backbone, lipschitz_bound, load_network, norms, register
from backbones.bounds import TOLERANCE
from backbones.chain import chain, layers_of
from backbones.custom_layers import Downsize, MaxMin, SLLConv2d, SLLLinear, SLLStage
from backbones.export import fold
from backbones.proof import State, declare, exactly
from backbones.shapes import HaarDownsize, RemoveMean
from backbones.sound import Sound, load_sound
from utils import InputError


class MeanOfTwo(nn.Module):
    """(x + f(x)) / 2: a residual sum that says what holds for it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return (x + self.inner(x)) / 2

    def proven_lipschitz(self, shape):
        return (1 + lipschitz_bound(self.inner, shape)) / 2 * (1 + 1e-15)


class Both(nn.Module):
    """f(x) beside g(x): |(f(x), g(x)) - (f(y), g(y))|^2 <= (L_f^2 + L_g^2) |x - y|^2."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        return torch.cat([part(x) for part in self.parts], 1)

    def proven_lipschitz(self, shape):
        return sum(lipschitz_bound(part, shape) ** 2 for part in self.parts) ** 0.5 * (1 + 1e-14)


def jacobian_norm(network, size, seed=0):
    """The largest singular value of the Jacobian at a random image, in float64: a lower bound of the constant."""
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    found = torch.autograd.functional.jacobian(copy.deepcopy(network).double(), image).reshape(-1, image.numel())
    return torch.linalg.matrix_norm(found, 2).item()


def dense(seed=0, out=12):
    torch.manual_seed(seed)
    layer = SLLLinear(48, out).requires_grad_(False)
    nn.init.normal_(layer.weight)
    return layer


def test_a_residual_sum_and_branches_with_their_own_rule_have_a_bound():
    size = (3, 4, 4)
    network = nn.Sequential(MeanOfTwo(nn.Sequential(SLLConv2d(3, 5, bias=True), RemoveMean())), nn.Flatten(), Both(dense(0), dense(1, 7)))
    parts = [torch.linalg.matrix_norm(layer.rescaled()[0].double(), 2).item() for layer in network[2].parts]
    bound = lipschitz_bound(network.requires_grad_(False), size)
    assert bound == pytest.approx((parts[0] ** 2 + parts[1] ** 2) ** 0.5, rel=1e-6) and bound > 1
    assert jacobian_norm(network, size) <= bound
    x, y = torch.rand(2, 1, *size, dtype=torch.float64) - 0.5
    assert (network.double()(x) - network(y)).norm() <= bound * (x - y).norm()
    assert [step.name for step in chain(network, size)] == ["0", "1", "2"]
    with pytest.raises(InputError, match="layer 0: MeanOfTwo says nothing of its rounding"):
        Sound(network)


def test_what_is_inside_a_network_of_its_own_rule_is_proven_all_the_same():
    with pytest.raises(InputError, match="layer 0: ReLU has no known Lipschitz constant"):
        lipschitz_bound(nn.Sequential(MeanOfTwo(nn.ReLU())), (3, 4, 4))
    inner = nn.Sequential(SLLConv2d(3, 3, bias=True))
    inner[0].bias.data[0, 0] = torch.nan
    with pytest.raises(InputError, match="values are not finite"):
        lipschitz_bound(MeanOfTwo(inner), (3, 4, 4))


@register("mean_of_two", image_size=SIZE)
class Averaging(nn.Sequential):
    def __init__(self):
        super().__init__(nn.PixelUnshuffle(4), MeanOfTwo(nn.Sequential(SLLConv2d(48, 48))), nn.Flatten(), SLLLinear(768, 32))


@register("sum_of_two", image_size=SIZE, lipschitz=True)
class Expansive(nn.Sequential):
    """Says truly that it is 2-Lipschitz: no network for radii, unless it is divided by that."""

    def __init__(self):
        super().__init__(nn.PixelUnshuffle(4), nn.Flatten(), Both(SLLLinear(768, 32), SLLLinear(768, 32)))


def test_networks_with_a_rule_are_loaded_and_those_above_one_only_divided(tmp_path):
    for name in ("mean_of_two", "sum_of_two"):
        torch.save(get_backbone(name).state_dict(), tmp_path / f"{name}.pt")
    assert lipschitz_bound(load_network("mean_of_two", tmp_path / "mean_of_two.pt"), SIZE) <= 1 + TOLERANCE
    with pytest.raises(InputError, match=r"sum_of_two.pt: the Lipschitz constant of the network may be 1.41421, expected at most 1"):
        load_network("sum_of_two", tmp_path / "sum_of_two.pt")
    divided = load_network("sum_of_two", tmp_path / "sum_of_two.pt", tight=True)
    assert divided.lipschitz == pytest.approx(2**0.5, rel=1e-6) and lipschitz_bound(divided, SIZE) == pytest.approx(1, rel=1e-9)


def test_wrappers_have_the_constants_of_their_rules():
    network = Tiny().requires_grad_(False)
    nn.init.normal_(network[3].weight)
    alone = lipschitz_bound(network, SIZE)
    for wrapper, factor in ((FlipAveraged(network), 1), (ScaledInput(network, 2.0), 2), (ScaledInput(network, -0.5), 0.5),
                            (DividedOutput(network, alone), 1 / alone), (FlipAveraged(DividedOutput(network, 0.5)), 2),
                            (Sound(network), 1)):
        found = lipschitz_bound(wrapper, SIZE)
        assert found >= factor * alone * (1 - 1e-15) and found == pytest.approx(factor * alone, rel=1e-6)
    with pytest.raises(InputError, match="layer 0: Linear has no known"):
        lipschitz_bound(FlipAveraged(nn.Sequential(nn.Linear(4, 4))), (4,))


# what a declaration covers ----------------------------------------------------------------------------------------------------------

class Halved(MaxMin):
    """Another forward, and its own declaration."""

    def forward(self, z):
        return super().forward(z) / 2

    def proven_lipschitz(self, shape):
        return 0.5


class Renamed(SLLConv2d):
    """The forward that was declared, in a class of another name."""


class Called(SLLConv2d):
    def __call__(self, z):
        return 20 * super().__call__(z)


class Reshaped(nn.Flatten):
    def forward(self, z):
        return 20 * super().forward(z)


class NotFolded(SLLConv2d):
    """Has a bound of its own, and no folded form of its own."""

    def forward(self, z):
        return 2 * super().forward(z)

    def proven_lipschitz(self, shape):
        return 2.0


def test_a_declaration_covers_the_forward_that_it_was_written_with():
    size = (4, 4, 4)
    assert lipschitz_bound(nn.Sequential(Halved(), Renamed(4, 4)), size) == pytest.approx(0.5, rel=1e-5)
    for layer in (Called(4, 4), Reshaped()):
        with pytest.raises(InputError, match=f"layer 0: {type(layer).__name__} has another forward"):
            lipschitz_bound(nn.Sequential(layer), size)
    with pytest.raises(InputError, match="layer 0: Halved says nothing of its rounding"):
        Sound(nn.Sequential(Halved()))
    assert lipschitz_bound(nn.Sequential(NotFolded(4, 4)), size) == pytest.approx(2)
    for refused in (fold, Sound):
        with pytest.raises(InputError, match="layer 0: NotFolded has another forward than the one that can be folded"):
            refused(nn.Sequential(NotFolded(4, 4)))


class Foreign(nn.Module):
    """Somebody else's layer: the channels the other way round."""

    def forward(self, z):
        return z.flip(1)


def test_layers_of_others_are_declared_where_they_are_used():
    network = nn.Sequential(Foreign(), SLLConv2d(4, 4)).requires_grad_(False)
    with pytest.raises(InputError, match="layer 0: Foreign has no known Lipschitz constant"):
        lipschitz_bound(network, (4, 5, 5))
    declare(Foreign, 1.0)
    assert lipschitz_bound(network, (4, 5, 5)) == pytest.approx(1, rel=1e-5)
    with pytest.raises(InputError, match="layer 0: Foreign says nothing of its rounding"):
        Sound(network)
    declare(Foreign, 1.0, exactly)
    assert Sound(network).prove((4, 5, 5)).error < 1e-12


@pytest.mark.parametrize("layer, size", [(MaxMin(), (4, 3, 3)), (Downsize(4, 8), (4, 4, 4)), (HaarDownsize(2, 6), (2, 4, 4)),
                                         (RemoveMean(), (2, 3, 3)), (nn.Flatten(), (2, 3, 3)), (nn.PixelUnshuffle(2), (1, 4, 4)),
                                         (Halved(), (4, 3, 3)), (SLLConv2d(3, 4, bias=True), (3, 4, 4)), (SLLStage(3, 2), (3, 4, 4))])
def test_no_jacobian_is_above_what_is_declared(layer, size):
    bound = lipschitz_bound(nn.Sequential(layer), size)
    for seed in range(3):
        assert jacobian_norm(layer, size, seed) <= bound * (1 + 1e-12) <= 1 + 1e-4


# the chain ----------------------------------------------------------------------------------------------------------------------------

def test_the_chain_is_that_of_evaluation_not_of_definition():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = SLLLinear(48, 5), nn.Sequential(nn.Sequential(SLLConv2d(3, 3)), nn.Sequential(), nn.Flatten())

        def forward(self, x):
            return self.last(self.first(x))
    network = Backwards().requires_grad_(False)
    assert [(name, tuple(shape)) for name, _, shape in chain(network, (3, 4, 4))] == [
        ("first.0.0", (3, 4, 4)), ("first.2", (3, 4, 4)), ("last", (48,))]
    assert list(layers_of(network)) == ["last", "first.0.0", "first.2"]
    with torch.inference_mode():
        assert lipschitz_bound(network, (3, 4, 4)) <= 1 + TOLERANCE
    with pytest.raises(InputError, match="cannot be followed for images of .3, 5, 5.: they do not fit"):
        lipschitz_bound(network, (3, 5, 5))


def test_the_network_is_left_as_it_was():
    network = Tiny()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = faces(16)[:2].float() / 255 - 0.5
    expected = network(images)
    lipschitz_bound(network, SIZE)
    assert network.training and torch.equal(network(images), expected)
    assert not any("forward" in vars(module) for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.requires_grad == (name != "3.q") for name, p in network.named_parameters())


@pytest.mark.parametrize("name", ["sllnet", "sllnet_small", "sllnet_plus", "sllnet_mnist", "sllnet_cifar", "orthonet"])
def test_half_precision_and_every_network_here_are_followed(name):
    size = {"sllnet_mnist": (1, 28, 28), "sllnet_cifar": (3, 32, 32)}.get(name, (3, 112, 112))
    with torch.device("meta"):
        network = get_backbone(name, **({"fp16": True} if name == "sllnet" else {}))
    steps = chain(network, size)
    assert steps[0].shape == size and len(steps[-1].shape) == 1 and len({step.name for step in steps}) == len(steps)


# what is not computed twice -----------------------------------------------------------------------------------------------------------

def edit(layer):
    with torch.no_grad():
        layer.weight[0].mul_(3)


def edit_data(layer):
    layer.weight.data[0] *= 3


def edit_through_numpy(layer):
    layer.weight.detach().numpy()[0] *= 3


@pytest.mark.parametrize("change", [edit, edit_data, edit_through_numpy])
def test_the_bound_of_weights_that_were_changed_is_a_new_one(change, monkeypatch):
    calls, plain = [], norms._largest_eigenvalue
    monkeypatch.setattr(norms, "_largest_eigenvalue", lambda matrix: (calls.append(1), plain(matrix))[1])
    conv = SLLConv2d(3, 4).requires_grad_(False)
    nn.init.normal_(conv.weight)
    for layer, size in ((dense(3), (48,)), (conv, (3, 4, 4))):
        network = nn.Sequential(layer).eval()
        calls.clear()
        norms._known.clear()
        before = lipschitz_bound(network, size)
        assert lipschitz_bound(network, size) == before and len(calls) == 1
        change(layer)
        after = lipschitz_bound(network, size)
        assert len(calls) == 2 and after == lipschitz_bound(copy.deepcopy(network), size) and len(calls) == 2
        assert after != before or layer is conv, "the constant of a block is 1 for all weights below"


def test_a_bound_that_failed_is_not_remembered(monkeypatch):
    layer = dense(5)
    with monkeypatch.context() as patch:
        patch.setattr(norms, "_largest_eigenvalue", lambda matrix: float("nan"))
        with pytest.raises(InputError, match="may be nan"):
            lipschitz_bound(nn.Sequential(layer), (48,))
    assert lipschitz_bound(nn.Sequential(layer), (48,)) == pytest.approx(torch.linalg.matrix_norm(layer.rescaled()[0].double(), 2).item())


def test_rounding_follows_the_shape_that_a_layer_sees():
    layer = RemoveMean()
    small, large = (layer.proven_rounding(State(1.0, 0.0), size).error for size in ((3, 4, 4), (3, 40, 40)))
    assert small * 70 < large < small * 100
    conv = fold(nn.Sequential(SLLConv2d(3, 4, bias=True)))[0]
    assert conv.proven_rounding(State(1.0, 0.0), (3, 4, 4)).error < conv.proven_rounding(State(1.0, 0.0), (3, 40, 40)).error


@register("doubled_tiny", image_size=SIZE, scale=2.0, lipschitz=True)
class Doubled(Tiny):
    """Takes pixels in [-1, 1]: on those in [-0.5, 0.5] it is 2-Lipschitz."""


def test_the_scale_of_the_input_is_part_of_the_constant(tmp_path):
    torch.save(get_backbone("doubled_tiny").state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="may be 2, expected at most 1"):
        load_network("doubled_tiny", tmp_path / "w.pt")
    network = load_network("doubled_tiny", tmp_path / "w.pt", tight=True)
    assert network.lipschitz == pytest.approx(2, rel=1e-4)
    x, y = torch.rand(2, 4, *SIZE) - 0.5
    assert ((network(x) - network(y)).norm(dim=1) <= (x - y).flatten(1).norm(dim=1)).all()
    with pytest.raises(InputError, match="w.pt: ScaledInput says nothing of its rounding"):
        load_sound("doubled_tiny", tmp_path / "w.pt")


class Swapped(nn.Sequential):
    """A layer inside a layer that declares no place for one."""

    def __init__(self):
        super().__init__(Downsize(4, 8))
        self[0].maxmin = nn.Conv2d(4, 4, 1)


def test_what_is_hung_into_a_layer_changes_nothing_that_is_proven():
    z = torch.randn(2, 4, 6, 6)
    assert torch.equal(Swapped()(z), Downsize(4, 8)(z)) and lipschitz_bound(Swapped(), (4, 6, 6)) == pytest.approx(1)
