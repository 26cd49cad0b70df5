"""Further threats on the command line: both images attacked, mirrored images averaged in, l_p budgets, thresholds under attack."""
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from small_world import command, faces, summary_of, world  # noqa: F401

import backbones
import backbones.custom_layers as layers
import eval.__main__ as command_line
from backbones import FlipAveraged, load_network
from eval import certification, records
from eval.audit import pairs as audit_pairs
from eval.audit import settings

QUICK = ("--steps", "10", "--restarts", "2")


def read(folder):
    pairs, images = (pd.read_csv(folder / f"{name}.csv", float_precision="round_trip") for name in ("pairs", "images"))
    return pairs, images, summary_of(folder)


def lower(values):
    return sorted(values)[(len(values) - 1) // 2]


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_radii_of_both_images_are_in_the_records_and_the_summary(world, protocol):
    assert command(world, "certify", "--eps", "0.05", "0.2", "--protocol", protocol) == 0
    pairs, _, summary = read(world / "out")
    theta, right = np.arccos(pairs.cosine.clip(-1, 1)), pairs.accepted == pairs.same
    for threat, radius in (("both", certification.two_sided_radius), ("joint", certification.joint_radius)):
        expected = radius(pairs.norm_left.to_numpy(), pairs.norm_right.to_numpy(), theta.to_numpy(), 0.3).numpy() * right
        column = pairs[f"radius_{threat}"]
        assert column.to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-6, abs=1e-9) and (column > 0).sum() > 5
        for kind, rows in (("d", column[pairs.same]), ("i", column[~pairs.same])):
            figures = summary["certificates"][threat]
            assert figures[f"cra_{kind}"] == {eps: (rows > eps).mean() for eps in (0.05, 0.2)}
            assert figures[f"med_{kind}"] == lower(rows)
    assert (pairs.radius_both <= pairs.radius_joint * (1 + 1e-9)).all() and (pairs.radius_joint[right] > 0).all()


def test_flip_average_is_the_mean_of_both_views_for_certificates_and_attacks(world):
    assert command(world, "certify", "--flip", "average") == 0
    pairs, images, summary = read(world / "out")
    network = load_network("tiny", world / "tiny.pt")
    batch = (faces(16).float() - 127.5) / 255
    mean = (network(batch) + network(batch.flip(-1))) / 2
    assert summary["flip"] == "average" and len(images) == 12
    assert images.norm.sort_values().to_numpy() == pytest.approx(mean.norm(dim=1).sort().values.numpy(), rel=1e-5)
    wrapped = FlipAveraged(network)
    assert torch.equal(wrapped(batch), mean) and torch.allclose(wrapped(batch.flip(-1)), mean, atol=1e-6)
    jacobian = torch.autograd.functional.jacobian(lambda x: wrapped(x[None])[0], batch[0]).flatten(1)
    assert torch.linalg.matrix_norm(jacobian, 2) <= 1 + 1e-5
    assert command(world, "attack", "--attack", "pgd", "--flip", "average", "--steps", "3", "--no-skip") == 0
    assert command(world, "audit", "--flip", "average", *QUICK, "--limit", "4") == 0
    report = json.loads((world / "out" / "audit.json").read_text())
    assert report["flip"] == "average" and report["n_violations"] == 0 and report["largest_ratio"] <= 1 + 1e-9


def test_results_with_and_without_flips_never_mix(world, capsys):
    assert command(world, "certify", "--flip", "average") == 0
    for what, *more in (["certify"], ["attack", "--attack", "pgd"], ["audit"], ["audit", "--threat", "both"]):
        assert command(world, what, *more) == 2
        assert "these results have flip average, expected none" in capsys.readouterr().err
    assert command(world, "certify", out="plain") == 0
    assert command(world, "attack", "--attack", "pgd", "--flip", "average", out="plain") == 2
    assert "these results have flip none, expected average" in capsys.readouterr().err
    assert command_line.main(["table", str(world / "out"), str(world / "plain")]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert "Flip" in header and [("average" in row, "none" in row) for row in rows] == [(True, False), (False, True)]
    for what in ("certify", "audit"):
        assert command(world, what, "--flip", "average", "--protocol", "paper", out="paper") == 2
        assert "flip average, protocol paper" in capsys.readouterr().err and not (world / "paper").exists()


@pytest.mark.parametrize("threat", ["both", "joint"])
def test_sound_networks_pass_with_both_images_attacked(world, capsys, threat):
    for backbone, tau in (("tiny", "0.3"), ("tight", "0.655")):
        assert command(world, "audit", "--threat", threat, *QUICK, backbone=backbone, tau=tau, out=backbone) == 0
        report = json.loads((world / backbone / f"audit_{threat}.json").read_text())
        pairs = read(world / backbone)[0]
        assert sum(report["attacked"].values()) == (pairs[f"radius_{threat}"] > 1e-4).sum() > 5
        assert report["violations"] == [] and report["points"] == 22 * sum(report["attacked"].values())
        assert report["smallest_margin"] > 0 and report["settings"]["threat"] == threat and report["rechecked"] > 0
    assert "0 violations" in capsys.readouterr().out
    assert not (world / "tiny" / "audit.json").exists()


@pytest.mark.parametrize("threat", ["both", "joint"])
def test_the_attack_on_both_images_crosses_just_above_the_radius(world, monkeypatch, threat):
    """On an isometry 1.05 times the radius is enough, and not counted as a violation."""
    monkeypatch.setattr(audit_pairs, "SHARE", 1.05)
    assert command(world, "audit", "--threat", threat, *QUICK, backbone="tight", tau="0.655") == 0
    report = json.loads((world / "out" / f"audit_{threat}.json").read_text())
    assert report["smallest_margin"] < 0 and report["n_violations"] == 0 and report["rechecked"] > 3


def test_a_network_that_is_no_contraction_fails_with_both_images_attacked(world, monkeypatch, capsys):
    assert command(world, "certify", backbone="tight", tau="0.655") == 0
    rescaled = layers.rescaled
    for module in (backbones, records):
        monkeypatch.setattr(module, "lipschitz_bound", lambda *_: 1.0)
    monkeypatch.setattr(layers, "rescaled", lambda w, b, q, power: (2 ** 0.5 * rescaled(w, b, q, power)[0], b))
    assert command(world, "audit", "--threat", "both", *QUICK, backbone="tight", tau="0.655", out="broken") == 1
    report = json.loads((world / "broken" / "audit_both.json").read_text())
    assert report["n_violations"] == len(report["violations"]) > 0 and "violated: " in capsys.readouterr().out
    pairs = read(world / "broken")[0]
    for one in report["violations"]:
        assert one["certified_radius"] == pairs.radius_both[one["row"]] > max(one["moved_left"], one["moved_right"]) > 0


def test_an_audit_of_nothing_says_so(world, monkeypatch):
    monkeypatch.setattr(settings, "RESOLUTION", 1e9)
    assert command(world, "audit", "--threat", "both") == 0
    report = json.loads((world / "out" / "audit_both.json").read_text())
    assert report["attacked"] == {"d": 0, "i": 0} and report["points"] == 0 and report["smallest_margin"] is None
    assert sum(report["unresolved"].values()) > 5


def test_records_without_the_radii_are_named(world, capsys):
    assert command(world, "certify") == 0
    pairs = read(world / "out")[0].drop(columns="radius_joint")
    pairs.to_csv(world / "out" / "pairs.csv", index=False)
    assert command(world, "audit", "--threat", "joint") == 2
    assert "pairs.csv: column radius_joint missing" in capsys.readouterr().err


def test_lp_budgets_in_grey_levels(world, capsys):
    assert command(world, "certify", "--p", "inf", "2", "1.5", "--eps-p", "0.25", "3") == 0
    printed = capsys.readouterr().out
    pairs, images, summary = read(world / "out")
    for found, (p, factor) in zip(summary["lp"], (("inf", 1 / math.sqrt(768)), (2, 1), (1.5, 1)), strict=True):
        assert found["dimension"] == 768 and found["p"] == p
        found = {key: {item["eps"]: item["value"] for item in value} for key, value in found.items() if key.startswith("cra")}
        radii = {"u": images.radius_u, "d": pairs.radius[pairs.same], "i": pairs.radius[~pairs.same]}
        for kind, radius in radii.items():
            assert found[f"cra_{kind}"] == {eps: (255 * radius * factor > eps).mean() for eps in (0.25, 3.0)}
    assert summary["lp"][0]["cra_i"][0]["value"] > 0 and "l_inf, budgets in grey levels: CRA_U 0.25: " in printed
    for bad in (["--p", "0.5"], ["--p", "x"], ["--p", "nan"], ["--p", "2", "--eps-p", "0"]):
        with pytest.raises(SystemExit) as error:
            command(world, "certify", *bad, out="bad")
        assert error.value.code == 2


def test_tar_at_certified_far(world, capsys):
    assert command(world, "certify", "--far", "0.2", "--certified-far", "0.01", "0.1", "50", tau=None) == 0
    printed = capsys.readouterr().out
    pairs, _, summary = read(world / "out")
    norm, theta = np.minimum(pairs.norm_left, pairs.norm_right).to_numpy(), pairs.theta.to_numpy()
    for eps in (0.01, 0.1):
        found = summary["certified_far"][eps]
        radius = certification.one_sided_radius(norm, theta, found["tau"]).numpy()
        accepted, certain = pairs.cosine > found["tau"], radius > eps
        assert found["far"] == pytest.approx(1 - (~accepted & certain)[~pairs.same].mean()) and found["far"] <= found["target"] == 0.2
        assert found["tar"] == pytest.approx((accepted & certain)[pairs.same].mean())
        assert f"under attack at {eps}: tau {found['tau']:.3f}" in printed
    assert summary["certified_far"][0.01]["tau"] <= summary["certified_far"][0.1]["tau"]
    assert summary["certified_far"][50.0]["tau"] is None and "at every threshold" in summary["certified_far"][50.0]["reason"]
