"""Lines of figures with no more points than the eye can see, and figures as elements of a page."""
import html
import re

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

MOST_POINTS = 1000  # of a line before it is thinned out
PER_POINT = 4  # places that are kept apart in a typographic point: about the dots of a printer
_ID = re.compile(r'(\bid="|url\(#|href="#)')
_LEFT_OUT = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
_PATH = re.compile(r' d="[^"]*"')


def thin_out(figure: Figure) -> None:
    """Thin out the lines of a figure that is complete. Raises ValueError and OverflowError for what cannot be drawn."""
    figure.draw_without_rendering()  # sets the limits of axes, and where they stand
    figure.set_layout_engine("none")  # which is what takes time, and need not be done again
    for axes in figure.axes:
        for line in axes.lines:
            if line.get_linestyle() != "None" and len(line.get_xdata()) > MOST_POINTS:
                _thin_out(line)


def _thin_out(line: Line2D) -> None:
    """Of the points of a line that lie in one place, to the eye, keep the first, the last, the highest and the lowest."""
    points = np.column_stack(line.get_data()).astype(float)
    shown = line.axes.transData.transform(points) * 72 / line.axes.figure.dpi
    place = np.where(np.isfinite(shown[:, 0]), shown[:, 0] * PER_POINT, -1).astype(int)
    starts = np.append(0, np.flatnonzero(np.diff(place)) + 1)
    ends = np.append(starts[1:], len(points))
    kept = {number for start, end in zip(starts, ends) for number in (
        start, end - 1, start + int(np.argmin(points[start:end, 1])), start + int(np.argmax(points[start:end, 1])))}
    line.set_data(*points[sorted(kept)].T)


def embedded(text: str, prefix: str, label: str) -> str:
    """An SVG document of matplotlib's as an element of a page: ids begin with a prefix of their own, and `label` says what it shows."""
    text = _LEFT_OUT.sub("", text)
    text = _ID.sub(lambda found: found[0] + prefix, text)
    text = _PATH.sub(lambda path: re.sub(r"(\.\d\d)\d+", r"\1", re.sub(r"\s+", " ", path[0])), text)
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1).strip()
