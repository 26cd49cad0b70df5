"""What can be certified with certainty beside what can with confidence: proven radii and those of randomised smoothing in one figure."""
from collections.abc import Mapping
from pathlib import Path

from eval.records import Records, table_of
from eval.show.drawing import COLOURS, GREYS, LINES, PathLike, finish, label_of, legend_below, literal, save_figure
from eval.show.plots import RADIUS, panels_of, share_above


def write_comparison(results: Mapping[str, Records], folder: PathLike, kind: str = "png") -> list[Path]:
    """smoothing.{kind} of several named results, where any of them is smoothed. Returns its path."""
    if not any(found.smoothed for found in results.values()):
        return []
    path = Path(folder) / f"smoothing.{kind}"
    plot_smoothing(results, path, "Certified accuracy: proven, and by randomised smoothing")
    return [path]


def plot_smoothing(results: Mapping[str, Records], out: PathLike, title: str = "") -> None:
    """Certified accuracy against the budget, a panel for each kind of attack: solid lines in black and grey are proven, the others are
    smoothed, by rising sigma, and the legend says with which noise and confidence.
    """
    figure, panels = panels_of(title, "budget", "certified accuracy [%]")
    certified = {name: found for name, found in results.items() if found.certified}
    sigmas = {name: found.figures["smoothing"]["sigma"] for name, found in certified.items() if found.smoothed}
    proven = [name for name in certified if name not in sigmas]
    styles = {name: {"color": GREYS[number % 3], "linewidth": 2, "label": f"{label_of(name)}: proven"}
              for number, name in enumerate(proven)}
    for number, name in enumerate(sorted(sigmas, key=sigmas.__getitem__)):
        styles[name] = {"color": COLOURS[number % 6], "linestyle": LINES[1 + number % 3],
                        "label": f"{label_of(name)}: {literal(certified[name].summary['certificate'])}"}
    for kind, axes in panels.items():
        for name, style in styles.items():
            radius = table_of(certified[name], kind).get(RADIUS[kind])
            if radius is not None and len(radius):
                axes.plot(*share_above(radius.to_numpy()), drawstyle="steps-post", **style)
    finish(figure, panels.values(), legend=False)
    legend_below(figure, panels.values(), 2)
    save_figure(figure, out)
