"""How nonlinear a network is: singular values against whole matrices, signs and midpoints against plain loops."""
import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from small_world import SIZE, Tiny, faces, world, write_bin  # noqa: F401
from torch import nn

import eval.__main__ as command_line
from backbones import proof
from backbones.chain import Step
from backbones.custom_layers import SLLConv2d, SLLLinear
from backbones.export import fold
from backbones.shapes import Absolute, Downsize, MaxMin
from backbones.spectra import of_kernel, of_matrix
from eval import spectrum
from eval.verification import read_bin


def circular(weight, size, stride):
    """The matrix of the convolution on images that go on at their other end, by loops."""
    (height, width), (out, cin, k, _) = size, weight.shape
    matrix = torch.zeros(out, height // stride, width // stride, cin, height, width, dtype=torch.float64)
    for i, j, y, x in itertools.product(range(height // stride), range(width // stride), range(k), range(k)):
        matrix[:, i, j, :, (stride * i + y - k // 2) % height, (stride * j + x - k // 2) % width] += weight[:, :, y, x]
    return matrix.reshape(out * (height // stride) * (width // stride), -1)


@pytest.mark.parametrize("shape, size, stride", [((3, 2, 3, 3), (4, 6), 1), ((2, 3, 3, 3), (5, 3), 1), ((3, 2, 3, 3), (4, 6), 2), ((4, 4, 1, 1), (1, 2), 1),
                                                 ((2, 2, 3, 3), (6, 3), 3), ((1, 2, 5, 5), (5, 5), 1)])
def test_singular_values_of_a_convolution_are_those_of_its_matrix(shape, size, stride):
    weight = torch.randn(shape, dtype=torch.float64)
    found, expected = of_kernel(weight, size, stride), torch.linalg.svdvals(circular(weight, size, stride))
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("size, stride", [((2, 5), 1), ((4, 5), 2)])
def test_images_that_do_not_fit_are_refused(size, stride):
    with pytest.raises(ValueError, match="kernel of 3 x 3"):
        of_kernel(torch.randn(2, 2, 3, 3), size, stride)


def test_singular_values_of_a_matrix():
    values = torch.linalg.svdvals(torch.diag(torch.tensor([0.5, 2.0, 1.0])))
    assert torch.allclose(of_matrix(torch.diag(torch.tensor([0.5, 2.0, 1.0]))).float(), values)


@pytest.fixture
def pairs(tmp_path):
    write_bin(tmp_path / "faces.bin", faces(16))
    return read_bin(tmp_path / "faces.bin")


def test_spectra_are_of_the_rescaled_weights_of_each_layer():
    network = Tiny().eval()
    found = spectrum.spectra(spectrum.steps_of(network, SIZE, True))
    assert list(found) == ["1", "3"]
    conv, linear = network[1].rescaled()[0].detach().double(), network[3].rescaled()[0].detach().double()
    assert len(found["1"]) == 48 * 16 and (found["1"]**2).sum() == pytest.approx(16 * conv.square().sum().item())  # Parseval
    assert found["1"][0] <= 1 + 1e-6 and (np.diff(found["1"]) <= 0).all()
    assert np.allclose(found["3"], torch.linalg.svdvals(linear))


def test_preactivations_choose_the_piece_that_forward_applies():
    """Where no sign differs, a layer is affine: exactly so between two images; and where one does, it is not."""
    torch.manual_seed(0)
    layers = [(fold(SLLConv2d(4, 4, bias=True)).double(), (4, 4, 4)), (MaxMin(), (4, 2, 2)), (Downsize(4, 8), (4, 4, 4)),
              (Downsize(4, 16), (4, 4, 4)), (Absolute(), (4, 2, 2))]
    for layer, shape in layers:
        x, y = (torch.randn(1, *shape, dtype=torch.float64) for _ in range(2))
        for step in (1e-6, 1.0):
            z = x + step * (y - x)
            same = torch.equal(layer.preactivations(x) > 0, layer.preactivations(z) > 0)
            bend = (layer((x + z) / 2) - (layer(x) + layer(z)) / 2).abs().max().item()
            assert same == (step < 1) and (bend < 1e-13) == same, type(layer)


def test_activity_against_loops(pairs):
    torch.manual_seed(0)
    network = Tiny().eval()
    images = np.arange(len(pairs.images))
    found = spectrum.activity(spectrum.steps_of(network, SIZE, True), pairs, images, batch_size=5)
    weight, bias = (value.detach() for value in network[1].rescaled())
    expected = torch.zeros(48, 4, 4)
    for number in images:
        z = nn.functional.pixel_unshuffle(pairs.decode(number)[None].float().sub(127.5).div(255), 4)
        expected += nn.functional.conv2d(z, weight, bias, padding=1)[0] > 0
    assert list(found) == ["1"] and np.abs(found["1"] * len(images) - expected.numpy()).max() < 1e-9


def test_table_against_loops_over_pairs():
    share = np.array([[0.0, 1.0], [0.5, 0.25]])  # of four images
    signs = np.array([[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]])
    differing = np.mean([signs[i] != signs[j] for i, j in itertools.combinations(range(4), 2)])
    steps = [Step("a", MaxMin(), (4, 2, 1)), Step("b", nn.Flatten(), (4, 2, 1)), Step("c", nn.Identity(), (8,))]
    table = spectrum.table(spectrum.rows(steps, {"c": np.array([1.0, 0.6, 0.5, 0.0])}, {"a": share}, 4))
    assert list(table["layer"]) == ["a", "c"] and list(table["input"]) == ["4 x 2 x 1", "8"]
    first, second = table.iloc[0], table.iloc[1]
    assert (first["units"], first["switching"]) == (4, 0.5) and first["disagreement"] == pytest.approx(differing)
    assert (second["count"], second["largest"], second["above_half"]) == (4, 1.0, 0.5)
    assert second["mean_square"] == pytest.approx((1 + 0.36 + 0.25) / 4) and pd.isna(second["switching"]) and pd.isna(first["count"])


class Bent(nn.Module):
    """The absolute values of all numbers."""

    def forward(self, z):
        return z.flatten(1).abs()


def test_midpoint_deviation_of_an_affine_map_and_of_a_bent_one(pairs):
    left, right = np.array([0, 2, 5]), np.array([1, 7, 5])
    affine = [Step("", nn.Sequential(nn.Flatten(), nn.Linear(768, 9).double()), SIZE)]
    affine[0].layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    found = spectrum.midpoint_deviations(affine, pairs, left, right, batch_size=2)
    assert found[:2].max() < 1e-6 and np.isnan(found[2])
    bent = spectrum.midpoint_deviations([Step("", Bent(), SIZE)], pairs, left, right, batch_size=2)
    for number, (i, j) in enumerate(zip(left[:2], right[:2])):
        x, y = ((pairs.decode(k).numpy().ravel() - 127.5) / 255 for k in (i, j))
        expected = np.linalg.norm(np.abs((x + y) / 2) - (np.abs(x) + np.abs(y)) / 2) / np.linalg.norm(np.abs(x) - np.abs(y))
        assert bent[number] == pytest.approx(expected, rel=1e-5) and expected > 0.05


def spectrum_of(world, backbone, *more):
    return command_line.main(["spectrum", "--backbone", backbone, "--weights", str(world / f"{backbone}.pt"), "--out", str(world / "out"),
                              "--device", "cpu", *more])


def test_the_command_prints_and_writes_the_same(world, capsys):
    assert spectrum_of(world, "tiny", "--bin", str(world / "faces.bin"), "--limit", "4") == 0
    printed, written = capsys.readouterr().out, json.loads((world / "out/spectrum.json").read_text())
    table = pd.read_csv(world / "out/spectrum.csv", float_precision="round_trip")
    assert [layer["layer"] for layer in written["layers"]] == list(table["layer"].astype(str)) == ["1", "3"]
    assert written["n_pairs"] == 8 and written["layers"][0]["units"] == 768 and 0 < written["midpoint_deviation"] < 1
    assert f"{table['mean_square'][0]:.4f}" in printed and f"{written['midpoint_deviation']:.3g}" in printed
    assert table["disagreement"][0] == written["layers"][0]["disagreement"] and "units" not in written["layers"][1]
    assert (world / "out/spectrum.png").stat().st_size > 5000


def test_without_images_and_without_layers(world, capsys):
    assert spectrum_of(world, "tiny") == 0
    assert "midpoint_deviation" not in json.loads((world / "out/spectrum.json").read_text())
    assert spectrum_of(world, "loose") == 2 and "not 1-Lipschitz" in capsys.readouterr().err
    assert spectrum_of(world, "loose", "--bin", str(world / "faces.bin")) == 0
    assert json.loads((world / "out/spectrum.json").read_text())["layers"] == []
    assert not (world / "out/spectrum.png").exists(), "a figure of another network"


def test_what_a_subclass_with_another_forward_says_is_not_believed():
    class Other(MaxMin):
        def forward(self, z):
            return z

    assert proof.covers(MaxMin(), "preactivations") and not proof.covers(Other(), "preactivations")
    assert proof.covers(SLLLinear(3, 2).folded(), "singular_values")
