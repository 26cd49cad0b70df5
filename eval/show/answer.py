"""The picture of an answer: photos, crops, the smallest attack that was found, and how far the certificate reaches."""
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from torch import Tensor

from datasets import to_float
from eval.alignment import Crop
from eval.answer import Answers, Success
from eval.show.plots import COLOURS, PathLike, literal, save_figure
from eval.sizes import rounded_down, rounded_up
from utils import printable

BLUE, ORANGE, GREEN = COLOURS[:3]
_FACTORS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def draw(crops: Sequence[Crop], answers: Answers, document: Mapping[str, Any], success: Success, path: PathLike) -> None:
    """Write the picture as PNG. document: of `answer.document`."""
    figure = Figure(figsize=(9, 7.2), layout="constrained")
    photos, images, bar = figure.subfigures(3, 1, height_ratios=(1.1, 1, 0.75))
    figure.suptitle("\n".join(textwrap.wrap(document["in_words"], 110)), fontsize=10, ha="left", x=0.02,
                    color=GREEN if document["accepted"] else ORANGE)
    for axes, crop in zip(photos.subplots(1, 2), crops):
        _photo(axes, crop)
    pixels = [to_float(answers.pair_set.decode(int(number))) for number in (answers.pair_set.left[0], answers.pair_set.right[0])]
    _images(images.subplots(1, 4), pixels, success)
    _bar(bar.subplots(), document, success)
    figure.supxlabel("\n".join(textwrap.wrap(document["scope"], 130)), fontsize=7.5)
    save_figure(figure, path)


def _photo(axes: Axes, crop: Crop) -> None:
    """The photo with every face that was found, and what became the crop."""
    width, height = crop.size
    axes.imshow(np.asarray(crop.view), extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    for number, face in enumerate(crop.faces):
        left, top, right, bottom = face.box
        taken = number == crop.chosen
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, linestyle=":", edgecolor=GREEN if taken else "white"))
        axes.text(left, top, f"face {number + 1}", color="white", fontsize=7, va="top",
                  bbox={"facecolor": GREEN if taken else "black", "alpha": 0.7, "pad": 1, "linewidth": 0})
    if crop.points is not None:
        axes.plot(*crop.points.T, "+", color=GREEN, markersize=5)
    axes.add_patch(Polygon(crop.outline, fill=False, edgecolor=BLUE, linewidth=1.5))
    axes.set(xticks=(), yticks=(), xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    name = literal(printable(crop.path))
    axes.set_title(name if len(name) <= 48 else f"...{name[-45:]}", fontsize=9)
    axes.set_xlabel(f"{width} x {height}, blue: the network's crop", fontsize=8)


def _images(axes: Sequence[Axes], pixels: Sequence[Tensor], success: Success) -> None:
    """The two inputs of the network, the attacked one, and what was added to it."""
    for place, name in enumerate(("left", "right")):
        _show(axes[place], pixels[place] + 0.5, f"{name} input")
    if success.adversarial is None:
        for place in (2, 3):
            axes[place].set_axis_off()
        axes[2].text(0.5, 0.5, "no attack\nsucceeded", ha="center", va="center", transform=axes[2].transAxes)
        return
    difference = success.adversarial.double() - pixels[success.side == "right"].double()
    largest = difference.abs().max().item()
    factor = max([factor for factor in _FACTORS if factor * largest <= 0.5], default=1)
    _show(axes[2], success.adversarial + 0.5, f"{success.side}, attacked by {rounded_up(success.norm, 3)}")
    _show(axes[3], factor * difference + 0.5, f"the difference, {factor}-fold")
    axes[3].set_xlabel(f"at most {rounded_up(255 * largest, 1)} of 255 levels", fontsize=8)


def _show(axes: Axes, image: Tensor, title: str) -> None:
    axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy())
    axes.set(xticks=(), yticks=())
    axes.set_title(title, fontsize=9)


def _bar(axes: Axes, document: Mapping[str, Any], success: Success) -> None:
    """Sizes of changes: proven not to turn the decision, known to do so, and between."""
    proven = document.get("radius_sound", document["radius"])
    found = success.norm if success.adversarial is not None else math.inf
    end = 1.25 * (found if math.isfinite(found) else max(2 * proven, 0.1))
    axes.barh(0, proven, color=BLUE, label=f"proven: nothing below {rounded_down(proven)} turns it" if proven > 0 else "nothing is proven")
    axes.barh(0, min(found, end) - proven, left=proven, color="#DDDDDD", label="between: nobody knows")
    if math.isfinite(found):
        axes.barh(0, end - found, left=found, color=ORANGE, label=f"{document['attack']['name']} turns it with {rounded_up(found, 3)}")
    for name, what in (("radius_both", "both images, each by"), ("radius_joint", "both together by")):
        axes.axvline(document[name], color="black", linestyle="--" if name == "radius_both" else ":",
                     label=f"proven for {what} {rounded_down(document[name])}")
    axes.set(xlim=(0, end), yticks=(), ylim=(-0.5, 0.5))
    axes.set_xlabel("size of a change of the input (l2, pixels in [-0.5, 0.5])", fontsize=9)
    axes.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
