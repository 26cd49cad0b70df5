"""The toy, training and LLN notebooks run from top to bottom on a small setting, and were committed with their outputs."""
import json
import re

import notebooks
import pytest
from nbclient.exceptions import CellExecutionError
from notebooks import outputs

from utils.utils_logging import read_training_log

PICTURES = {"CertRobFR_toyexamples": 6, "CertRobFR_train": 2, "CertRobFR_imagecls": 2}
SMALL = ["rec=synthetic", "num_classes=8", "num_image=64", "backbone=sllnet_small", "batch_size=16", "num_epoch=1", "frequent=1",
         "device=cpu", "num_workers=0", "verbose=100"]


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_committed_executed(name):
    notebook, code = notebooks.check_committed(name, PICTURES[name])
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    printed = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs(notebook)]
    literal = [line for text in [cell.source for cell in code] + printed for line in text.splitlines()]
    literal += [line for cell in notebook.cells for line in cell.source.splitlines() if line.startswith("    ")]
    assert max(map(len, literal)) <= 100, "what is not wrapped fits on a page"
    assert not any(re.search(r"^\s*(def|class|for|while|with) ", cell.source, re.MULTILINE) for cell in code), "calls, no algorithms"


@pytest.fixture(scope="module")
def kernel():
    with notebooks.started_kernel() as kernel:
        yield kernel


@pytest.fixture
def execute(kernel, tmp_path):
    return lambda name, variable, settings: notebooks.execute(name, tmp_path, kernel, variable, settings)


@pytest.mark.parametrize("name, variable, settings, message", [
    ("CertRobFR_toyexamples", "CERTROBFR_TOY", {"epochs": 0}, "epochs=0: expected at least 1"),
    ("CertRobFR_imagecls", "CERTROBFR_LLN", {"train": ["xi=-1.0"]}, "xi=-1.0: expected a finite number")])
def test_a_run_that_fails_stops_the_notebook_and_says_why(execute, name, variable, settings, message):
    with pytest.raises(CellExecutionError, match=re.escape(message)):
        execute(name, variable, settings)


def test_toyexamples_on_a_small_setting(execute, tmp_path):
    notebook = execute("CertRobFR_toyexamples", "CERTROBFR_TOY", {"epochs": 1, "batch_size": 720, "seed": 5, "device": "cpu", "out": "out"})
    runs = tmp_path / "out" / "digits_seed5"
    assert {path.parent.name for path in runs.glob("*/results.csv")} == {
        f"digits_{name}_seed5" for name in ("net_xi0", "sll_xi0", "sll_xi1", "sll_xi3", "sll_xi5")}
    assert {"fig2_digits.png", "fig1b_digits.png"} == {path.name for path in runs.glob("*.png")}
    assert {"fig2_mnist.png", "fig2_cifar10.png", "fig1b_cifar10.png"} <= {path.name for path in runs.glob("recorded/*.png")}
    assert "SLL, xi = 5" in json.dumps(outputs(notebook))


def test_train_on_a_small_setting(execute, tmp_path):
    execute("CertRobFR_train", "CERTROBFR_TRAIN", {"train": [*SMALL, "xi=1.0"], "processes": 2, "seed": 5, "out": "out"})
    steps, verification = read_training_log(tmp_path / "out" / "seed5" / "training.log")
    assert steps["step"].tolist() == [1, 2, 3, 4] and verification["step"].tolist() == [4]
    assert (tmp_path / "out" / "seed5" / "model_final.pt").is_file() and (tmp_path / "out" / "seed5" / "curves.png").is_file()


def test_imagecls_on_a_small_setting_and_on_a_log(execute, tmp_path):
    execute("CertRobFR_imagecls", "CERTROBFR_LLN", {"train": SMALL, "seed": 5, "out": "out"})
    log = tmp_path / "out" / "seed5" / "training.log"
    assert len(read_training_log(log).steps) == 4 and "naive" in log.read_text()
    figure = (tmp_path / "out" / "seed5" / "fig4.png").read_bytes()
    execute("CertRobFR_imagecls", "CERTROBFR_LLN", {"log": "out/seed5/training.log", "target": "synthetic", "norm": 5.0, "out": "other"})
    assert (tmp_path / "other" / "seed0" / "fig4.png").read_bytes() != figure and not list(tmp_path.glob("other/**/*.pt"))
