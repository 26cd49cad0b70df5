"""Radii that hold in floating point: the error bound against exact arithmetic, the radius against mpmath and a worst-case search, and the
command line.
"""
import math
from fractions import Fraction

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from small_world import Tiny, command, summary_of, world  # noqa: F401
from torch import nn

from backbones.bounds import lipschitz_bound
from backbones.custom_layers import Downsize, FoldedSLLConv2d, PaddingChannels, SLLConv2d, SLLLinear
from backbones.proof import State
from backbones.shapes import HaarDownsize, RemoveMean
from backbones.sound import Proof, Sound
from eval.audit import sound
from utils import InputError

SIZE = (3, 4, 4)


def small_network(seed=0, power=1):
    """[N, 3, 4, 4] -> [N, 6]."""
    torch.manual_seed(seed)
    network = nn.Sequential(PaddingChannels(4), RemoveMean(), SLLConv2d(4, 5, 3, bias=True, power=power), Downsize(4, 8),
                            SLLConv2d(8, 8, 1), HaarDownsize(8, 12), nn.Flatten(),
                            SLLLinear(12, 6, bias=True, power=power)).requires_grad_(False)
    for layer in (network[2], network[4], network[7]):
        layer.weight.mul_(torch.randn_like(layer.weight).exp())
    return network


def matrix(linear_map, shape):
    """The matrix of a linear map whose entries are weights and zeros, so that nothing is rounded; of fractions."""
    columns = torch.eye(int(np.prod(shape)), dtype=torch.float64).view(-1, *shape)
    return exact(linear_map(columns).flatten(1).T)


def exact(values):
    return np.vectorize(Fraction, otypes=[object])(values.double().numpy())


def exact_layer(layer, z, shape):
    """A layer of a folded network on fractions z [n] of this shape; returns (fractions, shape)."""
    out = layer(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:]
    if isinstance(layer, FoldedSLLConv2d):
        v = matrix(lambda x: nn.functional.conv2d(x, layer.weight, padding=layer.padding), shape)
        c = 0 if layer.bias is None else np.repeat(exact(layer.bias), len(v) // len(layer.bias))
        h = v @ z + c
        return z - 2 * (v.T @ np.where(h > 0, h, Fraction(0))), out
    if isinstance(layer, nn.Linear):
        return exact(layer.weight) @ z + (0 if layer.bias is None else exact(layer.bias)), out
    if isinstance(layer, Downsize):
        a, b = z.reshape(2, shape[0] // 2, -1)
        largest, half = np.maximum(a, b)[:layer.kept].reshape(-1), (layer.kept, *shape[1:])
        return matrix(lambda x: nn.functional.pixel_unshuffle(x, 2), half) @ largest, out
    return matrix(layer, shape) @ z, out


def exact_embedding(network, image):
    z, shape = exact(image).reshape(-1), image.shape
    for layer in network.folded:
        z, shape = exact_layer(layer, z, shape)
    return z


@pytest.mark.parametrize("seed, power", [(0, 1), (1, 2)])
def test_the_error_bound_holds_against_exact_arithmetic(seed, power):
    network = Sound(small_network(seed, power))
    proof = network.prove(SIZE)
    assert proof.dimension == 6 and proof.error < 1e-12
    noise = torch.Generator().manual_seed(seed)
    images = [torch.rand(SIZE, generator=noise, dtype=torch.float64) - 0.5, torch.full(SIZE, 0.5, dtype=torch.float64),
              torch.randint(0, 2, SIZE, generator=noise).double() - 0.5]
    errors = [np.linalg.norm((exact(network(image[None])[0]) - exact_embedding(network, image)).astype(float)) for image in images]
    assert 0 < max(errors) <= proof.error and max(errors) < 1e-15 * 50, "what is compared is the same function"


def test_the_rounding_of_means_is_part_of_the_bound():
    torch.manual_seed(0)
    layers = [nn.Flatten(), SLLLinear(75, 6)]  # 25 pixels a channel: a mean of theirs is rounded
    with_means, without = (Sound(nn.Sequential(*first, *layers).requires_grad_(False)) for first in ([RemoveMean()], []))
    size = math.sqrt(75) / 2
    means = with_means.prove((3, 5, 5)).error - without.prove((3, 5, 5)).error
    assert 25 * 2.0**-53 * size * with_means.lipschitz <= means <= 100 * 2.0**-53 * size
    image = torch.full((1, 3, 5, 5), 0.1, dtype=torch.float64) + torch.rand(1, 3, 5, 5, dtype=torch.float64) / 3
    found, z = exact(with_means.folded[0](image)[0]), exact(image[0])
    error = math.sqrt(sum(float(e)**2 for e in (found - (z - z.sum((1, 2), keepdims=True) / 25)).flatten()))
    assert 0 < error <= means / with_means.lipschitz


def test_the_rounding_of_sums_of_pixels_is_part_of_the_bound():
    torch.manual_seed(0)
    layer, z = HaarDownsize(2, 6), torch.rand(1, 2, 6, 8, dtype=torch.float64) + 0.1
    before = State(z.norm().item(), 0.0)
    difference = exact(layer(z)).reshape(-1) - matrix(layer, z.shape[1:]) @ exact(z).reshape(-1)
    error = math.sqrt(sum(float(e)**2 for e in difference))
    assert 0 < error <= layer.proven_rounding(before, z.shape[1:]).error <= 10 * 2.0**-53 * before.size


def test_the_function_is_that_of_the_float32_weights():
    plain = small_network()
    network = Sound(plain)
    assert torch.equal(network.folded[2].weight, plain[2].rescaled()[0].double())
    images = torch.rand(5, *SIZE) - 0.5
    assert torch.allclose(network(images.double()).float(), plain(images), atol=1e-6)
    assert network.lipschitz == pytest.approx(lipschitz_bound(plain, SIZE), rel=1e-12)


def test_the_error_bound_holds_for_other_orders_of_summation():
    """Channels and taps in another order, and images that are rounded anew: within E of exact each, so within 2E of each other."""
    network = Sound(Tiny().requires_grad_(False))
    proof = network.prove((3, 16, 16))
    images = torch.rand(4, 3, 16, 16, dtype=torch.float64) - 0.5
    block, dense = network.folded[1], network.folded[3]
    z = network.folded[0](images)
    order = torch.randperm(48 * 9)
    h = (block.weight.flatten(1)[:, order] @ nn.functional.unfold(z, 3, padding=1)[:, order] + block.bias[:, None]).clamp_min(0)
    steps = nn.functional.fold((block.weight.flatten(1).T @ h), (4, 4), 3, padding=1)
    order = torch.randperm(768)
    other = (z - 2 * steps).flatten(1)[:, order] @ dense.weight.T[order]
    difference = (other - network(images)).norm(dim=1).max().item()
    assert 0 < difference <= 2 * proof.error < 1e-9


def test_the_error_grows_with_the_image_and_the_bias():
    network = Sound(nn.Sequential(SLLConv2d(3, 4, 3, bias=True)).requires_grad_(False))
    small, large = network.prove((3, 4, 4)).error, network.prove((3, 16, 16)).error
    network.folded[0].bias.mul_(1000)
    assert small < large < network.prove((3, 16, 16)).error / 10


class Branches(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + x.flatten(1)[:, :6]


class Unused(nn.Sequential):
    def forward(self, x):  # the last layer's norm would divide every radius
        for layer in self[:-1]:
            x = layer(x)
        return x


class Repeated(nn.Sequential):
    def forward(self, x):
        return self[-1](super().forward(x))


class Written(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x).mul_(3))


@pytest.mark.parametrize("network", [Branches(*small_network()), Unused(*small_network(), SLLLinear(6, 6)),
                                     Repeated(*small_network(), SLLLinear(6, 6)), Written(small_network()[:-1], small_network()[-1])])
def test_a_network_that_is_no_chain_has_no_error_bound(network):
    name = type(network).__name__
    with pytest.raises(InputError, match=f"{name} does not apply its layers one after another, each once"):
        Sound(network.requires_grad_(False)).prove(SIZE)


def test_a_network_without_a_finite_bound_is_refused():
    network = small_network()
    network[2].bias.fill_(1e38)
    network[2].weight.mul_(1e-6)  # the rescaled bias is beyond float32
    with pytest.raises(InputError, match="the bound of the error of embeddings is (inf|nan)"):
        Sound(network).prove(SIZE)
    with pytest.raises(InputError, match="the bound of the Lipschitz constant is 0.0"):
        network = small_network()
        network[7].weight.zero_()
        Sound(network)


# the radius --------------------------------------------------------------------------------------------------------------------------

def true_radius(a, cosine, tau):
    """In 60 digits."""
    with mpmath.workdps(60):
        delta = abs(mpmath.acos(mpmath.mpf(cosine)) - mpmath.acos(mpmath.mpf(tau)))
        return mpmath.mpf(a) * (mpmath.sin(delta) if delta < mpmath.pi / 2 else 1)


def cases():
    rng = np.random.default_rng(0)
    a, b = 10.0 ** rng.uniform(-3, 3, (2, 400))
    cosine, tau = rng.uniform(-1, 1, (2, 400))
    cosine[:40] = np.sign(cosine[:40]) * (1 - 10.0 ** rng.uniform(-16, -6, 40))
    tau[40:80] = np.sign(tau[40:80]) * (1 - 10.0 ** rng.uniform(-15, -6, 40))
    cosine[80:120] = tau[80:120] + 10.0 ** rng.uniform(-16, -6, 40)
    cosine[120:124] = 1, -1, 1, -1
    return a, b, cosine.clip(-1, 1), tau


def test_the_radius_is_below_the_exact_one_and_close_to_it():
    proof = Proof(1.0, 0.0, 16)
    for a, b, cosine, tau in zip(*cases()):
        found = sound.pair_radius(a, b, cosine, cosine > tau, tau, proof).item()
        true = true_radius(a, cosine, tau)
        assert found <= true
        # widening a cosine by its rounding moves an angle by the root of that where the angle is 0 or pi
        edge = min(1 - abs(cosine), 1 - abs(tau))
        assert found >= true - a * (1e-13 / np.sqrt(max(edge, 1e-14)) + 1e-13)


@pytest.mark.parametrize("lipschitz, error", [(1.0, 1e-3), (0.8, 0.02), (1.3, 1e-6)])
def test_no_evaluation_within_the_error_can_change_a_decision_inside_the_radius(lipschitz, error):
    """Worst cases in the plane: an embedding moved by L R + 2E, compared with one that is off by 2E."""
    rng, proof, turns = np.random.default_rng(1), Proof(lipschitz, error, 2), np.linspace(0, 2 * np.pi, 721)
    circle = np.stack([np.cos(turns), np.sin(turns)], -1)
    positive = 0
    for a, b, theta, tau in rng.uniform([0.01, 0.01, 0, -0.95], [3, 3, np.pi, 0.95], (150, 4)):
        cosine = np.cos(theta)
        radius = sound.pair_radius(a, b, cosine, cosine > tau, tau, proof).item()
        positive += radius > 0
        if radius:
            u = a * np.array([np.cos(theta), np.sin(theta)]) + (lipschitz * radius + 2 * error) * circle
            v = np.array([b, 0]) + 2 * error * circle
            cosines = u @ v.T / np.linalg.norm(u, axis=1)[:, None] / np.linalg.norm(v, axis=1)
            assert ((cosines > tau) == (cosine > tau)).all()
            without_error = sound.pair_radius(a, b, cosine, cosine > tau, tau, Proof(lipschitz, 0, 2)).item()
            assert radius > 0.999 * (without_error - (4 * a / b + 2) * error / lipschitz)
    assert positive > 100


def test_the_radius_against_its_own_copy():
    norm, proof = np.array([0.0, 1e-3, 2.0, 1e200, np.nan]), Proof(1.0, 1e-4, 8)
    for tau in (0.3, -0.4, 0.999999999):
        found = sound.untargeted_radius(norm, tau, proof)
        largest = 2 * (np.sqrt(1 - tau**2) if tau > 0 else 1)
        assert found[[0, 3, 4]].tolist() == [0, 0, 0] and largest - 7e-4 <= found[2] <= largest
        assert (sound.untargeted_radius(norm, tau, Proof(0.5, 1e-4, 8)) >= found).all()


def test_a_decision_too_close_to_call_has_no_radius():
    proof = Proof(1.0, 0.0, 512)
    assert sound.pair_radius(1.0, 1.0, 0.3, False, 0.3, proof) == 0
    assert sound.pair_radius(1.0, 1.0, np.nextafter(0.3, 1), True, 0.3, proof) == 0
    assert sound.pair_radius(1.0, 1.0, 1.0, True, np.nextafter(1, 0), proof) == 0
    assert sound.pair_radius([0.0, 1.0], [1.0, 0.0], -np.inf, False, 0.3, proof).tolist() == [0, 0]


# the command line --------------------------------------------------------------------------------------------------------------------

def results(world, out="out"):  # noqa: F811
    tables = [pd.read_csv(world / out / name, float_precision="round_trip") for name in ("pairs.csv", "images.csv")]
    return *tables, summary_of(world / out)


@pytest.mark.parametrize("backbone", ["tiny", "tight"])
def test_sound_adds_radii_and_says_the_constants(world, capsys, backbone):  # noqa: F811
    assert command(world, "certify", "--sound", "--eps", "0.05", "--eps-u", "0.5", backbone=backbone) == 0
    pairs, images, summary = results(world)
    lipschitz, error = summary["sound_lipschitz"], summary["sound_error"]
    out = capsys.readouterr().out
    assert f"L = {lipschitz:.9g}, E = {error:.3g}" in out and out.count("CRA_D") == 2
    assert (lipschitz >= 1 if backbone == "tight" else 0.5 < lipschitz < 1 + 1e-6) and 0 < error < 1e-9
    for table, plain, proven in ((pairs, "radius", "radius_sound"), (images, "radius_u", "radius_u_sound")):
        assert (table[proven] * lipschitz <= table[plain]).all() and np.allclose(table[proven] * lipschitz, table[plain], atol=1e-8)
    assert (pairs["radius_sound"] > 0).any()
    assert summary["cra_u_sound"] == {0.5: (images["radius_u_sound"] > 0.5).mean()} and summary["med_d_sound"] is not None


def test_flip_averaging_has_the_same_constants(world):  # noqa: F811
    assert command(world, "certify", "--sound", out="plain") == 0 and command(world, "certify", "--sound", "--flip", "average") == 0
    (plain, *_, one), (pairs, images, summary) = results(world, "plain"), results(world)
    assert summary["flip"] == "average" and not np.allclose(pairs["cosine"], plain["cosine"])
    assert all(summary[key] == one[key] for key in ("sound_lipschitz", "sound_error"))
    for table, radius, proven in ((pairs, "radius", "radius_sound"), (images, "radius_u", "radius_u_sound")):
        undivided = table[proven] * summary["sound_lipschitz"]  # L may be above 1 or below
        assert (undivided <= table[radius]).all() and np.allclose(undivided, table[radius], atol=1e-8)


def test_a_bias_beyond_float32_ends_in_one_line(world, capsys):  # noqa: F811
    state = torch.load(world / "tiny.pt")
    state["1.weight"].mul_(1e-3)
    state["1.bias"].fill_(1e38)
    torch.save(state, world / "tiny.pt")
    assert command(world, "certify", "--sound") == 2 and not (world / "out").exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "tiny.pt: the bound of the error of embeddings is" in error


def test_weights_that_round_above_one_are_reported_so(world, capsys, monkeypatch):  # noqa: F811
    """A row of one large and many small values: float32 loses the squares of the small ones, and V becomes longer than 1."""
    state = torch.load(world / "tiny.pt")
    state["3.weight"].zero_()
    state["3.weight"][0] = 2.0**-12.1
    state["3.weight"][0, 0] = 1
    torch.save(state, world / "tiny.pt")
    row = SLLLinear(768, 32).requires_grad_(False)
    row.weight.copy_(state["3.weight"])
    norm = float(sum(Fraction(x) ** 2 for x in row.rescaled()[0][0].tolist())) ** 0.5
    assert norm > 1
    for tolerance in (1, 0):  # how much is lost depends on the processor
        monkeypatch.setattr("backbones.bounds.TOLERANCE", tolerance)
        assert command(world, "certify", "--sound", "--tau", "-0.5") == 0
        summary, printed = results(world)[2], capsys.readouterr()
        assert summary["sound_lipschitz"] >= norm > 1 and "L = 1.0000" in printed.out
        assert ("radii that are not called sound, the first table, are for 1 and do not hold" in printed.err) == (tolerance == 0)


def test_tight_makes_every_radius_larger_by_one_factor(world, capsys):  # noqa: F811
    state = torch.load(world / "tiny.pt")
    nn.init.normal_(state["3.weight"])
    torch.save(state, world / "tiny.pt")
    assert command(world, "certify", out="plain") == 0 and command(world, "certify", "--tight") == 0
    (plain, plain_images, before), (pairs, images, summary) = results(world, "plain"), results(world)
    factor = 1 / summary["lipschitz"]
    assert factor > 1.05 and before["lipschitz"] == 1 and f"L = {summary['lipschitz']:.9g}" in capsys.readouterr().out
    assert np.allclose(pairs["radius"], factor * plain["radius"], rtol=1e-5, atol=1e-7)
    assert np.allclose(images["radius_u"], factor * plain_images["radius_u"], rtol=1e-5)
    assert np.allclose(pairs["cosine"], plain["cosine"], atol=1e-6) and (pairs["accepted"] == plain["accepted"]).all()
    assert command(world, "attack", "--attack", "fgsm") == 2 and "lipschitz" in capsys.readouterr().err
    assert command(world, "attack", "--attack", "fgsm", "--tight") == 0
    assert command(world, "audit", "--tight", "--steps", "3", "--limit", "2") == 0


def test_what_has_no_proof_ends_in_one_line(world, capsys):  # noqa: F811
    for backbone, options, words in (("tiny", ("--sound", "--tight"), "leave --tight out"),
                                     ("partly", ("--sound",), "Partly does not apply"), ("loose", ("--sound",), "not 1-Lipschitz")):
        assert command(world, "certify", *options, backbone=backbone) == 2
        assert words in capsys.readouterr().err and not (world / "out").exists()
    assert command(world, "attack", "--attack", "fgsm", "--tight", backbone="loose") == 2
    assert "not 1-Lipschitz" in capsys.readouterr().err
