"""SLL layers against their formula, written out naively in float64, and against their claim: no singular value above 1."""
import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones import custom_layers as layers
from backbones import get_backbone, kept, kernels, norms, shapes
from backbones import rescaling as home
from backbones.custom_layers import Downsize, FirstChannels, MaxMin, PaddingChannels, SLLConv2d, SLLLinear, rescaled, rescaling
from backbones.shapes import HaarDownsize, RemoveMean
from backbones.sllnet import SLLNet

LIMIT = {torch.float32: 1 + 1e-5, torch.float64: 1 + 1e-12}


def naive_t(weight: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Equation (SLL) word for word, in float64: the whole zero-padded autocorrelation, all (2k-1)^2 shifts."""
    weight, q = weight.double(), q.double()
    correlation = F.conv2d(weight, weight, padding=weight.shape[-1] - 1) if weight.dim() == 4 else (weight @ weight.T)[:, :, None, None]
    sums = (correlation.abs().sum((2, 3)) * torch.exp(q[None, :] - q[:, None])).sum(1)
    return torch.where(sums > 0, 1 / sums, torch.zeros_like(sums))


def naive_conv(z, weight, bias, q):
    pad = weight.shape[-1] // 2
    inner = naive_t(weight, q).view(-1, 1, 1) * F.relu(F.conv2d(z, weight, padding=pad) + bias)
    return z - 2 * F.conv_transpose2d(inner, weight, padding=pad)


def random_(layer: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return layer


def largest_singular_value(layer: nn.Module, shape, seed: int) -> float:
    """Of the layer's Jacobian at a random point, computed in the layer's dtype; the decomposition in float64."""
    dtype = next(layer.parameters()).dtype
    z = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    jacobian = torch.autograd.functional.jacobian(layer, z).double()
    return torch.linalg.matrix_norm(jacobian.reshape(-1, z.numel()), 2).item()


def adversarial(layer: nn.Module, how: str) -> nn.Module:
    with torch.no_grad():
        rows = torch.linspace(-1, 1, len(layer.q), dtype=torch.float64)
        column = (-1,) + (1,) * (layer.weight.dim() - 1)
        if how == "tiny":
            layer.weight.mul_(1e-22)
        elif how == "huge":
            layer.weight.mul_(1e22)
        elif how == "enormous":
            layer.weight.mul_(1e36)
        elif how == "uneven":
            layer.weight.mul_((10 ** (20 * rows)).view(column))
        elif how == "equal rows":
            layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))
        elif how == "zero rows":
            layer.weight[::2] = 0
        elif how == "all zero":
            layer.weight.zero_()
        elif how == "extreme q":
            layer.q.copy_(500 * rows)
    return layer


SCALINGS = ("none", "tiny", "huge", "enormous", "uneven", "equal rows", "zero rows", "all zero", "extreme q")


def test_rescaling_against_loops():
    """The autocorrelation itself, tap by tap, so that the oracle above is checked too."""
    weight, q = torch.randn(3, 2, 3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    for i in range(3):
        total = 0.0
        for j in range(3):
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    overlap = sum(weight[i, c, y, x] * weight[j, c, y + dy, x + dx] for c in range(2) for y in range(3) for x in range(3)
                                  if 0 <= y + dy < 3 and 0 <= x + dx < 3)
                    total += abs(float(overlap)) * math.exp(q[j] - q[i])
        assert rescaling(weight, q)[i].item() == pytest.approx(1 / total, rel=1e-12)


@pytest.mark.parametrize("shape", [(7, 5, 1, 1), (6, 4, 2, 2), (6, 4, 3, 3), (3, 8, 5, 5)])
def test_rescaling_and_its_gradient_are_those_of_the_formula(shape):
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    q = torch.randn(shape[0], dtype=torch.float64, requires_grad=True)
    assert torch.allclose(rescaling(weight, q), naive_t(weight, q), rtol=1e-12)
    single = rescaling(weight.float(), q.float()).double()
    assert torch.allclose(single, naive_t(weight.float(), q.float()), rtol=1e-5)
    direction = torch.randn(shape[0], dtype=torch.float64)
    expected = torch.autograd.grad((naive_t(weight, q) * direction).sum(), (weight, q))
    found = torch.autograd.grad((rescaling(weight, q) * direction).sum(), (weight, q))
    for a, b in zip(found, expected):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_rescaling_gradient_of_a_dense_layer():
    dense, q = torch.randn(6, 9, dtype=torch.float64, requires_grad=True), torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rescaling, (dense, q))


def test_names_that_code_imports_from_here_are_those_of_their_homes():
    assert layers.rescaled is home.rescaled and layers.rescaling is home.rescaling
    assert layers.half_shifts is norms.half_shifts and layers.RescaledOnce is kept.RescaledOnce
    assert all(getattr(layers, name) is getattr(shapes, name) for name in ("Downsize", "FirstChannels", "MaxMin", "PaddingChannels"))
    assert all(hasattr(layers, name) for name in layers.__all__)


def layers_of_several_shapes():
    return nn.ModuleList([random_(layer).double() for layer in (SLLConv2d(4, 4, bias=True), SLLConv2d(3, 5), SLLConv2d(4, 4, bias=True), SLLLinear(7, 3, True),
                                                                SLLConv2d(4, 4, bias=True, power=2), SLLConv2d(4, 4), SLLLinear(7, 3, True))])


def test_layers_of_one_shape_together_are_those_alone():
    stack = layers_of_several_shapes()
    alone, together_ = [layer.fresh() for layer in stack], kept.all_fresh(stack)
    for pairs in zip(alone, together_):
        for one, other in zip(*pairs):
            assert (one is None and other is None) or (one.shape == other.shape and torch.allclose(one, other, rtol=1e-13, atol=0))
    wanted = [p for p in stack.parameters() if p.requires_grad]
    gradients = []
    for pairs in (alone, together_):
        torch.manual_seed(5)
        total = sum((value * torch.randn_like(value)).sum() for pair in pairs for value in pair if value is not None)
        gradients.append(torch.autograd.grad(total, wanted))
    for one, other in zip(*gradients):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-13)


def test_layers_of_one_shape_are_computed_at_once_in_a_forward_pass(monkeypatch):
    shapes_seen = []
    plain = kernels.RootOfT.apply
    monkeypatch.setattr(kernels.RootOfT, "apply", lambda w, q: (shapes_seen.append(tuple(w.shape)), plain(w, q))[1])
    network = get_backbone("sllnet_small", config=(2, 3, 1))
    out = network(torch.rand(2, 3, 112, 112) - 0.5)
    assert sorted(shapes_seen) == [(1, 128, 12544, 1, 1), (1, 256, 256, 3, 3), (2, 64, 64, 3, 3), (3, 128, 128, 3, 3)]
    assert all(module._shared is None for module in network.modules() if isinstance(module, kept.Rescaled))
    out.sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_an_error_in_a_forward_pass_leaves_no_weights_behind():
    network = get_backbone("sllnet_small")
    with pytest.raises(RuntimeError):
        network(torch.rand(2, 3, 100, 100))
    assert all(module._shared is None for module in network.modules() if isinstance(module, kept.Rescaled))


def test_constants_of_a_transform_are_not_kept_for_others(monkeypatch):
    monkeypatch.setattr(kernels, "_made", {})
    weight, q = torch.randn(4, 2, 3, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    expected = torch.func.grad(lambda w: rescaling(w, q).sum())(weight)
    each = torch.func.vmap(torch.func.grad(lambda w: rescaling(w, q).sum()))(weight[None].repeat(3, 1, 1, 1, 1))
    weight.requires_grad_()
    rescaling(weight, q).sum().backward()
    assert torch.allclose(weight.grad, expected) and torch.allclose(each, expected.expand_as(each))


def test_rescaling_of_dead_rows_is_zero():
    weight = torch.randn(4, 3, 3, 3)
    weight[2] = 0
    t = rescaling(weight, torch.randn(4))
    assert t[2] == 0 and (t[[0, 1, 3]] > 0).all()


def test_conv_is_the_formula():
    layer = random_(SLLConv2d(5, 5, bias=True).double())
    z = torch.randn(2, 5, 9, 8, dtype=torch.float64, requires_grad=True)
    expected = naive_conv(z, layer.weight, layer.bias, layer.q)
    found = layer(z)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(found)
    inputs = (z, layer.weight, layer.bias, layer.q)
    for a, b in zip(torch.autograd.grad((found * direction).sum(), inputs), torch.autograd.grad((expected * direction).sum(), inputs)):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)


def test_linear_is_the_formula():
    layer = random_(SLLLinear(11, 6, bias=True).double())
    z = torch.randn(3, 11, dtype=torch.float64)
    root = naive_t(layer.weight, torch.zeros(6)).sqrt()
    assert torch.allclose(layer(z), root * (z @ layer.weight.T + layer.bias), rtol=1e-12)


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("how", SCALINGS)
@pytest.mark.parametrize("make, shape", [(lambda: SLLConv2d(3, 3, bias=True), (3, 5, 5)), (lambda: SLLConv2d(4, 6, 1), (4, 3, 3)),
                                         (lambda: SLLConv2d(2, 5, 5), (2, 6, 6)), (lambda: SLLConv2d(3, 4, 3, stride=2), (3, 6, 5)),
                                         (lambda: SLLLinear(20, 7), (20,))])
def test_no_singular_value_above_one(make, shape, how, dtype):
    for seed in range(3):
        layer = adversarial(random_(make().to(dtype), seed), how)
        for mode in (True, False):
            value = largest_singular_value(layer.train(mode), shape, seed)
            assert value <= LIMIT[dtype] and math.isfinite(value)


@pytest.mark.parametrize("dtype", LIMIT)
def test_no_singular_value_above_one_during_training(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(SLLConv2d(4, 4, bias=True), nn.Flatten(), SLLLinear(4 * 25, 10)).to(dtype)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for step in range(30):
        if step % 10 == 0:
            for layer, shape in ((net[0], (4, 5, 5)), (net[2], (100,))):
                assert largest_singular_value(layer, shape, step) <= LIMIT[dtype]
        optimizer.zero_grad()
        (-net(torch.randn(8, 4, 5, 5, dtype=dtype)).square().sum()).backward()
        optimizer.step()
    assert largest_singular_value(net, (4, 5, 5), 1) <= LIMIT[dtype]


@pytest.mark.parametrize("shape", [(192, 176, 3, 3), (200, 160, 3, 3), (40, 30, 1, 1), (32, 2500)])
def test_rescaling_in_float32_is_that_in_float64(shape):
    """Where float32 products are convolutions: rows in 16 images and in one, and longer than a part."""
    found = []
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(1)
        weight, q = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(), torch.randn(shape[0]).to(dtype).requires_grad_()
        direction = torch.randn(shape[0]).to(dtype)
        t = rescaling(weight, q)
        found.append([t, *torch.autograd.grad((t * direction).sum(), (weight, q))])
    for exact, single in zip(*found):
        assert (single - exact).norm() <= 1e-5 * exact.norm()


def test_the_bound_is_tight():
    """A 1x1 orthogonal kernel with equal q reaches 1, so a bound that were looser or t that were larger would be seen."""
    layer = SLLConv2d(4, 4, 1)
    with torch.no_grad():
        layer.q.zero_()
    assert torch.allclose(rescaling(layer.weight, layer.q), torch.ones(4), atol=1e-5)


@pytest.mark.parametrize("name", ["sllnet_small", "sllnet_plus", "sllnet_mnist"])
def test_networks_are_1_lipschitz(name):
    network = random_(get_backbone(name)).double()
    shape = (1, 28, 28) if name == "sllnet_mnist" else (3, 112, 112)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4, *shape, generator=generator, dtype=torch.float64) - 0.5
    for scale in (1e-3, 1.0):
        delta = scale * torch.randn(4, *shape, generator=generator, dtype=torch.float64)
        moved = (network(x + delta) - network(x)).flatten(1).norm(dim=1)
        assert (moved <= delta.flatten(1).norm(dim=1) * (1 + 1e-12)).all()


def test_half_precision_keeps_t_in_float32(monkeypatch):
    seen = []
    plain = kernels.RootOfT.apply
    monkeypatch.setattr(kernels.RootOfT, "apply", lambda w, q: (seen.append((w.dtype, q.dtype)), plain(w, q))[1])
    layer = random_(SLLConv2d(8, 8, bias=True))
    z = torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        weight, _ = rescaled(layer.weight, layer.bias, layer.q)
        out = layer(z)
    assert weight.dtype == torch.float32 and torch.equal(weight, rescaled(layer.weight, layer.bias, layer.q)[0])
    assert out.dtype == torch.float32 and torch.allclose(out, layer(z), atol=0.05)
    copy.deepcopy(layer).to(torch.bfloat16)(z.bfloat16())
    assert set(seen) == {(torch.float32, torch.float32)}


def test_fp16_network_keeps_the_dense_layer_in_float32():
    torch.manual_seed(0)
    network = SLLNet([1, 1, 1, 1], emb_size=8, fp16=True)
    seen = []
    network.linear.register_forward_pre_hook(lambda module, inputs: seen.append((inputs[0].dtype, torch.is_autocast_enabled("cpu"))))
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 112, 112)).dtype == torch.float32
    assert seen == [(torch.float32, False)]


# what is kept in eval mode must never be stale -------------------------------------------------------------------------------------

def fresh(layer, z):
    """What a copy gives that kept nothing."""
    return copy.deepcopy(layer)(z)


def edit_in_place(layer):
    with torch.no_grad():
        layer.weight.mul_(2).add_(0.1)


def edit_q(layer):
    with torch.no_grad():
        layer.q.copy_(torch.linspace(-1, 1, len(layer.q)))


def edit_bias(layer):
    with torch.no_grad():
        layer.bias.add_(1)


def load(layer):
    layer.load_state_dict(random_(copy.deepcopy(layer), 9).state_dict())


def load_assign(layer):
    layer.load_state_dict({k: v.clone() + 0.5 for k, v in layer.state_dict().items()}, assign=True)


def replace_data(layer):
    layer.weight.data = torch.randn_like(layer.weight)


def edit_data(layer):
    layer.weight.data.mul_(2)


def edit_data_of_q(layer):
    layer.q.data.copy_(torch.linspace(-1, 1, len(layer.q)))


def edit_through_numpy(layer):
    layer.bias.detach().numpy()[:] += 1


def replace_parameter(layer):
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def to_vector(layer):
    vector = nn.utils.parameters_to_vector(layer.parameters())
    nn.utils.vector_to_parameters(2 * vector + 0.1, layer.parameters())


def optimise(layer):
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.5)
    layer(torch.ones(1, 4, 5, 5)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("change", [edit_in_place, edit_q, edit_bias, load, load_assign, replace_data, edit_data,
                                    edit_data_of_q, edit_through_numpy, replace_parameter, to_vector, optimise])
def test_kept_weights_follow_every_change(change):
    layer, z = random_(SLLConv2d(4, 4, bias=True)).eval(), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        before = layer(z)
        assert torch.equal(before, layer(z))
    change(layer)
    with torch.no_grad():
        assert torch.equal(layer(z), fresh(layer, z)) and not torch.equal(layer(z), before)


def test_kept_weights_follow_moves_and_copies():
    layer, z = random_(SLLConv2d(4, 4, bias=True)).eval(), torch.randn(2, 4, 5, 5)
    with torch.inference_mode():
        single = layer(z)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.mul_(3)
        assert not torch.equal(twin(z), layer(z)) and torch.equal(layer(z), single)
        assert layer.double()(z.double()).dtype == torch.float64
        assert torch.allclose(layer(z.double()), fresh(layer, z.double()), rtol=1e-12)
        assert layer.float().train()(z).dtype == torch.float32


def test_kept_weights_follow_parameters_made_in_inference_mode():
    with torch.inference_mode():
        layer, z = random_(SLLConv2d(4, 4, bias=True)).eval(), torch.randn(2, 4, 5, 5)
        before = layer(z)
        layer.weight.mul_(2)
        assert torch.equal(layer(z), fresh(layer, z)) and not torch.equal(layer(z), before)


def test_nothing_is_kept_in_a_copy_or_a_file():
    layer = random_(SLLConv2d(4, 4)).eval()
    with torch.no_grad():
        layer(torch.zeros(1, 4, 5, 5))
    assert layer._kept is not None and copy.deepcopy(layer)._kept is None and pickle.loads(pickle.dumps(layer))._kept is None


def test_functional_calls_see_their_own_parameters():
    """torch.func: other parameters than the network's, several at once, and their gradients sample by sample."""
    network = nn.Sequential(random_(SLLConv2d(3, 3, bias=True)), nn.Flatten(), random_(SLLLinear(48, 5))).eval()
    z = torch.randn(4, 3, 4, 4)
    other = {name: p.detach() * 1.5 + 0.1 for name, p in network.named_parameters()}
    twin = copy.deepcopy(network)
    twin.load_state_dict(other)

    def call(parameters, images):
        return torch.func.functional_call(network, parameters, (images,))

    with torch.no_grad():
        mine = network(z)
        assert torch.equal(call(other, z), twin(z)) and torch.equal(network(z), mine)
        both = {name: torch.stack((p.detach(), other[name])) for name, p in network.named_parameters()}
        found = torch.func.vmap(call, (0, None))(both, z)
        assert torch.allclose(found, torch.stack((mine, twin(z))), atol=1e-6)
        assert torch.allclose(torch.func.vmap(lambda image: network(image[None])[0])(z), mine, atol=1e-6)
    gradients = torch.func.vmap(torch.func.grad(lambda p, image: call(p, image[None]).square().sum()), (None, 0))(other, z)
    for number, image in enumerate(z):
        twin.zero_grad()
        twin(image[None]).square().sum().backward()
        for name, p in twin.named_parameters():
            assert p.grad is None or torch.allclose(gradients[name][number], p.grad, rtol=1e-4, atol=1e-5)
    jacobian = torch.func.jacrev(network)(z[:1])[0, :, 0]
    assert torch.allclose(jacobian, torch.autograd.functional.jacobian(network, z[:1])[0, :, 0], atol=1e-6)


def test_what_is_kept_is_used_and_never_hides_gradients(monkeypatch):
    calls = []
    plain = layers.rescaled
    monkeypatch.setattr(layers, "rescaled", lambda *a: (calls.append(1), plain(*a))[1])
    layer, z = random_(SLLConv2d(4, 4, bias=True)).eval(), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        layer(z), layer(z)
    assert len(calls) == 1
    layer(z).sum().backward()
    assert layer.weight.grad is not None and layer.q.grad is not None and len(calls) == 2
    layer.requires_grad_(False)
    z.requires_grad_()
    layer(z).sum().backward()
    assert z.grad is not None and len(calls) == 2


def test_rescaling_once_for_several_passes_gives_the_whole_gradient(monkeypatch):
    calls = []
    plain = kernels.RootOfT.apply
    monkeypatch.setattr(kernels.RootOfT, "apply", lambda *a: (calls.append(1), plain(*a))[1])
    network = nn.Sequential(random_(SLLConv2d(4, 4, bias=True)), nn.Flatten(), random_(SLLLinear(100, 7))).double()
    z = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    network(z).square().sum().backward()
    expected = [p.grad for p in network.parameters() if p.requires_grad]
    network.zero_grad()
    calls.clear()
    with layers.RescaledOnce(network) as rescaling:
        for number, part in enumerate(z.chunk(3)):
            if number == 2:
                rescaling.last()
            network(part).square().sum().backward()
    assert len(calls) == 2, "once a layer"
    for p, gradient in zip([p for p in network.parameters() if p.requires_grad], expected, strict=True):
        assert torch.allclose(p.grad, gradient, rtol=1e-10, atol=1e-12)
    network.zero_grad()
    network(z).square().sum().backward()
    assert torch.allclose(network[0].weight.grad, expected[0])


# shape changes ---------------------------------------------------------------------------------------------------------------------

def test_maxmin_sorts_the_halves():
    z = torch.randn(2, 6, 3, 3)
    out = MaxMin()(z)
    assert torch.equal(out[:, :3], torch.maximum(z[:, :3], z[:, 3:])) and torch.equal(out[:, 3:], torch.minimum(z[:, :3], z[:, 3:]))
    with pytest.raises(ValueError, match="even"):
        MaxMin()(torch.randn(1, 3, 2, 2))


def test_padding_and_first_channels_are_inverse():
    z = torch.randn(2, 3, 4, 4)
    padded = PaddingChannels(8)(z)
    assert padded.shape == (2, 8, 4, 4) and padded[:, 3:].abs().sum() == 0 and torch.equal(FirstChannels(3)(padded), z)
    with pytest.raises(ValueError, match="cannot pad 3 channels to 2"):
        PaddingChannels(2)(z)
    with pytest.raises(ValueError, match="cannot keep 4 of 3"):
        FirstChannels(4)(z)


def test_downsize():
    z = torch.randn(2, 8, 6, 4)
    out = Downsize(8, 16)(z)
    assert out.shape == (2, 16, 3, 2)
    assert torch.equal(out, F.pixel_unshuffle(torch.maximum(z[:, :4], z[:, 4:]), 2))
    assert torch.equal(Downsize(8, 24)(z), F.pixel_unshuffle(MaxMin()(z)[:, :6], 2))
    for oc in (18, 40):
        with pytest.raises(ValueError, match="multiple of 4"):
            Downsize(8, oc)


def test_haar_downsize_keeps_sums_and_differences():
    z = torch.randn(2, 5, 6, 4, dtype=torch.float64)
    out = HaarDownsize(5, 11)(z)
    blocks = [[[image[c, 2 * i:2 * i + 2, 2 * j:2 * j + 2] for j in range(2)] for i in range(3)] for image in z for c in range(5)]
    blocks = torch.stack([torch.stack([torch.stack(row) for row in channel]) for channel in blocks]).view(2, 5, 3, 2, 2, 2)
    signs = torch.tensor([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]]], dtype=torch.float64)
    sums, rows, columns = ((blocks * s).sum((4, 5)) / 2 for s in signs)
    assert torch.allclose(out, torch.cat((sums, rows[:, :3], columns[:, :3]), 1), atol=1e-14)
    assert torch.allclose(HaarDownsize(5, 5)(z), sums, atol=1e-14)


def test_haar_downsize_is_a_projection_in_an_orthonormal_basis():
    layer = HaarDownsize(2, 6)
    matrix = layer(torch.eye(32, dtype=torch.float64).view(32, 2, 4, 4)).flatten(1)
    assert matrix.shape == (32, 24) and torch.allclose(matrix.T @ matrix, torch.eye(24, dtype=torch.float64), atol=1e-15)
    for oc in (1, 3, 8):
        with pytest.raises(ValueError, match="must be 2 to 6"):
            HaarDownsize(2, oc)
    with pytest.raises(RuntimeError):
        layer(torch.zeros(1, 2, 5, 4))


def test_means_are_taken_out_by_a_projection():
    z = torch.rand(2, 3, 6, 5, dtype=torch.float64) + torch.rand(2, 3, 1, 1, dtype=torch.float64)
    out = RemoveMean()(z)
    assert torch.allclose(out, torch.stack([torch.stack([c - c.sum() / 30 for c in image]) for image in z]), atol=1e-14)
    assert torch.allclose(RemoveMean()(out), out, atol=1e-14) and abs((out * (z - out)).sum().item()) < 1e-12


def test_brightness_and_colour_casts_leave_the_embeddings_of_plus_alone():
    network = random_(get_backbone("sllnet_plus")).double()
    images = 0.5 * torch.rand(2, 3, 112, 112, dtype=torch.float64) - 0.25
    cast = torch.tensor([0.2, -0.1, 0.05], dtype=torch.float64)[:, None, None]
    assert torch.allclose(network(images + cast), network(images), atol=1e-12) and network(images).norm() > 1e-3


def test_small_network_is_small_and_even_kernels_are_refused():
    for name in ("sllnet_small", "sllnet_plus"):
        assert 1e6 <= sum(p.numel() for p in get_backbone(name).parameters()) <= 4e6
    with pytest.raises(ValueError, match="odd"):
        SLLConv2d(4, 4, kernel_size=2)


# torch.compile ---------------------------------------------------------------------------------------------------------------------

def test_compiled_network_gives_the_same_in_both_modes():
    torch._dynamo.reset()
    network = nn.Sequential(random_(SLLConv2d(4, 4, bias=True)), Downsize(4, 8), nn.Flatten(), random_(SLLLinear(32, 5)))
    compiled = torch.compile(network, backend="aot_eager")
    z = torch.randn(3, 4, 4, 4)
    for mode in (True, False):
        network.train(mode)
        assert torch.allclose(compiled(z), network(z), atol=1e-6)
    with torch.no_grad():
        before = compiled(z)
        network[0].weight.mul_(2).add_(0.1)
        assert torch.allclose(compiled(z), network(z), atol=1e-6) and not torch.allclose(compiled(z), before, atol=1e-3)


def test_compiled_network_gives_the_same_gradients():
    torch._dynamo.reset()
    network = nn.Sequential(random_(SLLConv2d(4, 4, bias=True)), Downsize(4, 8), nn.Flatten(), random_(SLLLinear(32, 5)))
    compiled, z = torch.compile(network, backend="aot_eager"), torch.randn(3, 4, 4, 4)
    for mode in (True, False):
        network.train(mode)
        found = []
        for call in (network, compiled):
            network.zero_grad()
            call(z).square().sum().backward()
            found.append([p.grad.clone() for p in network.parameters() if p.requires_grad])
        for a, b in zip(*found, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_compiled_training_step_has_no_graph_breaks():
    torch._dynamo.reset()
    network = nn.Sequential(random_(SLLConv2d(4, 4, bias=True)), nn.Flatten(), random_(SLLLinear(64, 5)))
    z = torch.randn(3, 4, 4, 4)
    network(z).square().sum().backward()
    expected = [p.grad.clone() for p in network.parameters() if p.requires_grad]
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for _ in range(4):
        network.zero_grad()
        with layers.RescaledOnce(network) as rescaling:
            rescaling.last()
            compiled(z).square().sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "compiled once for all steps"
    for p, gradient in zip([p for p in network.parameters() if p.requires_grad], expected, strict=True):
        assert torch.allclose(p.grad, gradient, rtol=1e-4, atol=1e-5)
