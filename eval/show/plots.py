"""Figures from the records of an evaluation; `write_plots` makes all that a result supports. Each mark is explained by a legend."""
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from eval import certification, outcomes, verification
from eval.records import AUDITED, Records, table_of
from eval.show import drawing
from eval.show.drawing import COLOURS, GREYS, LINES, MARKERS, PathLike, entitle, finish, label_of, legend_below, literal, save_figure
from eval.show.figures import attack_label
from eval.store.subject import OBJECTIVES
from utils import InputError

UNIT = r"$\ell_2$, pixels in [-0.5, 0.5]"
KINDS = {kind: f"{objective} ({kind.upper()})" for kind, objective in OBJECTIVES.items()}
MANY = 2000  # marks that a figure of lines has as pixels, as it would be large
RADIUS = {"u": "radius_u", "d": "radius", "i": "radius"}


def write_plots(found: Records, folder: PathLike, prefix: str = "", kind: str = "png") -> list[Path]:
    """All figures that the records have the columns for, in `folder` as {prefix}{name}.{kind}, of "png", "pdf" or "svg". Returns their
    paths.
    """
    certified, of = found.certified, title_of(found.summary)
    attacked = bool(outcomes.attack_names(found))
    compared = certified and any(len(norms) for kind in KINDS for norms in _smallest(found, kind))
    bounded = certified and "upper_bound" in found.pairs and bool((table_of(found, "i")["radius"] > 0).any())
    makers: dict[str, tuple[bool, Callable[..., None], str]] = {
        "certified_accuracy": (certified, partial(plot_certified_accuracy, {"": found}), "Certified accuracy"),
        "robust_accuracy": (attacked, partial(plot_robust_accuracy, found), "Accuracy under attack"),
        "roc": (found.pairs["same"].nunique() == 2, partial(plot_roc, found), "ROC"),
        "radius_histograms": (certified, partial(plot_radius_histograms, found), "Certified radii of right decisions"),
        "feature_norms": (True, partial(plot_feature_norms, {"": found}), "Feature norms"),
        "radius_against_attack": (compared, partial(plot_radius_against_attack, found), "Certificate and attack"),
        "tightness": (compared, partial(plot_tightness, found), "Tightness"),
        "radius_against_upper_bound": (bounded, partial(plot_radius_against_upper_bound, found), "Radius and bound")}
    paths = []
    for name, (supported, make, heading) in makers.items():
        if supported:
            paths.append(Path(folder) / f"{prefix}{name}.{kind}")
            make(paths[-1], title=f"{heading}\n{of}")
    return paths


def write_comparison(results: Mapping[str, Records], folder: PathLike, kind: str = "png") -> list[Path]:
    """Several named results in one figure each: certified_accuracy, of those that are proven, and feature_norms. Returns their paths."""
    paths = [Path(folder) / f"feature_norms.{kind}"]
    plot_feature_norms(results, paths[0], heading_of("Feature norms", results.values()))
    certified = {name: found for name, found in results.items() if found.certified and not found.smoothed}
    if certified:
        paths.append(Path(folder) / f"certified_accuracy.{kind}")
        plot_certified_accuracy(certified, paths[-1], heading_of("Certified accuracy", certified.values()))
    return paths


def heading_of(what: str, results: Iterable[Records]) -> str:
    """What a figure of several results is about: what they have in common."""
    parts = [_about(found.summary) for found in results]
    shared = [part for part in parts[0] if all(part in other for other in parts)]
    return f"{what}\n{', '.join(shared)}" if shared else what


def title_of(summary: Mapping[str, Any]) -> str:
    """What a figure is about."""
    return ", ".join(_about(summary))


def _about(summary: Mapping[str, Any]) -> list[str]:
    """The set, the protocol, what the threshold was chosen for, and the threshold."""
    far = summary.get("far_target")
    return [literal(drawing.shortened(summary["bin"])), f"{literal(summary['protocol'])} protocol",
            *(["mirror images averaged"] if summary.get("flip", "none") != "none" else []),
            *([f"FAR {far:g}"] if far is not None else []), rf"$\tau$ = {summary['tau']:.3f}",
            *([literal(summary["certificate"])] if "certificate" in summary else [])]


def plot_certified_accuracy(results: Mapping[str, Records], out: PathLike, title: str = "") -> None:
    """Certified accuracy (CRA) against the budget, a panel for each kind of attack and a line for each named result."""
    figure, panels = panels_of(title, "budget", "certified accuracy [%]")
    for (kind, axes) in panels.items():
        for number, (name, found) in enumerate(results.items()):
            radius = table_of(found, kind).get(RADIUS[kind], pd.Series(dtype=float))
            if len(radius):
                axes.plot(*share_above(radius.to_numpy()), LINES[number % 4], color=COLOURS[number % 7], drawstyle="steps-post",
                          label=label_of(name) or "right, and certified beyond the budget")
    finish(figure, panels.values(), False)
    legend_below(figure, panels.values(), 3)
    save_figure(figure, out)


def plot_robust_accuracy(found: Records, out: PathLike, title: str = "") -> None:
    """Empirical robust accuracy against the budget, a line for each minimum-norm attack and points for each with budgets, and below them
    the certified accuracy of the same rows. Attacks with limits of their own are about rows of their own: a certified line for each limit.
    """
    limits, figure, panels = _limits(found), *panels_of(title, "budget", "robust accuracy [%]")
    for kind, axes in panels.items():
        table = table_of(found, kind)
        counts = sorted({min(limit, len(table)) for limit in limits.values()})
        axes.set_title(f"{KINDS[kind]}, {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} rows")
        if table.empty:
            continue
        for number, limit in enumerate(sorted(set(limits.values()), reverse=True) if RADIUS[kind] in table else ()):
            axes.plot(*share_above(table[RADIUS[kind]][:limit].to_numpy()), color=GREYS[number % 3], drawstyle="steps-post",
                      label="certified" + _said(limit, limits))
        for number, (attack, limit) in enumerate(limits.items()):
            style = {"color": COLOURS[number % 7], "label": attack_label(attack) + _said(limit, limits)}
            if found.summary["attacks"][attack]["minimum_norm"]:
                norms = outcomes.norms(found, attack, kind).to_numpy()
                axes.plot(*share_above(norms), LINES[1 + number % 3], drawstyle="steps-post", **style)
            elif budgets := sorted(outcomes.budgets(found, attack, kind)):
                shares = [100 * outcomes.robust(found, attack, kind, eps).mean() for eps in budgets]
                axes.plot(budgets, shares, MARKERS[number % 6], **style)
    finish(figure, panels.values(), False)
    legend_below(figure, panels.values())
    save_figure(figure, out)


def plot_roc(found: Records, out: PathLike, eps: Sequence[float] | None = None, title: str = "") -> None:
    """ROC curve and, where the network is certified, the band between it and the ROC curve that is certified when one
    image of every pair may be perturbed by eps (default: the first dodging budget). Dots are what tau gives: under attack 1 - CRA_I and
    CRA_D.
    """
    pairs, summary = found.pairs, found.summary
    cosine, same, tau = pairs["cosine"].to_numpy(), pairs["same"].to_numpy(), summary["tau"]
    floor = 0.5 / (~same).sum()
    grid = np.geomspace(floor, 1, 500)
    figure, axes = _single(title, 4.9)
    clean = _tar_at(*verification.roc(cosine, same), grid)
    axes.plot(grid, clean, color="black", drawstyle="steps-post", label="no attack")
    reached, false = verification.tar_far(cosine, same, tau)
    dot = {"clip_on": False, "linestyle": ""}
    axes.plot(max(false, floor), 100 * reached, "o", color="black", label=rf"at $\tau$: FAR {false:.3g}, TAR {100 * reached:.1f}%", **dot)
    norm = np.minimum(pairs["norm_left"], pairs["norm_right"]).to_numpy()
    budgets = [next(iter(summary["cra_d"]))] if eps is None else eps
    banded = found.certified and not found.smoothed  # what noise certifies says nothing of other thresholds
    for number, budget in enumerate(budgets if banded else ()):
        _, far, tar = (values.numpy() for values in certification.certified_roc(cosine, norm, same, budget))
        certified, colour = _tar_at(far, tar, grid), COLOURS[number % 7]
        axes.plot(grid, certified, LINES[1 + number % 3], color=colour, label=rf"certified at $\epsilon$ = {budget:g}",
                  drawstyle="steps-post")
        kept = (pairs["radius"] > budget).to_numpy()
        axes.plot(max(1 - kept[~same].mean(), floor), 100 * kept[same].mean(), MARKERS[1 + number % 5], color=colour, **dot,
                  label=rf"at $\tau$: FAR up to {1 - kept[~same].mean():.3g}, TAR at least {100 * kept[same].mean():.1f}%")
        axes.fill_between(grid, certified, clean, color=colour, alpha=0.2, linewidth=0, step="post",
                          label=rf"what attacks up to $\epsilon$ = {budget:g} may cost at most")
    axes.set(xscale="log", xlim=(floor, 1), ylim=(0, 102), ylabel=f"TAR{' (certified under attack)' if banded else ''} [%]",
             xlabel=rf"FAR (worst case under attack); $\epsilon$: {UNIT}" if banded else "FAR")
    finish(figure, [axes], False, zero=False)
    legend_below(figure, [axes], 1)
    save_figure(figure, out)


def plot_radius_histograms(found: Records, out: PathLike, title: str = "") -> None:
    """Histograms of the certified radii of right decisions, with the median of all (wrong ones count as 0)."""
    figure, panels = panels_of(title, "certified radius", "number of decisions")
    for number, (kind, axes) in enumerate(panels.items()):
        radius = table_of(found, kind).get(RADIUS[kind], pd.Series(dtype=float)).to_numpy()
        if not len(radius):
            continue
        median = certification.lower_median(radius)
        axes.hist(radius[radius > 0], bins=40, color=COLOURS[number], label=f"right: {np.mean(radius > 0):.1%}")
        axes.axvline(median, color="black", linestyle="--", label=f"median: {median:.3f}")
        axes.set_ylim(0, 1.4 * axes.get_ylim()[1])  # room for the legend
        axes.legend(loc="upper right", fontsize="small")
    finish(figure, panels.values(), False)
    save_figure(figure, out)


def plot_feature_norms(results: Mapping[str, Records], out: PathLike, title: str = "") -> None:
    """Histogram of the feature norms |f(x)| over the images, an outline for each named result."""
    norms = {name: found.images["norm"].to_numpy() for name, found in results.items()}
    values = np.concatenate(list(norms.values()))
    values = values[values > 0]
    if not len(values):
        raise InputError("no image has a feature norm above 0: there is nothing to plot")
    wide = values.max() > 20 * values.min()
    bins = (np.geomspace if wide else np.linspace)(values.min(), values.max() * 1.0001, 61)
    figure, axes = _single(title, 4.2)
    for number, (name, norm) in enumerate(norms.items()):
        axes.hist(norm, bins, histtype="step", linewidth=1.5, linestyle=LINES[number % 4], color=COLOURS[number % 7],
                  label=f"{label_of(name) or 'images'}, mean {norm.mean():.3f}")
    axes.set(xscale="log" if wide else "linear", xlabel=r"feature norm $\|f(x)\|$", ylabel="number of images")
    finish(figure, [axes], True, zero=not wide)
    save_figure(figure, out)


def plot_radius_against_attack(found: Records, out: PathLike, title: str = "") -> None:
    """Certified radius against the smallest perturbation that any minimum-norm attack or the audit succeeded with, of
    right decisions: none may lie below the diagonal. Triangles at the top: no attack succeeded.
    """
    points = {KINDS[kind]: _radius_and_norm(found, kind) for kind in KINDS}
    _scatter(points, "smallest successful perturbation", out, title)


def plot_radius_against_upper_bound(found: Records, out: PathLike, title: str = "") -> None:
    """Certified radius of rejected false pairs against Theorem 2's upper bound: none may lie below the diagonal."""
    table = table_of(found, "i")
    table = table[table["radius"] > 0]
    points = {"false pairs, rejected": (table["radius"].to_numpy(), table["upper_bound"].to_numpy())}
    _scatter(points, "upper bound of Theorem 2", out, title)


def plot_tightness(found: Records, out: PathLike, title: str = "") -> None:
    """Histogram of smallest successful perturbation over certified radius; 1 would be a tight certificate."""
    pairs = {KINDS[kind]: _radius_and_norm(found, kind) for kind in KINDS}
    ratios = {label: norm / radius for label, (radius, norm) in pairs.items() if len(norm)}
    finite = np.concatenate([np.ones(1), *(ratio[np.isfinite(ratio)] for ratio in ratios.values())])
    wide = finite.max() > 20
    bins = (np.geomspace if wide else np.linspace)(finite.min() / 1.02, finite.max() * 1.02, 41)
    figure, axes = _single(title, 4.2)
    for number, (label, ratio) in enumerate(ratios.items()):
        median = certification.lower_median(ratio)
        axes.hist(ratio[np.isfinite(ratio)], bins, histtype="step", linewidth=1.5, linestyle=LINES[number],
                  color=COLOURS[number], label=f"{label}: median {median:.2f}{_failures(ratio)}")
    axes.axvline(1, color="black", linewidth=1, label="certificate")
    axes.set(xscale="log" if wide else "linear", ylim=(0, 1.4 * axes.get_ylim()[1]),
             ylabel="number of decisions", xlabel="smallest successful perturbation / certified radius")
    finish(figure, [axes], True, zero=False)
    save_figure(figure, out)


def plot_adversarial_examples(sources: Tensor, targets: Tensor, adversarials: Tensor, out: PathLike,
                              captions: Sequence[str], title: str = "") -> None:
    """A row for each attacked image: source, the image it is compared with, adversarial image, and the perturbation
    times 10 on grey. Images [N, 3, H, W] in [-0.5, 0.5]; a caption a row.
    """
    columns = {"source": sources, "target": targets, "adversarial": adversarials,
               r"perturbation $\times$ 10": 10 * (adversarials - sources)}
    figure = Figure(figsize=(6.2, 0.3 + 1.35 * len(sources) + 0.4 * bool(title)), layout="constrained")
    entitle(figure, title)
    for axes, caption in zip(figure.subplots(len(sources), 4, squeeze=False), captions):
        axes[0].set_ylabel(caption, fontsize="small", rotation=0, ha="right", va="center")
    for place, (name, images) in enumerate(columns.items()):
        figure.axes[place].set_title(name, fontsize="medium")
        for axes, image in zip(figure.axes[place::4], images.detach().cpu()):
            axes.imshow((image + 0.5).clamp(0, 1).permute(1, 2, 0).numpy())
            axes.set(xticks=[], yticks=[])
    save_figure(figure, out, colours=256)


def _limits(found: Records) -> dict[str, int]:
    """How many rows of a kind each attack was about at most."""
    most = max(len(table_of(found, kind)) for kind in KINDS)
    limits = {attack: found.summary["attacks"][attack]["limit"] for attack in outcomes.attack_names(found)}
    return {attack: most if limit is None else min(limit, most) for attack, limit in limits.items()}


def _said(limit: int, limits: Mapping[str, int]) -> str:
    """Which rows a line is about, for a legend; nothing where it is the same for all lines."""
    return f", first {limit} rows" if len(set(limits.values())) > 1 else ""


def _smallest(found: Records, kind: str) -> list[pd.Series]:
    """The smallest successful perturbations of the rows of a kind, by each minimum-norm attack and the audit."""
    attacks = [name for name in outcomes.attack_names(found) if found.summary["attacks"][name]["minimum_norm"]]
    return [outcomes.norms(found, name, kind) for name in (*attacks, AUDITED)]


def _radius_and_norm(found: Records, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Certified radius and smallest successful perturbation of the certified decisions that were attacked."""
    norm = pd.concat([norms for norms in _smallest(found, kind) if len(norms)] or [pd.Series(dtype=float)], axis=1).min(axis=1)
    radius = table_of(found, kind)[RADIUS[kind]].reindex(norm.index)
    return radius[radius > 0].to_numpy(), norm[radius > 0].to_numpy()


def _failures(norms: np.ndarray) -> str:
    return f", {np.isinf(norms).sum()} of {len(norms)} without success" if np.isinf(norms).any() else ""


def share_above(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(eps, percentage of the values above it): exact, with a step at every value."""
    eps = np.unique(np.append(values[np.isfinite(values)], 0.))
    return eps, 100 * (1 - np.searchsorted(np.sort(values), eps, side="right") / len(values))


def _tar_at(far: np.ndarray, tar: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """TAR in percent of the loosest threshold whose FAR is at most that of the grid; 0 where there is none."""
    return 100 * np.append(0., tar)[np.searchsorted(far, grid, side="right")]


def _single(title: str, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.5, height), layout="constrained")
    entitle(figure, title)
    return figure, figure.subplots()


def panels_of(title: str, x: str, y: str) -> tuple[Figure, dict[str, Axes]]:
    """A panel a kind of attack."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = dict(zip(KINDS, figure.subplots(1, 3, sharey="%" in y)))
    for kind, axes in panels.items():
        axes.set(title=KINDS[kind], **({"ylim": (0, 102)} if "%" in y else {}))
        axes.locator_params(axis="x", nbins=6)  # more would run into those of the next panel
    entitle(figure, title)
    panels["d"].set_xlabel(f"{x} ({UNIT})")  # of all three; a label of the figure would lie under a legend below them
    panels["u"].set_ylabel(y)
    return figure, panels


def _scatter(points: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str, out: PathLike, title: str) -> None:
    figure, axes = _single(title, 4.6)
    radii, norms = (np.concatenate(values) for values in zip(*points.values()))
    both = np.concatenate([radii, norms[np.isfinite(norms)]])
    low, high = (both.min() / 1.3, both.max() * 1.5) if len(radii) else (0.1, 10)
    axes.plot((low, high), (low, high), color="black", linewidth=1, label="equal")
    axes.set_xlim(low, radii.max() * 1.3 if len(radii) else high)
    for number, (name, (radius, norm)) in enumerate(points.items()):
        if not len(radius):
            continue
        style = {"color": COLOURS[number], "alpha": 0.5, "linestyle": "", "markersize": 3.5, "rasterized": len(radius) > MANY}
        done = np.isfinite(norm)
        axes.plot(radius[done], norm[done], MARKERS[number], label=f"{name}{_failures(norm)}", **style)
        axes.plot(radius[~done], np.full((~done).sum(), high / 1.1), "^", **style)
    if np.isinf(norms).any():
        axes.plot([], [], "^", color="grey", markersize=3.5, label="at the top: without success")
    axes.set(xscale="log", yscale="log", ylim=(low, high), xlabel=f"certified radius ({UNIT})",
             ylabel=f"{label} ({UNIT})")
    finish(figure, [axes], True, zero=False)
    save_figure(figure, out)
