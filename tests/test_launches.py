"""What a GPU would be asked to do, found out without one: tensors on a fake CUDA device have shapes and no values."""
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import attacks_base
import losses
from attacks import attack_names, preset
from augmentation import jittered
from backbones import BACKBONES, ScaledInput, get_backbone, image_size, input_scale
from backbones.proof import fold
from backbones.wrappers import FlipAveraged
from datasets import to_float
from eval import certification, noise
from headers import HEADERS, get_header
from muon import orthogonalised

sys.path[:0] = [str(Path(__file__).parent / "benchmarks")]

from launches import CEILINGS, Launches, launches  # noqa: E402

BATCH, CLASSES = 4, 10
ANY = torch.Tensor.any
WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2", "aten.unique_dim", "aten.equal", "aten.is_nonzero")


class NoWaiting(TorchDispatchMode):
    """Raises AssertionError where the host would wait for the device: a value is asked for, or copied to the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        there = any(isinstance(value, torch.Tensor) and value.device.type == "cuda" for value in args)
        copied = str(func.overloadpacket) in ("aten._to_copy", "aten.copy_") and found.device.type == "cpu"
        assert not there or not copied and str(func.overloadpacket) not in WAITS, f"waits for the device: {func}"
        return found


def networks():
    return [name for name in BACKBONES.names() if BACKBONES.find(name).image_size == (3, 112, 112)]


def on_fake_cuda(module):
    """The module, its parameters and buffers on the device. Within FakeTensorMode."""
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, value in kept.items():
                if value is not None:
                    moved = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    kept[name] = nn.Parameter(moved, value.requires_grad) if isinstance(value, nn.Parameter) else moved
    return module


# their layers, controls of the zoo, send the waves of their transforms to the device in every step
SENDING = {"zoo_cayley", "zoo_bro"}


@pytest.mark.parametrize("name", sorted({*networks()} - SENDING))
def test_a_network_stays_on_its_device_and_waits_for_nothing(name):
    network = ScaledInput(get_backbone(name), input_scale(name)).train()
    with FakeTensorMode():
        on_fake_cuda(network)
        images = torch.empty(BATCH, *image_size(name), dtype=torch.uint8, device="cuda")
        network(to_float(images, torch.device("cuda")))  # constants are copied to the device once
        with NoWaiting():
            inputs = to_float(images, torch.device("cuda"), memory_format=torch.channels_last)
            found = network(jittered(inputs, 0.0, 0, 1))
        assert found.device.type == "cuda" and found.shape[0] == BATCH


@pytest.mark.parametrize("name", [name for name in networks() if BACKBONES.find(name).lipschitz])
def test_what_is_loaded_for_evaluation_waits_for_nothing(name):
    network = FlipAveraged(fold(get_backbone(name))).eval()
    with FakeTensorMode(), torch.no_grad():
        on_fake_cuda(network)
        images = torch.empty(BATCH, *image_size(name), device="cuda")
        with NoWaiting():
            embeddings = network(images)
            angles = certification.angle(embeddings, embeddings.flip(0))
        assert embeddings.device.type == angles.device.type == "cuda"


@pytest.mark.parametrize("header", HEADERS.names())
@pytest.mark.parametrize("contrast", [0.0, 1.0])
def test_the_loss_waits_for_nothing(header, contrast):
    margins = get_header(header, CLASSES, 16)
    with FakeTensorMode():
        on_fake_cuda(margins)
        embeddings = torch.empty(BATCH, 16, requires_grad=True, device="cuda")
        with NoWaiting():
            found = losses.objective(margins, embeddings, torch.zeros(BATCH, dtype=torch.int64, device="cuda"), 1.0, 3.0, contrast,
                                     {"s": 10.0, "m": 0.1})
    assert all(value.device.type == "cuda" for value in found)


def test_orthogonalised_updates_wait_for_nothing():
    with FakeTensorMode(), NoWaiting():
        assert orthogonalised(torch.empty(3, 8, 20, device="cuda")).device.type == "cuda"


def test_noise_is_made_on_the_device():
    with FakeTensorMode(), NoWaiting():
        image = torch.empty(3, 112, 112, device="cuda")
        batches = [*noise.noisy(image, 0.25, noise.Draws((0, noise.LEFT, 5), 0, 100), 64)]
    assert [batch.shape[0] for batch in batches] == [64, 36] and all(batch.device.type == "cuda" for batch in batches)


def test_waiting_is_found():
    for wait in (lambda x: x.sum().cpu(), lambda x: x.to("cpu"), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.sum().item()):
        with pytest.raises(Exception, match="waits for the device|_local_scalar_dense|nonzero"), FakeTensorMode(), NoWaiting():
            wait(torch.empty(3, device="cuda"))


def forward_of(name, batch=64):
    def make():
        network, images = get_backbone(name), torch.empty(batch, *image_size(name))
        return lambda: network(images)
    return make


@pytest.mark.parametrize("name, forward, both", [(name, *ceilings) for name, ceilings in CEILINGS.items()])
def test_few_kernels_are_started(name, forward, both):
    assert launches(forward_of(name)).total() <= forward
    network, images = get_backbone(name), torch.rand(2, *image_size(name)) - 0.5
    network(images)
    with Launches() as counted:  # a backward pass needs a device; on the CPU the same operators are dispatched
        network(images).sum().backward()
    assert forward < counted.total <= both


def test_a_launch_is_an_operator_that_computes():
    with Launches() as counted:
        x = torch.ones(3, 4)
        (x.T.reshape(2, 6)[0] + 1).view(-1).detach().sum()
        torch.empty(5)
    assert dict(counted.counts) == {"aten.ones": 1, "aten.clone": 1, "aten.add": 1, "aten.sum": 1}


class Blind(attacks_base.Search):
    """A search that chooses nothing by values, and has gradients without a backward pass, which needs a real device."""

    def open(self):
        return torch.arange(len(self.images), device=self.images.device)

    def noise(self, index, restart=0):
        return attacks_base.unit(torch.empty_like(self.images))

    def _gradients(self, margins, points, index):
        return torch.empty_like(points)

    def _record(self, points, index, margins):
        self.best, self.margin = points.clone(), margins


@pytest.mark.parametrize("protocol", ["strict", "paper"])
@pytest.mark.parametrize("name", attack_names())
def test_the_first_step_of_an_attack_is_on_its_device(monkeypatch, name, protocol):
    attack = preset(name, eps=None if name in ("cw", "ddn") else 1.0, protocol=protocol, **({} if name == "fgsm" else {"steps": 1}))
    steps = []
    for kind in type(attack).__mro__:
        if "_step" in vars(kind):
            plain = kind._step
            monkeypatch.setattr(kind, "_step", lambda *a, plain=plain: (steps.append(1), plain(*a))[1])
    monkeypatch.setattr(attacks_base, "Search", Blind)
    monkeypatch.setattr(attacks_base, "_tighten", lambda search: None)
    network = fold(get_backbone("linear_map"))
    with FakeTensorMode():
        on_fake_cuda(network)
        # whether anything is lost, outside or over: questions to values, which there are none of
        monkeypatch.setattr(torch.Tensor, "any", lambda self, *a, **k: False)
        monkeypatch.setattr(torch.Tensor, "all", lambda self, *a, **k: ANY(self, *a, **k) if a else True)
        images = torch.empty(BATCH, 3, 112, 112, device="cuda")
        found = attack(network, images, torch.empty(BATCH, 128, device="cuda"), "dodging", 0.3)
    assert steps and all(value.device.type == "cuda" for value in (found.adversarial, found.margin, found.success))
