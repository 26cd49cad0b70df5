"""The evaluation notebook runs from top to bottom on a small setting, and was committed with its outputs."""
import json

from notebooks import check_committed, execute, started_kernel
from small_world import faces, write_bin

NAME = "CertRobFR_eval"


def test_it_is_committed_executed():
    _, code = check_committed(NAME, 6)
    assert all(len(line) <= 132 for cell in code for line in cell.source.splitlines())


def test_it_runs_on_a_small_setting(tmp_path):
    write_bin(tmp_path / "faces.bin", faces(112))
    settings = {"models": {"tiny": {"backbone": "sllnet_small", "weights": "run/model_final.pt"},
                           "baseline": {"backbone": "net_small", "weights": "baseline/model_final.pt"}}, "bins": ["faces.bin"], "far": 0.2,
                "limit": 1, "steps": {"pgd": 1, "cw": 1, "pictures": 2}, "out": "out", "device": "cpu",
                "train": ["rec=synthetic", "num_image=32", "batch_size=16", "num_epoch=1", "device=cpu", "num_workers=0", "xi=1.0"]}
    with started_kernel() as kernel:
        execute(NAME, tmp_path, kernel, "CERTROBFR_EVAL", settings)
    for protocol in ("strict", "paper"):
        summary = json.loads((tmp_path / "out" / protocol / "tiny" / "summary.json").read_text())
        assert summary["protocol"] == protocol and {"pgd", "cw"} == set(summary["attacks"])
        baseline = json.loads((tmp_path / "out" / protocol / "baseline" / "summary.json").read_text())
        assert baseline["med_u"] is None and {"pgd", "cw"} == set(baseline["attacks"])
    assert (tmp_path / "out" / "strict" / "tiny" / "adversarial_examples.png").is_file()
