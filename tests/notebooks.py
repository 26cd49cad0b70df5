"""Reading and running the notebooks of this repository."""
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import torch
from conftest import ROOT
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
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


@contextmanager
def started_kernel() -> Iterator[AsyncKernelManager]:
    """A kernel that knows this repository. One runs several notebooks: to start it takes longer than most of them."""
    kernel = AsyncKernelManager(kernel_name="python3")
    run_sync(kernel.start_kernel)(env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())})
    try:
        yield kernel
    finally:
        run_sync(kernel.shutdown_kernel)(now=True)


def execute(name: str, folder: Path, kernel: AsyncKernelManager, variable: str, settings: dict) -> nbformat.NotebookNode:
    """The notebook, run from top to bottom in `folder` with `settings` in the environment `variable` and no names of an earlier one; it must
    not end in an error.
    """
    notebook = read(name)
    place = f"import os\nos.chdir({str(folder)!r})\nos.environ[{variable!r}] = {json.dumps(settings)!r}"
    notebook.cells[:0] = [nbformat.v4.new_code_cell(code) for code in ("%reset -f", place)]
    client = NotebookClient(notebook, km=kernel, timeout=300)
    try:
        client.execute()
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    return notebook
