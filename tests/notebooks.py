"""Reading and running the notebooks of this repository."""
import json
import re
from pathlib import Path

import nbformat
import torch
from conftest import ROOT
from nbclient import NotebookClient


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / f"{name}.ipynb", 4)


def outputs(notebook: nbformat.NotebookNode) -> list:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def check_committed(name: str, pictures: int) -> tuple[nbformat.NotebookNode, list]:
    """That a notebook is valid, was run from top to bottom without an error and with so many figures, and names no path of a machine.

    Returns it and its code cells.
    """
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) >= pictures
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    text = json.dumps(notebook)
    assert str(ROOT) not in text and not re.search(r"/(home|root|work|tmp|Users)/", text)
    assert (ROOT / f"{name}.ipynb").stat().st_size < 2_000_000
    return notebook, code


def execute(name: str, folder: Path, monkeypatch, variable: str, settings: dict) -> nbformat.NotebookNode:
    """The notebook, run from top to bottom in `folder` with `settings` in the environment `variable`; it must not end in an error."""
    notebook = read(name)
    monkeypatch.setenv(variable, json.dumps(settings))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    return notebook
