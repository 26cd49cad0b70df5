"""The log reader: both published formats, restarts, torn lines; and Fig. 4 from what it returns."""
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_plots import assert_is_figure, drawn  # noqa: F401

import eval.__main__ as command_line
from eval.show import curves
from eval.show.curves import plot_training_log
from utils import InputError, utils_logging
from utils.utils_logging import read_training_log, speed_line

STAMP = "Training: 2024-02-02 12:33:23,502-"
STEP_COLUMNS = ["step", "epoch", "loss", "learning_rate", "speed", "feature_norm", "reg_loss"]
VERIFICATION_COLUMNS = ["target", "step", "xnorm", "accuracy", "accuracy_std", "highest"]


def speed(step, loss=1.0, tail="", scale="Fp16 Grad Scale: 65536   ", gap=" "):
    """A line of the published runs, padded with spaces."""
    return (f"{STAMP}Speed 2027.33 samples/sec   Loss {loss:.4f}   LearningRate 0.001000   Epoch: {step // 100}   Global Step: {step}   "
            f"{scale}Required: 30 hours{gap}Feat Norm 11.1632  Reg Loss 0.2500{tail}   \n")


def verification(step, target="lfw", accuracy=0.96567, highest=0.967):
    return (f"{STAMP}[{target}][{step}]XNorm: 3.246280\n{STAMP}[{target}][{step}]Accuracy-Flip: {accuracy:.5f}+-0.01028\n"
            f"{STAMP}[{target}][{step}]Accuracy-Highest: {highest:.5f}\n")


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "training.log").write_text(text)
        return read_training_log(tmp_path / "training.log")
    return read


def test_a_line_of_each_kind(read):
    steps, verified = read(f"{STAMP}: lr   0.001\n" + speed(40, 39.6672) + f"{STAMP}saving\n" + verification(2000))
    assert list(steps) == STEP_COLUMNS and list(verified) == VERIFICATION_COLUMNS
    assert steps.values.tolist() == [[40, 0, 39.6672, 0.001, 2027.33, 11.1632, 0.25]]
    assert verified.values.tolist() == [["lfw", 2000, 3.24628, 0.96567, 0.01028, 0.967]]
    assert steps["step"].dtype == steps["epoch"].dtype == verified["step"].dtype == np.int64


@pytest.mark.parametrize("style", [{"tail": "  Meet Loss 0.0000"}, {"scale": "", "gap": "  "}, {"scale": "Fp16 Grad Scale:  4   "}])
def test_the_other_formats(read, style):
    assert read(speed(40, 39.6672, **style)).steps.equals(read(speed(40, 39.6672)).steps)


def test_a_run_of_published_length(read):
    text = "".join(speed(step, tail="  Meet Loss 0.0000")
                   + ("".join(verification(step, target) for target in ("lfw", "cfp_fp", "agedb_30")) if step % 2000 == 0 else "")
                   for step in range(40, 202321, 20))
    steps, verified = read(text)
    assert len(steps) == 10115 and steps["step"].is_monotonic_increasing
    assert verified["target"].value_counts().to_dict() == {"lfw": 101, "cfp_fp": 101, "agedb_30": 101}


def test_what_train_writes_is_read(read):
    for grad_scale in (None, 65536.0):
        line = speed_line(12.5, 3.25, 1e-4, 2, 60, 1.2, 1.5, 0.125, grad_scale)
        steps = read(f"{STAMP}{line}\n{STAMP}[lfw][60]Accuracy-Unflipped: 0.5+-0.1\n").steps
        assert steps.values.tolist() == [[60, 2, 3.25, 1e-4, 12.5, 1.5, 0.125]]


def test_values_that_are_not_finite(read):
    steps = read(speed(40, float("nan")) + speed(60, float("inf")).replace("11.1632", "nan")).steps
    assert steps["loss"].isna().tolist() == [True, False] and np.isinf(steps["loss"][1]) and np.isnan(steps["feature_norm"][1])


def test_every_torn_end_keeps_what_was_whole(read):
    whole = speed(40) + speed(60)
    last = speed(80, 0.125).rstrip()
    for cut in range(len(last) + 1):
        steps = read(whole + last[:cut]).steps
        assert steps["step"].tolist() == [40, 60] + [80] * (cut == len(last))
    last = verification(60).rstrip()
    for cut in range(len(last) + 1):
        verified = read(whole + last[:cut]).verification
        assert len(verified) <= 1
        for name, value in (("xnorm", 3.24628), ("accuracy", 0.96567), ("accuracy_std", 0.01028), ("highest", 0.967)):
            assert not len(verified) or verified[name][0] == value or np.isnan(verified[name][0])


def test_what_follows_a_torn_line_on_the_same_line_is_read(read):
    assert read(speed(40) + speed(60)[:70] + speed(60, 7.0) + speed(80)).steps["loss"].tolist() == [1, 7, 1]


def test_a_restart_supersedes_what_came_after_its_state(read):
    text = (speed(20, 1) + speed(40, 1) + verification(40, accuracy=0.1) + speed(60, 1) + speed(80, 1) + verification(80, accuracy=0.1)
            + f"{STAMP}: lr   0.001\n" + speed(60, 2) + verification(60, accuracy=0.2) + speed(80, 2) + verification(80, accuracy=0.2))
    steps, verified = read(text)
    assert steps["step"].tolist() == [20, 40, 60, 80] and steps["loss"].tolist() == [1, 1, 2, 2]
    assert verified["step"].tolist() == [40, 60, 80] and verified["accuracy"].tolist() == [0.1, 0.2, 0.2]
    steps, verified = read(text + speed(20, 3))
    assert steps["loss"].tolist() == [3] and verified.empty, "begun again"
    assert read(speed(20, 1) + speed(20, 2)).steps["loss"].tolist() == [2], "begun again after one line"


def test_a_verification_that_is_written_late_is_no_restart(read):
    steps, verified = read(speed(20, 1) + speed(40, 2) + verification(20) + speed(60, 3) + verification(40))
    assert steps["step"].tolist() == [20, 40, 60] and verified["step"].tolist() == [20, 40]


def test_a_restart_that_verifies_before_its_first_loss(read):
    text = speed(20, 1) + verification(20) + speed(40, 1) + verification(40) + verification(30) + speed(40, 2) + verification(40)
    steps, verified = read(text)
    assert steps[["step", "loss"]].values.tolist() == [[20, 1], [40, 2]] and verified["step"].tolist() == [20, 30, 40]


@pytest.mark.parametrize("number", ["9" * 19, "9" * 5000])
def test_lines_with_steps_and_epochs_that_are_none_are_passed_over(read, number):
    whole = speed(20) + verification(20)
    others = [speed(40).replace("Step: 40", f"Step: {number}"), speed(40).replace("Epoch: 0", f"Epoch: {number}"),
              verification(40).replace("40", number)]
    log = read(whole + "".join(others))
    assert log.steps["step"].tolist() == [20] and log.verification["step"].tolist() == [20]


def test_the_work_grows_with_the_size_of_a_log_alone():
    """Each start of a line looks no further than its own line can reach; a run that starts anew takes back its last rows alone."""
    start = b"-Speed 1 samples/sec Loss 1 LearningRate 1 Epoch: 1 Global Step: 1 "
    assert utils_logging._LINE.search(start + b"x" * 120 + b"Feat Norm 1.0000  Reg Loss 1.0000")
    assert not utils_logging._LINE.search(start + b"x" * 121 + b"Feat Norm 1.0000  Reg Loss 1.0000")
    rows, looked_at = {step: {} for step in range(1000)}, []
    utils_logging._remove_from(rows, 998, lambda step: looked_at.append(step) or step)
    assert list(rows) == list(range(998)) and looked_at == [999, 998, 997]


def test_logs_beyond_all_size_are_refused(read, monkeypatch):
    monkeypatch.setattr(utils_logging, "MAX_ROWS", 3)
    with pytest.raises(InputError, match="more than 3 lines"):
        read("".join(map(speed, range(1, 5))))
    monkeypatch.setattr(utils_logging, "MAX_LOG", 10)
    with pytest.raises(InputError, match="training.log: .* bytes, expected at most 10"):
        read(speed(1))


def test_names_that_are_formulas_and_too_many_of_them(read, tmp_path):
    plot_training_log(read(speed(20) + verification(20, r"$\frac{$")), tmp_path / "a.png")
    assert_is_figure(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.png: cannot be drawn"):
        plot_training_log(read(speed(20)), tmp_path / "a.png", title=r"$\frac{$")
    with pytest.raises(InputError, match="verifies on 21 sets"):
        plot_training_log(read(speed(20) + "".join(verification(20, f"t{number}") for number in range(21))), tmp_path / "a.png")


def test_logs_without_lines_and_files_that_are_none(read, tmp_path):
    steps, verified = read(f"{STAMP}: lr   0.001\n")
    assert steps.empty and list(steps) == STEP_COLUMNS and verified.empty and list(verified) == VERIFICATION_COLUMNS
    for text in ("", "hello\n"):
        with pytest.raises(InputError, match="training.log: .* none of a training log"):
            read(text)
    (tmp_path / "binary.log").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="binary.log"):
        read_training_log(tmp_path / "binary.log")
    with pytest.raises(InputError, match="missing.log: cannot be read"):
        read_training_log(tmp_path / "missing.log")


def test_logs_that_come_with_the_project_are_read():
    for path in ROOT.glob("logs/**/*.log"):
        steps, verified = read_training_log(path)
        assert len(steps) and steps["step"].is_unique and verified.notna().all(axis=None), path
        assert len(verified) or "study" in path.parts, f"{path}: only studies are not verified on the way"


def test_figure_4_shows_the_log(read, tmp_path, drawn, capsys):  # noqa: F811
    log = read(speed(20, 3) + speed(40, 2) + verification(40) + verification(40, "cfp_fp", 0.5) + speed(60, 1))
    plot_training_log(log, tmp_path / "all.png", "title", norm_line=13.07)
    assert_is_figure(tmp_path / "all.png")
    assert [values.tolist() for values in drawn[None][0]] == [[20, 40, 60], [3, 2, 1]]
    assert [values.tolist() for values in drawn["cfp_fp"][0]] == [[40], [50]]
    drawn.clear()
    assert command_line.main(["curves", str(tmp_path / "training.log"), "--out", str(tmp_path / "one.png"), "--target", "lfw"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "one.png") and "cfp_fp" not in drawn and "lfw" in drawn
    assert command_line.main(["curves", str(tmp_path / "training.log"), "--out", str(tmp_path / "x.png"), "--target", "agedb"]) == 2
    assert "lfw, cfp_fp" in capsys.readouterr().err and not (tmp_path / "x.png").exists()
    plot_training_log(read(speed(20)), tmp_path / "short.png")
    with pytest.raises(InputError, match="no line with a loss"):
        plot_training_log(log._replace(steps=pd.DataFrame(columns=STEP_COLUMNS)), tmp_path / "none.png")


def test_the_steps_of_a_long_run_fit_beside_each_other(read, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: figures.append(figure))
    plot_training_log(read(speed(200000)), "unused.png")
    assert [axes.xaxis.get_major_formatter()(150000) for axes in figures[0].axes] == ["150k"] * 3
