"""The layers of the zoo against their formulas, written out naively, and against their claims: full Jacobians, and norms by brute force."""
import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones import backbone_names, get_backbone, is_lipschitz, lipschitz_bound, load_network
from backbones.aol import AOLConv2d
from backbones.bounds import TOLERANCE
from backbones.chain import chain, followed
from backbones.circular import BROConv2d, CayleyConv2d, _spectrum
from backbones.cpl import CPLConv2d
from backbones.custom_layers import RescaledOnce
from backbones.export import export, fold
from backbones.norms import _known, norm_bound
from backbones.proof import State
from backbones.shapes import MaxMin
from backbones.sound import load_sound
from backbones.spectral import _roots, grid_loss, grid_size, spectral_bound
from backbones.zoo import LAYERS, ZooNet
from utils import InputError

NAMES = [f"zoo_{name}" for name in LAYERS]
SIZES = [(4, 6), (5, 3), (5, 4)]


def random_(layer, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return layer


def jacobian(layer, shape, seed=0):
    z = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.functional.jacobian(layer, z).reshape(-1, z.numel())


def zero_padded(weight, size):
    """The matrix of a convolution of images of this size."""
    columns = torch.eye(weight.shape[1] * math.prod(size), dtype=torch.float64).view(-1, weight.shape[1], *size)
    return F.conv2d(columns, weight.double(), padding=weight.shape[-1] // 2).flatten(1).T


def true_norm(weight, n=120):
    """sup ||V^|| on a grid so fine that it is exact to 1e-3."""
    values = torch.fft.fft2(weight.double(), s=(n, n)).permute(2, 3, 0, 1).reshape(n * n, *weight.shape[:2])
    return torch.linalg.matrix_norm(values, 2).amax().item()


# the norm of a kernel ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (3, 2, 3, 3), (2, 5, 3, 3), (3, 3, 5, 5), (4, 4, 2, 2)])
def test_the_bound_of_a_kernel_is_above_its_norm_and_close_to_it(shape):
    for seed in range(4):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        bound, true = spectral_bound(weight), true_norm(weight)
        assert true <= bound <= 1.025 * true
        assert torch.linalg.matrix_norm(zero_padded(weight, (7, 8)), 2) <= bound or shape[-1] == 2
    assert spectral_bound(weight.double()) == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("k", [3, 5])
def test_peaks_between_the_frequencies_of_the_grid_are_not_missed(k):
    n = grid_size(k)
    for turn in (0.5, 0.25, 0.1):
        angle = 2 * math.pi * (3 + turn) / n
        wave = torch.tensor([math.cos(angle * s) for s in range(k)], dtype=torch.float64)
        kernel = torch.outer(wave, wave)[None, None]
        assert true_norm(kernel, 10 * n) <= spectral_bound(kernel) <= 1.002 * true_norm(kernel, 10 * n) / grid_loss(k)
    # the polynomial with the sharpest peak there is, (1 + cos((k-1) w)) / 2 = |V^|^2 of two taps at the ends
    taps = torch.zeros(1, 1, k, k, dtype=torch.float64)
    taps[0, 0, 0, 0], taps[0, 0, 0, -1] = 0.5, 0.5
    assert grid_loss(k) <= math.cos(math.pi * (k - 1) / 2 / n) ** 2 <= grid_loss(k) + 1e-11 and spectral_bound(taps) >= 1


@pytest.mark.parametrize("n", [6, 12, 24, 96])
def test_roots_of_unity(n):
    assert max(abs(root - complex(math.cos(2 * math.pi * m / n), math.sin(2 * math.pi * m / n))) for m, root in enumerate(_roots(n))) < n * 2**-50
    assert grid_size(1) == 1 and grid_size(2) == 12 and all(grid_size(k) >= 12 * (k - 1) for k in range(2, 12))


@pytest.mark.parametrize("guess", [0.0, 0.1, 0.999, 1.0001, 1.05, 100.0])
def test_a_guess_makes_no_bound_too_small(guess):
    weight = torch.randn(3, 4, 3, 3)
    true = true_norm(weight)
    _known.clear()
    bound = spectral_bound(weight, guess * true)
    assert true <= bound <= max(1.025, guess * (1 + 1e-9)) * true
    if guess >= 1.05:
        assert bound == pytest.approx(guess * true, rel=1e-9), "a guess that is a bound comes back"


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e36])
def test_the_bound_at_hostile_scales(scale):
    weight = torch.randn(3, 3, 3, 3)
    bound = spectral_bound(weight * scale)
    assert true_norm(weight * scale) <= bound <= 1.025 * true_norm(weight) * scale
    rows = weight * torch.tensor([scale, 1.0, 1.0])[:, None, None, None]
    assert true_norm(rows) <= spectral_bound(rows) <= 1.03 * true_norm(rows)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_the_bound_ends_where_squares_overflow_or_vanish(scale):
    weight = torch.randn(3, 3, 3, 3, dtype=torch.float64)
    for guess in (0.0, 1.0):
        bound = spectral_bound(weight * scale, guess)
        assert true_norm(weight) * scale * (1 - 1e-12) <= bound <= max(1.025 * true_norm(weight) * scale, 1.0001 * guess)


def test_the_bound_ends_where_a_kernel_is_zero_at_all_frequencies_of_a_part():
    weight = torch.zeros(2, 2, 17, 17)  # 0 where the first frequency is, which the first part of the grid has alone
    weight[:, :, 0], weight[:, :, 1] = 1.0, -1.0
    assert true_norm(weight) <= spectral_bound(weight) <= 1.03 * true_norm(weight)


def test_the_bound_of_nothing_of_a_matrix_and_of_no_numbers():
    assert spectral_bound(torch.zeros(3, 3, 3, 3)) == 0 and spectral_bound(torch.zeros(3, 3, 3, 3), 1.0) == 0
    matrix = torch.randn(4, 3, 1, 1)
    assert spectral_bound(matrix) == norm_bound(matrix)
    for bad in (torch.nan, torch.inf):
        weight = torch.randn(3, 3, 3, 3)
        weight[0, 0, 0, 0] = bad
        assert math.isnan(spectral_bound(weight)) and math.isnan(spectral_bound(weight, 1.0))


def test_a_decomposition_that_is_wrong_makes_the_bound_larger_not_smaller(monkeypatch):
    weight = torch.randn(3, 3, 3, 3)
    true = true_norm(weight)
    plain = torch.linalg.cholesky_ex

    def wrong(matrices):
        lower, info = plain(matrices + 30 * torch.eye(3, dtype=matrices.dtype))
        return lower, torch.zeros_like(info)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", wrong)
    _known.clear()
    assert spectral_bound(weight, true / 10) >= true
    _known.clear()


# layers against their formulas -------------------------------------------------------------------------------------------------------

def test_cpl_is_its_formula():
    layer = random_(CPLConv2d(3, 5, bias=True).double())
    values = torch.fft.fft2(layer.weight.detach(), s=(24, 24)).permute(2, 3, 0, 1)
    sigma = torch.linalg.matrix_norm(values, 2).amax() / math.cos(math.pi * 2 / 48) ** 2
    z = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    inner = F.relu(F.conv2d(z, layer.weight, padding=1) + layer.bias)
    expected = z - 2 / sigma**2 * F.conv_transpose2d(inner, layer.weight, padding=1)
    for _ in range(100):
        found = layer(z)
    assert torch.allclose(found, expected, atol=1e-6), "power iteration has found the largest value of the grid"
    assert torch.allclose(layer.compute_t(), sigma**-2 * torch.ones(5, dtype=torch.float64), rtol=1e-5)
    assert torch.allclose(layer.eval()(z), expected, atol=0.05 * (z - expected).norm().item())
    assert layer.q is None and set(layer.state_dict()) == {"weight", "bias", "directions"}


def test_the_gradient_of_cpl_is_that_of_the_formula():
    layer = random_(CPLConv2d(3, 4, bias=True).double())
    z = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    for _ in range(300):
        layer(z)
    weight = layer.weight.detach().requires_grad_()
    values = torch.fft.fft2(weight, s=(24, 24)).permute(2, 3, 0, 1)
    sigma = torch.linalg.matrix_norm(values, 2).amax() / math.cos(math.pi * 2 / 48) ** 2
    inner = F.relu(F.conv2d(z, weight, padding=1) + layer.bias.detach())
    expected, = torch.autograd.grad((z - 2 / sigma**2 * F.conv_transpose2d(inner, weight, padding=1)).square().sum(), weight)
    for mode, tolerance in ((True, 1e-5), (False, 0.02)):
        found, = torch.autograd.grad(layer.train(mode)(z).square().sum(), layer.weight)
        assert (found - expected).norm() <= tolerance * expected.norm()


def test_aol_is_its_formula():
    layer = random_(AOLConv2d(3, 4).double())
    weight, sums = layer.weight.detach(), torch.zeros(3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    sums[i] += abs(sum(weight[c, i, y, x] * weight[c, j, y + dy, x + dx] for c in range(4) for y in range(3) for x in range(3)
                                       if 0 <= y + dy < 3 and 0 <= x + dx < 3))
    z = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    expected = F.conv2d(z * sums.rsqrt()[:, None, None], weight, layer.bias, padding=1)
    assert torch.allclose(layer(z), expected, atol=1e-12)


def test_aol_loses_nothing_at_the_start():
    layer, z = AOLConv2d(6, 6).requires_grad_(False), torch.randn(2, 6, 5, 5)
    assert layer(z).norm() == pytest.approx(z.norm().item(), rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [CayleyConv2d, BROConv2d])
def test_circular_layers_are_their_formulas(kind, size):
    layer = random_(kind(4, size).double())
    n, z = size, torch.randn(2, 4, *size, dtype=torch.float64)
    # the spectrum by a transform that has nothing to do with ours: of the response to an impulse in each channel, and its sign with it
    kernel = layer.weight.detach()
    impulse = torch.zeros(kernel.shape[1], kernel.shape[1], *n, dtype=torch.float64)
    impulse[range(len(impulse)), range(len(impulse)), 0, 0] = 1
    response = F.conv2d(F.pad(impulse, (1, 1, 1, 1), mode="circular"), kernel)
    values = torch.fft.fft2(response).permute(2, 3, 1, 0)
    assert torch.allclose(_spectrum(kernel, size), values[:, :size[1] // 2 + 1].flatten(0, 1), atol=1e-12)
    identity = torch.eye(4, dtype=torch.complex128)
    if kind is CayleyConv2d:
        skew = values - values.mH
        unitary = torch.linalg.solve(identity + skew, identity - skew)
    else:
        unitary = identity - 2 * values @ torch.linalg.pinv(values)
    spectrum = (unitary @ torch.fft.fft2(z).permute(2, 3, 1, 0)).permute(3, 2, 0, 1)
    expected = torch.fft.ifft2(spectrum)
    assert expected.imag.abs().amax() < 1e-12 and torch.allclose(layer(z), expected.real + layer.bias[:, None, None], atol=1e-11)
    with pytest.raises(ValueError, match="this layer is for"):
        layer(torch.zeros(1, 4, 9, 9))


# 1-Lipschitz, in every state ---------------------------------------------------------------------------------------------------------

def blocks(size):
    return {"cpl": CPLConv2d(3, 4, bias=True), "cpl_1": CPLConv2d(4, 3, 1), "cpl_5": CPLConv2d(2, 3, 5), "aol": AOLConv2d(3, 4),
            "aol_1": AOLConv2d(4, 3, 1), "cayley": CayleyConv2d(3, size), "bro": BROConv2d(4, size)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", blocks((4, 4)))
def test_jacobians_before_and_after_steps_of_an_optimiser(name, size):
    torch.manual_seed(0)
    layer = blocks(size)[name].double()
    channels = layer.weight.shape[1] if name != "bro" else 4
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    network = nn.Sequential(layer, MaxMin()) if name in ("aol", "bro") else layer
    for step in range(21):
        if step % 10 == 0:
            for mode in (True, False):
                singular = torch.linalg.svdvals(jacobian(layer.train(mode), (channels, *size), step))
                # power iteration may be behind in training
                assert singular[0] <= (1 + 1e-6 if mode is False or "cpl" not in name else 1.02)
                if name in ("cayley", "bro"):
                    assert singular[-1] >= 1 - 1e-10 and singular[0] <= 1 + 1e-10
                bound = lipschitz_bound(layer, (channels, *size))
                assert layer.training is mode and bound <= 1 + TOLERANCE
            assert singular[0] <= bound * (1 + 1e-12), "of eval mode"
            layer.train()
        optimizer.zero_grad()
        (-network(torch.randn(4, channels, *size, dtype=torch.float64)).square().sum()).backward()
        optimizer.step()


SCALINGS = {
    "nearly equal": lambda w: w.copy_(torch.eye(4)[:, :, None, None] * F.pad(torch.ones(1, 1, 1, 1), (1, 1, 1, 1)) * (1 + 1e-7 * torch.arange(4.)[:, None, None, None])),
    "tiny": lambda w: w.mul_(1e-30), "huge": lambda w: w.mul_(1e30), "uneven": lambda w: w.mul_(10.0 ** torch.linspace(-12, 12, 4)[:, None, None, None]),
    "uneven columns": lambda w: w.mul_(10.0 ** torch.linspace(-9, 9, 4)[None, :, None, None]),
    "zero": lambda w: w.zero_(), "zero rows": lambda w: w[::2].zero_(), "equal rows": lambda w: w.copy_(w[:1].expand_as(w)),
    "one tap": lambda w: (w.zero_(), w[0, 0, 0, 0].fill_(3)), "low rank": lambda w: w.copy_(w[:1] * torch.arange(1, 5)[:, None, None, None]),
}


@pytest.mark.parametrize("how", SCALINGS)
@pytest.mark.parametrize("directions", ["fresh", "converged elsewhere", "orthogonal", "zero"])
def test_cpl_is_never_certified_too_much(how, directions):
    """Whatever the power iteration is stuck at, sigma and the constant of eval mode are right."""
    torch.manual_seed(3)
    layer = CPLConv2d(4, 4, bias=True)
    with torch.no_grad():
        SCALINGS[how](layer.weight)
        if directions == "fresh":
            layer.directions.normal_()
        elif directions == "zero":
            layer.directions.zero_()
        elif directions == "orthogonal":  # to the largest singular vector: it is never found from here but by rounding
            values = torch.fft.fft2(layer.weight.double(), s=(24, 24)).permute(2, 3, 0, 1)[:, :13].reshape(-1, 4, 4)
            last = torch.linalg.svd(torch.nan_to_num(values / values.abs().amax().clamp_min(1e-300)))[2][:, -1].conj()
            layer.directions.copy_(torch.stack((last.real, last.imag)))
    layer.eval()
    weight = layer.rescaled()[0].detach()
    assert weight.isfinite().all() and true_norm(weight) <= 1 + 1e-6
    assert (true_norm(weight) >= 0.97) == (how != "zero")
    bound = lipschitz_bound(layer, (4, 5, 4))
    double = copy.deepcopy(layer.folded()).double()
    assert torch.linalg.matrix_norm(jacobian(double, (4, 5, 4)), 2) <= bound <= 1 + TOLERANCE
    assert layer.folded().norm() >= true_norm(weight) * (1 - 1e-3) and torch.linalg.matrix_norm(zero_padded(weight, (5, 4)), 2) <= layer.folded().norm()


def test_a_sigma_that_is_too_small_is_refused(monkeypatch):
    layer = CPLConv2d(4, 4, bias=True).eval()
    plain = CPLConv2d.compute
    monkeypatch.setattr(CPLConv2d, "compute", lambda self, *sources: (plain(self, *sources)[0] * 1.05, None))
    with pytest.raises(InputError, match=r"its Lipschitz constant may be 1\.(19|2)"):
        lipschitz_bound(nn.Sequential(layer), (4, 5, 5))


@pytest.mark.parametrize("how", SCALINGS)
def test_aol_at_hostile_scales(how):
    torch.manual_seed(0)
    layer = random_(AOLConv2d(4, 4))
    with torch.no_grad():
        SCALINGS[how](layer.weight)
    weight = layer.rescaled()[0].detach()
    bound = lipschitz_bound(layer, (4, 5, 5))
    assert weight.isfinite().all() and true_norm(weight) <= bound * (1 + 1e-9) and bound <= 1 + TOLERANCE


def test_the_constant_of_aol_is_that_of_its_spectrum_where_rows_overlap_with_both_signs():
    layer = random_(AOLConv2d(12, 12))
    weight = layer.rescaled()[0].detach()
    assert true_norm(weight) <= lipschitz_bound(layer, (12, 6, 6)) <= 1.02 * true_norm(weight) < 0.8
    one = AOLConv2d(6, 6)
    assert lipschitz_bound(one, (6, 5, 5)) == pytest.approx(1, abs=1e-6), "where rows do not, that of the rescaling: the grid would lose 1.7 %"


@pytest.mark.parametrize("kind", [CayleyConv2d, BROConv2d])
@pytest.mark.parametrize("how", SCALINGS)
def test_matrices_that_are_not_unitary_as_computed_are_refused_or_paid_for(kind, how):
    layer, weight = random_(kind(4, (4, 5))), torch.randn(4, 4, 3, 3)
    SCALINGS[how](weight)
    with torch.no_grad():
        layer.weight.copy_(weight[:, :layer.weight.shape[1]])
    layer.eval()
    true = torch.linalg.matrix_norm(jacobian(copy.deepcopy(layer.folded()).double(), (4, 4, 5)).nan_to_num(1e9), 2).item()
    if how in ("tiny", "nearly equal") or kind is CayleyConv2d and how not in ("huge", "uneven", "uneven columns"):
        assert true <= lipschitz_bound(layer, (4, 4, 5)) <= 1 + TOLERANCE
        return
    try:
        assert true <= lipschitz_bound(layer, (4, 4, 5)) <= 1 + TOLERANCE
    except InputError as error:
        assert "Lipschitz constant may be" in str(error)


@pytest.mark.parametrize("size", SIZES)
def test_singular_values(size):
    for layer in (AOLConv2d(3, 4), CayleyConv2d(4, size), BROConv2d(4, size)):
        folded = random_(layer).eval().folded()
        found = folded.singular_values((layer.weight.shape[1], *size))
        if isinstance(layer, AOLConv2d):
            assert found.amax() <= folded.norm() and len(found) == 3 * math.prod(size)
        else:
            assert torch.allclose(found, torch.linalg.svdvals(jacobian(copy.deepcopy(folded).double(), (4, *size))), atol=1e-6)


# rounding ----------------------------------------------------------------------------------------------------------------------------

def exact(values):
    return np.vectorize(Fraction, otypes=[object])(values.detach().double().numpy())


def length(values):
    return math.sqrt(sum(float(value) ** 2 for value in values.reshape(-1)))


@pytest.mark.parametrize("size", [(3, 4), (2, 3)])
def test_the_rounding_of_circular_layers_against_exact_arithmetic(size):
    layer = random_(CayleyConv2d(2, size)).eval().folded().requires_grad_(False).double()
    h, w = size
    half, z = w // 2 + 1, torch.rand(2, *size, dtype=torch.float64) - 0.5
    columns, rows, matrices, bias = (exact(p) for p in (layer.columns, layer.rows, layer.weight, layer.bias))
    wave = lambda u, v, y, x: (  # noqa: E731  the entry of J as it is stored, real and imaginary part
        rows[u, y] * columns[v, 0, x] - rows[h + u, y] * columns[v, 1, x], rows[u, y] * columns[v, 1, x] + rows[h + u, y] * columns[v, 0, x])
    image, out = exact(z), np.zeros((2, *size), dtype=object)
    for u in range(h):
        for v in range(half):
            parts = [[sum(wave(u, v, y, x)[p] * image[c, y, x] for y in range(h) for x in range(w)) for p in (0, 1)] for c in (0, 1)]
            q = matrices[u * half + v]
            turned = [(sum(q[o, c] * parts[c][0] - q[2 + o, c] * parts[c][1] for c in (0, 1)),
                       sum(q[o, c] * parts[c][1] + q[2 + o, c] * parts[c][0] for c in (0, 1))) for o in (0, 1)]
            for o in (0, 1):
                for y in range(h):
                    for x in range(w):
                        out[o, y, x] += turned[o][0] * wave(u, v, y, x)[0] + turned[o][1] * wave(u, v, y, x)[1]
    out = out + bias[:, None, None]
    error = length(exact(layer(z[None])[0]) - out)
    state = layer.proven_rounding(State(z.norm().item(), 0.0), (2, *size))
    assert 0 < error <= state.error < 1e-13 and length(out) <= state.size
    assert layer.proven_rounding(State(z.norm().item(), 1e-3), (2, *size)).error >= 1e-3


def test_the_rounding_of_aol_against_exact_arithmetic():
    layer = random_(AOLConv2d(2, 3)).folded().requires_grad_(False).double()
    z = torch.rand(2, 4, 3, dtype=torch.float64) - 0.5
    expected = exact(zero_padded(layer.weight, (4, 3))) @ exact(z).reshape(-1) + np.repeat(exact(layer.bias), 12)
    state = layer.proven_rounding(State(z.norm().item(), 0.0), (2, 4, 3))
    assert 0 < length(exact(layer(z[None])).reshape(-1) - expected) <= state.error < 1e-13 and length(expected) <= state.size


# networks ----------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module", params=NAMES)
def small(request):
    """A network of each layer with two blocks; weights that are not those of the start."""
    torch.manual_seed(0)
    network = get_backbone(request.param, depth=2, channels=16, emb_size=16)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * p.abs().mean() * torch.randn_like(p))
    return network


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0)) - 0.5


def test_the_names():
    assert set(NAMES) <= set(backbone_names()) and all(is_lipschitz(name) for name in NAMES)
    for name in NAMES:
        with torch.device("meta"):
            network = get_backbone(name)
        steps = chain(network, (3, 112, 112))
        assert {tuple(step.shape) for step in steps if step.name.startswith("blocks")} == {(64, 8, 8)} and steps[-1].shape == (64 * 8 * 8,)
    assert ZooNet(stem="pixels", depth=0).linear.weight.shape == (128, 64 * 28 * 28)
    for wrong in ({"layer": "SLL"}, {"stem": "no"}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} '.*': expected one of"):
            ZooNet(**wrong)


def test_a_network_of_each_layer_is_proven_folded_stored_and_followed(small, images, tmp_path):
    small = copy.deepcopy(small).eval()
    bound = lipschitz_bound(small, (3, 112, 112))
    assert 0 < bound <= 1 + 1e-4
    with torch.no_grad():
        found = small(images)
        assert torch.allclose(fold(small)(images), found, rtol=1e-4, atol=1e-5)
        assert torch.allclose(followed(small, (3, 112, 112))(images), found)
        for block in small.blocks:
            x, y = torch.randn(2, 2, 16, 8, 8)
            y = x + 0.1 * y
            assert ((block(x) - block(y)).flatten(1).norm(dim=1) <= (1 + 1e-5) * (x - y).flatten(1).norm(dim=1)).all()
        torch.save(small.state_dict(), tmp_path / "w.pt")
        loaded = load_network(small.built_as[0], tmp_path / "w.pt", **small.built_as[1])
        assert torch.equal(loaded(images), found)
        tight = load_network(small.built_as[0], tmp_path / "w.pt", tight=True, **small.built_as[1])
        assert torch.allclose(tight(images) * bound, found, rtol=1e-5)
        sound = load_sound(small.built_as[0], tmp_path / "w.pt", **small.built_as[1])
        proof = sound.prove((3, 112, 112))
        assert 0 < proof.error < 1e-8 and proof.lipschitz == pytest.approx(bound, rel=1e-6)
        assert torch.allclose(sound(images.double()).float(), found, atol=1e-5)


@pytest.mark.parametrize("name", ["cpl", "aol", "cayley", "bro"])
def test_export(name, tmp_path):
    torch.manual_seed(0)
    network, z = chains()[name].eval(), torch.randn(3, 4, 4, 4)
    with torch.no_grad():
        found = network(z)
    for ending in (".pt", ".pt2", ".ts"):
        export(network, tmp_path / f"m{ending}", (4, 4, 4))
    assert torch.allclose(torch.export.load(tmp_path / "m.pt2").module()(z), found, rtol=1e-4, atol=1e-5)
    assert torch.allclose(torch.jit.load(str(tmp_path / "m.ts"))(z), found, rtol=1e-4, atol=1e-5)
    plain = fold(chains()[name])
    plain.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
    assert torch.allclose(plain(z), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cpl", "cayley", "bro"])
def test_what_is_folded_in_training_is_the_network_of_eval_mode(name):
    network, z = random_(chains()[name]).train(), torch.randn(3, 4, 4, 4)
    if name == "cpl":
        network[0].directions.normal_()  # a power iteration that is far from its end
    before = {key: value.clone() for key, value in network.state_dict().items()}
    plain = fold(network)
    assert network.training and all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert lipschitz_bound(plain, (4, 4, 4)) == lipschitz_bound(network, (4, 4, 4)) <= 1 + 1e-5
    assert torch.allclose(plain(z), network.eval()(z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["aol", "cayley"])
def test_onnx(name, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    export(random_(chains()[name]).eval(), tmp_path / "m.onnx", (4, 4, 4))  # which compares embeddings
    assert (tmp_path / "m.onnx").exists()


# what training and PyTorch do with them ----------------------------------------------------------------------------------------------

def chains():
    return {"cpl": nn.Sequential(CPLConv2d(4, 4, bias=True), nn.Flatten()), "aol": nn.Sequential(AOLConv2d(4, 4), MaxMin(), nn.Flatten()),
            "cayley": nn.Sequential(CayleyConv2d(4, (4, 4)), MaxMin(), nn.Flatten()), "bro": nn.Sequential(BROConv2d(4, (4, 4)), MaxMin(), nn.Flatten())}


@pytest.mark.parametrize("name", chains())
def test_transforms_of_functions(name):
    torch.manual_seed(0)
    network, z = chains()[name].eval(), torch.randn(3, 4, 4, 4)
    parameters = dict(network.named_parameters())
    other = {key: p.detach() * 1.5 + 0.1 for key, p in parameters.items()}
    twin = copy.deepcopy(network)
    twin.load_state_dict({**network.state_dict(), **other})

    def call(values, images):
        return torch.func.functional_call(network, values, (images,))

    with torch.no_grad():
        mine = network(z)
        assert torch.allclose(torch.func.vmap(lambda image: network(image[None])[0])(z), mine, atol=1e-6)
        both = {key: torch.stack((p.detach(), other[key])) for key, p in parameters.items()}
        assert torch.allclose(torch.func.vmap(call, (0, None))(both, z), torch.stack((mine, twin(z))), atol=1e-5)
    gradients = torch.func.vmap(torch.func.grad(lambda p, image: call(p, image[None]).square().sum()), (None, 0))(other, z)
    for number, image in enumerate(z):
        twin.zero_grad()
        twin(image[None]).square().sum().backward()
        for key, p in twin.named_parameters():
            assert torch.allclose(gradients[key][number], p.grad, rtol=1e-3, atol=1e-4)
    direction = torch.randn_like(z)
    tangent = torch.func.jvp(network, (z,), (direction,))[1]
    full = torch.autograd.functional.jacobian(network, z)
    assert torch.allclose(tangent, torch.einsum("niNabc,Nabc->ni", full, direction), atol=1e-5)


@pytest.mark.parametrize("name", chains())
def test_rescaling_once_and_compiled(name):
    torch.manual_seed(0)
    torch._dynamo.reset()
    network = chains()[name].double()
    z = torch.randn(6, 4, 4, 4, dtype=torch.float64)
    for _ in range(300 if name == "cpl" else 0):
        network(z[:1])
    network(z).square().sum().backward()
    expected = [p.grad.clone() for p in network.parameters()]
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    for call in (network, compiled):
        network.zero_grad()
        with RescaledOnce(network) as rescaling:
            for number, part in enumerate(z.chunk(3)):
                if number == 2:
                    rescaling.last()
                call(part).square().sum().backward()
        for p, gradient in zip(network.parameters(), expected, strict=True):
            assert torch.allclose(p.grad, gradient, rtol=1e-5, atol=1e-7)
    network.eval()
    torch._dynamo.reset()
    assert torch.allclose(torch.compile(network, backend="aot_eager")(z), network(z))


def test_what_is_kept_is_that_of_the_mode():
    """Eval mode has another sigma; `lipschitz_bound` puts the network into it and back without telling the layer."""
    torch.manual_seed(0)
    layer, z = random_(CPLConv2d(4, 4, bias=True)), torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        layer.directions.normal_()
    lipschitz_bound(layer, (4, 5, 5))
    before = layer.directions.clone()
    with torch.no_grad():
        training = layer(z)
    assert not torch.equal(before, layer.directions), "training iterates"
    layer.eval()
    kept = layer.directions.clone()
    with torch.no_grad():
        assert not torch.allclose(layer(z), training, atol=1e-5)
    assert torch.equal(kept, layer.directions), "evaluation does not"


def test_the_power_iteration_follows_training_and_is_stored():
    torch.manual_seed(0)
    layer = CPLConv2d(8, 8, bias=True)
    optimizer, z, target = torch.optim.Adam(layer.parameters(), lr=1e-3), torch.randn(8, 8, 6, 6), torch.randn(8, 8, 6, 6)
    for _ in range(60):
        optimizer.zero_grad()
        (layer(z) - target).square().mean().backward()
        optimizer.step()
    assert 0.95 <= true_norm(layer.rescaled()[0].detach()) <= 1.02
    twin = CPLConv2d(8, 8, bias=True)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(z), layer(z)), "training resumes as it went on"


def test_halves_and_autocast():
    layer = random_(CPLConv2d(4, 4, bias=True))
    weight = layer.eval().rescaled()[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(copy.deepcopy(layer).rescaled()[0], weight)
    orthogonal = random_(CayleyConv2d(4, (4, 4))).eval()
    matrices = orthogonal.rescaled()[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(copy.deepcopy(orthogonal).rescaled()[0], matrices)


def test_even_kernels_are_refused():
    for kind in (AOLConv2d, CPLConv2d):
        with pytest.raises(ValueError, match="must be odd"):
            kind(4, 4, kernel_size=2)


def test_layers_against_another_library():
    """Where orthogonium is installed: its AOL has the same V for the same W, its Cayley convolution the same Q."""
    theirs = pytest.importorskip("orthogonium.layers.conv.AOL.aol").AOLConv2D(4, 4, 3, padding=1, bias=False)
    ours, z = random_(AOLConv2d(4, 4)), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        ours.bias.zero_()
        theirs.parametrizations.weight.original.copy_(ours.weight)
        assert torch.allclose(theirs(z), ours(z), atol=1e-5)
    theirs = pytest.importorskip("orthogonium.legacy.cayley_ortho_conv").Cayley(4, 4, 3, padding=1, bias=False)
    ours, z = random_(CayleyConv2d(4, (32, 32))), torch.randn(2, 4, 32, 32)
    with torch.no_grad():
        ours.bias.zero_()
        theirs.weight.copy_(ours.weight)
        values = torch.fft.rfft2(ours.weight, (32, 32))
        theirs.alpha.copy_(values.norm())  # their W is divided by its norm
        assert torch.allclose(theirs(z), ours(z), atol=1e-4)
