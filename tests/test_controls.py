"""The linear controls: a trained linear map and discriminant analysis in closed form, as networks like any other."""
import copy
import json

import numpy as np
import pytest
import torch
from small_world import faces, write_bin
from torch import nn

import eval.__main__ as command_line
import lda
import train
from backbones import DividedOutput, get_backbone, is_lipschitz, lipschitz_bound, load_network
from backbones.chain import chain
from backbones.custom_layers import PlainLinear, RescaledOnce
from backbones.export import export, fold
from backbones.norms import norm_bound
from backbones.sound import load_sound
from config import config
from utils.checkpoint import save_weights
from utils.images import encode_image

SIZE = (3, 112, 112)
NAMES = ("linear_map", "linear_lda")


def network_of(name):
    torch.manual_seed(0)
    network = get_backbone(name, emb_size=16)
    with torch.no_grad():
        network.linear.bias.normal_()
    return network


def matrix_of(network):
    """The network's matrix and shift in float64: its weights, as forward uses them, times the stem, which is linear."""
    linear = network.linear
    weight, bias = (linear.weight, linear.bias) if isinstance(linear, PlainLinear) else linear.rescaled()
    image = torch.zeros(1, *SIZE, dtype=torch.float64, requires_grad=True)
    rows = copy.deepcopy(network.stem).double()(image)[0] @ weight.detach().double().T
    return torch.stack([torch.autograd.grad(row, image, retain_graph=True)[0].flatten() for row in rows]), bias.detach().double()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_affine_map_of_its_matrix(name):
    network = network_of(name).eval()
    matrix, shift = matrix_of(network)
    images = torch.rand(2, *SIZE) - 0.5
    expected = images.double().flatten(1) @ matrix.T + shift
    assert torch.allclose(network(images).double(), expected, atol=1e-5)
    assert chain(network, SIZE)[-1].name == "linear"


@pytest.mark.parametrize("name", NAMES)
def test_its_bound_is_at_least_the_norm_of_its_matrix_before_and_after_steps(name):
    network = network_of(name)
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    for _ in range(3):
        exact = torch.linalg.matrix_norm(matrix_of(network)[0], 2).item()
        assert exact <= lipschitz_bound(network, SIZE) * (1 + 1e-12)
        assert name == "linear_lda" or lipschitz_bound(network, SIZE) <= 1 + 1e-5
        optimizer.zero_grad()
        (100 * network(torch.rand(4, *SIZE)).square().sum()).backward()
        optimizer.step()


def test_weights_of_too_large_a_norm_are_refused_or_divided_by_it(tmp_path):
    network = network_of("linear_lda")
    with torch.no_grad():
        network.linear.weight.mul_(3)
    save_weights(tmp_path / "w.pt", network)
    with pytest.raises(ValueError, match="may be 1.97.*expected at most 1"):
        load_network("linear_lda", tmp_path / "w.pt", emb_size=16)
    tight = load_network("linear_lda", tmp_path / "w.pt", tight=True, emb_size=16)
    assert isinstance(tight, DividedOutput) and lipschitz_bound(tight, SIZE) == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_network_like_any_other(name, tmp_path):
    network, images = network_of(name).eval(), torch.rand(2, *SIZE) - 0.5
    expected = network(images)
    assert is_lipschitz(name)
    assert torch.allclose(fold(network)(images), expected, atol=1e-6)
    export(network, tmp_path / "n.pt2", SIZE)
    assert torch.allclose(torch.export.load(tmp_path / "n.pt2").module()(images), expected, atol=1e-5)
    assert torch.allclose(torch.func.vmap(lambda image: network(image[None])[0])(images), expected, atol=1e-6)
    _, moved = torch.func.jvp(network, (images,), (images,))
    assert torch.allclose(moved, network(images) - network(torch.zeros_like(images)), atol=1e-5)  # the linear part, of the images themselves
    assert torch.allclose(torch.compile(network, backend="eager")(images), expected, atol=1e-6)
    with RescaledOnce(network) as rescaling:
        rescaling.last()
        assert torch.allclose(network(images), expected, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(images).dtype == torch.float32, "the norm of an embedding is the radius"
    save_weights(tmp_path / "w.pt", network, name, {"emb_size": 16})
    assert torch.equal(load_network(name, tmp_path / "w.pt", emb_size=16)(images), expected)
    sound = load_sound(name, tmp_path / "w.pt", emb_size=16)
    proof = sound.prove(SIZE)
    matrix, shift = matrix_of(network)
    error = (sound(images.double()) - images.double().flatten(1) @ matrix.T - shift).norm(dim=1).max().item()
    assert error <= proof.error < 1e-8 and proof.dimension == 16


def test_the_linear_map_trains_and_is_certified(tmp_path):
    settings = ["backbone=linear_map", "num_classes=4", "num_image=16", "num_epoch=1", "batch_size=8", "xi=1", "device=cpu", "num_workers=0",
                "emb_size=128", f"output={tmp_path}/train"]
    assert train.run(config, settings) == 0
    argv = ["certify", "--bin", str(tmp_path / "train/synthetic.bin"), "--backbone", "linear_map", "--weights",
            str(tmp_path / "train/model_final.pt"), "--far", "0.1", "--out", str(tmp_path / "out"), "--device", "cpu", "--num-workers", "0"]
    assert command_line.main(argv) == 0 and (tmp_path / "out/pairs.csv").exists()


# --- discriminant analysis

def some_features(people=5, images=8, size=6):
    numbers = np.random.default_rng(0)
    labels = np.repeat(np.arange(people), images)
    centres = numbers.normal(size=(people, size)) * np.array([3, 2, 1, 0.5, 0.2, 0.1])
    return centres[labels] + numbers.normal(size=(len(labels), size)) @ numbers.normal(size=(size, size)) + 5, labels


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_directions_solve_the_generalised_eigenproblem(shrinkage):
    """In the features themselves, with scatter matrices by loops: all principal components are a rotation, which nothing depends on."""
    features, labels = some_features()
    mean, directions = lda.fit(features, labels, 3, 100, shrinkage)

    def shrunk(scatter):
        return (1 - shrinkage) * scatter + shrinkage * np.trace(scatter) / len(scatter) * np.eye(len(scatter))
    within, total = np.zeros((6, 6)), np.zeros((6, 6))
    for x, label in zip(features, labels):
        inside, outside = x - features[labels == label].mean(0), x - features.mean(0)
        within, total = within + np.outer(inside, inside) / len(features), total + np.outer(outside, outside) / len(features)
    within, between = shrunk(within), shrunk(total) - shrunk(within)
    values, vectors = np.linalg.eig(np.linalg.solve(within, between))
    expected = vectors[:, np.argsort(-values)[:3]].real.T
    assert directions.shape == (3, 6) and np.allclose(mean, features.mean(0))
    for found, true in zip(directions, expected):
        assert abs(found @ true) == pytest.approx(np.linalg.norm(found) * np.linalg.norm(true), rel=1e-9)
        assert found @ within @ found == pytest.approx(1), "whitened within people"


def test_both_variants_have_norm_one_and_the_span_of_the_directions():
    directions = np.random.default_rng(0).normal(size=(3, 7)) * np.array([[1], [10], [0.1]])
    scaled, basis = lda.non_expansive(directions, "scaled"), lda.non_expansive(directions, "orthonormal")
    assert np.linalg.norm(scaled, 2) == pytest.approx(1) and np.allclose(scaled / scaled[0, 0], directions / directions[0, 0])
    assert np.allclose(basis @ basis.T, np.eye(3)) and np.allclose(directions @ basis.T @ basis, directions)


def test_the_layer_takes_the_mean_out_and_is_proven():
    linear, numbers = PlainLinear(40, 5), np.random.default_rng(0)
    mean, directions = numbers.normal(size=40), lda.non_expansive(numbers.normal(size=(3, 40)), "orthonormal")
    lda.fill(linear, mean, directions)
    x = numbers.normal(size=40)
    found = linear(torch.from_numpy(x).float()).detach().numpy()
    assert np.allclose(found[:3], directions @ (x - mean), atol=1e-5) and (found[3:] == 0).all()
    assert 1 - 1e-5 < norm_bound(linear.weight) <= 1 and np.abs(linear(torch.from_numpy(mean).float()).detach().numpy()).max() < 1e-5


def test_features_are_those_of_the_images_and_then_of_their_mirror_images(people):
    dataset = train.get_dataset(people / "faces")
    network = get_backbone("linear_lda")
    features = lda.features_of(network.stem, dataset, batch_size=7)
    assert features.shape == (48, network.linear.in_features)
    for mirrored, found in zip((False, True), (features[:24], features[24:])):
        images = train.to_float(torch.stack([dataset[k][0] for k in range(24)]))
        assert np.allclose(found, network.stem(images.flip(-1) if mirrored else images).numpy(), atol=1e-5)


@pytest.fixture
def people(tmp_path):
    """A folder of six people with four images each, and a .bin of others."""
    images = nn.functional.interpolate(faces(16, people=12).float(), size=(112, 112)).byte()
    for number, image in enumerate(images):
        folder = tmp_path / "faces" / f"{number // 4}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encode_image(image, "png"))
    write_bin(tmp_path / "pairs.bin", images[:12])
    return tmp_path


@pytest.mark.parametrize("variant", ["orthonormal", "scaled"])
def test_the_command_writes_a_checkpoint_that_is_certified(people, variant, capsys):
    file = people / "out/lda.pt"
    assert lda.run([f"data={people}/faces", f"output={file}", f"variant={variant}", "components=10"]) == 0
    assert "5 directions from 24 images of 6 identities" in capsys.readouterr().out
    argv = ["certify", "--bin", str(people / "pairs.bin"), "--backbone", "linear_lda", "--weights", str(file), "--far", "0.2", "--sound",
            "--out", str(people / "certified"), "--device", "cpu", "--num-workers", "0"]
    assert command_line.main(argv) == 0
    assert json.loads((people / "certified/summary.json").read_text())["sound_lipschitz"] <= 1 + 1e-9
    network = load_network("linear_lda", file)
    dataset = train.get_dataset(people / "faces")
    images = train.to_float(torch.stack([dataset[k][0] for k in range(24)]))
    embeddings = network(torch.cat([images, images.flip(-1)])).detach()
    assert embeddings.mean(0).norm() < 1e-4 * embeddings.norm(dim=1).mean(), "the mean of what it was fitted to is taken out"


@pytest.mark.parametrize("setting, message", [
    ("variant=other", "orthonormal, scaled"), ("shrinkage=2", "from 0 to 1"), ("components=0", "at least 1"), ("seed=-1", "at least 0"),
    ("shrinkage=0 components=24", "")])
def test_settings_that_cannot_be_used(people, setting, message, capsys):
    status = lda.run([f"data={people}/faces", f"output={people}/lda.pt", *setting.split()])
    assert status == (2 if message else 0) and message in capsys.readouterr().err


def test_faces_that_cannot_be_used(people, capsys):
    small = people / "small"
    for number, image in enumerate(faces(16, people=2)):
        (small / f"{number // 2}").mkdir(parents=True, exist_ok=True)
        (small / f"{number // 2}" / f"{number}.png").write_bytes(encode_image(image, "png"))
    assert lda.run([f"data={small}", f"output={people}/lda.pt"]) == 2
    assert "images of [16, 16], expected [112, 112]" in capsys.readouterr().err
    with pytest.raises(ValueError, match="3 images of 3 identities"):
        lda.fit(np.random.rand(3, 4), np.arange(3), 2, 2, 0.1)
