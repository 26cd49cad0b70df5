"""Networks for which nothing is proven: every command that would give a certificate refuses them, in one line that names what is wrong."""
import pytest
import small_world
import tiny_training
import torch
from small_world import SIZE, Tiny
from torch import nn

import eval.__main__ as command_line
from backbones import export, get_backbone, load_network, register
from backbones.custom_layers import SLLConv2d, SLLLinear
from utils import InputError, checkpoint


class Scaled(Tiny):
    def forward(self, images):
        return 20 * super().forward(images)


class Branch(Tiny):
    def forward(self, images):
        return super().forward(images) + images.flatten(1)[:, :32]


class Residual(nn.Module):
    """x + f(x), which is 2-Lipschitz."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, z):
        return z + self.inner(z)


class WithResidual(Tiny):
    def __init__(self):
        super().__init__()
        self[1] = Residual(self[1])


class Unused(Tiny):
    def forward(self, images):
        for layer in list(self)[:3]:
            images = layer(images)
        return images


class Repeated(Tiny):
    def forward(self, images):
        return self[3](self[2](self[1](self[1](self[0](images)))))


class Written(Tiny):
    def forward(self, images):
        z = self[1](self[0](images))
        z.data.mul_(20)
        return self[3](self[2](z))


class Decides(Tiny):
    def forward(self, images):
        return super().forward(images if images.mean() > 0 else -images)


class OfManyImages(Tiny):
    def forward(self, images):
        return super().forward(images) if len(images) == 1 else super().forward(images) * 20


class Activated(Tiny):
    def __init__(self):
        super().__init__()
        self.append(nn.Softplus(10))


class Steeper(SLLLinear):
    def forward(self, z):
        return 20 * super().forward(z)


class WithSubclass(Tiny):
    def __init__(self):
        super().__init__()
        self[3] = Steeper(768, 32)


class Hooked(Tiny):
    def __init__(self):
        super().__init__()
        self[3].register_forward_hook(lambda layer, inputs, output: 20 * output)


class HookedOutside(Tiny):
    def __init__(self):
        super().__init__()
        self.register_forward_pre_hook(lambda layer, inputs: (20 * inputs[0],))


class Replaced(Tiny):
    def __init__(self):
        super().__init__()
        layer = self[1]
        layer.forward = lambda z: 20 * SLLConv2d.forward(layer, z)


class WithParameter(Tiny):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))


KINDS = {Scaled: "Scaled does not apply its layers one after another, each once (the embedding is not what comes out of 3)",
         Branch: "Branch does not apply its layers one after another",
         WithResidual: "does not apply its layers one after another, each once (2 is not applied to what comes out of 1.inner)",
         Unused: "3 is applied 0 times", Repeated: "1 is applied 2 times", Written: "mul_ changes a tensor in between",
         Decides: "it decides by values", OfManyImages: "OfManyImages does not apply",
         Activated: "layer 4: Softplus has no known Lipschitz constant",
         WithSubclass: "layer 3: Steeper has another forward than the one", Hooked: "layer 3: SLLLinear has hooks",
         HookedOutside: "w.pt: HookedOutside has hooks", Replaced: "layer 1: SLLConv2d had its forward replaced",
         WithParameter: "scale of WithParameter: parameters outside of layers"}
for kind in KINDS:
    register(f"refused_{kind.__name__.lower()}", image_size=SIZE, lipschitz=True)(kind)
register("refused_silent", image_size=SIZE)(type("Silent", (Scaled,), {}))
COMMANDS = ("certify", "certify --sound", "certify --tight", "attack --attack fgsm", "audit", "identify", "export")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tiny_training.write_faces(tmp_path_factory.mktemp("refused"))
    small_world.write_bin(folder / "faces.bin", small_world.faces(16))
    return folder


def run(command, name, weights, folder, out):
    words = ["--backbone", name, "--weights", str(weights)]
    if command == "export":
        return export.main([*words, "--out", str(out / "m.ts")])
    data = ["--rec", str(folder)] if command == "identify" else ["--bin", str(folder / "faces.bin")]
    return command_line.main([*command.split(), *words, *data, "--out", str(out / "out"), "--device", "cpu", "--num-workers", "0",
                              "--tau", "0.3"])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_command_refuses_what_is_no_chain_of_declared_layers(files, tmp_path, capsys, kind, command):
    name = f"refused_{kind.__name__.lower()}"
    torch.save(get_backbone(name).state_dict(), tmp_path / "w.pt")
    assert run(command, name, tmp_path / "w.pt", files, tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and KINDS[kind] in error and "w.pt" in error, error
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"], "nothing was written"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_load_network_refuses_it(tmp_path, kind):
    name = f"refused_{kind.__name__.lower()}"
    torch.save(get_backbone(name).state_dict(), tmp_path / "w.pt")
    for tight in (False, True):
        with pytest.raises(InputError, match="w.pt: ") as error:
            load_network(name, tmp_path / "w.pt", tight=tight)
        assert KINDS[kind] in str(error.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_network_whose_registration_says_nothing_has_no_certificates_either(files, tmp_path, capsys, command):
    torch.save(get_backbone("refused_silent").state_dict(), tmp_path / "w.pt")
    attacked = command.startswith("attack")  # which needs no certificate
    assert run(command, "refused_silent", tmp_path / "w.pt", files, tmp_path) == (0 if attacked else 2)
    error = capsys.readouterr().err
    assert attacked or error.count("\n") == 1 and ("not 1-Lipschitz" in error or "no SLL network" in error)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_the_checkpoint_of_another_network(files, tmp_path, capsys, command):
    checkpoint.save_weights(tmp_path / "w.pt", get_backbone("sllnet_small"), "sllnet_small")
    assert run(command, "sllnet_small_p2", tmp_path / "w.pt", files, tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "w.pt: holds sllnet_small, expected sllnet_small_p2" in error


def test_the_same_commands_take_what_is_proven(files, tmp_path, capsys):
    """So that none of the above is refused for another reason."""
    torch.manual_seed(0)
    checkpoint.save_weights(tmp_path / "w.pt", get_backbone("tiny"), "tiny")
    for number, command in enumerate(COMMANDS):
        out = tmp_path / str(number)
        out.mkdir()
        more = " --steps 2 --limit 2" if command in ("audit",) else ""
        assert run(command + more if command != "export" else command, "tiny", tmp_path / "w.pt", files, out) == 0, capsys.readouterr().err
