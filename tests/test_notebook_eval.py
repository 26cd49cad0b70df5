"""The evaluation notebook runs from top to bottom on a small setting, and was committed with its outputs."""
import json
import re

import nbformat
from conftest import ROOT
from notebooks import execute, outputs, read
from small_world import faces, write_bin

NAME = "CertRobFR_eval"


def test_it_is_committed_executed():
    notebook = read(NAME)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) >= 6
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert all(len(line) <= 132 for cell in code for line in cell.source.splitlines())
    text = json.dumps(notebook)
    assert str(ROOT) not in text and not re.search(r"/(home|root|work|tmp|Users)/", text) and (ROOT / f"{NAME}.ipynb").stat().st_size < 2_000_000


def test_it_runs_on_a_small_setting(tmp_path, monkeypatch):
    write_bin(tmp_path / "faces.bin", faces(112))
    settings = {"models": {"tiny": {"backbone": "sllnet_small", "weights": "run/model_final.pt"},
                           "baseline": {"backbone": "net_small", "weights": "baseline/model_final.pt"}}, "bins": ["faces.bin"], "far": 0.2,
                "limit": 1, "steps": {"pgd": 1, "cw": 1}, "out": "out", "device": "cpu",
                "train": ["rec=synthetic", "num_image=32", "batch_size=16", "num_epoch=1", "device=cpu", "num_workers=0", "xi=1.0"]}
    execute(NAME, tmp_path, monkeypatch, "CERTROBFR_EVAL", settings)
    for protocol in ("strict", "paper"):
        summary = json.loads((tmp_path / "out" / protocol / "tiny" / "summary.json").read_text())
        assert summary["protocol"] == protocol and {"pgd", "cw"} == set(summary["attacks"])
        baseline = json.loads((tmp_path / "out" / protocol / "baseline" / "summary.json").read_text())
        assert baseline["med_u"] is None and {"pgd", "cw"} == set(baseline["attacks"])
    assert (tmp_path / "out" / "strict" / "tiny" / "adversarial_examples.png").is_file()
