"""Reading and running the notebooks of this repository."""
import json
from pathlib import Path

import nbformat
import torch
from conftest import ROOT
from nbclient import NotebookClient


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / f"{name}.ipynb", 4)


def outputs(notebook: nbformat.NotebookNode) -> list:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def execute(name: str, folder: Path, monkeypatch, variable: str, settings: dict) -> nbformat.NotebookNode:
    """The notebook, run from top to bottom in `folder` with `settings` in the environment `variable`; it must not end in an error."""
    notebook = read(name)
    monkeypatch.setenv(variable, json.dumps(settings))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    return notebook
