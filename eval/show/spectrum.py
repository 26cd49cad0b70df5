"""The figure of a network's singular values."""
import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from eval.show.drawing import COLOURS, LINES, finish, save_figure

_POINTS = 500  # of a curve: a layer has up to a million singular values


def plot_spectra(values: Mapping[str, np.ndarray], out_png: str | os.PathLike[str], title: str = "") -> None:
    """Singular values, the largest first, against the share of all of their layer: a curve for each layer, by its name."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, found) in enumerate(values.items()):
        places = np.unique(np.linspace(0, len(found) - 1, min(len(found), _POINTS)).astype(int))
        axes.plot((places + 0.5) / len(found), found[places], LINES[number // 7 % 4], color=COLOURS[number % 7], label=name or "network")
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="share of the singular values of the layer", ylabel="singular value", title=title)
    finish(figure, [axes], False, zero=False)
    figure.legend(loc="outside right upper", fontsize="small", ncols=1 + len(values) // 18)
    save_figure(figure, out_png)
