"""Orthogonal layers and networks against their formulas in float64, their Jacobians, and exact arithmetic."""
import copy
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from golden import fill_by_rule, golden_input, relative_error
from processes import in_processes
from small_world import SIZE, command, summary_of, world  # noqa: F401
from test_sound import exact, matrix
from torch import nn

import train
from backbones import is_lipschitz, lipschitz_bound, load_network, register
from backbones.centre import Centre
from backbones.chain import chain, followed
from backbones.custom_layers import FoldedSLLLinear, RescaledOnce, SLLLinear
from backbones.export import export, fold
from backbones.orthogonal import PARAMETRISATIONS, FoldedMixing, Lowpass, OrthogonalMixing, SpectralLinear
from backbones.orthonet import OrthoNet
from backbones.proof import State
from backbones.shapes import Absolute, FirstChannels, Haar, HaarDownsize, MaxMin, PaddingChannels, Shift
from backbones.sound import Sound
from utils import InputError
from utils.distributed import locally

EVERY = sorted(PARAMETRISATIONS)
UNIT = 2.0**-53


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def jacobian(layer, z):
    """[outputs, inputs] at z [1, ...]."""
    found = torch.autograd.functional.jacobian(layer, z)
    return found.reshape(-1, z.numel())


def singular_values(layer, *shape, seed=0, dtype=torch.float64):
    return torch.linalg.svdvals(jacobian(layer, normal(1, *shape, seed=seed, dtype=dtype)).double())


def randomised(network, seed=0, scale=0.3):
    """Every parameter drawn anew; what is no parameter stays."""
    with torch.no_grad():
        for number, p in enumerate(network.parameters()):
            p.copy_(scale * normal(*p.shape, seed=100 * seed + number))
    return network


@register("orthogonal_tiny", image_size=SIZE)
class Tiny(OrthoNet):
    """[N, 3, 16, 16] -> [N, 6]: two stages, all three ways to another number of channels are in the tests below."""

    def __init__(self, parametrisation="cayley", centre=True):
        super().__init__(8, 2, (12, 20), (2, 1), emb_size=6, parametrisation=parametrisation, centre=centre, image=16)


# low frequencies --------------------------------------------------------------------------------------------------------------------

def cosine_transform(values, inverse=False):
    """Of a list, by the sums of its definition."""
    n, c = len(values), [math.sqrt((1 if k == 0 else 2) / len(values)) for k in range(len(values))]
    if inverse:
        return [sum(c[k] * values[k] * math.cos(math.pi * k * (2 * i + 1) / (2 * n)) for k in range(n)) for i in range(n)]
    return [c[k] * sum(v * math.cos(math.pi * k * (2 * i + 1) / (2 * n)) for i, v in enumerate(values)) for k in range(n)]


def along_both(image, transform):
    rows = [transform(list(row)) for row in image]
    return [list(row) for row in zip(*[transform(list(column)) for column in zip(*rows)])]


def test_low_frequencies_are_those_of_the_cosine_transform():
    z = normal(2, 3, 9, 6)
    found = Lowpass(4, 9, 6).double()(z)
    for image, small in itertools.product(range(2), range(3)):
        spectrum = along_both(z[image, small].tolist(), cosine_transform)
        expected = along_both([row[:4] for row in spectrum[:4]], lambda values: cosine_transform(values, inverse=True))
        assert torch.allclose(found[image, small], torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def test_low_frequencies_are_a_projection_and_an_isometry_and_keep_smooth_images():
    values = singular_values(Lowpass(4, 9, 6).double(), 1, 9, 6)
    assert len(values) == 16 and (values - 1).abs().max() < 1e-6
    layer = Lowpass(32)
    true = math.prod(torch.linalg.matrix_norm(m.double(), 2).item() for m in (layer.rows, layer.columns))
    assert true <= lipschitz_bound(nn.Sequential(layer), (3, 112, 112)) <= true * (1 + 1e-9) and abs(true - 1) < 1e-6
    smooth = Lowpass(8, 28).double()
    image = smooth.rows.T @ normal(1, 1, 8, 8) @ smooth.columns
    assert smooth(image).norm().item() == pytest.approx(image.norm().item(), rel=1e-6)
    constant = torch.full((1, 1, 28, 28), 0.5, dtype=torch.float64)
    assert torch.allclose(smooth(constant), torch.full((1, 1, 8, 8), 0.5 * 28 / 8, dtype=torch.float64), atol=1e-6), "a constant stays one"


def test_sizes_that_do_not_fit_are_refused():
    for size in (0, 7):
        with pytest.raises(ValueError, match=f"size is {size}: expected 1 to 6"):
            Lowpass(size, 9, 6)
    with pytest.raises(ValueError, match="images of 9 x 6, got 6 x 9"):
        Lowpass(4, 9, 6)(torch.zeros(1, 3, 6, 9))


# matrices -----------------------------------------------------------------------------------------------------------------------------

def expected_matrix(kind, weight, base):
    """By other roads: an inverse, a spectral decomposition, a projection by QR."""
    if kind == "householder":
        basis = torch.linalg.qr(weight)[0]
        return (torch.eye(len(weight), dtype=weight.dtype) - 2 * basis @ basis.T) @ base
    skew, identity = weight - weight.T, torch.eye(len(weight), dtype=weight.dtype)
    if kind == "cayley":
        return (identity - skew) @ torch.linalg.inv(identity + skew) @ base
    values, vectors = torch.linalg.eigh(1j * skew)  # a Hermitian matrix
    return ((vectors * torch.exp(-1j * values)) @ vectors.mH).real @ base


@pytest.mark.parametrize("kind", EVERY)
def test_the_mixing_is_its_formula_with_its_gradient(kind):
    layer = randomised(OrthogonalMixing(8, kind).double())
    found = layer.compute(*layer.sources())[0]
    assert torch.allclose(found, expected_matrix(kind, layer.weight, layer.base), atol=1e-12)
    z = normal(2, 8, 3, 5)
    assert torch.allclose(layer(z), torch.einsum("ij,njyx->niyx", found, z) + layer.bias[:, None, None], atol=1e-13)
    assert torch.autograd.gradcheck(lambda weight: layer.compute(weight, layer.base, None)[0], layer.weight)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("dtype, within", [(torch.float32, 1e-6), (torch.float64, 1e-11)])
def test_every_singular_value_is_one_before_and_after_steps(kind, dtype, within):
    torch.manual_seed(0)
    layer = OrthogonalMixing(7 if kind != "householder" else 8, kind).to(dtype)
    with torch.no_grad():
        layer.base.copy_(torch.linalg.qr(layer.base.double())[0])
    channels = len(layer.base)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    before = layer.rescaled()[0].detach().clone()
    for step in range(12):
        if step % 4 == 0:
            for mode in (True, False):
                assert (singular_values(layer.train(mode), channels, 2, 3, dtype=dtype) - 1).abs().max() < within
        optimizer.zero_grad()
        (layer(normal(4, channels, 3, 3, seed=step, dtype=dtype)) - 1).square().sum().backward()
        optimizer.step()
    assert not torch.allclose(layer.rescaled()[0], before, atol=0.1), "it has moved"
    assert abs(lipschitz_bound(nn.Sequential(layer), (channels, 2, 3)) - 1) < within


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e3])
def test_hostile_weights_have_a_true_bound(kind, scale):
    layer = randomised(OrthogonalMixing(9, kind), scale=scale).eval().requires_grad_(False)
    bound = lipschitz_bound(nn.Sequential(layer), (9, 4, 4))
    assert torch.linalg.matrix_norm(layer.rescaled()[0].double(), 2).item() <= bound <= 1 + 1e-5


def test_a_checkpoint_with_another_base_is_measured_and_one_without_a_matrix_refused(tmp_path):
    torch.manual_seed(0)
    network = Tiny()
    state = network.state_dict()
    (name,) = [key for key in state if key.endswith("stages.1.base")]
    torch.save({**state, name: 1.5 * state[name]}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="the Lipschitz constant of the network may be 1.[45]"):
        load_network("orthogonal_tiny", tmp_path / "w.pt")
    assert load_network("orthogonal_tiny", tmp_path / "w.pt", tight=True).lipschitz == pytest.approx(1.5 * lipschitz_bound(network, SIZE))
    layer = OrthogonalMixing(4, "householder")
    layer.weight.data.zero_()
    with pytest.raises(InputError, match="layer 0: OrthogonalMixing: the bound of its Lipschitz constant is nan"):
        lipschitz_bound(nn.Sequential(layer), (4, 2, 2))


def test_a_parametrisation_of_another_name_is_refused():
    with pytest.raises(ValueError, match="parametrisation is 'qr': expected one of cayley, exponential, householder"):
        OrthogonalMixing(4, "qr")


@pytest.mark.parametrize("rows, columns", [(5, 9), (9, 5), (4, 4)])
def test_a_spectral_layer_has_norm_one_and_the_gradient_of_that(rows, columns):
    layer = randomised(SpectralLinear(columns, rows, bias=True).double())
    z = normal(3, columns)
    assert torch.allclose(layer(z), z @ (layer.weight / torch.linalg.svdvals(layer.weight)[0]).T + layer.bias, atol=1e-13)
    assert torch.autograd.gradcheck(lambda weight: layer.compute(weight, None)[0], layer.weight)
    single = layer.float()
    bound = lipschitz_bound(nn.Sequential(single), (columns,))
    assert torch.linalg.matrix_norm(single.rescaled()[0].double(), 2).item() <= bound and abs(bound - 1) < 1e-6
    assert isinstance(fold(nn.Sequential(single))[0], FoldedSLLLinear)
    single.weight.data.zero_()
    single(z.float()).sum().backward()
    assert torch.equal(single(z.float()), single.bias.expand(3, -1)) and single.weight.grad.isfinite().all()


# moves and values ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("channels, share, moved", [(16, 0.5, 2), (12, 0.5, 1), (8, 1.0, 2), (3, 0.5, 0), (5, 0.0, 0), (13, 0.75, 2)])
def test_shifts_pixel_by_pixel(channels, share, moved):
    z = normal(2, channels, 4, 3)
    expected = torch.empty_like(z)
    for c, y, x in itertools.product(range(channels), range(4), range(3)):
        dy, dx = [(1, 0), (-1, 0), (0, 1), (0, -1)][c // moved] if moved and c < 4 * moved else (0, 0)
        expected[:, c, (y + dy) % 4, (x + dx) % 3] = z[:, c, y, x]
    assert torch.equal(Shift(share)(z), expected)
    found = jacobian(Shift(share), z[:1])
    assert torch.equal(found @ found.T, torch.eye(len(found), dtype=torch.float64))


@pytest.mark.parametrize("channels, share, count", [(8, 0.5, 4), (5, 0.5, 2), (4, 1.0, 4), (4, 0.0, 0)])
def test_absolute_values_of_a_share(channels, share, count):
    z = normal(2, channels, 3, 2)
    found = Absolute(share)(z)
    assert torch.equal(found[:, :count], z[:, :count].abs()) and torch.equal(found[:, count:], z[:, count:])
    assert (singular_values(Absolute(share), channels, 3, 2) - 1).abs().max() < 1e-12
    assert torch.equal(Absolute(share)(z[:, :, 0, 0]), found[:, :, 0, 0])
    assert ((found - Absolute(share)(-z)).norm() <= (2 * z).norm())


def test_absolute_values_contain_maxmin_up_to_a_rotation():
    z, half = normal(2, 6, 3, 3), torch.eye(3, dtype=torch.float64) / math.sqrt(2)
    turn = torch.cat((torch.cat((half, -half), 1), torch.cat((half, half), 1)))  # (a, b) -> (a - b, a + b) / sqrt 2
    values = Absolute(0.5)(torch.einsum("ij,njyx->niyx", turn, z))
    back = torch.cat((torch.cat((half, half), 1), torch.cat((-half, half), 1)))
    assert torch.allclose(torch.einsum("ij,njyx->niyx", back, values), MaxMin()(z), atol=1e-14)


@pytest.mark.parametrize("layer", [Shift, Absolute])
@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_shares_outside_of_0_to_1_are_refused(layer, share):
    with pytest.raises(ValueError, match=f"share is {share}"):
        layer(share)


def test_haar_is_an_orthonormal_transform_of_blocks():
    z = normal(2, 3, 6, 4)
    found = Haar()(z)
    signs = {0: (1, 1, 1, 1), 1: (1, 1, -1, -1), 2: (1, -1, 1, -1), 3: (1, -1, -1, 1)}
    for c, y, x, kind in itertools.product(range(3), range(3), range(2), range(4)):
        block = z[:, c, 2 * y:2 * y + 2, 2 * x:2 * x + 2].flatten(1)
        assert torch.allclose(found[:, 3 * kind + c, y, x], (block * torch.tensor(signs[kind])).sum(1) / 2, atol=1e-14)
    assert (singular_values(Haar(), 3, 4, 4) - 1).abs().max() < 1e-14
    assert torch.equal(HaarDownsize(3, 9)(z), found[:, :9]), "of which the other one keeps a part"
    with pytest.raises(RuntimeError):
        Haar()(normal(1, 2, 5, 4))


# what float64 rounds --------------------------------------------------------------------------------------------------------------------

def distance(found, expected):
    return math.sqrt(sum(float(e) ** 2 for e in (exact(found).reshape(-1) - expected.reshape(-1))))


ROUNDED = {"lowpass": (Lowpass(3, 7, 5), (2, 7, 5)), "mixing": (FoldedMixing(OrthogonalMixing(6)), (6, 3, 2)),
           "haar": (Haar(), (2, 4, 6)), "spectral": (FoldedSLLLinear(SpectralLinear(11, 4, bias=True)), (11,)),
           "centre": (Centre(4), (4, 3, 2))}


@pytest.mark.parametrize("name", ROUNDED)
def test_the_rounding_of_a_layer_against_exact_arithmetic(name):
    layer, shape = ROUNDED[name]
    layer = randomised(copy.deepcopy(layer).double().requires_grad_(False).eval())
    if name == "centre":
        layer.mean.copy_(normal(4))
    z = normal(1, *shape, seed=1)
    values = exact(z).reshape(-1)
    if name == "lowpass":
        rows, columns = exact(layer.rows), exact(layer.columns)
        expected = np.stack([rows @ channel @ columns.T for channel in exact(z[0])])
    elif name == "centre":
        expected = exact(z[0]) - exact(layer.mean)[:, None, None]
    elif name == "haar":
        expected = matrix(layer, shape) @ values
    else:
        weight, pixels = exact(layer.weight.flatten(1)), math.prod(shape[1:])
        expected = weight @ values.reshape(len(weight.T), pixels) + exact(layer.bias)[:, None]
    error = distance(layer(z)[0], expected)
    before = State(z.norm().item(), 0.0)
    after = layer.proven_rounding(before, shape)
    assert 0 < error <= after.error < 1000 * UNIT * (before.size + 3)
    assert layer(z).norm() <= after.size


@pytest.mark.parametrize("layer, shape", [(FoldedSLLLinear(SpectralLinear(3, 4, bias=True)), (5, 2, 3)),
                                          (FoldedMixing(OrthogonalMixing(3)), (3, 5, 2)), (Centre(3), (3, 5, 2))])
def test_what_is_added_counts_at_every_position(layer, shape):
    layer = layer.double().eval().requires_grad_(False)
    added = layer.mean if isinstance(layer, Centre) else layer.bias
    added.copy_(normal(len(added)))
    norm = layer(torch.zeros(1, *shape, dtype=torch.float64)).norm().item()
    assert norm == pytest.approx(math.sqrt(10) * added.norm().item())
    assert norm <= layer.proven_rounding(State(0.0, 0.0), shape).size <= norm * (1 + 1e-8)


def exact_layer(layer, z):
    """A layer of a folded network on fractions [...], without the batch, by its formula."""
    if isinstance(layer, Lowpass):
        return np.stack([exact(layer.rows) @ channel @ exact(layer.columns).T for channel in z])
    if isinstance(layer, FoldedMixing):
        return np.tensordot(exact(layer.weight.flatten(1)), z, 1) + exact(layer.bias)[:, None, None]
    if isinstance(layer, Absolute):
        return np.concatenate((abs(z[:len(z) // 2]), z[len(z) // 2:]))
    if isinstance(layer, nn.Linear):
        return exact(layer.weight) @ z
    if isinstance(layer, Centre):
        return z - exact(layer.mean)
    if type(layer).__name__ == "RemoveMean":
        return z - z.sum((1, 2), keepdims=True) / Fraction(z[0].size)
    shape = layer(torch.zeros(1, *z.shape, dtype=torch.float64)).shape[1:]  # of values that move, and halved sums of them
    return (matrix(layer, z.shape) @ z.reshape(-1)).reshape(shape)


def trained(parametrisation="cayley", seed=0):
    """A small network with a mean, away from where it started."""
    torch.manual_seed(seed)
    network = randomised(Tiny(parametrisation), seed)
    network.centre.mean.copy_(normal(6, seed=seed) / 10)
    return network.eval().requires_grad_(False)


def test_the_error_bound_of_a_network_holds_against_exact_arithmetic():
    network = Sound(trained())
    proof = network.prove(SIZE)
    for image in (torch.rand(SIZE, dtype=torch.float64) - 0.5, torch.full(SIZE, 0.5, dtype=torch.float64),
                  torch.randint(0, 2, SIZE).double() - 0.5):
        z = exact(image)
        for step in chain(network.folded, SIZE):
            z = exact_layer(step.layer, z)
        assert 0 < distance(network(image[None])[0], z) <= proof.error < 1e-11


# the running mean -----------------------------------------------------------------------------------------------------------------------

def test_the_mean_follows_what_comes_in_and_stands_still_in_eval_mode():
    layer, expected = Centre(3, momentum=0.9), torch.zeros(3)
    for step in range(4):
        z = normal(5, 3, 2, 2, seed=step, dtype=torch.float32) + 1
        assert torch.allclose(layer(z), z - expected[:, None, None], atol=1e-6), "what was known before this batch"
        expected = 0.9 * expected + 0.1 * z.mean((0, 2, 3))
        assert torch.allclose(layer.mean, expected, atol=1e-6)
    with torch.no_grad():
        layer(z)
    torch.func.vmap(lambda image: layer(image[None])[0])(z)
    layer(torch.full_like(z, torch.nan)), layer(torch.full_like(z, torch.inf))
    layer.eval()(z)
    assert torch.allclose(layer.mean, expected, atol=1e-6) and list(layer.state_dict()) == ["mean"]
    twin = Centre(3)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.eval()(z), layer(z)) and lipschitz_bound(nn.Sequential(layer), (3, 2, 2)) == pytest.approx(1, abs=1e-11)


def test_no_gradient_goes_through_the_mean():
    z = normal(5, 3).requires_grad_()
    Centre(3).double()(z).square().sum().backward()
    assert torch.equal(z.grad, 2 * z.detach())


def gradients_and_mean(parts, seed=3):
    torch.manual_seed(seed)
    network = randomised(Tiny()).double().train()
    network.centre.mean.fill_(0.1)
    images, labels = torch.rand(6, *SIZE, dtype=torch.float64) - 0.5, torch.arange(6) % 3
    weights = normal(3, 6)

    def loss_of(embeddings, labels):
        return nn.functional.cross_entropy(embeddings @ weights.T, labels), embeddings.detach().norm(), embeddings.detach().norm()
    train.backward(network, network, loss_of, images, labels, parts, torch.amp.GradScaler("cpu", enabled=False))
    return [p.grad for p in network.parameters() if p.requires_grad], network.centre.mean.clone(), network


def test_a_batch_in_parts_has_the_gradient_and_the_mean_of_a_whole_one():
    (whole, mean, _), (parts, same, network) = gradients_and_mean(1), gradients_and_mean(3)
    assert torch.allclose(mean, same, atol=1e-12) and not torch.allclose(mean, torch.full_like(mean, 0.1), atol=1e-4)
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12) and a.abs().max() > 0
    assert network.centre.count == 0 and not any(p._backward_hooks for p in network.parameters())


def test_a_step_that_ends_in_an_error_leaves_the_mean_alone():
    layer = Centre(3)
    with pytest.raises(KeyError), RescaledOnce(layer):
        layer(torch.ones(2, 3))
        raise KeyError
    layer(torch.zeros(2, 3))
    assert torch.equal(layer.mean, torch.zeros(3))


def _work(rank, folder):
    layer = nn.Sequential(nn.Linear(3, 3), Centre(3))
    with torch.no_grad():
        layer[0].weight.copy_(torch.eye(3)), layer[0].bias.zero_()
    model = nn.parallel.DistributedDataParallel(layer)
    for step in range(3):
        first, second = normal(8, 3, seed=step, dtype=torch.float32)[rank::2].chunk(2)
        with RescaledOnce(model) as rescaling:
            with torch.no_grad():
                model(first), model(second)
            with locally(model):
                model(first).sum().backward()
            rescaling.last()
            model(second).sum().backward()
    torch.save(layer[1].state_dict(), f"{folder}/{rank}.pt")


def test_processes_share_one_mean(tmp_path):
    in_processes(_work, tmp_path, 2)
    alone = Centre(3)
    for step in range(3):
        alone(normal(8, 3, seed=step, dtype=torch.float32))
    for rank in range(2):
        assert torch.allclose(torch.load(tmp_path / f"{rank}.pt")["mean"], alone.mean, atol=1e-7)


# the network ----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", EVERY)
def test_no_singular_value_of_the_network_is_above_its_bound_and_none_is_lost_in_its_stages(kind):
    network = trained(kind)
    bound = lipschitz_bound(network, SIZE)
    wide = copy.deepcopy(network).double()
    for seed in range(2):
        found = torch.linalg.svdvals(jacobian(wide, 0.3 * normal(1, *SIZE, seed=seed)))
        assert found[0].item() <= bound * (1 + 1e-6) <= 1 + 1e-5 and found[-1] > 0.1
        block = singular_values(wide.stages[:6], 12, 4, 4, seed=seed)
        assert (block - 1).abs().max() < 1e-6, "two blocks: an orthogonal Jacobian"


def test_steps_of_training_keep_the_constant():
    torch.manual_seed(0)
    network = Tiny().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for step in range(8):
        optimizer.zero_grad()
        with RescaledOnce(network) as rescaling:
            rescaling.last()
            network(normal(4, *SIZE, seed=step, dtype=torch.float32)).square().mean().backward()
        optimizer.step()
    assert lipschitz_bound(network, SIZE) <= 1 + 1e-6 and network.training
    x, y = (normal(8, *SIZE, seed=seed) for seed in (1, 2))
    wide = copy.deepcopy(network).double().eval()
    assert ((wide(x) - wide(y)).norm(dim=1) <= (x - y).flatten(1).norm(dim=1) * (1 + 1e-6)).all()


@pytest.mark.parametrize("channels, depth, kinds", [((12,), (1,), []), ((12, 48), (1, 0), [Haar, PaddingChannels]), ((12, 60), (0, 0), [Haar, PaddingChannels]),
                                                    ((12, 41), (1, 1), [Haar, FirstChannels]), ((12, 36), (1, 1), [HaarDownsize]), ((13, 20, 9), (0, 1, 2), [Haar, FirstChannels] * 2)])
def test_any_number_of_stages_and_channels(channels, depth, kinds):
    network = OrthoNet(8, 2, channels, depth, emb_size=5, image=16)
    found = [type(layer) for layer in network.stages if not isinstance(layer, (Shift, OrthogonalMixing, Absolute))]
    assert found == kinds and sum(isinstance(layer, OrthogonalMixing) for layer in network.stages) == sum(depth)
    assert network(torch.zeros(2, *SIZE)).shape == (2, 5) and lipschitz_bound(network, SIZE) <= 1 + 1e-6


@pytest.mark.parametrize("arguments, words", [({"depth": (4,)}, "2 stages have channels and 1 a depth"), ({"channels": (), "depth": ()}, "0 stages"),
                                              ({"size": 36}, "size is 36: 4 x 2.1 must divide it"), ({"channels": (32, 64)}, "channels begins with 32: expected at least 48")])
def test_layouts_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        OrthoNet(**{"size": 32, "unshuffle": 4, "channels": (64, 128), "depth": (4, 4), **arguments})


# three numbers of an embedding and its norm, from the weights of golden.py and B made orthogonal
GOLDEN = {
    "cayley": [[-0.3466027, -0.1556587, -0.263362, 3.8103], [-0.2548947, 0.06018766, -0.2286374, 3.819256]],
    "exponential": [[0.3565998, 0.5322455, 0.3478653, 3.900069], [0.3523253, 0.1971368, 0.2820454, 3.81978]],
    "householder": [[0.7835285, -0.06270569, -0.1906885, 4.689011], [0.566986, -0.07035676, -0.1512059, 4.8231]]}


@pytest.mark.parametrize("kind", EVERY)
def test_golden_embeddings(kind):
    network = fill_by_rule(OrthoNet(32, 4, (64, 128), (4, 4), parametrisation=kind, centre=True))
    with torch.no_grad():
        for layer in network.stages:
            if isinstance(layer, OrthogonalMixing):
                q, r = torch.linalg.qr(layer.base.double())
                layer.base.copy_(q * r.diagonal().sign())
        found = network(golden_input(3, 112))
    values = torch.cat((found[:, :3], found.norm(dim=1, keepdim=True)), 1)
    assert relative_error(values, torch.tensor(GOLDEN[kind])) < 1e-4


@pytest.mark.parametrize("kind", EVERY)
def test_folding_and_following_keep_the_network(kind):
    network, images = trained(kind), torch.rand(3, *SIZE) - 0.5
    folded = fold(network)
    assert not any(isinstance(layer, (OrthogonalMixing, SLLLinear)) for layer in folded.modules())
    assert torch.allclose(folded(images), network(images), atol=1e-6) and torch.equal(followed(network, SIZE)(images), network(images))
    assert lipschitz_bound(folded, SIZE) == pytest.approx(lipschitz_bound(network, SIZE), rel=1e-12)
    assert Sound(network).lipschitz == pytest.approx(lipschitz_bound(network, SIZE), rel=1e-12)
    assert torch.allclose(Sound(network)(images.double()).float(), network(images), atol=1e-6)


@pytest.mark.parametrize("ending", [".pt", ".pt2", ".ts", ".onnx"])
def test_every_format_gives_the_embeddings(tmp_path, ending):
    if ending == ".onnx":
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
    network, images, path = trained(), torch.rand(3, *SIZE) - 0.5, tmp_path / f"m{ending}"
    export(network, path, SIZE)
    if ending == ".onnx":
        found = torch.from_numpy(runtime.InferenceSession(str(path)).run(None, {"images": images.numpy()})[0])
    elif ending == ".pt":
        plain = fold(Tiny())
        plain.load_state_dict(torch.load(path))
        found = plain(images)
    else:
        found = (torch.export.load(path).module() if ending == ".pt2" else torch.jit.load(str(path)))(images)
    assert torch.allclose(found, network(images), atol=1e-5)


@pytest.mark.parametrize("kind", EVERY)
def test_functions_of_torch_func(kind):
    network, images = trained(kind).requires_grad_(True), torch.rand(3, *SIZE) - 0.5
    other = {name: 0.5 * p.detach() + 0.05 for name, p in network.named_parameters()}
    twin = copy.deepcopy(network)
    twin.load_state_dict(other, strict=False)

    def call(parameters, z):
        return torch.func.functional_call(network, parameters, (z,))
    with torch.no_grad():
        both = {name: torch.stack((p.detach(), other[name])) for name, p in network.named_parameters()}
        found = torch.func.vmap(call, (0, None))(both, images)
        assert torch.allclose(found, torch.stack((network(images), twin(images))), atol=1e-5)
        assert torch.allclose(torch.func.vmap(lambda image: network(image[None])[0])(images), network(images), atol=1e-5)
    gradients = torch.func.vmap(torch.func.grad(lambda p, z: call(p, z[None]).square().sum()), (None, 0))(other, images)
    for number, image in enumerate(images):
        twin.zero_grad()
        twin(image[None]).square().sum().backward()
        for name, p in twin.named_parameters():
            assert p.grad is None or torch.allclose(gradients[name][number], p.grad, rtol=1e-4, atol=1e-4)
    direction = normal(3, *SIZE, dtype=torch.float32)
    moved = torch.func.jvp(network, (images,), (direction,))[1]
    wide = copy.deepcopy(network).double()
    step = 1e-6 * direction.double()
    assert torch.allclose(moved.double(), (wide(images.double() + step) - wide(images.double() - step)) / 2e-6, atol=1e-4)


def test_spectral_layers_under_torch_func():
    layer, z = SpectralLinear(6, 4), normal(2, 6, dtype=torch.float32)
    weights = {"weight": normal(3, 4, 6, dtype=torch.float32)}
    found = torch.func.vmap(lambda p: torch.func.functional_call(layer, p, (z,)))(weights)
    for one, weight in zip(found, weights["weight"]):
        assert torch.allclose(one, z @ (weight / torch.linalg.matrix_norm(weight, 2)).T, atol=1e-5)


def test_a_compiled_training_step_is_one_graph_with_the_same_gradients_and_mean():
    torch._dynamo.reset()
    plain, network = (randomised(Tiny()).train() for _ in range(2))
    network.load_state_dict(plain.state_dict())
    compiled, images = torch.compile(network, backend="aot_eager", fullgraph=True), torch.rand(3, *SIZE) - 0.5
    torch._dynamo.utils.counters.clear()
    for step in range(3):
        for module, call in ((plain, plain), (network, compiled)):
            module.zero_grad()
            with RescaledOnce(module) as rescaling:
                rescaling.last()
                call(images + 0.1 * step).square().sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "compiled once for all steps"
    for a, b in zip(plain.parameters(), network.parameters()):
        assert a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    assert torch.allclose(plain.centre.mean, network.centre.mean, atol=1e-6) and plain.centre.mean.abs().max() > 1e-3
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.allclose(torch.compile(network.eval(), backend="aot_eager")(images), network(images), atol=1e-6)


def test_matrices_are_computed_once_and_follow_every_change(monkeypatch):
    calls, plain = [], PARAMETRISATIONS["cayley"]
    monkeypatch.setitem(PARAMETRISATIONS, "cayley", lambda *a: (calls.append(1), plain(*a))[1])
    layer, z = OrthogonalMixing(4).eval(), normal(2, 4, 3, 3, dtype=torch.float32)
    with torch.no_grad():
        before = layer(z)
        assert torch.equal(layer(z), before) and len(calls) == 1
        for change in (layer.weight, layer.base, layer.bias):
            change.data.add_(0.1 * normal(*change.shape, dtype=torch.float32))
            assert torch.equal(layer(z), copy.deepcopy(layer)(z)) and not torch.equal(layer(z), before)
            before = layer(z)
    calls.clear()
    with RescaledOnce(layer) as rescaling:
        layer(z).sum().backward()
        rescaling.last()
        layer(z).sum().backward()
    shared = layer.weight.grad
    layer.zero_grad()
    (2 * layer(z).sum()).backward()
    assert len(calls) == 2 and torch.allclose(layer.weight.grad, shared, atol=1e-5)


def test_half_precision_computes_matrices_and_embeddings_in_full():
    network, images = trained(), torch.rand(3, *SIZE) - 0.5
    with torch.autocast("cpu", torch.bfloat16):
        found = network(images)
        assert torch.equal(network.stages[1].fresh()[0], network.stages[1].rescaled()[0])
    assert found.dtype == torch.float32 and torch.allclose(found, network(images), atol=0.05)


def test_the_commands_certify_attack_and_audit(world, capsys):  # noqa: F811
    torch.save(trained().state_dict(), world / "orthogonal_tiny.pt")
    assert is_lipschitz("orthogonal_tiny")
    assert command(world, "certify", "--sound", backbone="orthogonal_tiny", out="sound") == 0
    summary = summary_of(world / "sound")
    assert 0.5 < summary["sound_lipschitz"] <= 1 + 1e-6 and 0 < summary["sound_error"] < 1e-10
    assert command(world, "certify", "--tight", "--flip", "average", backbone="orthogonal_tiny") == 0
    assert command(world, "audit", "--tight", "--flip", "average", "--steps", "5", "--limit", "4", backbone="orthogonal_tiny") == 0
    assert "0 violations in 4 certified pairs and 4 images" in capsys.readouterr().out


def test_singular_values_of_mixing_are_ones_at_every_pixel():
    values = fold(nn.Sequential(OrthogonalMixing(8)))[0].singular_values((8, 3, 3))
    assert len(values) == 8 and (values - 1).abs().max() < 1e-6
