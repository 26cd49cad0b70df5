"""The networks other than SLLNet, and the layouts and reference outputs of all of them."""
import math

import pytest
import torch
from conftest import needs_shared
from golden import TOLERANCE, fill_by_rule, golden_array, golden_input, golden_layout, relative_error
from torch import nn

from backbones import get_backbone, input_scale, load_network
from backbones.iresnet import iresnet18
from backbones.iresnet_AT import IR_50
from utils import InputError

PARAMETERS = {
    "SLLNet": 24_179_648, "SLLNet_MNIST": 1_745_248, "SLLNet_CIFAR": 3_177_408,
    "Net_MNIST": 1_768_032, "Net_CIFAR": 3_567_008,
    "iresnet18": 24_025_600, "iresnet34": 34_139_328, "iresnet50": 43_590_848, "iresnet100": 65_156_160,
    "iresnet200": 118_833_920, "IR_50": 43_574_976,
}
WITH_OUTPUTS = [name for name in PARAMETERS if name not in ("iresnet34", "iresnet200")]
SMALL = ["SLLNet_MNIST", "SLLNet_CIFAR", "Net_MNIST", "Net_CIFAR"]


def _meta(name: str) -> nn.Module:
    """The network without storage: shapes only, at no cost."""
    with torch.device("meta"):
        return get_backbone(name.lower())


def _filled(name: str) -> nn.Module:
    """The network filled by the rule, without the time that its initialisation takes."""
    return fill_by_rule(_meta(name).to_empty(device="cpu"))


def _images(name: str) -> torch.Tensor:
    if name.endswith("MNIST"):
        return golden_input(1, 28)
    return golden_input(3, 32 if name.endswith("CIFAR") else 112)


@pytest.fixture(scope="module")
def small_iresnet() -> nn.Module:
    return _filled("iresnet18")


@pytest.fixture(scope="module")
def ir_50() -> nn.Module:
    return _filled("IR_50")


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    assert sum(p.numel() for p in _meta(name).parameters()) == PARAMETERS[name]


@needs_shared
@pytest.mark.parametrize("name", PARAMETERS)
def test_state_dict_has_the_names_shapes_and_order_of_the_released_one(name):
    entries = [(key, tuple(value.shape)) for key, value in _meta(name).state_dict().items()]
    assert entries == golden_layout()[name]


@needs_shared
def test_every_network_of_the_reference_is_tested():
    assert set(golden_layout()) == set(PARAMETERS)


@needs_shared
@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_embeddings_equal_the_reference(name):
    with torch.inference_mode():
        embeddings = _filled(name)(_images(name))
    assert embeddings.dtype == torch.float32
    assert relative_error(embeddings, golden_array(name)) < TOLERANCE


@pytest.mark.parametrize("name", [*SMALL, "iresnet18", "IR_50"])
def test_double_agrees_with_float(name):
    network, images = _filled(name), _images(name)
    with torch.inference_mode():
        single = network(images)
        double = network.double()(images.double())
    assert double.dtype == torch.float64 and double.shape == (2, 512)
    assert relative_error(single, double) < TOLERANCE


@pytest.mark.parametrize("name", [*SMALL, "iresnet18"])
def test_gradient_reaches_every_trainable_parameter(name):
    network = _filled(name).train()
    network(_images(name)).square().sum().backward()
    for key, p in network.named_parameters():
        assert (p.grad is not None) == p.requires_grad, key
        assert p.grad is None or bool(p.grad.isfinite().all() and p.grad.any()), key


def test_iresnet_starts_with_normal_convolutions_and_neutral_norms():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = iresnet18(num_features=8)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            count = module.weight.numel()
            assert abs(module.weight.std().item() - 0.1) < 0.5 / math.sqrt(2 * count)
            assert abs(module.weight.mean().item()) < 0.5 / math.sqrt(count)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.eps == 1e-5
            assert bool((module.weight == 1).all()) and not module.bias.any()
    assert not network.features.weight.requires_grad and network.features.bias.requires_grad


def test_iresnet_takes_width_and_dropout():
    with torch.device("meta"):
        network = iresnet18(num_features=8, dropout=0.4)
    assert network.fc.out_features == network.features.num_features == 8
    assert network.dropout.p == 0.4


def test_iresnet_fp16_returns_float32_near_the_full_precision(small_iresnet, monkeypatch):
    images = _images("iresnet18")[:1]
    with torch.inference_mode():
        full = small_iresnet(images)
        monkeypatch.setattr(small_iresnet, "fp16", True)
        half = small_iresnet(images)
    assert half.dtype == torch.float32
    assert 0 < relative_error(half, full) < 0.02


def test_iresnet_leaves_autocast_of_the_caller_on(small_iresnet):
    seen = []
    hook = small_iresnet.layer1.register_forward_hook(lambda module, args, output: seen.append(args[0].dtype))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        small_iresnet(_images("iresnet18"))
    hook.remove()
    assert seen == [torch.bfloat16]


def test_ir_50_doubles_its_input_exactly_once(ir_50):
    images = _images("IR_50")
    seen = []
    hook = ir_50.input_layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        ir_50(images)
    hook.remove()
    assert len(seen) == 1 and torch.equal(seen[0], 2 * images)
    assert input_scale("ir_50") == 1.0 and input_scale("iresnet50") == 2.0


def test_ir_50_takes_the_two_sizes_only():
    with torch.device("meta"):
        large = IR_50((224, 224))
        assert large(torch.empty(2, 3, 224, 224)).shape == (2, 512)
    for size in [(96, 96), (112, 96), (112, 224), (112,)]:
        with pytest.raises(ValueError, match="IR_50"):
            IR_50(size)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["net_mnist", "sllnet_mnist"])
def test_load_network_takes_checkpoints_with_and_without_prefix(tmp_path, name, prefix):
    network = fill_by_rule(get_backbone(name))
    path = tmp_path / "weights.pt"
    torch.save({prefix + key: value for key, value in network.state_dict().items()}, path)
    loaded, images = load_network(name, path), golden_input(1, 28)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    with torch.inference_mode():
        assert relative_error(loaded(images), network(images)) < 1e-6


@pytest.mark.parametrize("name, scale", [("iresnet18", 2), ("ir_50", 1)])
def test_load_network_feeds_baselines_the_range_they_were_trained_on(tmp_path, small_iresnet, ir_50, name, scale):
    network, images = {"iresnet18": small_iresnet, "ir_50": ir_50}[name], golden_input(3, 112)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    with torch.inference_mode():
        embeddings = load_network(name, tmp_path / "weights.pt")(images)
        assert relative_error(embeddings, network(scale * images)) < 1e-6


def test_load_network_refuses_the_checkpoint_of_another_network(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(get_backbone("net_mnist").state_dict(), path)
    with pytest.raises(InputError, match="weights.pt"):
        load_network("net_cifar", path)
