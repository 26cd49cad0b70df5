"""The ablation in small: from a folder of faces to tables, going on where it stopped, refusing what does not belong together."""
import json

import pandas as pd
import pytest
import small_world
import tiny_training

import ablation
import lda
from backbones import get_backbone, register
from eval.audit import driver
from eval.show import report, tables
from eval.show.tables import Column, Table
from utils import checkpoint

SETTINGS = ["backbone=tiny", "unconstrained=loose", "num_epoch=1", "batch_size=8", "fars=[0.5, 0.34]", "loose_far=0.8", "limit=4",
            "cw_limit=2", "audit_limit=2", "audit_steps=3", "device=cpu"]
register("other_tiny", image_size=small_world.SIZE, lipschitz=True)(small_world.Tiny)


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """A folder with training images and pairs, and two networks for images of their size; the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces").mkdir()
    tiny_training.write_faces(tmp_path / "faces")
    small_world.write_bin(tmp_path / "faces" / "some.bin", small_world.faces(16))
    return tmp_path


@pytest.fixture
def without_figures(monkeypatch):
    """Half of the time of small runs goes into drawing, which other tests see."""
    monkeypatch.setattr(report, "figures", lambda *_: None)


def run(*more):
    arguments = {argument.partition("=")[0]: argument for argument in [*SETTINGS, "data=faces", "output=out", *more]}
    return ablation.run(list(arguments.values()))


def rows_of(markdown, heading):
    """The rows of the first table under a heading, as dictionaries."""
    lines = markdown.split(heading, 1)[1].split("\n\n| ", 1)[1].split("\n\n")[0].splitlines()
    names, _, *rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [dict(zip(names, row)) for row in rows]


def test_from_faces_to_tables_and_nothing_twice(faces, monkeypatch):
    kinds = "runs=['xi1', 'xi1_again', 'lln', 'net']"
    with monkeypatch.context() as patch:  # an audit that is cut off: everything before it is kept
        patch.setattr(driver, "audit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(kinds) == 75
    trained = {path: path.stat().st_mtime_ns for path in faces.glob("out/*/train/model_final.pt")}
    attacked = json.loads((faces / "out/xi1/some/strict_far0.5/summary.json").read_text())["attacks"]
    assert len(trained) == 4 and set(attacked) == {"pgd"} and not (faces / "out/lln/some").exists()

    assert run(kinds, "logs=logs") == 0
    report = (faces / "out/tables.md").read_text()
    assert trained == {path: path.stat().st_mtime_ns for path in trained}
    certified = rows_of(report, "## some: strict protocol, FAR 0.5")
    assert [row["Model"] for row in certified[:3]] == ["SLL, xi = 1", "SLL, LLN", "published, xi = 0"]
    pairs = [pd.read_csv(faces / f"out/{name}/some/strict_far0.5/pairs.csv") for name in ("xi1", "xi1_again")]
    tars = [100 * table.accepted[table.same].mean() for table in pairs]
    mean, low, high = (f"{value:.2f}" for value in (sum(tars) / 2, min(tars), max(tars)))
    assert certified[0]["TAR [%]"] == (mean if low == high else f"{mean} [{low}, {high}]")
    assert [row["Model"] for row in rows_of(report, "### Under PGD")[:3]] == ["SLL, xi = 1", "SLL, LLN", "unconstrained"]
    assert rows_of(report, "### Under C&W")[0]["Limit"] == "2"
    assert "### Under" not in report.split("FAR 0.8", 1)[1].split("## some: soundness")[0]
    audits = rows_of(report, "soundness audit")
    assert [row["Run"] for row in audits] == ["xi1", "xi1_again", "lln"] and {row["violations"] for row in audits} == {"0"}
    assert {row["seed"] for row in map(json.loads, (path.read_text() for path in faces.glob("out/xi1*/some/*/summary.json")))} == {0, 1}
    assert "Speed" in (faces / "logs/training_lln.log").read_text() and (faces / "logs/ablation/net/some/paper_far0.34.json").exists()
    assert json.loads((faces / "logs/ablation/xi1/some/strict_far0.5_audit.json").read_text())["n_violations"] == 0
    assert {"norm_over_training.png"} == {path.name for path in faces.glob("out/figures/*.png")}
    assert {"certified_accuracy.png", "xi1_roc.png"} < {path.name for path in faces.glob("out/figures/some/*.png")}

    records = {path: path.stat().st_mtime_ns for path in faces.glob("out/*/some/*/*.csv")}
    assert run(kinds) == 0 and records == {path: path.stat().st_mtime_ns for path in records}


def test_runs_of_other_settings_are_refused(faces, without_figures, capsys):
    assert run("runs=['xi1']") == 0
    assert run("runs=['xi1']", "lr=0.01") == 2
    assert "lr 0.001, not 0.01" in capsys.readouterr().err
    assert run("runs=['xi1']", "seed=3") == 2
    small_world.write_bin(faces / "faces" / "some.bin", small_world.faces(16, contrast=0.5))
    assert run("runs=['xi1']") == 2
    assert "bin_sha256" in capsys.readouterr().err


def test_another_network_gets_the_epochs_that_its_steps_leave_time_for(faces, without_figures, monkeypatch):
    monkeypatch.setitem(ablation.RUNS, "plus", ablation.Run("other_tiny", {"xi": 3.0, "backbone": "other_tiny"}, time=2.0))
    assert run("runs=['plus']", "num_epoch=4") == 0
    trained = json.loads((faces / "out/plus/train/complete.json").read_text())
    assert (trained["backbone"], trained["num_epoch"], trained["xi"]) == ("other_tiny", 2, 3.0)
    assert json.loads((faces / "out/plus/some/strict_far0.5/summary.json").read_text())["backbone"] == "other_tiny"


def test_an_audit_of_other_settings_is_done_again(faces, without_figures):
    audits = faces / "out/xi1/some/strict_far0.5/audit.json"
    assert run("runs=['xi1']") == 0 and json.loads(audits.read_text())["settings"]["limit"] == 2
    assert run("runs=['xi1']", "audit_limit=3", "audit_steps=2") == 0
    assert {key: json.loads(audits.read_text())["settings"][key] for key in ("limit", "steps")} == {"limit": 3, "steps": 2}


@pytest.mark.parametrize("setting, word", [("data=nowhere", "nowhere"), ("runs=['xi2']", "xi2"),
                                           ("fars=[2]", "fars"), ("limit=-1", "limit"), ("draws=0", "draws")])
def test_settings_that_cannot_be_used(faces, capsys, setting, word):
    assert run(setting) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1 and not (faces / "out").exists()


def test_means_and_ranges():
    columns = [Column("Model", digits=None), Column("TAR", digits=2), Column("tau"), Column("CRA_U", 1.5, digits=2)]
    table = Table(columns, [["a", 50.0, 0.1, None], ["b", 1.0, 0.2, 3.0], ["a", 60.0, None, None]])
    merged = tables.over_seeds(table)
    assert merged.rows[0][1] == tables.OverSeeds((50.0, 60.0)), "numbers, until they are printed"
    assert tables.formatted(merged) == [["a", "55.00 [50.00, 60.00]", "0.100, -", "-"], ["b", "1.00", "0.200", "3.00"]]


def test_controls_stand_beside_the_networks(faces, monkeypatch, capsys):
    """LDA is fitted and has no log; a network's CPU seconds are kept."""
    trained = []

    def fitted(cfg):
        trained.append((cfg.data, cfg.seed))
        checkpoint.save_weights(cfg.output, get_backbone("other_tiny"), "other_tiny")
    monkeypatch.setattr(lda, "lda", fitted)
    monkeypatch.setattr(lda, "NETWORK", "other_tiny")
    monkeypatch.setitem(ablation.RUNS, "lda", ablation.Run("LDA", {"backbone": "other_tiny"}))
    for _ in range(2):
        assert run("runs=['xi1', 'lda']", "seed=3", "logs=logs") == 0
    assert trained == [("faces", 3)]
    report = (faces / "out/tables.md").read_text()
    (row,) = rows_of(report, "## Training")
    stamps = {name: json.loads((faces / f"out/{name}/train/complete.json").read_text()) for name in ("xi1", "lda")}
    assert stamps["lda"].keys() == {"backbone", "seed", "data", "cpu_seconds"} and stamps["xi1"]["cpu_seconds"] > 0
    assert row["Run"] == "xi1" and row["CPU seconds"] == f"{stamps['xi1']['cpu_seconds']:.0f}"
    assert f"{stamps['xi1']['cpu_seconds']:.2f} CPU seconds in 6 steps" in (faces / "logs/training_xi1.log").read_text()
    assert [row["Model"] for row in rows_of(report, "## some: strict protocol, FAR 0.5")[:2]] == ["SLL, xi = 1", "LDA"]
    assert (faces / "logs/ablation/lda/some/strict_far0.5.json").exists() and not (faces / "logs/training_lda.log").exists()
    assert {"linear", "lda", "net"} < set(ablation.RUNS) and ablation.RUNS["linear"].settings["backbone"] == "linear_map"


def test_smoothing_stands_beside_what_is_proven(faces, monkeypatch, capsys):
    """Two seeds of a network, of which one row is made, and a 1-Lipschitz one, proven and smoothed."""
    for name, run_ in {"ours": ablation.Run("ours", {"xi": 3.0}, sigmas=(0.25, 0.5)),
                       "noisy": ablation.Run("noisy", {**ablation.NET, "noise_sigma": 0.25}, constrained=False, sigmas=(0.25,)),
                       "again": ablation.Run("noisy", {**ablation.NET, "noise_sigma": 0.25}, seed=1, constrained=False, sigmas=(0.25,))}.items():
        monkeypatch.setitem(ablation.RUNS, name, run_)
    asked = ("runs=['ours', 'noisy', 'again']", "n0=5", "n=30", "smooth_limit=3", "draws=2", "paper_protocol=False", "fars=[0.5]", "limit=2")
    assert run(*asked) == 0
    rows = rows_of((faces / "out/tables.md").read_text(), "## some: beside randomised smoothing")
    said = "smoothing, sigma {}, 99.9 % confidence"
    assert [(row["Model"], row["Radii"], row["passes a decision"]) for row in rows] == [
        ("ours", "plain", "1"), ("noisy", "-", "1"), ("ours", said.format(0.25), "35"), ("ours", said.format(0.5), "35"),
        ("noisy", said.format(0.25), "35")]
    summaries = [json.loads((faces / f"out/{name}/some/smoothed_sigma0.25_far0.5/summary.json").read_text()) for name in ("noisy", "again")]
    tars = [100 * summary["tar"] for summary in summaries]
    assert rows[-1]["TAR [%]"] == (f"{tars[0]:.2f}" if tars[0] == tars[1] else f"{sum(tars) / 2:.2f} [{min(tars):.2f}, {max(tars):.2f}]")
    assert rows[1]["CRA_D 0.25 [%]"] == "-" and rows[1]["PGD ERA_D 0.25 [%]"] != "-" != rows[-1]["PGD ERA_D 0.25 [%]"]
    assert [(summary["seed"], summary["smoothing"]["limit"], summary["attacks"]["pgd"]["draws"]) for summary in summaries] == [
        (0, 3, 2), (1, 3, 2)]
    assert not [*faces.glob("out/*/some/paper*")] and (faces / "out/figures/some/smoothing.png").exists()

    records = {path: path.stat().st_mtime_ns for path in faces.glob("out/*/some/*/summary.json")}
    assert run(*asked) == 0 and records == {path: path.stat().st_mtime_ns for path in records}
    assert run(*asked, "draws=3") == 0
    assert {path.parent.name for path in records if path.stat().st_mtime_ns != records[path]} == {"smoothed_sigma0.25_far0.5",
                                                                                                "smoothed_sigma0.5_far0.5"}
    assert run(*asked, "n=3") == 2
    assert "n is 3" in capsys.readouterr().err
