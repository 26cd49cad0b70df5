"""The recipes of CONTRIBUTING.md: its files are written into a folder outside, and its commands run there."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

RECIPES = ("A layer", "A network", "A header", "An attack", "A certificate")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE))


def blocks(recipe: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[recipe], re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of somebody's, which the recipes share as the page says."""
    return tmp_path_factory.mktemp("mine")


def test_the_page_has_these_recipes():
    assert [name for name in SECTIONS if name.startswith(("A ", "An "))] == list(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe, folder):
    (code,), (commands,) = blocks(recipe, "python"), blocks(recipe, "bash")
    name = re.fullmatch(r"# (\w+\.py)", code.splitlines()[0])[1]
    (folder / name).write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{name.removesuffix('.py')}:" in commands
    assert not list(ROOT.glob(name))
