"""Histograms as SVG that takes its colours from the page around it."""

import io
import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# matplotlib knows no CSS variables: it draws in these colours, which are then replaced.
INK, GRID, KEPT, DROPPED, LINE = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {
    INK: "var(--soft)",
    GRID: "var(--rule)",
    KEPT: "var(--kept)",
    DROPPED: "var(--lost)",
    LINE: "var(--ink)",
}
STYLE = {
    "svg.hashsalt": "spark-ray",  # else ids are random and no two reports are the same
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "font.size": 9.0,
    "font.family": "DejaVu Sans",  # only for measuring; it comes with matplotlib
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def histogram_svg(
    name: str,
    histogram: Mapping[str, Any],
    threshold: float | None = None,
    *,
    lost: Literal["none", "below", "all"] = "none",
    whole: bool = False,
) -> str:
    """A histogram as an `<svg>` element, the same bytes for the same values.

    Args:
        name: a word that is unique on the page; it begins the ids inside.
        histogram: what `statistics.histogram` returned.
        threshold: where to draw a line, in the edges' unit.
        lost: which values did not survive: they have another colour.
        whole: values are whole numbers.
    """
    edges = histogram["edges"]
    bins = list(pairwise(edges))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.0), layout="constrained")
        axes = figure.add_subplot()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        lost_below = {"none": -math.inf, "all": math.inf, "below": threshold or -math.inf}[lost]
        axes.bar(
            [low for low, _ in bins],
            histogram["counts"],
            width=[0.92 * (high - low) for low, high in bins],
            align="edge",
            color=[DROPPED if (low + high) / 2 < lost_below else KEPT for low, high in bins],
        )
        if threshold is not None:
            axes.axvline(threshold, color=LINE, linewidth=1.4, linestyle=(0, (4, 2)))
            _name_threshold(axes, threshold)
        _dress(axes, whole=whole)
        return inline_svg(figure, name)


def _name_threshold(axes: Any, threshold: float) -> None:
    low, high = axes.get_xlim()
    is_right = threshold > (low + high) / 2
    axes.annotate(
        f"{threshold:g}",
        (threshold, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if is_right else 4, -3),
        textcoords="offset points",
        ha="right" if is_right else "left",
        va="top",
        color=LINE,
    )


def _dress(axes: Any, *, whole: bool) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.tick_params(length=0, labelcolor=INK)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))


def inline_svg(figure: Figure, name: str) -> str:
    file = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(file, metadata=_NO_METADATA)
    svg = file.getvalue().decode()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(
        r"<(metadata|defs)>\s*<style.*?</\1>|<metadata>.*?</metadata>", "", svg, flags=re.S
    )
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"', "", svg, count=4)
    svg = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", '<svg class="plot" aria-hidden="true"', 1)
