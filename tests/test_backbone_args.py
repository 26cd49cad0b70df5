"""Arguments of a network: given in training, said by its checkpoint, and enough for every command; what a hostile file may say."""
import json

import pytest
import small_world
import torch
from tiny_training import SETTINGS, write_faces
from torch import nn

import eval.__main__ as command_line
import train
from backbones import get_backbone, load_network, register, stored_network
from backbones.custom_layers import SLLLinear
from backbones.export import main as export
from config import config
from utils import InputError, checkpoint


@register("adjustable", image_size=small_world.SIZE, lipschitz=True)
class Adjustable(nn.Sequential):
    """[N, 3, 16, 16] -> [N, emb_size]; what it computes depends on `factor`, and its weights do not."""

    def __init__(self, emb_size: int = 32, widths=(16,), factor: float = 1.0):
        if factor > 1:
            raise ValueError(f"factor is {factor}, expected at most 1")
        made.append((emb_size, tuple(widths), factor))
        sizes = [768, *widths, emb_size]
        super().__init__(nn.Flatten(), *(SLLLinear(one, other) for one, other in zip(sizes, sizes[1:])), Times(factor))


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x

    def proven_lipschitz(self, shape):
        return float(self.factor)


made = []
ARGUMENTS = {"widths": [24, 16], "factor": 0.5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with faces.bin and out/, what a training run with arguments has left."""
    folder = write_faces(tmp_path_factory.mktemp("trained"))
    small_world.write_bin(folder / "faces.bin", small_world.faces(16))
    assert run(folder, "out") == 0
    return folder


def run(folder, output, *more):
    given = {argument.partition("=")[0]: argument for argument in (
        *SETTINGS, "backbone=adjustable", f"backbone_args={ARGUMENTS}", f"rec={folder}", f"output={folder / output}", *more)}
    return train.run(config, list(given.values()))


def test_a_checkpoint_is_enough(trained, monkeypatch):
    weights = trained / "out/model_final.pt"
    assert checkpoint.network_of(torch.load(weights, weights_only=True)) == ("adjustable", ARGUMENTS)
    images = torch.rand(4, 3, 16, 16) - 0.5
    network = load_network("adjustable", weights)
    expected = get_backbone("adjustable", **ARGUMENTS)
    checkpoint.load_weights(expected, weights)
    assert torch.equal(network(images), expected(images)) and len(network) == 5
    common = ["--backbone", "adjustable", "--weights", str(weights)]
    for flip in ("none", "average"):
        assert command_line.main(["certify", *common, "--bin", str(trained / "faces.bin"), "--far", "0.4", "--flip", flip, "--device", "cpu",
                                  "--num-workers", "0", "--out", str(trained / f"certified_{flip}")]) == 0
    summary = json.loads((trained / "certified_none/summary.json").read_text())
    assert summary["backbone"] == "adjustable" and summary["feature_norm"] > 0
    assert command_line.main(["spectrum", *common, "--out", str(trained / "spectrum"), "--device", "cpu"]) == 0
    assert load_network("adjustable", weights, tight=True).lipschitz <= 0.5


def test_what_is_given_must_be_what_the_checkpoint_says(trained):
    weights = trained / "out/model_final.pt"
    load_network("adjustable", weights, factor=0.5)
    load_network("adjustable", weights, widths=(24, 16))
    with pytest.raises(InputError, match=r"holds adjustable\(widths=\[24, 16\], factor=0.5\), expected adjustable\(.*factor=0.25\)"):
        load_network("adjustable", weights, factor=0.25)
    with pytest.raises(InputError, match="not a checkpoint of Adjustable"):
        load_network("adjustable", weights, widths=[8, 16])


def test_emb_size_goes_with_arguments(trained):
    assert run(trained, "small", "emb_size=24") == 0
    assert load_network("adjustable", trained / "small/model_final.pt")(torch.zeros(1, 3, 16, 16)).shape == (1, 24)


def test_a_run_goes_on_with_its_arguments_only(trained, capsys):
    assert run(trained, "out", "resume=auto") == 0
    assert run(trained, "out", "resume=auto", "backbone_args={'widths': [24, 16], 'factor': 0.25}") == 2
    assert "backbone was 'adjustable(factor=0.5, widths=[24, 16])'" in capsys.readouterr().err
    assert run(trained, "plain", "backbone_args={}") == 0
    (state,) = sorted((trained / "plain").glob("state_*12.pt"))
    settings = torch.load(state, weights_only=True)["settings"]
    assert settings["backbone"] == "adjustable" and "backbone_args" not in settings, "as states were before there were arguments"


@pytest.mark.parametrize("given, words", [("{'depth': 2}", "depth"), ("{'factor': 2.0}", "factor is 2.0"), ("{'widths': 3}", "backbone_args"),
                                          ("{'emb_size': 24, 'x': 1}", "'x'"), ("3", "expected dict")])
def test_arguments_that_it_does_not_take_are_refused_in_one_line(tmp_path, capsys, given, words):
    write_faces(tmp_path)
    assert run(tmp_path, "out", f"backbone_args={given}") == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize("said, words", [
    ({"widths": [16, 2000]}, "not a checkpoint of Adjustable: .*missing"), ({"widths": [10**5]}, "holds adjustable.*whole numbers"),
    ({"widths": [16] * 900, "emb_size": 10**4}, "whole numbers"), ({"emb_size": -10**6}, "whole numbers"),
    ({"factor": 2.0}, "cannot be made: factor is 2.0"), ({"unknown": 1}, "cannot be made: .*unknown"), ({"widths": "x"}, "cannot be made")])
def test_what_a_hostile_file_says_takes_no_memory(tmp_path, said, words):
    checkpoint.save_weights(tmp_path / "w.pt", Adjustable(), "adjustable", said)
    made.clear()
    with pytest.raises(InputError, match=f"w.pt: .*{words}"):
        stored_network("adjustable", tmp_path / "w.pt")
    assert len(made) <= 1, "at most a sketch without memory"


def test_a_small_file_is_no_large_network(tmp_path):
    """Neither where all of its tensors are the same numbers, nor by arguments of which nothing is in the file."""
    arguments = {"size": 8, "unshuffle": 2, "channels": [256], "depth": [20], "emb_size": 8}
    with torch.device("meta"):
        state = get_backbone("orthonet", **arguments).state_dict()
    numbers = torch.zeros(2**16)
    small = get_backbone("orthonet", **{**arguments, "channels": [16], "depth": [1]})
    large = {**small.built_as[1], "image": 4096, "size": 2048}
    for name, values, said in (("shared", state, arguments), ("image", small.state_dict(), large)):
        content = type(state)((key, numbers[:value.numel()].view(value.shape)) for key, value in values.items())
        content._metadata = {"": {"network": {"name": "orthonet", "arguments": said}}}
        checkpoint.save(tmp_path / f"{name}.pt", content)
        with pytest.raises(InputError, match=rf"{name}.pt: holds orthonet\(.*a network of \d+ numbers, in \d+ bytes"):
            stored_network("orthonet", tmp_path / f"{name}.pt")


def test_outside_networks_that_are_not_registered_take_no_arguments_from_files(tmp_path, monkeypatch):
    (tmp_path / "outer.py").write_text("from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self, width=4):\n"
                                       "        super().__init__(nn.Linear(3, width))\n")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint.save_weights(tmp_path / "w.pt", nn.Sequential(nn.Linear(3, 8)), "outer:Net", {"width": 8})
    with pytest.raises(InputError, match=r"w.pt: holds outer:Net\(width=8\), expected outer:Net"):
        stored_network("outer:Net", tmp_path / "w.pt")
    stored_network("outer:Net", tmp_path / "w.pt", width=8)


def test_the_orthogonal_network_with_its_arguments(tmp_path):
    arguments = {"size": 8, "unshuffle": 2, "channels": [16], "depth": [1], "share": 0.25, "emb_size": 8, "centre": True}
    network = get_backbone("orthonet", **arguments).eval()
    checkpoint.save_weights(tmp_path / "w.pt", network, *network.built_as)
    images = torch.rand(2, 3, 112, 112) - 0.5
    assert torch.equal(load_network("orthonet", tmp_path / "w.pt")(images), network(images))
    assert export(["--backbone", "orthonet", "--weights", str(tmp_path / "w.pt"), "--out", str(tmp_path / "m.ts")]) == 0
