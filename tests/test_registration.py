"""Networks by name: registered beside their definition, in a file dropped into the package, or in another project; what checkpoints say."""
import pickletools
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import tiny_training
import torch
from processes import python
from small_world import Tiny, command, world  # noqa: F401
from torch import nn

import train
from backbones import (
    BACKBONES,
    backbone_names,
    get_backbone,
    image_size,
    input_scale,
    is_lipschitz,
    lipschitz_bound,
    load_network,
    register,
)
from backbones.bounds import TOLERANCE
from backbones.export import main as export
from backbones.sllnet import SLLNetSmall
from config import config
from utils import InputError, checkpoint

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["sllnet", "sllnet_small", "sllnet_p2", "sllnet_small_p2", "sllnet_plus", "sllnet_mnist", "sllnet_cifar", "orthonet", "net_mnist",
         "net_cifar", "net_small", "iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200", "ir_50"]
OUTSIDE = '''
from torch import nn
from backbones import register
from backbones.custom_layers import SLLConv2d, SLLLinear

class Plain(nn.Sequential):
    """For the usual size of faces; nothing is registered."""
    def __init__(self, width=8):
        super().__init__(nn.PixelUnshuffle(16), SLLConv2d(768, width, 1), nn.Flatten(), SLLLinear(768 * 49, 8))

@register("outside_small", image_size=(3, 16, 16))
class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.PixelUnshuffle(4), SLLConv2d(48, 48), nn.Flatten(), SLLLinear(768, 8))

class Scaled(Plain):
    def forward(self, images):
        return 20 * super().forward(images)

class OtherSize(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), SLLLinear(768, 8))

class Unconstrained(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(768, 8))

NUMBER = 3
def no_network():
    return 3
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder with outside_nets.py, where one works; nothing of this repository is edited."""
    (tmp_path / "outside_nets.py").write_text(OUTSIDE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("outside_nets", None)


def test_the_names_and_what_is_known_of_them():
    assert set(NAMES) <= set(backbone_names())
    assert [name for name in NAMES if is_lipschitz(name)] == NAMES[:8]
    assert [input_scale(name) for name in ("sllnet", "iresnet18", "ir_50", "net_small")] == [1, 2, 1, 1]
    assert [image_size(name) for name in ("sllnet", "sllnet_mnist", "net_cifar")] == [(3, 112, 112), (1, 28, 28), (3, 32, 32)]


@pytest.mark.parametrize("typed, meant", [("SLLNet_Small", "sllnet_small"), ("SLLnet", "sllnet"), ("sllnet_smal_p2", "sllnet_small_p2"),
                                          ("IResNet50", "iresnet50"), ("Net_Small", "net_small")])
def test_a_mistyped_name_leads_to_the_nearest(typed, meant):
    with pytest.raises(InputError, match=f"backbone '{typed}' is not known; did you mean '{meant}'"):
        get_backbone(typed)


def test_claims_are_what_the_structure_says():
    """What is registered as 1-Lipschitz is found to be so without the word, and nothing else is."""
    from backbones import _is_chain
    assert {name for name in NAMES if not name.startswith("iresnet2") and _is_chain(name)} == set(NAMES[:8])


def test_a_name_is_taken_once():
    register("tiny", image_size=(3, 16, 16), lipschitz=True)(Tiny)  # of the same thing: a module imported again
    with pytest.raises(ValueError, match="'tiny' is registered already"):
        register("tiny")(SLLNetSmall)


def test_a_file_in_the_package_is_all_that_a_network_takes(tmp_path):
    """In a copy of the package, so that this one stays as it is."""
    import shutil
    for room in ("backbones", "utils"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "backbones" / "dropped.py").write_text(OUTSIDE)
    code = "import backbones; print('outside_small' in backbones.backbone_names(), backbones.is_lipschitz('outside_small'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "True True\n", done.stderr


def test_networks_of_other_projects_need_no_registration(outside, tmp_path, capsys):
    name = "outside_nets:Plain"
    assert is_lipschitz(name) and image_size(name) == (3, 112, 112) and input_scale(name) == 1
    network = get_backbone(name, width=16)
    assert network[1].weight.shape[0] == 16
    checkpoint.save_weights(tmp_path / "w.pt", network, name, {"width": 16})
    assert lipschitz_bound(load_network(name, tmp_path / "w.pt", width=16), (3, 112, 112)) <= 1 + TOLERANCE
    with pytest.raises(InputError, match=r"w.pt: holds outside_nets:Plain\(width=16\), expected outside_nets:Plain"):
        load_network(name, tmp_path / "w.pt")
    torch.save(get_backbone(name).state_dict(), tmp_path / "w.pt")
    assert export(["--backbone", name, "--weights", str(tmp_path / "w.pt"), "--out", str(tmp_path / "m.ts")]) == 0
    assert image_size("outside_nets:Small") == (3, 16, 16) and is_lipschitz("outside_nets:Small") and is_lipschitz("outside_small")
    assert not is_lipschitz("outside_nets:Scaled") and not is_lipschitz("outside_nets:Unconstrained")
    with pytest.raises(InputError, match="OtherSize cannot be followed for images of .3, 112, 112.*registered with its image_size"):
        is_lipschitz("outside_nets:OtherSize")
    torch.save(get_backbone("outside_nets:Scaled").state_dict(), tmp_path / "w.pt")
    capsys.readouterr()
    assert export(["--backbone", "outside_nets:Scaled", "--weights", str(tmp_path / "w.pt"), "--out", str(tmp_path / "n.ts")]) == 2
    assert "nothing to fold" in capsys.readouterr().err and not (tmp_path / "n.ts").exists()


@pytest.mark.parametrize("name, words", [("outside_nets:Nothing", "Nothing"), ("nowhere_at_all:Net", "nowhere_at_all"),
                                         ("outside_nets:NUMBER", "is a int"),
                                         ("outside_nets:no_network", "makes a int, expected an nn.Module"), (":Net", "cannot be imported")])
def test_names_of_nothing_are_refused(outside, name, words):
    with pytest.raises(InputError, match=words):
        get_backbone(name)


def test_a_network_of_another_project_is_certified_from_its_folder(outside, tmp_path):
    """The command itself, with the other project's folder as the current one."""
    import small_world
    small_world.write_bin(tmp_path / "faces.bin", small_world.faces(16))
    torch.save(get_backbone("outside_nets:Small").state_dict(), tmp_path / "w.pt")
    run = ["-m", "eval", "certify", "--bin", "faces.bin", "--weights", "w.pt", "--out", "out", "--device", "cpu",
           "--tau", "0.3", "--num-workers", "0", "--backbone"]
    for name, status in (("outside_nets:Small", 0), ("outside_nets:Scaled", 2)):
        done = python(*run, name, cwd=tmp_path, PYTHONPATH=str(ROOT))
        assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == 1 and (tmp_path / "out" / "summary.json").exists()


def test_help_needs_no_network():
    """Nor torch.compile's machinery, which takes longer to import than torch."""
    code = "import sys; from backbones.export import main\ntry: main(['--help'])\nfinally: print('backbones.sllnet' in sys.modules, " \
           "'torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("False False\n"), done.stdout


# what a checkpoint says of itself -----------------------------------------------------------------------------------------------------

def test_a_checkpoint_with_a_name_is_a_plain_state_dict_for_others(tmp_path):
    network = get_backbone("sllnet_small", emb_size=16)
    checkpoint.save_weights(tmp_path / "w.pt", network, *network.built_as)
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    assert type(state) is OrderedDict and list(state) == list(network.state_dict())
    get_backbone("sllnet_small", emb_size=16).load_state_dict(state, strict=True)
    nn.Sequential(network).load_state_dict({f"0.{key}": value for key, value in state.items()}, strict=True)
    assert checkpoint.network_of(state) == ("sllnet_small", {"emb_size": 16})
    assert checkpoint.network_of(network.state_dict()) is None and checkpoint.network_of(dict(state)) is None
    state["further"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        network.load_state_dict(state, strict=True)


@pytest.mark.parametrize("held, asked, arguments", [
    ("sllnet_small", "sllnet_small_p2", {}), ("sllnet_small_p2", "sllnet_small", {}), ("sllnet_small", "sllnet_small", {"power": 2}),
    ("sllnet_gone", "sllnet_small", {}), ("os:system", "sllnet_small", {}), ("elsewhere.nets:SLLNetSmall", "sllnet_small", {})])
def test_another_name_is_refused_and_named(tmp_path, held, asked, arguments):
    checkpoint.save_weights(tmp_path / "w.pt", SLLNetSmall(), held)
    with pytest.raises(InputError, match=f"w.pt: holds {held}, expected {asked}"):
        load_network(asked, tmp_path / "w.pt", **arguments)
    assert "elsewhere" not in sys.modules, "a file's word makes nothing be imported"


@pytest.mark.parametrize("held, said, asked, arguments", [
    ("sllnet_small", {}, "sllnet_small", {}), ("sllnet_small", {"power": 2}, "sllnet_small_p2", {}),
    ("sllnet_small_p2", {}, "sllnet_small", {"power": 2}),
    ("sllnet_small", {"config": [1, 1, 1]}, "sllnet_small", {"emb_size": 128}), ("small_again", {}, "sllnet_small", {}),
    ("backbones.sllnet:SLLNetSmall", {}, "sllnet_small", {}), ("sllnet_small", {}, "backbones.sllnet:SLLNetSmall", {}),
    ("net_of_tests", {}, "small_again", {})])
def test_other_words_for_the_same_network_are_not(tmp_path, monkeypatch, held, said, asked, arguments):
    BACKBONES.names()  # all that is built in is there before it is copied
    for entries in ("_entries", "_aliases"):  # other tests are not to meet these words
        monkeypatch.setattr(BACKBONES, entries, dict(getattr(BACKBONES, entries)))
    register("small_again", "net_of_tests", lipschitz=True)(SLLNetSmall)
    checkpoint.save_weights(tmp_path / "w.pt", SLLNetSmall(), held, said)
    load_network(asked, tmp_path / "w.pt", **arguments)


def test_files_without_a_name_load_as_they_did(tmp_path):
    state = SLLNetSmall().state_dict()
    for content in (state, dict(state), {f"module.{key}": value for key, value in state.items()}):
        torch.save(content, tmp_path / "w.pt")
        load_network("sllnet_small", tmp_path / "w.pt")
        load_network("sllnet_small_p2", tmp_path / "w.pt")


def hostile(**changes):
    state = get_backbone("tiny").state_dict()
    state._metadata = {"": {"version": 1, "network": {"name": "tiny", "arguments": {}, **changes}}}
    return state


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value] * 10  # one list, named ten times: ten to the power of the depth when it is walked
    return value


@pytest.mark.parametrize("changes", [{"name": 3}, {"name": ""}, {"name": "a" * 10**6}, {"name": None}, {"arguments": None},
                                     {"arguments": {1: 2}},
                                     {"arguments": {"a": "b" * 10**6}}, {"arguments": {"a": nested(12)}}, {"arguments": {"a": 10**30}},
                                     {"arguments": {"a": torch.zeros(2)}}, {"further": 1}])
def test_hostile_words_of_a_checkpoint_end_in_one_line(tmp_path, changes):
    torch.save(hostile(**changes), tmp_path / "w.pt")
    with pytest.raises(InputError, match="w.pt: ") as error:
        load_network("tiny", tmp_path / "w.pt")
    assert len(str(error.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("metadata", [None, [], 3, "text", {"": None}, {"": []}, {"other": {"network": 1}}, {"": {"network2": {}}}])
def test_metadata_that_says_nothing_is_ignored(tmp_path, metadata):
    state = get_backbone("tiny").state_dict()
    state._metadata = metadata
    torch.save(state, tmp_path / "w.pt")
    load_network("tiny", tmp_path / "w.pt")


def test_arguments_in_which_the_file_holds_itself_are_refused(tmp_path):
    arguments = {}
    arguments["a"] = [arguments]
    torch.save(hostile(arguments=arguments), tmp_path / "w.pt")
    with pytest.raises(InputError, match="w.pt: "):
        load_network("tiny", tmp_path / "w.pt")


def test_arguments_that_cannot_be_said_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="plain data"):
        checkpoint.save_weights(tmp_path / "w.pt", Tiny(), "tiny", {"a": nn.ReLU()})
    assert not (tmp_path / "w.pt").exists()


def test_what_training_writes_knows_its_network(world, tmp_path, capsys):  # noqa: F811
    tiny_training.write_faces(tmp_path)
    assert train.run(config, [*tiny_training.SETTINGS, f"rec={tmp_path}", f"output={tmp_path / 'run'}", "save_epochs=1"]) == 0
    for name in ("model_1", "model_final"):
        assert checkpoint.network_of(torch.load(tmp_path / "run" / f"{name}.pt", weights_only=True)) == ("tiny", {})
    assert checkpoint.network_of(torch.load(tmp_path / "run" / "header_final.pt", weights_only=True)) is None
    (world / "tight.pt").write_bytes((tmp_path / "run" / "model_final.pt").read_bytes())
    assert command(world, "certify", backbone="tight") == 2
    assert "tight.pt: holds tiny, expected tight" in capsys.readouterr().err
    with zipfile.ZipFile(world / "tight.pt") as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert {str(argument) for code, argument, _ in pickletools.genops(data) if code.name == "GLOBAL"} <= {
        "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage"}, "nothing new to other readers"
