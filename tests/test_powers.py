"""The rescaling from powers of W W^T: its formula by loops, its claim by dense Jacobians, and that it loses less."""
import math

import numpy as np
import pytest
import torch
from test_layers import LIMIT, SCALINGS, adversarial, largest_singular_value, random_
from torch import nn

from backbones import get_backbone
from backbones.custom_layers import RescaledOnce, SLLConv2d, SLLLinear, rescaled, rescaling
from backbones.powers import root_from_power


def naive_t(weight, q, power):
    """Equation (SLL-p) in float64 by the definition: an operator on sequences that are long enough, its middle block of rows."""
    weight, q = weight.detach().double().numpy(), q.detach().double().numpy()
    count, cin, k, _ = weight.shape
    size = 2 * power * (k - 1) + 1
    outside = size + k - 1
    operator = np.zeros((count, size, size, cin, outside, outside))
    for y in range(size):
        for x in range(size):
            operator[:, y, x, :, y:y + k, x:x + k] = weight
    operator = operator.reshape(count * size**2, -1)
    product = np.linalg.matrix_power(operator @ operator.T, power).reshape(count, size, size, count, size, size)
    middle = np.abs(product[:, size // 2, size // 2]).sum((2, 3))  # far from the border: p steps of k - 1 do not reach it
    return torch.from_numpy((middle * np.exp(q[None, :] - q[:, None])).sum(1) ** (-1 / power))


@pytest.mark.parametrize("k, power", [(1, 2), (1, 3), (2, 3), (3, 2), (3, 4)])
def test_rescaling_is_the_formula(k, power):
    generator = torch.Generator().manual_seed(0)
    weight, q = torch.randn(3, 2, k, k, dtype=torch.float64, generator=generator), torch.randn(3, dtype=torch.float64, generator=generator)
    expected = naive_t(weight, q, power)
    assert torch.allclose(rescaling(weight, q, power), expected, rtol=1e-11)
    assert torch.allclose(rescaling(weight.float(), q.float(), power).double(), expected, rtol=1e-5)
    assert torch.allclose(rescaling(1e20 * weight, q, power), 1e-40 * expected, rtol=1e-11)


def test_power_one_of_the_general_formula_is_the_layer_of_the_paper():
    weight, q = torch.randn(5, 4, 3, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    assert torch.allclose(root_from_power(weight, q, 1).square(), rescaling(weight, q), rtol=1e-12)


@pytest.mark.parametrize("shape, power", [((4, 3, 3, 3), 2), ((3, 2, 2, 2), 3), ((5, 9), 2)])
def test_gradient(shape, power):
    weight, q = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape[0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, q: rescaling(w, q, power), (weight, q))


def test_dead_rows_are_dropped_with_finite_gradients():
    weight, q = torch.randn(4, 3, 3, 3), torch.randn(4, requires_grad=True)
    weight[2] = 0
    weight.requires_grad_()
    t = rescaling(weight, q, 2)
    assert t[2] == 0 and (t[[0, 1, 3]] > 0).all()
    t.sum().backward()
    assert weight.grad.isfinite().all() and q.grad.isfinite().all() and weight.grad[0].abs().sum() > 0


def test_dead_rows_do_not_set_the_scale_of_the_others():
    weight, q = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(4)
    weight[2] = 0
    small = rescaled(1e-25 * weight, None, q, 2)[0]
    assert torch.allclose(small, rescaled(weight, None, q, 2)[0], rtol=1e-5) and small[0].any()
    assert not rescaled(0 * weight, None, q, 2)[0].any()


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("how", SCALINGS)
@pytest.mark.parametrize("power", [2, 4])
@pytest.mark.parametrize("make, shape", [(lambda p: SLLConv2d(3, 3, bias=True, power=p), (3, 5, 5)),
                                         (lambda p: SLLConv2d(4, 6, 1, power=p), (4, 3, 3)),
                                         (lambda p: SLLConv2d(3, 4, 3, stride=2, power=p), (3, 6, 5)),
                                         (lambda p: SLLLinear(20, 7, power=p), (20,))])
def test_no_singular_value_above_one(make, shape, power, how, dtype):
    layer = adversarial(random_(make(power).to(dtype)), how)
    value = largest_singular_value(layer, shape, 0)
    assert value <= LIMIT[dtype] and math.isfinite(value)


@pytest.mark.parametrize("dtype", LIMIT)
def test_no_singular_value_above_one_during_training(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(SLLConv2d(4, 4, bias=True, power=2), nn.Flatten(), SLLLinear(100, 10, power=4)).to(dtype)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for step in range(20):
        optimizer.zero_grad()
        with RescaledOnce(net) as rescaling_once:
            rescaling_once.last()
            (-net(torch.randn(8, 4, 5, 5, dtype=dtype)).square().sum()).backward()
        optimizer.step()
        if step % 5 == 4:
            for layer, shape in ((net[0], (4, 5, 5)), (net[2], (100,))):
                assert largest_singular_value(layer, shape, step) <= LIMIT[dtype]


def dense_norm(weight, size):
    """The largest singular value of z -> V * z on images of this size, as a matrix."""
    columns = torch.eye(weight.shape[1] * size**2, dtype=weight.dtype).view(-1, weight.shape[1], size, size)
    return torch.linalg.matrix_norm(nn.functional.conv2d(columns, weight, padding=weight.shape[-1] // 2).flatten(1), 2).item()


def test_the_norm_comes_closer_to_one_with_the_power():
    layer = random_(SLLConv2d(6, 6).double())
    norms = [dense_norm(rescaled(layer.weight, None, layer.q, power)[0].detach(), 8) for power in (1, 2, 4, 8)]
    assert norms == sorted(norms) and norms[1] > 1.1 * norms[0] and norms[-1] <= 1, norms


def test_networks_take_the_power_and_keep_their_state_dict():
    plain, tighter = get_backbone("sllnet_small"), get_backbone("sllnet_small_p2")
    assert repr(tighter) == repr(get_backbone("sllnet_small", power=2)) != repr(plain)
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (plain, tighter)]
    assert shapes[0] == shapes[1]
    layers = [module for module in tighter.modules() if isinstance(module, (SLLConv2d, SLLLinear))]
    assert len(layers) == 4 and {layer.power for layer in layers} == {2} and "power=2" in repr(layers[0])
    large = get_backbone("sllnet", config=[1, 1, 1, 1], emb_size=8, power=2)
    assert {module.power for module in large.modules() if isinstance(module, (SLLConv2d, SLLLinear))} == {2}
    for wrong in (0, 1.5, "2"):
        with pytest.raises(ValueError, match="power is"):
            SLLConv2d(4, 4, power=wrong)
