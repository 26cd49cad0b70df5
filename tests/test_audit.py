"""`python -m eval audit`: sound networks pass it, and a network whose bound is wrong does not."""
import json

import numpy as np
import pandas as pd
import pytest
import torch
from small_world import command, faces, world, write_bin  # noqa: F401

import backbones
import backbones.custom_layers as layers
from backbones import get_backbone, load_network
from eval import records
from eval.audit import one as audit
from eval.audit.settings import RESOLUTION

QUICK = ("--steps", "12", "--restarts", "2")


def read(folder):
    pairs, images = (pd.read_csv(folder / f"{name}.csv", float_precision="round_trip") for name in ("pairs", "images"))
    return pairs, images, json.loads((folder / "audit.json").read_text())


def smallest_successes(folder, kind, table):
    """The norm of the smallest success of each row of a kind in attacks.csv, inf without one, NaN where it was not audited."""
    tries = pd.read_csv(folder / "attacks.csv", float_precision="round_trip")
    mine = tries[(tries.attack == "audit") & (tries.kind == kind)]
    assert (mine.success == (mine.norm < np.inf)).all() and mine.eps.isna().all()
    return mine.groupby("row").norm.min().reindex(table.index)


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_a_sound_network_passes_and_tightness_follows_from_the_columns(world, capsys, protocol):
    assert command(world, "audit", *QUICK, "--protocol", protocol, "--limit", "8") == 0
    printed = capsys.readouterr().out
    assert "0 violations" in printed and "apgd, ddn, cw with 12 steps and 2 restarts" in printed
    pairs, images, report = read(world / "out")
    assert report["violations"] == [] and 0.5 < report["largest_ratio"] <= 1 + 1e-9 and report["points"] > 1000
    assert report["backbone"] == "tiny" and report["settings"]["steps"] == 12
    for kind, table in (("u", images), ("d", pairs[pairs.same]), ("i", pairs[~pairs.same])):
        radius = table.radius_u if kind == "u" else table.radius
        norm = smallest_successes(world / "out", kind, table)
        audited = norm.notna()
        assert audited.tolist() == [k < 8 and r > RESOLUTION for k, r in enumerate(radius)]
        ratio = (norm / radius)[audited]
        found = report["tightness"][kind]
        assert found["n"] == len(ratio) == report["attacked"][kind]
        median = sorted(ratio)[(len(ratio) - 1) // 2]
        assert (found["minimum"], found["median"]) == (ratio.min() if ratio.min() < np.inf else None,
                                                       median if median < np.inf else None)
        histogram = found["histogram"]
        assert sum(histogram["counts"]) + histogram["below"] + histogram["above"] == len(ratio)
    assert 1 <= report["tightness"]["d"]["minimum"] < 1.5


def test_a_network_that_is_an_isometry_is_tight_and_passes(world):
    assert command(world, "audit", *QUICK, backbone="tight", tau="0.655") == 0
    pairs, _, report = read(world / "out")
    assert 0.99 < report["largest_ratio"] <= 1 + 1e-9 and report["n_violations"] == 0
    assert report["tightness"]["d"]["minimum"] >= 1 - 1e-4


def test_t_doubled_in_a_tight_layer_makes_it_fail(world, monkeypatch, capsys):
    assert command(world, "certify", backbone="tight", tau="0.655") == 0
    rescaled = layers.rescaled
    for module in (backbones, records):
        monkeypatch.setattr(module, "lipschitz_bound", lambda *_: 1.0)  # which would not let it pass
    monkeypatch.setattr(layers, "rescaled", lambda w, b, q, power: (2 ** 0.5 * rescaled(w, b, q, power)[0], b))
    assert command(world, "audit", *QUICK, backbone="tight", tau="0.655", out="broken") == 1
    pairs, images, report = read(world / "broken")
    assert report["n_violations"] == len(report["violations"]) > 0 and report["largest_ratio"] > 1.5
    assert "violated" in capsys.readouterr().out
    checks = {check for one in report["violations"] for check in one["checks"]}
    assert checks == set(audit.CHECKS)
    for one in report["violations"]:
        table = images if one["kind"] == "u" else pairs
        row = table.loc[one["row"]]
        assert one["image"] == row[one["side"]] and one["certified_radius"] > RESOLUTION
        assert one["ratio"] > 1 or "lipschitz" not in one["checks"]


def test_what_float32_alone_breaks_is_cleared_in_float64(world, monkeypatch):
    """Every point is called suspicious: float64 has to acquit them all."""
    watch = audit._Watch.__init__

    def suspicious(self, *args):
        watch(self, *args)
        self.rounding = torch.full_like(self.rounding, -1e9)

    monkeypatch.setattr(audit._Watch, "__init__", suspicious)
    assert command(world, "audit", *QUICK, "--limit", "4") == 0
    report = read(world / "out")[2]
    assert report["n_violations"] == 0 and report["rechecked"] >= 8


def test_recheck_names_what_does_not_hold(world):
    network = load_network("tight", world / "tight.pt").double()
    images = (faces(16)[:4].double() - 127.5) / 255
    others = (faces(16)[4:8].double() - 127.5) / 255
    points = images + 0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sound = audit.recheck(network, images, points, others, "dodging", 0.1)
    assert sound["broken"].tolist() == [""] * 4 and (sound["ratio"] <= 1 + 1e-9).all()
    steep = audit.recheck(lambda x: 1.01 * network(x), images, points, others, "dodging", 0.1)
    assert all("lipschitz" in broken for broken in steep["broken"])
    lost = audit.recheck(lambda x: network(x) * (torch.nan if x is points else 1), images, points, others, "dodging",
                         0.1)
    assert all("lipschitz" in broken for broken in lost["broken"])


def test_real_networks_pass(tmp_path):
    write_bin(tmp_path / "faces.bin", faces(112, people=2), false_pairs=1)
    torch.manual_seed(0)
    torch.save(get_backbone("sllnet_small").state_dict(), tmp_path / "sllnet_small.pt")
    assert command(tmp_path, "audit", "--steps", "3", "--restarts", "1", backbone="sllnet_small", tau="0.9") == 0
    report = read(tmp_path / "out")[2]
    assert report["attacked"]["u"] == 4 and report["n_violations"] == 0 and 0 < report["largest_ratio"] <= 1
