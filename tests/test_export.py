"""The folded network, in every format it is written in, against the network it was made from."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backbones import get_backbone, image_size, load_network
from backbones.custom_layers import SLLConv2d, SLLLinear
from backbones.export import export, fold, main
from backbones.kept import Rescaled
from utils import InputError, checkpoint

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return get_backbone("sllnet_mnist").eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(1)) - 0.5


def embed(network, images):
    with torch.no_grad():
        return network(images)


def test_folding_keeps_the_outputs_and_leaves_plain_layers(network, images):
    folded = fold(network)
    assert not any(isinstance(module, (SLLConv2d, SLLLinear)) for module in folded.modules())
    assert not any(key.endswith("q") for key in folded.state_dict())
    assert torch.allclose(embed(folded, images), embed(network, images), rtol=1e-5, atol=1e-6)
    assert any(isinstance(module, SLLConv2d) for module in network.modules()), "the network itself is left as it is"


@pytest.mark.parametrize("name, size", [("sllnet_small", (3, 112, 112)), ("sllnet_plus", (3, 112, 112)), ("sllnet_cifar", (3, 32, 32)),
                                        ("sllnet", (3, 112, 112)), ("orthonet", (3, 112, 112))])
def test_every_sll_network_folds(name, size):
    torch.manual_seed(0)
    network = get_backbone(name).eval()
    images = torch.rand(2, *size) - 0.5
    assert torch.allclose(embed(fold(network), images), embed(network, images), rtol=1e-4, atol=1e-5)


def test_state_dict(network, images, tmp_path):
    export(network, tmp_path / "m.pt", (1, 28, 28))
    plain = fold(get_backbone("sllnet_mnist"))
    plain.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
    assert torch.allclose(embed(plain, images), embed(network, images), rtol=1e-5, atol=1e-6)


def test_torchscript(network, images, tmp_path):
    export(network, tmp_path / "m.ts", (1, 28, 28))
    assert torch.allclose(torch.jit.load(str(tmp_path / "m.ts"))(images), embed(network, images), rtol=1e-5, atol=1e-6)


def test_export_program(network, images, tmp_path):
    export(network, tmp_path / "m.pt2", (1, 28, 28))
    assert torch.allclose(torch.export.load(tmp_path / "m.pt2").module()(images), embed(network, images), rtol=1e-5, atol=1e-6)


def test_onnx(network, images, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    export(network, tmp_path / "m.onnx", (1, 28, 28))
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (found,) = session.run(None, {"images": images[:count].numpy()})
        assert torch.allclose(torch.from_numpy(found), embed(network, images[:count]), rtol=1e-4, atol=1e-5)


def test_flip_average_is_exported_with_the_network(network, images, tmp_path, capsys):
    torch.save(network.state_dict(), tmp_path / "w.pt")
    arguments = ["--backbone", "sllnet_mnist", "--weights", str(tmp_path / "w.pt"), "--image-size", "1", "28", "28", "--flip", "average"]
    assert main([*arguments, "--out", str(tmp_path / "m.ts")]) == 0
    mean = (embed(network, images) + embed(network, images.flip(-1))) / 2
    assert torch.allclose(torch.jit.load(str(tmp_path / "m.ts"))(images), mean, rtol=1e-5, atol=1e-6)
    assert main([*arguments, "--out", str(tmp_path / "m.pt")]) == 2 and "a state dict cannot say so" in capsys.readouterr().err


def test_command_line(network, tmp_path, capsys):
    torch.save(network.state_dict(), tmp_path / "w.pt")
    command = [sys.executable, "-m", "backbones.export", "--backbone", "sllnet_mnist", "--weights", str(tmp_path / "w.pt"), "--image-size", "1", "28", "28"]
    done = subprocess.run([*command, "--out", str(tmp_path / "m.ts")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "m.ts").exists(), done.stderr
    for arguments, message in ((["--out", str(tmp_path / "m.exe")], ".onnx"), (["--weights", str(tmp_path / "no.pt"), "--out", "m.ts"], "no.pt"),
                               (["--backbone", "iresnet18", "--out", "m.ts"], "nothing to fold")):
        assert main(["--backbone", "sllnet_mnist", "--weights", str(tmp_path / "w.pt"), "--image-size", "1", "28", "28", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="ends in one of"):
        export(network, tmp_path / "m", (1, 28, 28))


def test_onnx_that_computes_something_else_is_not_written(network, tmp_path, monkeypatch):
    """As an exporter with an error would write it."""
    pytest.importorskip("onnxruntime")
    module = sys.modules["backbones.export"]
    written, other = module._WRITERS[".onnx"], fold(get_backbone("sllnet_mnist"))
    monkeypatch.setitem(module._WRITERS, ".onnx", lambda network, example, path: written(other, example, path))
    with pytest.raises(InputError, match="other embeddings"):
        export(network, tmp_path / "m.onnx", (1, 28, 28))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sllnet_small", "orthonet", "zoo_cpl"])
def test_what_is_loaded_is_folded_and_cannot_be_stale(tmp_path, name):
    torch.manual_seed(0)
    network = get_backbone(name)
    checkpoint.save_weights(tmp_path / "w.pt", network, name)
    loaded, images = load_network(name, tmp_path / "w.pt"), torch.rand(2, *image_size(name)) - 0.5
    assert not any(isinstance(module, Rescaled) for module in loaded.modules()) and not any(p.requires_grad for p in loaded.parameters())
    before = loaded(images)
    assert torch.allclose(before, network.eval()(images), atol=1e-5 * before.abs().max())
    for p in loaded.parameters():
        p.data.mul_(0.5)  # in a way that nobody is told of
    assert not torch.allclose(loaded(images), before, rtol=0.1)
