"""Each figure from small records: it is a PNG of a sane size, and shows what the records say."""
import matplotlib.axes
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_world import command, faces, world  # noqa: F401

import eval.__main__ as command_line
from eval import records
from eval.show import plots
from eval.show.examples import adversarial_examples
from backbones import load_network
from eval.verification import read_bin
from utils import InputError

ALL = {"certified_accuracy", "robust_accuracy", "roc", "radius_histograms", "feature_norms", "radius_against_attack",
       "tightness", "radius_against_upper_bound"}


def assert_is_figure(path):
    assert path.stat().st_size < 300_000
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and 500 <= image.width <= 1100 and 250 <= image.height <= 900
        assert len(image.convert("RGB").getcolors(2**20)) > 10


def attacked(world, protocol="strict", backbone="tiny"):
    for what in (["pgd", "--steps", "2", "--eps-u", "0.5", "--eps", "0.06"], ["cw", "--steps", "10"], ["ddn", "--steps", "5"]):
        assert command(world, "attack", "--attack", *what, "--protocol", protocol, backbone=backbone, out=backbone) == 0
    return world / backbone


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_all_figures_of_attacked_records(world, protocol, capsys):
    folder = attacked(world, protocol)
    capsys.readouterr()
    assert command_line.main(["plot", str(folder)]) == 0
    paths = capsys.readouterr().out.splitlines()
    assert set(paths) == {str(folder / f"{name}.png") for name in ALL}
    for path in folder.glob("*.png"):
        assert_is_figure(path)


def test_only_what_the_records_support_and_comparisons(world, capsys):
    loose = attacked(world, backbone="loose")
    assert command(world, "certify", out="certified") == 0
    assert command_line.main(["plot", str(loose), str(world / "certified"), "--out", str(world / "plots")]) == 0
    names = {path.stem for path in (world / "plots").iterdir()}
    without_attacks = ALL - {"robust_accuracy", "radius_against_attack", "tightness"}
    assert names == {f"certified_{name}" for name in without_attacks} | {"certified_accuracy", "feature_norms"} | {
        f"loose_{name}" for name in ("robust_accuracy", "roc", "feature_norms")}
    for path in (world / "plots").iterdir():
        assert_is_figure(path)
    assert command_line.main(["plot", str(loose), str(loose), "--out", str(world / "plots")]) == 2
    assert "same name" in capsys.readouterr().err


@pytest.fixture
def drawn(monkeypatch):
    """What was plotted, by label."""
    lines, plot = {}, matplotlib.axes.Axes.plot

    def spy(axes, *args, **options):
        lines.setdefault(options.get("label"), []).append([np.asarray(values, dtype=float) for values in args if not isinstance(values, str)])
        return plot(axes, *args, **options)
    monkeypatch.setattr(matplotlib.axes.Axes, "plot", spy)
    return lines


def small(**pairs):
    pairs = {"same": [True, True, False, False], "cosine": [0.9, 0.1, 0.0, -0.5], "norm_left": 1.0, "norm_right": 2.0, "flipped": False,
             "accepted": [True, False, False, False], "radius": [0.5, 0.0, 0.2, 0.7], "upper_bound": [1.0, 1.0, 0.3, 0.8], **pairs}
    images = pd.DataFrame({"norm": [1.0, 2.0], "radius_u": [0.9, 1.8], "norm_cw": [1.2, np.inf]})
    summary = {"bin": "x", "protocol": "strict", "tau": 0.2, "tar": 0.5, "far": 0.0, "cra_d": {"0.25": 0.5}}
    return records.Records(pd.DataFrame(pairs), images, summary)


def test_curves_are_exact(tmp_path, drawn):
    plots.plot_certified_accuracy({"a": small()}, tmp_path / "a.png")
    (eps_u, u), (eps_d, d), (eps_i, i) = drawn["a"]
    assert (eps_u.tolist(), u.tolist()) == ([0, 0.9, 1.8], [100, 50, 0])
    assert (eps_d.tolist(), d.tolist()) == ([0, 0.5], [50, 0]) and (eps_i.tolist(), i.tolist()) == ([0, 0.2, 0.7], [100, 50, 0])
    found = small(norm_cw=[0.8, 0.0, 0.25, np.inf], **{"robust_pgd_0.25": [True, False, False, np.nan]})
    plots.plot_robust_accuracy(found, tmp_path / "b.png")
    u, d, i = drawn["C&W"]
    assert u[0].tolist() == [0, 1.2] and u[1].tolist() == [100, 50]
    assert d[0].tolist() == [0, 0.8] and d[1].tolist() == [50, 0] and i[1].tolist() == [100, 50]
    assert [point[1].tolist() for point in drawn["PGD"]] == [[50], [0]]


def test_scatter_and_tightness_keep_failures_apart(tmp_path, drawn):
    found = small(norm_ddn=[0.8, 0.0, 0.25, np.inf], norm_audit=[0.6, np.nan, np.nan, np.nan])
    plots.plot_radius_against_attack(found, tmp_path / "a.png")
    assert [values.tolist() for values in drawn["dodging (D)"][0]] == [[0.5], [0.6]]
    assert [values.tolist() for values in drawn["impersonation (I), 1 of 2 without success"][0]] == [[0.2], [0.25]]
    plots.plot_radius_against_upper_bound(found, tmp_path / "b.png")
    assert [values.tolist() for values in drawn["false pairs, rejected"][0]] == [[0.2, 0.7], [0.3, 0.8]]
    plots.plot_tightness(found, tmp_path / "c.png")
    for name in "abc":
        assert_is_figure(tmp_path / f"{name}.png")


def test_records_at_the_edge(tmp_path):
    one_kind = small(same=[True] * 4, accepted=[True] * 4)
    paths = plots.write_plots(one_kind, tmp_path)
    assert {path.stem for path in paths} == {"certified_accuracy", "radius_histograms", "feature_norms"}
    plots.plot_feature_norms({"a": small(), "b": small()._replace(images=pd.DataFrame({"norm": [0.0, 1e-3]}))}, tmp_path / "wide.png")
    assert_is_figure(tmp_path / "wide.png")
    with pytest.raises(InputError, match="no image"):
        plots.plot_feature_norms({"": small()._replace(images=pd.DataFrame({"norm": [0.0]}))}, tmp_path / "none.png")


def test_roc_band_ends_at_the_clean_curve(tmp_path, drawn):
    plots.plot_roc(small(), tmp_path / "a.png", eps=[1e-9, 0.25])
    clean, (nothing, some) = drawn["no attack"][0], (drawn[rf"certified at $\epsilon$ = {eps:g}"][0] for eps in (1e-9, 0.25))
    assert (clean[1] == nothing[1]).all() and (some[1] <= clean[1]).all() and (some[1] < clean[1]).any()


def test_adversarial_examples_succeed_and_are_drawn(world):
    assert command(world, "certify") == 0
    network, pair_set, found = load_network("tiny", world / "tiny.pt"), read_bin(world / "faces.bin"), records.read_records(world / "out")
    pictures = adversarial_examples(network, pair_set, found, per_kind=2, steps=30)
    assert pictures.sources.shape == pictures.targets.shape == pictures.adversarials.shape and len(pictures.captions) == len(pictures.sources)
    assert all("certified" in caption for caption in pictures.captions)
    cosine = torch.cosine_similarity(network(pictures.adversarials), network(pictures.targets))
    for caption, value in zip(pictures.captions, cosine):
        if "no success" not in caption:
            assert (value > 0.3 - 1e-6) == caption.startswith("impersonation")
    assert any("norm" in caption for caption in pictures.captions)
    noise = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0)) - 0.5
    plots.plot_adversarial_examples(noise, -noise, (1.2 * noise).clamp(-.5, .5), world / "a.png", ["one", "two", "three"])
    assert_is_figure(world / "a.png")


def test_the_command_line_draws_adversarial_examples_of_the_result_it_is_given(world, capsys):
    assert command(world, "certify") == 0
    subject = ["--bin", str(world / "faces.bin"), "--backbone", "tiny", "--weights", str(world / "tiny.pt"), "--device", "cpu"]
    assert command_line.main(["plot", str(world / "out"), *subject]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(world / "out" / "adversarial_examples.png")
    assert_is_figure(world / "out" / "adversarial_examples.png")
    for wrong, word in ((subject[:2], "--weights"), ([*subject, "--backbone", "tight", "--weights", str(world / "tight.pt")], "backbone")):
        assert command_line.main(["plot", str(world / "out"), *wrong]) == 2
        assert word in capsys.readouterr().err
