"""The proven Lipschitz constants: above the true ones for every kind of weights, close to them, and 1 plus what rounding adds."""
from fractions import Fraction

import pytest
import torch
from small_world import SIZE, Tiny
from test_layers import SCALINGS, adversarial, random_
from test_powers import dense_norm
from torch import nn

import backbones
from backbones import bounds, custom_layers, load_network, norms
from backbones.bounds import lipschitz_bound
from backbones.custom_layers import SLLConv2d, SLLLinear, row_quotients
from backbones.norms import norm_bound
from backbones.sound import Sound
from utils import InputError


def bound_of(layer, weight=None):
    """Of these weights V, or of the layer's own, with what the layer knows of them."""
    weight = layer.rescaled()[0] if weight is None else weight
    return norm_bound(weight, row_quotients(weight, layer.weight), layer.power)


@pytest.mark.parametrize("how", SCALINGS)
@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_the_bound_of_a_convolution_is_above_its_norm_and_one_with_its_own_power(power, how):
    layer = adversarial(random_(SLLConv2d(4, 5, 3, power=power)), how).requires_grad_(False)
    bound = bound_of(layer)
    assert dense_norm(layer.rescaled()[0].double(), 7) <= bound <= 1 + bounds.TOLERANCE
    assert bound > 0.999 or how in ("all zero", "zero rows", "extreme q", "uneven")


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("factor", [0.25, 1.5])
def test_the_bound_follows_weights_that_are_not_the_rescaled_ones(power, factor):
    layer = random_(SLLConv2d(4, 4, 3, power=power)).requires_grad_(False)
    right = bound_of(layer)
    assert bound_of(layer, factor * layer.rescaled()[0]) == pytest.approx(factor * right, rel=1e-6)
    other = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(3))  # nothing to do with this layer's W
    assert bound_of(layer, other) >= dense_norm(other.double(), 7)


def test_a_power_other_than_the_layers_proves_less():
    layer = random_(SLLConv2d(8, 8, 3, power=2)).requires_grad_(False)
    assert bound_of(layer) <= 1 + 1e-6
    layer.power = 1
    assert bound_of(layer.eval()) <= 1 + 1e-6, "the weights of the power 1"
    tighter = custom_layers.rescaled(layer.weight, None, layer.q, 2)[0]
    assert bound_of(layer, tighter) > 1.05, "row sums of the first power say less of the same weights"


def exact_square(v):
    """|v|^2 of a vector of float32 values, exactly."""
    return sum(Fraction(x.item()) ** 2 for x in v.flatten())


def test_weights_whose_rescaling_rounds_above_one_have_a_constant_above_one():
    """One row: V should be a unit vector, and its float32 rounding is a little longer for some weights."""
    above = 0
    for seed in range(12):
        weight = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed))
        dense, block = SLLLinear(3, 1).requires_grad_(False), SLLConv2d(3, 1, 1).requires_grad_(False)
        dense.weight.copy_(weight), block.weight.copy_(weight.view(1, 3, 1, 1))
        for layer, square in ((layer, exact_square(layer.rescaled()[0])) for layer in (dense, block)):
            bound = lipschitz_bound(nn.Sequential(layer), (3,) if layer is dense else (3, 1, 1))
            true = square if layer is dense else (2 * square - 1) ** 2  # squared, to stay within fractions
            assert Fraction(bound) ** 2 >= true, "never below"
            assert bound == pytest.approx(max(1, float(true) ** 0.5) if layer is block else float(true) ** 0.5, rel=1e-11)
            above += square > 1 and bound > 1
    assert above >= 6, "the weights are such that it happens"


def test_small_terms_that_float32_loses_are_counted():
    layer = SLLLinear(4097, 1).requires_grad_(False)
    layer.weight.fill_(2.0**-12.5)
    layer.weight[0, 0] = 1
    true = float(exact_square(layer.rescaled()[0])) ** 0.5
    assert bound_of(layer) == pytest.approx(true, rel=1e-10)


@pytest.mark.parametrize("rows, columns", [(1, 5), (7, 3), (20, 300)])
def test_the_bound_of_a_matrix_is_tight_and_above(rows, columns):
    layer = random_(SLLLinear(columns, rows)).requires_grad_(False)
    true = torch.linalg.matrix_norm(layer.rescaled()[0].double(), 2).item()
    assert true <= bound_of(layer) <= true * (1 + 1e-9)


def test_a_wrong_decomposition_makes_the_bound_larger_never_smaller(monkeypatch):
    matrix = torch.randn(9, 9, dtype=torch.float64)
    matrix = matrix @ matrix.T
    true, plain = torch.linalg.eigvalsh(matrix)[-1].item(), torch.linalg.eigh
    assert true <= norms._largest_eigenvalue(matrix) <= true * (1 + 1e-9)

    def lost(found):  # as power iteration started without a part in the leading direction would
        values, vectors = plain(found)
        return values[:-1].clone(), vectors[:, :-1].clone()

    def tilted(found):
        values, vectors = plain(found)
        return values, vectors + 1e-3 * torch.randn_like(vectors)

    def low(found):
        values, vectors = plain(found)
        return 0.5 * values, vectors

    def unsorted(found):
        values, vectors = plain(found)
        return values.flip(0), vectors.flip(1)
    for wrong in (lost, tilted, low, unsorted):
        monkeypatch.setattr(torch.linalg, "eigh", wrong)
        assert norms._largest_eigenvalue(matrix) >= true, wrong.__name__


@pytest.mark.parametrize("layer, size", [(SLLConv2d(3, 3), (3, 3, 3)), (SLLConv2d(3, 3, 1), (3, 3, 3)), (SLLLinear(27, 4), (27,))])
def test_a_decomposition_that_fails_proves_nothing(monkeypatch, layer, size):
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (torch.full_like(matrix[0], torch.nan), torch.full_like(matrix, torch.nan)))
    network = nn.Sequential(layer).requires_grad_(False)
    for prove in (lambda network: lipschitz_bound(network, size), Sound):
        with pytest.raises(InputError, match="Lipschitz constant.* nan"):
            prove(network)


def test_layers_below_one_count_and_blocks_do_not():
    torch.manual_seed(0)  # where the signs of the four rows' products agree, as they do one time in eight, the row sums lose nothing
    block, dense = SLLConv2d(3, 3), SLLLinear(27, 4)
    nn.init.normal_(dense.weight)
    alone = lipschitz_bound(nn.Sequential(dense), (27,))
    assert alone < 1 and lipschitz_bound(nn.Sequential(block, nn.Flatten(), dense), (3, 3, 3)) == pytest.approx(alone, rel=1e-6)
    zero = SLLConv2d(3, 3)
    zero.weight.data.zero_()
    assert lipschitz_bound(nn.Sequential(zero), (3, 3, 3)) == pytest.approx(1, abs=1e-11)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    network = Tiny()
    nn.init.normal_(network[3].weight)  # rows that are nearly orthogonal: their row sums are larger than the norm
    torch.save(network.state_dict(), tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def test_tight_divides_the_embeddings_by_the_proven_constant(weights):
    plain, tight = load_network("tiny", weights), load_network("tiny", weights, tight=True)
    images = torch.rand(3, 3, 16, 16) - 0.5
    assert tight.lipschitz == lipschitz_bound(plain, SIZE) and 0.5 < tight.lipschitz < 0.95
    assert torch.equal(tight(images), plain(images) / tight.lipschitz)
    assert plain[3].norm() >= torch.linalg.matrix_norm(plain[3].weight.double(), 2)


def test_tight_needs_a_constant(weights, tmp_path):
    torch.save(backbones.get_backbone("net_mnist").state_dict(), tmp_path / "net.pt")
    with pytest.raises(InputError, match="net_mnist.*not 1-Lipschitz"):
        load_network("net_mnist", tmp_path / "net.pt", tight=True)
    state = torch.load(weights)
    state["3.weight"].zero_()
    torch.save(state, weights)
    with pytest.raises(InputError, match="tiny.pt: the last layer is zero"):
        load_network("tiny", weights, tight=True)


def test_a_tighter_network_is_verified_at_load_with_its_power(tmp_path):
    torch.manual_seed(0)
    network = backbones.get_backbone("sllnet_small", config=[1, 1, 0], power=2)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    loaded = load_network("sllnet_small", tmp_path / "w.pt", config=[1, 1, 0], power=2)
    image = torch.rand(1, 3, 112, 112) - 0.5
    with torch.no_grad():
        assert torch.allclose(loaded(image), network.eval()(image), rtol=1e-4, atol=1e-6)
        assert not torch.allclose(load_network("sllnet_small", tmp_path / "w.pt", config=[1, 1, 0])(image), loaded(image), rtol=1e-2)
