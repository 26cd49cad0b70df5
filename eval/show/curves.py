"""Figures of training: curves from a training log, and those of the toy experiments, as PNG files; none needs a display."""
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from eval.show import published, toy
from eval.show.drawing import COLOURS, LINES, MARKERS, PathLike, finish, literal, save_figure
from utils import InputError
from utils.utils_logging import TrainingLog

MAX_TARGETS = 20  # verification sets that a legend has room for
LLN_NORM = 13.07  # the dashed line of Fig. 4
TOY_TITLES = {"digits": "scikit-learn digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}
CLASS_COLOURS = (*COLOURS, "#F0E442", "#8C564B", "#999999")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TOY_STYLES = {run: {"color": COLOURS[number], "linestyle": LINES[number % 4], "marker": MARKERS[number]}
               for number, run in enumerate(toy.FIGURE_2)}


def plot_training_log(log: TrainingLog, out_png: PathLike, title: str = "", target: str | None = None,
                      norm_line: float | None = None) -> None:
    """Training loss, verification accuracy and mean feature norm against the step (Fig. 4), from `read_training_log`.

    target: the verification set that is shown (None: all); norm_line: height of a dashed line among the norms. Raises InputError where the
    log has no step or does not verify on `target`.
    """
    steps, verification = log
    if steps.empty:
        raise InputError("the log has no line with a loss (Speed ... samples/sec   Loss ...   Epoch: ...   Global Step: ...): there is "
                         "nothing to plot")
    targets = list(dict.fromkeys(verification["target"]))
    if target is not None and target not in targets:
        raise InputError(f"the log verifies on {', '.join(targets) or 'nothing'}, not on {target}")
    if target is None and len(targets) > MAX_TARGETS:
        raise InputError(f"the log verifies on {len(targets)} sets, expected at most {MAX_TARGETS}: --target chooses one")
    figure = Figure(figsize=(9.8, 3.3), layout="constrained")
    loss, accuracy, norm = figure.subplots(1, 3)
    loss.plot(steps["step"], steps["loss"], color=COLOURS[0], linewidth=1)
    loss.set(ylabel="training loss")
    norm.plot(steps["step"], steps["feature_norm"], color=COLOURS[0], linewidth=1, label="training batches")
    for number, name in enumerate([target] if target else targets):
        rows = verification[verification["target"] == name]
        style = {"color": COLOURS[1 + number % 6], "linestyle": LINES[1 + number % 3], "marker": ".", "label": literal(name)}
        accuracy.plot(rows["step"], 100 * rows["accuracy"], **style)
        norm.plot(rows["step"], rows["xnorm"], **style)
    accuracy.set(ylabel="verification accuracy [%]")
    if steps["feature_norm"].isna().all() and verification["xnorm"].isna().all():  # a log of arcface_torch
        norm.text(0.5, 0.5, "not in the log", transform=norm.transAxes, ha="center", va="center")
    if norm_line is not None:
        norm.axhline(norm_line, color="black", linestyle="--", linewidth=1, label=f"norm {norm_line:g}")
    norm.set(ylabel=r"mean feature norm $\|f(x)\|$", ylim=(0, None))
    _finish(figure, "optimiser step", [accuracy, norm] if targets else [norm])
    for axes in figure.axes:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 150k: the steps of long runs would run into each other
    figure.suptitle(title)
    save_figure(figure, out_png)


def plot_norms(logs: Mapping[str, TrainingLog], out_png: PathLike, title: str = "") -> None:
    """Mean feature norm of the training batches against the step, a line for each named log."""
    figure = Figure(figsize=(6.2, 4.0), layout="constrained")
    axes = figure.subplots()
    for number, (name, log) in enumerate(logs.items()):
        axes.plot(log.steps["step"], log.steps["feature_norm"], LINES[number % 4], color=COLOURS[number % 7], label=name)
    axes.set(yscale="log", ylabel=r"mean feature norm $\|f(x)\|$", title=title)
    axes.yaxis.set_major_formatter("{x:g}")
    _finish(figure, "optimiser step", [axes])
    save_figure(figure, out_png)


def plot_toy_training(results: pd.DataFrame, out_png: PathLike, title: str = "") -> None:
    """Fig. 2: test accuracy and mean feature norm of each run of one dataset against the epoch; hollow marks are the published values.

    Epochs of a part of the dataset count as that part.
    """
    figure = Figure(figsize=(9.8, 3.9), layout="constrained")
    accuracy, norm = figure.subplots(1, 2)
    results = results.assign(full=toy.full_epochs(results))
    known = published.toy(results["dataset"].iloc[0])
    known = known[known["epoch"] <= 1.1 * results["full"].max()]
    for (network, xi, seed, protocol), run in results.groupby(["network", "xi", "seed", "protocol"], sort=False):
        style = _TOY_STYLES.get((network, xi), {"color": COLOURS[5], "linestyle": ":", "marker": MARKERS[5]})
        style = style | ({"alpha": 0.4} if protocol == "paper" else {})
        name = toy.label(network, xi, protocol) + (f", seed {seed}" if results["seed"].nunique() > 1 else "")
        theirs = known[(known["network"] == network) & (known["xi"] == xi)]
        for axes, column, scale in ((accuracy, "accuracy", 100), (norm, "norm", 1)):
            axes.plot(run["full"], scale * run[column], **style, markersize=3.5, linewidth=1.3, label=name)
            axes.plot(theirs["epoch"], scale * theirs[column], **style | {"linestyle": ""}, markersize=9, fillstyle="none")
    if len(known):
        norm.plot([], [], "o", color="black", markersize=9, fillstyle="none", label="hollow: published")
    accuracy.set(ylabel="test accuracy [%]")
    norm.set(yscale="log", ylabel=r"mean feature norm $\|f(x)\|$")
    norm.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    norm.yaxis.set_major_formatter("{x:g}")
    norm.yaxis.set_minor_formatter(NullFormatter())
    part = (results["full"] != results["epoch"]).any()
    _finish(figure, "epochs of the whole dataset" if part else "epoch", [])
    figure.legend(*norm.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.suptitle(title)
    save_figure(figure, out_png)


def plot_projections(projections: pd.DataFrame, out_png: PathLike, title: str = "", classes: Sequence[str] = ()) -> None:
    """Fig. 1b: two principal components of test images and of their features, a colour and a mark a class. classes: their names.

    The more images there are, the smaller are the marks.
    """
    size = 3 * min(1, (2000 / len(projections)) ** 0.5)
    figure = Figure(figsize=(9.8, 4.6), layout="constrained")
    for axes, (name, heading) in zip(figure.subplots(1, 2), {"image": "images", "feature": "features"}.items()):
        for number, (label, rows) in enumerate(projections.groupby("label")):
            axes.plot(rows[f"{name}_1"], rows[f"{name}_2"], MARKERS[number % 6], color=CLASS_COLOURS[number % 10], markersize=size,
                      markeredgewidth=size / 3, alpha=0.6, label=classes[label] if classes else f"{label}")
        axes.set(title=heading, xlabel="first principal component", ylabel="second principal component")
        axes.set_aspect("equal", "datalim")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=10, fontsize="small", markerscale=6 / size,
                  title="class")
    figure.suptitle(title)
    save_figure(figure, out_png, colours=256)


def write_toy_figures(folder: PathLike, out: PathLike) -> list[Path]:
    """Of all toy runs in `folder`: for each dataset fig2_DATASET.png and, where the projections of its SLL network with xi = 0 are there,
    fig1b_DATASET.png, in `out`. Returns their paths.
    """
    paths = []
    for dataset, results in toy.read_results(folder).groupby("dataset"):
        sizes = sorted(set(zip(results["num_image"], results["batch_size"])))
        of = TOY_TITLES.get(dataset, literal(dataset))
        counts = " and ".join(f"{images:,} training images, batch {batch}" for images, batch in sizes)
        paths.append(Path(out) / f"fig2_{dataset}.png")
        plot_toy_training(results, paths[-1], f"{of}: {counts}")
        seeds = results.loc[(results["network"] == "sll") & (results["xi"] == 0), "seed"]
        projections = [Path(folder) / toy.run_name(dataset, "sll", 0, seed) / "projections.csv" for seed in sorted(set(seeds))]
        for path in projections[:1]:
            if path.is_file():
                paths.append(Path(out) / f"fig1b_{dataset}.png")
                plot_projections(toy.read_projections(path), paths[-1], f"{of}: test images, SLL network with xi = 0",
                                 CIFAR10_CLASSES if dataset == "cifar10" else ())
    return paths


def _finish(figure: Figure, x: str, legends: list[Axes]) -> None:
    finish(figure, figure.axes, legend=False)
    for axes in figure.axes:
        axes.set_xlabel(x)
    for axes in legends:
        axes.legend(fontsize="small")
