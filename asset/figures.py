"""The two pictures of the README, from what `make demo` left behind: `python -m asset.figures`.

pair.png       a pair of the demo, its certified radius, an attack at that radius, and how far attacks get at any budget
budgets.png    what perturbations of l2 norm 0.25, 0.75 and 3 look like on an image
"""
import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor, nn

import attacks
from backbones import load_network
from eval.verification import read_bin
from utils.images import decode_image

BLUE, ORANGE = "#0072B2", "#D55E00"
STEPS = 100  # of each attack
LOWEST = -0.999  # the threshold of attacks that go on past the one in use: how low can the cosine get?


class Pair(NamedTuple):
    """Two images [1, 3, H, W] in [-0.5, 0.5], their network and what certify found of them."""
    network: nn.Module
    left: Tensor
    right: Tensor
    cosine: float
    norm: float
    radius: float
    tau: float


def median_pair(demo: Path) -> Pair:
    """The true pair of the demo whose radius is the median of those that are accepted: no hand chose it."""
    tau = json.loads((demo / "certified" / "summary.json").read_text())["tau"]
    pairs = pd.read_csv(demo / "certified" / "pairs.csv")
    pairs = pairs[pairs["same"] & pairs["accepted"]].sort_values("radius")
    chosen = pairs.iloc[len(pairs) // 2]
    stored = read_bin(demo / "train" / "synthetic.bin")
    left, right = (decode_image(stored.images[chosen[side]], side)[None].float().sub(127.5).div(255) for side in ("left", "right"))
    if chosen["norm_left"] > chosen["norm_right"]:  # the radius is that of the shorter embedding, so that is the one to attack
        left, right = right, left
    network = load_network("sllnet_small", demo / "train" / "model_final.pt")
    return Pair(network, left, right, chosen["cosine"], min(chosen["norm_left"], chosen["norm_right"]), chosen["radius"], tau)


def attacked(pair: Pair, eps: float, tau: float = LOWEST) -> tuple[Tensor, float]:
    """The left image moved by at most eps so that its cosine with the right one is as low as PGD gets it; that cosine."""
    with torch.no_grad():
        target = pair.network(pair.right)
    result = attacks.preset(f"pgd-{STEPS}", eps)(pair.network, pair.left, target, "dodging", tau)
    return result.adversarial, result.margin.item() + tau


def draw_pair(pair: Pair, path: Path) -> None:
    """The pair, the attack at its radius, and the cosine against the budget."""
    with torch.no_grad():
        target = pair.network(pair.right)
    smallest = attacks.preset(f"ddn-{STEPS}")(pair.network, pair.left, target, "dodging", pair.tau).norm.item()
    at_radius, cosine = attacked(pair, pair.radius)
    figure = Figure(figsize=(10, 3), dpi=90, layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.8))
    show(axes[0], pair.left, "two images of one person", "attacked is this one")
    show(axes[1], pair.right, f"cosine {pair.cosine:.2f}: accepted", f"threshold {pair.tau:.2f}, radius {pair.radius:.2f}")
    show(axes[2], at_radius, f"attacked with {pair.radius:.2f}", f"cosine {cosine:.2f}: still accepted")

    budgets = np.linspace(0, 1.25 * smallest, 26)
    found = [pair.cosine] + [attacked(pair, eps)[1] for eps in budgets[1:].tolist()]
    fine = np.linspace(0, 0.999 * min(pair.norm, budgets[-1]), 200)
    proven = np.cos(np.minimum(math.acos(pair.cosine) + np.arcsin(fine / pair.norm), math.pi))
    plot = axes[3]
    plot.plot(budgets, found, "--", color=ORANGE, label="lowest cosine that an attack found")
    plot.plot(fine, proven, "-", color=BLUE, label="proven: no attack gets below")
    plot.axhline(pair.tau, linestyle=":", color="black")
    plot.annotate("threshold", ((pair.radius + smallest) / 2, pair.tau), (0, -4), textcoords="offset points", va="top")
    plot.plot([pair.radius], [pair.tau], "o", color=BLUE)
    plot.annotate(f"certified\nradius {pair.radius:.2f}", (pair.radius, pair.tau), (-8, -8), textcoords="offset points", ha="right",
                  va="top", color=BLUE)
    plot.plot([smallest], [pair.tau], "s", color=ORANGE)
    plot.annotate(f"smallest attack\nfound {smallest:.2f}", (smallest, pair.tau), (0, 9), textcoords="offset points",
                  ha="center", color=ORANGE)
    plot.set(xlim=(0, budgets[-1]), ylim=(min(0, found[-1]) - 0.1, 1), ylabel="cosine of the pair",
             xlabel=r"size of the perturbation ($\ell_2$)")
    plot.legend(fontsize=8, frameon=False)
    save(figure, path)


def draw_budgets(pair: Pair, path: Path) -> None:
    """An image and perturbations of it above, the differences below, each with its own magnification."""
    one, everywhere = pair.left.clone(), pair.left.clone()
    one[0, 1, 56, 56] += 0.25 if one[0, 1, 56, 56] < 0 else -0.25
    everywhere += 0.25 / math.sqrt(everywhere.numel())
    level = 255 * 0.25 / math.sqrt(everywhere.numel())
    panels = [(one, "0.25: one value of one\npixel, 64 grey levels", 2),
              (everywhere, f"0.25: every value\nby {level:.2f} grey levels", 100)]
    panels += [(attacked(pair, eps)[0], f"{eps:g}: an attack\n", magnified) for eps, magnified in ((0.25, 20), (0.75, 20), (3., 5))]
    figure = Figure(figsize=(10, 4.2), dpi=72, layout="constrained")
    axes = figure.subplots(2, 1 + len(panels))
    show(axes[0, 0], pair.left, "the image\n")
    axes[1, 0].set_axis_off()
    axes[1, 0].text(1, 0.5, "what was added:", ha="right", va="center", fontsize=10)
    for (image, title, magnified), upper, lower in zip(panels, *axes[:, 1:], strict=True):
        show(upper, image, title)
        difference = image - pair.left
        largest = f"at most {255 * difference.abs().max().item():.1f} levels"
        show(lower, difference * magnified, below=f"{largest},\nshown {magnified}-fold")
    axes[1, 1].add_patch(Circle((56, 56), 12, fill=False, edgecolor="black"))
    save(figure, path)


def show(axes: Axes, image: Tensor, above: str = "", below: str = "") -> None:
    """Draw an image [1, 3, H, W] in [-0.5, 0.5] with a line of text above it and one below."""
    axes.imshow((image[0] + 0.5).clamp(0, 1).permute(1, 2, 0).numpy())
    axes.set_title(above, fontsize=10)
    axes.set_xlabel(below, fontsize=10)
    axes.set(xticks=(), yticks=())
    axes.spines[:].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without the library's version and the time in it."""
    FigureCanvasAgg(figure)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("out/demo"), help="what make demo wrote")
    parser.add_argument("--out", type=Path, default=Path("asset"))
    arguments = parser.parse_args()
    the_pair = median_pair(arguments.demo)
    draw_pair(the_pair, arguments.out / "pair.png")
    draw_budgets(the_pair, arguments.out / "budgets.png")
