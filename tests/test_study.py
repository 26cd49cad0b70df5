"""Studies in small: rows with several seeds, by one process or two, from trained weights to a table that says what each took."""
import csv
import json

import pytest
import small_world
import tiny_training

import config_checks
import study
from backbones import BACKBONES, get_backbone, register
from config import config as training_config
from study import Row
from utils import checkpoint
from utils.faults.folder import owned


@register("scaled_tiny", image_size=small_world.SIZE, lipschitz=True)
class ScaledTiny(small_world.Tiny):
    """A network whose checkpoint cannot be loaded without its argument."""

    def __init__(self, repeats: int = 1):
        super().__init__()
        self.extend(type(self[3])(32, 32) for _ in range(repeats))


ROWS = {"tiny": Row("tiny net", {"backbone": "tiny", "lr": 1e-2}, 2),
        "args": Row("with arguments", {"backbone": "scaled_tiny", "backbone_args": {"repeats": 2}}, 1),
        "lengths": Row("lengths", {"backbone": "tiny", "header": "naive", "header_args": {"m": 0.7, "max_length": 4.0}, "xi": 0.0}, 1),
        "net": Row("unconstrained", {"backbone": "loose", "xi": 0.0}, 1)}


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """The working folder, with faces/ and rows for images of their size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(study.TABLES, "recipe", dict(ROWS))
    monkeypatch.setitem(study.COMMON, "batch_size", 8)
    (tmp_path / "faces").mkdir()
    tiny_training.write_faces(tmp_path / "faces")
    small_world.write_bin(tmp_path / "faces" / "some.bin", small_world.faces(16))
    return tmp_path


def run(*more):
    settings = ["data=faces", "output=out", "seeds=1", "far=0.4", "limit=4", "device=cpu", "audit_steps=3", "audit_limit=2"]
    given = {argument.partition("=")[0]: argument for argument in (*settings, *more)}
    return study.run(list(given.values()))


def lines(folder):
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_seeds_and_what_each_took(faces, capsys):
    assert run("runs=tiny,args", "seeds=2", "logs=logs") == 0
    out = faces / "out/recipe"
    rows = lines(out)
    assert [(row["Model"], row["Flip"], row["Seed"], row["Seeds"], row["Epochs"]) for row in rows] == [
        (model, flip, seed, "2", epochs) for flip in ("none", "average") for seed in "01"
        for model, epochs in (("tiny net", "2"), ("with arguments", "1"))]
    for row in rows:
        run_folder = out / f"{'tiny' if row['Model'] == 'tiny net' else 'args'}_{row['Seed']}"
        summary = small_world.summary_of(run_folder / f"some/flip_{row['Flip']}_far0.4")
        assert (summary["protocol"], summary["flip"], summary["far_target"]) == ("strict", row["Flip"], 0.4)
        assert float(row["TAR"]) == pytest.approx(100 * summary["tar"]) and float(row["AUC"]) == pytest.approx(100 * summary["auc"])
        assert float(row["CRA_D 0.25"]) == pytest.approx(100 * summary["cra_d"][0.25])
        assert float(row["CRA_I 0.25"]) == pytest.approx(100 * summary["cra_i"][0.25])
        assert float(row["norm"]) == pytest.approx(summary["feature_norm"]) and float(row["tau"]) == pytest.approx(summary["tau"])
        stamp = json.loads((run_folder / "train/complete.json").read_text())
        assert float(row["CPU seconds"]) == stamp["cpu_seconds"] > 0 and stamp["seed"] == int(row["Seed"])
        assert float(row["midpoint deviation"]) == json.loads((run_folder / "some/midpoint.json").read_text())["midpoint_deviation"] > 0
    report = (out / "results.md").read_text()
    tars = [float(row["TAR"]) for row in rows if row["Model"] == "tiny net" and row["Flip"] == "none"]
    assert f"| tiny net | some | none | 2 | 2 | {sum(tars) / 2:.2f} [{min(tars):.2f}, {max(tars):.2f}] |" in report
    assert "violations" not in report and "Seed |" not in report and "tiny net" in capsys.readouterr().out
    assert (faces / "logs/study/recipe/training_args_1.log").exists() and (faces / "logs/study/recipe/results.md").read_text() == report
    assert (faces / "logs/study/recipe/args_1/some/flip_average_far0.4.json").exists()
    assert not list(out.glob("*/train/state_*.pt"))

    written = {path: path.stat().st_mtime_ns for path in out.glob("*/*/**/*") if path.suffix in (".pt", ".csv", ".json")}
    assert run("runs=tiny,args", "seeds=2") == 0 and written == {path: path.stat().st_mtime_ns for path in written}


def test_two_processes_share_a_folder_and_the_last_one_writes_all(faces, capsys):
    with owned(faces / "out/recipe/tiny_0"):  # where another process is at work, as the lock of one's own process is no obstacle
        assert run("runs=lengths") == 0
    assert [row["Model"] for row in lines(faces / "out/recipe")] == ["lengths", "lengths"]
    assert run("runs=tiny") == 0
    assert [row["Model"] for row in lines(faces / "out/recipe")] == ["tiny net", "lengths"] * 2


def test_an_audit_and_a_network_without_certificates(faces):
    assert run("runs=tiny,net", "audit=True", "flips=none") == 0
    tiny, net = lines(faces / "out/recipe")
    assert tiny["violations"] == "0.0" and net["violations"] == "" and net["CRA_D 0.25"] == "" and float(net["TAR"]) >= 0
    assert json.loads((faces / "out/recipe/tiny_0/some/flip_none_far0.4/audit.json").read_text())["settings"]["steps"] == 3


def test_a_table_that_changed_leaves_out_what_was_made_before(faces, monkeypatch, capsys):
    assert run("runs=tiny,lengths", "flips=none") == 0
    monkeypatch.setitem(study.TABLES["recipe"], "tiny", Row("tiny net", {"backbone": "tiny", "lr": 1e-3}, 2))
    assert run("runs=lengths", "flips=none") == 0
    assert [row["Model"] for row in lines(faces / "out/recipe")] == ["lengths"]
    assert run("runs=tiny", "flips=none") == 2 and "lr 0.01, not 0.001" in capsys.readouterr().err
    summary = faces / "out/recipe/lengths_0/some/flip_none_far0.4/summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "code_sha256": "0" * 64}))
    assert run("runs=lengths", "flips=none") == 0 and len(lines(faces / "out/recipe")) == 1
    assert json.loads(summary.read_text())["code_sha256"] != "0" * 64, "made again: it is not of this code"


@pytest.mark.parametrize("of", ["data", "bin_sha256", "midpoint"])
def test_results_of_other_faces_are_in_no_table(faces, of):
    assert run("runs=tiny,lengths", "flips=none") == 0
    folder = faces / "out/recipe/tiny_0"
    file, key = {"data": ("train/complete.json", "data"), "bin_sha256": ("some/flip_none_far0.4/summary.json", "bin_sha256"),
                 "midpoint": ("some/midpoint.json", "code_sha256")}[of]
    file = folder / file
    file.write_text(json.dumps({**json.loads(file.read_text()), key: "0" * 64}))
    assert run("runs=lengths", "flips=none") == 0
    assert [row["Model"] for row in lines(faces / "out/recipe")] == ["lengths"]


def test_lda_is_fitted_with_the_seed_alone(faces, monkeypatch):
    seen = []

    def fitted(cfg):
        seen.append(cfg.seed)
        checkpoint.save_weights(cfg.output, get_backbone("tight"), "tight")
    monkeypatch.setattr(study.lda, "lda", fitted)
    monkeypatch.setattr(study.lda, "NETWORK", "tight")
    monkeypatch.setitem(study.TABLES["recipe"], "lda", Row("LDA", {"backbone": "tight"}, 0))
    for _ in range(2):
        assert run("runs=lda", "seed=4", "flips=none") == 0
    assert seen == [4]
    (row,) = lines(faces / "out/recipe")
    assert (row["Model"], row["Epochs"]) == ("LDA", "0")


@pytest.mark.parametrize("setting, word", [("data=nowhere", "nowhere"), ("runs=other", "other"), ("table=none", "recipe"), ("far=1.0", "far"),
                                           ("time=0", "time"), ("flips=both", "flips"), ("seeds=0", "seeds")])
def test_settings_that_cannot_be_used(faces, capsys, setting, word):
    assert run(setting) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1 and not (faces / "out").exists()


def test_networks_that_are_not_there_are_refused_at_once(faces, monkeypatch, capsys):
    monkeypatch.setitem(study.TABLES["recipe"], "later", Row("later", {"backbone": "not_there_yet"}, 1))
    assert run() == 2 and "not_there_yet" in capsys.readouterr().err and not (faces / "out").exists()
    assert run("runs=lengths", "flips=none") == 0


@pytest.mark.parametrize("table", ["recipe", "final"])
def test_the_rows_are_settings_that_training_takes(table):
    for name, row in study.TABLES[table].items():
        settings = {**study.COMMON, **row.settings}
        if not row.epochs:
            continue
        cfg = config_checks.checked({**training_config, **settings, "num_epoch": row.epochs})
        entry = BACKBONES.find(cfg.backbone)
        import train
        assert train.build_header(cfg, 5, 16) is not None, name
        assert entry.lipschitz, name


def test_the_arguments_of_the_rows_are_those_of_their_networks():
    for table in study.TABLES.values():
        for row in table.values():
            if row.settings.get("backbone_args"):
                get_backbone(row.settings["backbone"], **row.settings["backbone_args"])
