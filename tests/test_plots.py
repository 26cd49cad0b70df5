"""Each figure from small records: it is a PNG of a sane size, and shows what the records say."""
import dataclasses
import shutil

import matplotlib.axes
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_world import command, faces, world  # noqa: F401

import eval.__main__ as command_line
from backbones import load_network
from eval import records
from eval.show import plots
from eval.show.examples import adversarial_examples
from eval.store import results, schema
from eval.verification import read_bin
from utils import InputError

ALL = {"certified_accuracy", "robust_accuracy", "roc", "radius_histograms", "feature_norms", "radius_against_attack",
       "tightness", "radius_against_upper_bound"}


def assert_is_figure(path):
    assert path.stat().st_size < 600_000
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and 1400 <= image.width <= 3000 and 700 <= image.height <= 2500
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
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
    twins = [world / "a_b" / "c", world / "a" / "b_c"]
    for twin in twins:
        twin.parent.mkdir()
        shutil.copytree(loose, twin)
    (world / "a" / "c").mkdir()
    shutil.copy(loose / "summary.json", world / "a" / "c")
    assert command_line.main(["plot", *map(str, twins), str(world / "a" / "c"), "--out", str(world / "plots")]) == 2
    assert "the same name" in capsys.readouterr().err


def test_an_attack_of_which_the_summary_says_too_little_is_named(world, capsys):
    assert command(world, "attack", "--attack", "pgd", "--steps", "1") == 0
    summary = schema.read_summary(world / "out" / "summary.json")
    for key in ("limit", "minimum_norm"):
        entry = {name: value for name, value in summary["attacks"]["pgd"].items() if name != key}
        schema.write_summary(world / "out" / "summary.json", {**summary, "attacks": {"pgd": entry}})
        assert command_line.main(["plot", str(world / "out")]) == 2
        assert f"attack pgd of the summary lacks {key}" in capsys.readouterr().err


@pytest.fixture
def drawn(monkeypatch):
    """What was plotted, by label."""
    lines, plot = {}, matplotlib.axes.Axes.plot

    def spy(axes, *args, **options):
        values = [np.asarray(values, dtype=float) for values in args if not isinstance(values, str)]
        lines.setdefault(options.get("label"), []).append(values)
        return plot(axes, *args, **options)
    monkeypatch.setattr(matplotlib.axes.Axes, "plot", spy)
    return lines


PGD = {"minimum_norm": False, "published": False, "limit": None, "eps": [0.25], "eps_u": [0.25]}
CW = {**PGD, "minimum_norm": True}


def small(tries=(), attacks=None, **pairs):
    """Four pairs and two images. tries: kind, row, attack, eps, success and norm of single attacks; attacks: what the summary says."""
    pairs = {"same": [True, True, False, False], "cosine": [0.9, 0.1, 0.0, -0.5], "norm_left": 1.0, "norm_right": 2.0, "flipped": False,
             "accepted": [True, False, False, False], "radius": [0.5, 0.0, 0.2, 0.7], "upper_bound": [1.0, 1.0, 0.3, 0.8], **pairs}
    images = pd.DataFrame({"norm": [1.0, 2.0], "radius_u": [0.9, 1.8]})
    summary = {"bin": "x", "protocol": "strict", "tau": 0.2, "tar": 0.5, "far": 0.0, "cra_d": {0.25: 0.5}, "attacks": attacks or {}}
    found = records.Records(pd.DataFrame(pairs), images, summary)
    if tries:
        table = pd.DataFrame(tries, columns=["kind", "row", "attack", "eps", "success", "norm"]).assign(side="left", seed=0, settings="")
        found.attacks = table[list(records.ATTACK_TYPES)].astype(records.ATTACK_TYPES)
    return found


def test_curves_are_exact(tmp_path, drawn):
    plots.plot_certified_accuracy({"a": small()}, tmp_path / "a.png")
    (eps_u, u), (eps_d, d), (eps_i, i) = drawn["a"]
    assert (eps_u.tolist(), u.tolist()) == ([0, 0.9, 1.8], [100, 50, 0])
    assert (eps_d.tolist(), d.tolist()) == ([0, 0.5], [50, 0]) and (eps_i.tolist(), i.tolist()) == ([0, 0.2, 0.7], [100, 50, 0])
    found = small(CW_TRIES, {"pgd": PGD, "cw": CW})
    found.attacks.loc[len(found.attacks)] = ["i", 2, "left", "pgd", 0.25, True, 0.25, 0, ""]
    plots.plot_robust_accuracy(found, tmp_path / "b.png")
    u, d, i = drawn["C&W"]
    assert u[0].tolist() == [0, 1.2] and u[1].tolist() == [100, 50]
    assert d[0].tolist() == [0, 0.8] and d[1].tolist() == [50, 0] and i[1].tolist() == [100, 50]
    assert [(*point[0].tolist(), *point[1].tolist()) for point in drawn["PGD"]] == [(0.25, 100), (0.25, 50), (0.25, 50)]


CW_TRIES = [("u", 0, "cw", np.nan, True, 1.2), ("u", 1, "cw", np.nan, False, np.inf), ("d", 0, "cw", np.nan, True, 0.8),
            ("i", 2, "cw", np.nan, True, 0.25), ("i", 3, "cw", np.nan, False, np.inf)]


def test_attacks_on_fewer_rows_are_compared_with_the_certificates_of_these_rows(tmp_path, drawn):
    """C&W on the first row of each kind alone, of which the first image has the smaller radius and the first false pair as well."""
    first = [CW_TRIES[0], CW_TRIES[2], ("i", 2, "cw", np.nan, True, 0.25)]
    found = small([*first, ("i", 2, "pgd", 0.25, True, 0.25)], {"pgd": PGD, "cw": {**CW, "limit": 1}})
    plots.plot_robust_accuracy(found, tmp_path / "a.png")
    assert_is_figure(tmp_path / "a.png")
    assert "certified" not in drawn and "C&W" not in drawn
    radii = {kind: found.images.radius_u if kind == "u" else found.pairs.radius[found.pairs.same == (kind == "d")] for kind in "udi"}
    for limit in (1, 2):
        for (eps, share), rows in zip(drawn[f"certified, first {limit} rows"], radii.values()):
            assert [100 * np.mean(rows[:limit] > bound) for bound in eps] == share.tolist()
    assert [share.tolist() for _, share in drawn["PGD, first 2 rows"]] == [[100], [50], [50]]
    cw = drawn["C&W, first 1 rows"]
    assert [(eps.tolist(), share.tolist()) for eps, share in cw] == [([0, 1.2], [100, 0]), ([0, 0.8], [100, 0]), ([0, 0.25], [100, 0])]
    for (eps, share), (bounds, certified) in zip(cw, drawn["certified, first 1 rows"]):
        for bound, value in zip(bounds, certified):
            assert value <= share[np.searchsorted(eps, bound, side="right") - 1], "no attack lies below the certificates of its rows"


def test_plots_of_a_folder_in_which_attacks_have_limits_of_their_own(world, drawn):
    for what in (["pgd", "--steps", "2", "--limit", "6", "--eps-u", "0.5", "--eps", "0.06"], ["cw", "--steps", "10", "--limit", "3"]):
        assert command(world, "attack", "--attack", *what) == 0
    assert command_line.main(["plot", str(world / "out")]) == 0
    pairs, tries = (pd.read_csv(world / "out" / f"{name}.csv") for name in ("pairs", "attacks"))
    rows = pairs[pairs.same][:3]
    reached = tries[(tries.attack == "cw") & (tries.kind == "d") & tries.success].groupby("row").norm.min()
    smallest = [reached.get(row.Index, np.inf) if row.accepted else 0. for row in rows.itertuples()]
    eps, share = drawn["C&W, first 3 rows"][1]
    assert share.tolist() == pytest.approx([100 * np.mean([norm > bound for norm in smallest]) for bound in eps])
    eps, share = drawn["certified, first 3 rows"][1]
    assert share.tolist() == pytest.approx([100 * np.mean([radius > bound for radius in rows.radius]) for bound in eps])
    assert "certified, first 6 rows" in drawn and "PGD, first 6 rows" in drawn


def test_scatter_and_tightness_keep_failures_apart(tmp_path, drawn):
    tries = [(kind, row, "ddn", *end) for kind, row, _, *end in CW_TRIES] + [("d", 0, "audit", np.nan, True, 0.6)]
    found = small(tries, {"ddn": CW})
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
    short = dataclasses.replace(small(), images=pd.DataFrame({"norm": [0.0, 1e-3]}))
    plots.plot_feature_norms({"a": small(), "b": short}, tmp_path / "wide.png")
    assert_is_figure(tmp_path / "wide.png")
    with pytest.raises(InputError, match="no image"):
        plots.plot_feature_norms({"": dataclasses.replace(small(), images=pd.DataFrame({"norm": [0.0]}))}, tmp_path / "none.png")


def test_roc_band_ends_at_the_clean_curve(tmp_path, drawn):
    plots.plot_roc(small(), tmp_path / "a.png", eps=[1e-9, 0.25])
    clean, (nothing, some) = drawn["no attack"][0], (drawn[rf"certified at $\epsilon$ = {eps:g}"][0] for eps in (1e-9, 0.25))
    assert (clean[1] == nothing[1]).all() and (some[1] <= clean[1]).all() and (some[1] < clean[1]).any()


def test_adversarial_examples_succeed_and_are_drawn(world):
    assert command(world, "certify") == 0
    network, pair_set, found = load_network("tiny", world / "tiny.pt"), read_bin(world / "faces.bin"), results.read_records(world / "out")
    pictures = adversarial_examples(network, pair_set, found, per_kind=2, steps=30)
    assert pictures.sources.shape == pictures.targets.shape == pictures.adversarials.shape
    assert len(pictures.captions) == len(pictures.sources)
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
