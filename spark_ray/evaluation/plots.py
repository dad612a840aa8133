"""The report's plots: drawn once, for the page in its own colours and for the PDF in ink."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

from spark_ray.datasets import plots as page
from spark_ray.datasets.display import visible
from spark_ray.datasets.statistics import histogram
from spark_ray.evaluation.comparison import Comparison
from spark_ray.evaluation.metrics import long_title
from spark_ray.evaluation.results import Prediction, Scores

_MOST_BARS = 16
_LONGEST_NAME = 26

# matplotlib knows no CSS variables: `datasets.plots` replaces its colours, and we these.
_COPY, _REJECTED = "#060606", "#070707"
_VARIABLES = {_COPY: "var(--copy)", _REJECTED: "var(--rejected)"}


@dataclass(frozen=True)
class Palette:
    """Colours of text, of lines in the background, and of what is plotted, one after the other."""

    ink: str
    grid: str
    series: tuple[str, ...]


@contextmanager
def drawing(style: Mapping[str, Any]) -> Iterator[None]:
    """Draw in this style. Names may hold dollar signs, and letters that the font has not."""
    with matplotlib.rc_context({**style, "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


PAGE = Palette(page.INK, page.GRID, (page.KEPT, page.DROPPED, _COPY, _REJECTED))
PAPER = Palette("#5c6472", "#dfe3ea", ("#2f6fde", "#d9822b", "#8a63d2", "#c9372c"))


@dataclass(frozen=True)
class Plot:
    """A picture with a title and a note. `draw` fills a figure of `size` inches."""

    name: str
    title: str
    note: str
    size: tuple[float, float]
    draw: Callable[[Figure, Palette], None]
    wide: bool = False

    def svg(self) -> str:
        """As an `<svg>` element that takes its colours from the page around it."""
        with drawing(page.STYLE):
            figure = Figure(figsize=self.size, layout="constrained")
            figure.patch.set_visible(False)
            self.draw(figure, PAGE)
            for axes in figure.axes:
                axes.patch.set_visible(False)
            svg = page.inline_svg(figure, self.name)
        for colour, variable in _VARIABLES.items():
            svg = svg.replace(colour, variable)
        return svg


def make_plots(predictions: Sequence[Prediction], labels: dict[str, Scores]) -> list[Plot]:
    """Those for which there is something to show.

    Args:
        predictions: of the clips that could be read.
        labels: scores of each label.
    """
    plots = []
    rates = [p.transcript.wer for p in predictions if p.transcript is not None]
    if rates:
        plots.append(_wer_histogram(rates))
    captioned = {name: s for name, s in labels.items() if s.captions is not None}
    if captioned:
        plots.append(_label_bars(captioned))
    ranks = [p.retrieval for p in predictions if p.retrieval is not None]
    if ranks:
        curves = {
            "text → clip": [rank.text_to_clip_rank for rank in ranks],
            "clip → text": [rank.clip_to_text_rank for rank in ranks],
        }
        plots.append(_rank_curve(curves))
    return plots


def _wer_histogram(rates: Sequence[float]) -> Plot:
    bins = histogram(np.minimum(rates, 1.0).tolist(), 0.0, 1.0)

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.add_subplot()
        edges = list(pairwise(bins["edges"]))
        axes.bar(
            [low for low, _ in edges],
            bins["counts"],
            width=[0.92 * (high - low) for low, high in edges],
            align="edge",
            color=palette.series[0],
        )
        _dress(axes, palette)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, 0))
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))

    over = sum(rate > 1 for rate in rates)
    note = "clips by their word error rate" + (f"; {over} above 100 % stand there" if over else "")
    return Plot("wer", "word errors", note, (4.4, 2.4), draw)


def _label_bars(labels: dict[str, Scores]) -> Plot:
    largest = sorted(labels.items(), key=lambda item: (-item[1].clips, item[0]))[:_MOST_BARS]
    names = [_short(f"{name} ({scores.clips})") for name, scores in largest]
    series = {
        title: [getattr(scores.captions, field) for _, scores in largest]
        for title, field in (("exact", "exact"), ("METEOR", "meteor"))
    }

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.add_subplot()
        places, height = np.arange(len(names)), 0.8 / len(series)
        for number, (title, values) in enumerate(series.items()):
            at = places + (number - (len(series) - 1) / 2) * height
            axes.barh(at, values, 0.9 * height, color=palette.series[number], label=title)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        _dress(axes, palette, grid="x")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, 0))
        _legend(figure, axes, palette)

    more = f"; the {len(largest)} largest of {len(labels)}" if len(labels) > len(largest) else ""
    note = f"share of captions that match exactly, and METEOR, by label (clips){more}"
    return Plot("labels", "captions by label", note, (4.4, 0.9 + 0.3 * len(names)), draw)


def _rank_curve(curves: dict[str, list[int]]) -> Plot:
    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.add_subplot()
        longest = max(max(ranks) for ranks in curves.values())
        for (title, ranks), colour in zip(curves.items(), palette.series, strict=False):
            found = np.sort(ranks)
            axes.step(
                [*found, longest + 1],
                [*(np.arange(1, len(found) + 1) / len(found)), 1.0],
                where="post",
                color=colour,
                linewidth=1.8,
                label=title,
            )
        axes.set_xscale("log")
        axes.set_xlim(1, longest + 1)
        axes.set_ylim(0, 1.02)
        _dress(axes, palette, grid="both")
        places = [n for ten in (1, 10, 100, 1000, 10_000) for n in (ten, 2 * ten, 5 * ten)]
        axes.set_xticks([n for n in places if n <= longest], minor=False)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0))
        _legend(figure, axes, palette)

    note = "share of queries that found what they should among the first so many answers"
    return Plot("ranks", "retrieval", note, (4.4, 2.4), draw)


def comparison_plot(comparison: Comparison) -> Plot:
    """A bar a run for each headline metric, each metric on its own scale."""
    rows = [row for row in comparison.rows if row.metric in comparison.headline]
    names = [_short(run.name) for run in comparison.runs]
    columns = 3
    lines = -(-len(rows) // columns)

    def draw(figure: Figure, palette: Palette) -> None:
        for number, row in enumerate(rows):
            axes = figure.add_subplot(lines, columns, number + 1)
            places = np.arange(len(names))
            colours = [palette.series[i % len(palette.series)] for i in places]
            axes.barh(places, [value or 0.0 for value in row.values], 0.8, color=colours)
            for place, value in enumerate(row.values):
                axes.annotate(
                    row.metric.text(value),
                    (value or 0.0, place),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    color=palette.ink,
                    fontsize=8,
                )
            axes.set_yticks(places, names if number % columns == 0 else [""] * len(names))
            axes.invert_yaxis()
            axes.margins(x=0.3)
            better = "" if row.metric.higher_is_better else " (less is better)"
            axes.set_title(long_title(row.metric) + better, color=palette.ink, loc="left")
            _dress(axes, palette, grid=None)
            axes.set_xticks([])

    size = (10.0, lines * (0.55 + 0.24 * len(names)))
    return Plot("comparison", "side by side", "", size, draw, wide=True)


def _dress(axes: Any, palette: Palette, grid: str | None = "y") -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(palette.grid)
    axes.set_axisbelow(True)
    if grid is not None:
        axes.grid(axis=grid, color=palette.grid, linewidth=0.7)
    axes.tick_params(length=0, labelcolor=palette.ink)


def _legend(figure: Figure, axes: Any, palette: Palette) -> None:
    if len(axes.get_legend_handles_labels()[0]) > 1:
        figure.legend(
            loc="outside upper left", ncols=4, frameon=False, labelcolor=palette.ink, fontsize=8.5
        )


def _short(name: str) -> str:
    name = visible(name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
