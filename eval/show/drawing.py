"""What all figures share: colours, lines and marks, what is drawn around the curves, and the files: PNG, PDF or SVG; none needs a display.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; lines differ in style and points in shape besides.
"""
import io
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from eval.show import svg
from utils import InputError
from utils.files import atomic_write

PathLike = str | os.PathLike[str]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES, MARKERS = ("-", "--", "-.", ":"), ("o", "s", "D", "v", "P", "X")
GREYS = ("#000000", "#777777", "#AAAAAA")
FORMATS = ("png", "pdf", "svg")
DPI = 300  # of PNG files, and of what is not drawn by lines in the others
LETTERS = 13  # of a title that fit into an inch
# fonts are embedded whole (journals refuse those of type 3) or drawn as curves, and the same figure is the same file
_VECTOR = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "figure"}
_UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def literal(name: str) -> str:
    """A name from a file for a figure: a dollar sign would begin a formula."""
    return name.replace("$", r"\$")


def shortened(name: str) -> str:
    """A name that a figure has room for."""
    return name if len(name) <= LETTERS * 3 else f"{name[:LETTERS * 3 - 3]}..."


def label_of(name: str) -> str:
    """A name for a legend, which leaves out what begins with an underscore."""
    return literal(shortened(f" {name}" if name.startswith("_") else name))


def entitle(figure: Figure, title: str) -> None:
    """A title above all panels, on as many lines as the figure is wide enough for."""
    width = int(LETTERS * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(line, width, break_long_words=False) for line in title.split("\n")), fontsize="medium")


def finish(figure: Figure, panels: Iterable[Axes], legend: bool, zero: bool = True) -> None:
    """A grid behind the curves, a horizontal axis from 0 (`zero`), a legend in the first panel; a panel without anything says so."""
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        if not axes.has_data():
            axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
            axes.set_xticks([])
        if zero:
            axes.set_xlim(0, None)
    if legend:
        figure.axes[0].legend(fontsize="small")


def legend_below(figure: Figure, panels: Iterable[Axes], columns: int = 4) -> None:
    """One legend for all panels, below them: inside it would hide curves. In as many `columns` as the width has room for."""
    entries = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    for count in range(columns if entries else 0, 0, -1):
        legend = figure.legend(entries.values(), entries, loc="outside lower center", ncols=count, fontsize="small")
        if legend.get_window_extent().width <= figure.bbox.width or count == 1:
            return
        legend.remove()


def save_figure(figure: Figure, path: PathLike, colours: int | None = None) -> None:
    """Write a figure, whole or not at all, as what the end of its name says: .pdf, .svg or PNG, which takes a palette of so many `colours`,
    as noise would make a large file.

    Raises InputError where a title is a formula that is none, or a value too large to be drawn.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    try:
        content = _vectors(figure, kind) if kind in _UNDATED else _pixels(figure, colours)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: cannot be drawn: {error}") from error
    with atomic_write(path, "wb") as file:
        file.write(content)


def _vectors(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    svg.thin_out(figure)
    with matplotlib.rc_context(_VECTOR):
        figure.savefig(file, format=kind, dpi=DPI, metadata=_UNDATED[kind])
    return file.getvalue()


def _pixels(figure: Figure, colours: int | None) -> bytes:
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()
    image, file = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), io.BytesIO()
    (image.quantize(colours) if colours else image).save(file, format="png", dpi=(DPI, DPI))
    return file.getvalue()
