"""What the documents say: links lead somewhere, commands parse, columns and keys are explained, the code of the README runs."""
import contextlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT

import eval.__main__ as command_line
import hubconf
from backbones import BACKBONES, backbone_names, get_backbone, load_network, models
from config import config
from datasets import synthetic_pairs
from eval.summary import Summary
from utils.build_dataset import write_bin
from utils.images import encode_image
from utils.recordio import RecordWriter, pack

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "logs/README.md", "params/README.md", "params/orthonet_faces.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")


def prose(page: Path) -> str:
    """The text of a page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub and the site call them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {f"{slug}-{number}" if number else slug for slug, count in found.items() for number in range(count + 1)}


def commands() -> list[str]:
    """The shell commands of all pages, each on one line."""
    blocks = [body for page in PAGES for language, body in FENCE.findall(page.read_text()) if language == "bash"]
    return [line for body in blocks for line in body.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_and_anchors_exist(page):
    links = [link for link in LINK.findall(FENCE.sub("", page.read_text())) if not re.match(r"[a-z]+:", link)]
    for link in links:
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(path), f"{link}: no such heading"


def test_paths_that_pages_name_exist():
    code = {word for page in PAGES if page.name != "CHANGELOG.md" for word in re.findall(r"`([^`\s]+)`", FENCE.sub("", page.read_text()))}
    paths = {word for word in code if re.fullmatch(r"(eval|utils|backbones|tests)/[\w/]*(\.py)?|\w+\.py", word)}
    assert len(paths) > 10
    assert not {path for path in paths if not (ROOT / path).exists()}


def test_pictures_are_small():
    assert not {path.name for path in (ROOT / "asset").glob("*.png") if path.stat().st_size > 300_000}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_one_version():
    version = (ROOT / "VERSION").read_text().strip()
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == version
    assert re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version


def test_evaluation_commands_parse(monkeypatch):
    monkeypatch.setattr(command_line, "_run", lambda args: 0)
    found = [line for line in commands() if re.match(r"(torchrun .*)?(python )?-m eval |python -m eval ", line)]
    assert len(found) > 12
    for line in found:
        arguments = shlex.split(line.partition("-m eval ")[2].partition(" &&")[0], comments=True)
        assert command_line.main(arguments) == 0, line


def test_settings_of_training_commands_are_known():
    found = [line for line in commands() if re.search(r"\btrain(_lln)?(\.py)?\b", line) and "train_toy" not in line]
    assert len(found) > 8
    for line in found:
        for key in re.findall(r" (\w+)=", line.partition(" train")[2].partition("&&")[0]):
            assert key in config, line


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test", "lint", "docs", "ablation", "bench"} <= named <= targets


@pytest.fixture
def demo(tmp_path):
    """What the README's code reads of out/demo: a fresh sllnet_small and ten pairs of generated images."""
    folder = tmp_path / "out/demo/train"
    folder.mkdir(parents=True)
    torch.save(get_backbone("sllnet_small").state_dict(), folder / "model_final.pt")
    write_bin(folder / "synthetic.bin", *synthetic_pairs(num_pairs=10))
    return tmp_path


def test_readme_code_runs(demo, monkeypatch, capsys):
    (code,) = [body for language, body in FENCE.findall((ROOT / "README.md").read_text()) if language == "python"]
    assert len(code.splitlines()) == 8
    monkeypatch.chdir(demo)
    exec(compile(code, "README.md", "exec"), {})
    first, *table = capsys.readouterr().out.splitlines()
    assert len(first.split()) == 2 and table[0].split() == ["same", "cosine", "accepted", "radius"]


def explained(heading: str) -> set[str]:
    """The columns or keys that a section of docs/columns.md has a row for."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", (ROOT / "docs/columns.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    names = re.findall(r"`([\w.]+)`", " ".join(row.split(" | ")[0] for row in section.splitlines() if row.startswith("| ")))
    stem = ""
    full = []
    for name in names:  # `era_u`, `_d`, `_i`
        full.append(stem + name if name.startswith("_") else name)
        stem = stem if name.startswith("_") else name.rpartition("_")[0]
    return set(full)


def run(demo, command, *more):
    """A command on the CPU with the network of the demo, whose results go to a folder of its name."""
    network = ["--backbone", "sllnet_small", "--weights", str(demo / "out/demo/train/model_final.pt")]
    assert command_line.main([command, *network, "--device", "cpu", "--num-workers", "0", "--out", str(demo / command), *more]) == 0


def test_columns_and_keys_of_results_are_explained(demo):
    pairs = ["--bin", str(demo / "out/demo/train/synthetic.bin"), "--far", "0.5", "--limit", "1", "--steps", "2", "--restarts", "1"]
    run(demo, "attack", *pairs, "--attack", "pgd")
    run(demo, "audit", *pairs)
    run(demo, "audit", *pairs, "--threat", "both")
    for folder in ("attack", "audit"):
        for name in ("pairs.csv", "images.csv", "attacks.csv"):
            assert not set(pd.read_csv(demo / folder / name).columns) - explained(name), name
        assert not set(json.loads((demo / folder / "summary.json").read_text())) - explained("summary.json")
    entry = json.loads((demo / "attack/summary.json").read_text())["attacks"]["pgd"]
    own = {"step_size", "random_start", "momentum"}  # of the class of the attack
    assert not set(entry) - explained("summary.json") - own
    origin = {"backbone", "weights_sha256", "flip", "bin", "bin_sha256", "lipschitz", "image_size", "protocol", "far_target", "tau",
              "code_sha256", "smallest_margin"}
    for name in ("audit.json", "audit_both.json"):
        assert not set(json.loads((demo / "audit" / name).read_text())) - explained("audit.json") - origin, name


def test_keys_of_a_summary_are_explained():
    assert not set(Summary.__annotations__) - explained("summary.json")


def test_columns_and_keys_of_identification_are_explained(demo):
    faces = demo / "faces"
    faces.mkdir()
    with RecordWriter(faces / "train") as writer:
        writer.write(0, pack([9, 13]))
        for key in range(1, 9):
            writer.write(key, pack((key - 1) // 2, key, encode_image(torch.full((3, 112, 112), 25 * key, dtype=torch.uint8), "png")))
    run(demo, "identify", "--rec", str(faces), "--unknown", "0.5", "--fpir", "0.5")
    assert not set(pd.read_csv(demo / "identify/probes.csv").columns) - explained("probes.csv")
    assert set(json.loads((demo / "identify/summary.json").read_text())) <= explained("summary.json of identification")


def test_hub_has_an_entry_point_for_every_network():
    public = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    ours = {name for name in backbone_names() if BACKBONES.find(name).build.__module__.startswith("backbones.")}
    trained = {name for name, model in models.models().items() if model.file}
    assert "sllnet" in ours and "orthonet_faces" in trained
    assert ours | trained <= public <= {*backbone_names(), *trained}  # other tests register networks of their own
    for package in hubconf.dependencies:
        assert importlib.util.find_spec(package), package


def test_hub_loads_a_network(demo):
    weights = demo / "out/demo/train/model_final.pt"
    found = torch.hub.load(str(ROOT), "sllnet_small", source="local", weights=str(weights), tight=True)
    images = torch.rand(2, 3, 112, 112) - 0.5
    assert torch.equal(found(images), load_network("sllnet_small", weights, tight=True)(images))
    fresh = torch.hub.load(str(ROOT), "net_small", source="local")
    assert fresh.training and [*fresh.state_dict()] == [*get_backbone("net_small").state_dict()]


def test_hub_loads_from_another_folder_in_a_process_of_its_own(demo):
    code = f"import torch; print(torch.hub.load({str(ROOT)!r}, 'sllnet_small', source='local', weights='out/demo/train/model_final.pt'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=demo, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "SLLNetSmall" in done.stdout, done.stderr


@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile, and a .venv whose Python writes down what it is asked for; pip says yes while `complete` exists."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> calls\ncase "$*" in *--dry-run*) [ -e complete ];; esac\n')
    python.chmod(0o755)
    (tmp_path / "complete").touch()
    return tmp_path


def made(clone: Path, target: str) -> list[str]:
    """What `make target` asked Python for."""
    subprocess.run(["make", target, f"PYTHON={clone / '.venv/bin/python'}"], cwd=clone, check=True, capture_output=True, timeout=60)
    with contextlib.suppress(FileNotFoundError):
        calls = (clone / "calls").read_text().splitlines()
        (clone / "calls").unlink()
        return calls
    return []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
def test_make_installs_what_is_missing_and_nothing_else(clone):
    first = made(clone, "install")
    assert len(first) == 1 and "--dry-run" in first[0]  # a .venv that is complete, however old its files are
    assert made(clone, "install") == []
    (clone / "requirements.txt").touch()
    assert made(clone, "install") == []
    with open(clone / "requirements.txt", "a") as file:
        file.write("something-new\n")
    (clone / "complete").unlink()
    dry, venv, pip = made(clone, "install")
    assert "--dry-run" in dry and venv == "-m venv .venv"
    assert pip == "-m pip install -r requirements.txt -c constraints.txt"
    assert made(clone, "install") == []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
def test_make_lint_installs_its_tools_beside_the_rest(clone):
    (clone / "complete").unlink()
    calls = made(clone, "lint")
    assert calls[2] == "-m pip install -r requirements.txt -r requirements-dev.txt -c constraints.txt"
    assert calls[3:] == ["-m ruff check .", "-m mypy"]


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_others(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not here: make docs installs it")
    pytest.importorskip("latex2mathml", reason="latex2mathml is not here: make docs installs it")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r'(?:src|<link[^>]*href)="https?://', text), page
        assert "arithmatex" not in text and "$$" not in text, page
    assert "<math" in (tmp_path / "certificates/index.html").read_text()
