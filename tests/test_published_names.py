"""Networks and layers by the names and arguments of the published repository, as a script that was written against it calls them."""
import pytest
import torch
from conftest import needs_shared
from golden import golden_layout
from test_layers import naive_conv, naive_t, random_
from torch import nn

from backbones import get_backbone, lipschitz_bound
from backbones.custom_layers import MaxMin, PaddingChannels, SLLConv2d, SLLLinear
from backbones.rescaling import plain_rescaling, rescaling
from utils import InputError, checkpoint


def test_padding_with_the_published_arguments():
    z = torch.randn(2, 3, 4, 4)
    for layer in (PaddingChannels(8, 3, "zero"), PaddingChannels(ncout=8, ncin=3, mode="zero")):
        assert torch.equal(layer(z), torch.cat((z, torch.zeros(2, 5, 4, 4)), 1))
    with pytest.raises(ValueError, match="mode is 'clone': expected 'zero'"):
        PaddingChannels(8, mode="clone")


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_maxmin_along_an_axis(axis):
    z = torch.randn(2, 4, 6, 8)
    a, b = z.chunk(2, axis)
    assert torch.equal(MaxMin()(z, axis=axis), torch.cat((torch.maximum(a, b), torch.minimum(a, b)), axis))
    assert axis != 1 or torch.equal(MaxMin()(z), MaxMin()(z, axis=1))
    with pytest.raises(ValueError, match="got 3"):
        MaxMin()(torch.randn(2, 4, 3), axis=2)


def test_t_of_a_layer():
    conv, dense = random_(SLLConv2d(4, 5, bias=True).double()), random_(SLLLinear(7, 6).double())
    assert torch.allclose(conv.compute_t(), naive_t(conv.weight, conv.q), rtol=1e-12) and conv.compute_t().shape == (5,)
    assert torch.allclose(dense.compute_t(), naive_t(dense.weight, torch.zeros(6)), rtol=1e-12) and dense.compute_t().shape == (6,)
    tighter = random_(SLLConv2d(4, 5, power=2).double())
    assert torch.equal(tighter.compute_t(), rescaling(tighter.weight, tighter.q, 2))
    conv.compute_t().sum().backward()
    assert conv.weight.grad.any() and conv.q.grad.any()
    z = torch.randn(2, 7, dtype=torch.float64)
    assert torch.allclose(dense(z), dense.compute_t().sqrt() * (z @ dense.weight.T))


@pytest.mark.parametrize("shape", [(7, 5, 1, 1), (6, 4, 3, 3), (3, 8, 5, 5), (200, 8, 3, 3)])
def test_the_plain_form_is_the_fast_one(shape):
    weight, q = torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], dtype=torch.float64)
    weight[1] = 0
    assert torch.allclose(plain_rescaling(weight, q), rescaling(weight, q), rtol=1e-11, atol=0)
    assert torch.allclose(plain_rescaling(weight.float(), q.float()), rescaling(weight.float(), q.float()), rtol=1e-4)
    assert plain_rescaling(weight, q)[1] == 0


def test_as_many_inner_channels_as_outer_ones():
    layer = random_(SLLConv2d(6, -1, bias=True).double())
    assert layer.weight.shape == (6, 6, 3, 3) and layer.q.shape == (6,)
    z = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    assert torch.allclose(layer(z), naive_conv(z, layer.weight, layer.bias, layer.q))


def test_names_of_sllnet():
    from backbones.sllnet import Downsize, FirstChannels, SLLBlock, SLLNet
    stage = SLLBlock(8, 2)
    assert list(SLLBlock(nc=8, n_blk=2).state_dict()) == list(stage.state_dict()) == [
        f"layer.{block}.{name}" for block in range(2) for name in ("weight", "bias", "q")]
    assert lipschitz_bound(nn.Sequential(stage, Downsize(8, 16), FirstChannels(4)), (8, 4, 4)) <= 1 + 1e-6
    with torch.device("meta"):
        network = SLLNet([3, 4, 6, 3])
        x = torch.empty(2, 3, 112, 112)
        x = network.pool1(network.layer1(network.stem(x)))
        x = network.pool3(network.layer3(network.pool2(network.layer2(x))))
        assert network.linear(network.layer4(x).flatten(1)).shape == (2, 512)


@needs_shared
def test_the_names_of_the_downsizings_are_in_no_state_dict():
    with torch.device("meta"):
        entries = [(key, tuple(value.shape)) for key, value in get_backbone("sllnet").state_dict().items()]
    assert entries == golden_layout()["SLLNet"]


def test_iresnets():
    from backbones.iresnet import IBasicBlock, IResNet, iresnet18, iresnet50
    with torch.device("meta"):
        network = iresnet18(False, True, fp16=True, dropout=0.4, num_features=256)
        assert network.fp16 and network.dropout.p == 0.4 and network.fc.out_features == 256
        same = IResNet(IBasicBlock, [2, 2, 2, 2], dropout=0, num_features=256, fp16=False)
        assert {k: v.shape for k, v in same.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
        assert isinstance(network.layer1[0], IBasicBlock) and len(iresnet50(pretrained=False, progress=False).layer3) == 14
        shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        assert IBasicBlock(8, 16, 2, shortcut)(torch.empty(1, 8, 6, 6)).shape == (1, 16, 3, 3)
        assert IBasicBlock(8, 8)(torch.empty(1, 8, 6, 6)).shape == (1, 8, 6, 6)
    with pytest.raises(ValueError, match="pretrained"):
        iresnet18(pretrained=True)


@pytest.mark.parametrize("layers, blocks", [(50, 24), (100, 49), (152, 50)])
@pytest.mark.parametrize("mode", ["ir", "ir_se"])
def test_backbones_of_robfr(layers, blocks, mode):
    from backbones.iresnet_AT import IR_50, Backbone
    with torch.device("meta"):
        network = Backbone((112, 112), layers, mode)
        assert network(torch.empty(2, 3, 112, 112)).shape == (2, 512) and len(network.body) == blocks
        squeezed = [key for key in network.state_dict() if ".fc" in key]
        assert squeezed == ([f"body.{k}.res_layer.5.fc{n}.weight" for k in range(blocks) for n in (1, 2)] if mode == "ir_se" else [])
        assert (layers, mode) != (50, "ir") or list(network.state_dict()) == list(IR_50((112, 112)).state_dict())


def test_squeeze_and_excitation_weights_channels_by_their_means():
    from backbones.iresnet_AT import Backbone, SEModule
    layer, x = random_(SEModule(16, 4).double()), torch.randn(2, 16, 3, 5, dtype=torch.float64)
    for image, found in zip(x, layer(x)):
        hidden = (layer.fc1.weight[:, :, 0, 0] @ image.sum((1, 2)) / 15).clamp_min(0)
        weights = 1 / (1 + torch.exp(-(layer.fc2.weight[:, :, 0, 0] @ hidden)))
        assert torch.allclose(found, weights[:, None, None] * image)
    for wrong in ((112, 112), 34, "ir"), ((112, 112), 50, "se"), ((96, 96), 50, "ir"):
        with pytest.raises(InputError, match="Backbone"):
            Backbone(*wrong)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 5, 1, 1)])
def test_the_bias_of_a_dense_layer_loads_whatever_its_axes_are(tmp_path, shape):
    """Which the published one has cannot be read off any released file: all of these hold the same five values."""
    state = {"weight": torch.randn(5, 7), "bias": torch.randn(5).view(shape), "q": torch.randn(5)}
    before = {key: value.shape for key, value in state.items()}
    layer, conv = SLLLinear(7, 5, bias=True), SLLConv2d(4, 5, bias=True)
    layer.load_state_dict(state, strict=True)
    assert torch.equal(layer.bias, state["bias"].view(5)) and {key: value.shape for key, value in state.items()} == before
    conv.load_state_dict({**conv.state_dict(), "bias": state["bias"]}, strict=True)
    assert torch.equal(conv.bias.flatten(), layer.bias)
    network = nn.Sequential(SLLLinear(7, 5, bias=True))
    torch.save({f"0.{key}": value for key, value in state.items()}, tmp_path / "w.pt")
    checkpoint.load_weights(network, tmp_path / "w.pt")
    z = torch.randn(3, 7)
    root = naive_t(layer.weight, torch.zeros(5)).sqrt().float()
    assert torch.allclose(network(z), root * (z @ layer.weight.T + layer.bias), atol=1e-6) and torch.equal(network(z), layer(z))
    for wrong in (torch.zeros(4), torch.zeros(5, 5)):
        with pytest.raises(RuntimeError, match="size mismatch for bias"):
            layer.load_state_dict({**state, "bias": wrong}, strict=True)
        torch.save({**{f"0.{key}": value for key, value in state.items()}, "0.bias": wrong}, tmp_path / "w.pt")
        with pytest.raises(InputError, match="0.bias is"):
            checkpoint.load_weights(network, tmp_path / "w.pt")
