"""What can be certified with certainty beside what can with confidence: proven radii and those of randomised smoothing in one figure."""
from collections.abc import Sequence
from pathlib import Path

from eval.records import Records, table_of
from eval.show.drawing import COLOURS, GREYS, LINES, PathLike, finish, label_of, legend_below, literal, save_figure
from eval.show.plots import RADIUS, heading_of, panels_of, share_above


def write_comparison(results: Sequence[tuple[str, Records]], folder: PathLike, kind: str = "png") -> list[Path]:
    """smoothing.{kind} of several results with the names of their networks, where any of them is smoothed. Returns its path."""
    if not any(found.smoothed for _, found in results):
        return []
    path = Path(folder) / f"smoothing.{kind}"
    plot_smoothing(results, path, heading_of("Certified accuracy: proven, and by randomised smoothing", [found for _, found in results]))
    return [path]


def plot_smoothing(results: Sequence[tuple[str, Records]], out: PathLike, title: str = "") -> None:
    """Certified accuracy against the budget, a panel for each kind of attack: solid lines in black and grey are proven, the others are
    smoothed, by rising sigma, and the legend says with which noise and confidence.
    """
    figure, panels = panels_of(title, "budget", "certified accuracy [%]")
    certified = [(name, found) for name, found in results if found.certified]
    proven = [(name, found) for name, found in certified if not found.smoothed]
    smoothed = sorted(((name, found) for name, found in certified if found.smoothed), key=lambda one: one[1].figures["smoothing"]["sigma"])
    styles = [(found, {"color": GREYS[number % 3], "linewidth": 2, "label": f"{label_of(name)}: proven"})
              for number, (name, found) in enumerate(proven)]
    styles += [(found, {"color": COLOURS[number % 6], "linestyle": LINES[1 + number % 3],
                        "label": f"{label_of(name)}: {literal(found.summary['certificate'])}"})
               for number, (name, found) in enumerate(smoothed)]
    for kind, axes in panels.items():
        for found, style in styles:
            radius = table_of(found, kind).get(RADIUS[kind])
            if radius is not None and len(radius):
                axes.plot(*share_above(radius.to_numpy()), drawstyle="steps-post", **style)
    finish(figure, panels.values(), legend=False)
    legend_below(figure, panels.values(), 2)
    save_figure(figure, out)
