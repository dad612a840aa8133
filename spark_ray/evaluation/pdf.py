"""The report on paper: numbers, plots and examples as `report.pdf`, drawn by matplotlib alone."""

import io
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from spark_ray.core.storage import Folder
from spark_ray.datasets.display import TEXT_LAYOUT, visible
from spark_ray.evaluation.comparison import Comparison
from spark_ray.evaluation.examples import Example, ExampleGroup
from spark_ray.evaluation.metrics import METRICS, headline, long_title
from spark_ray.evaluation.plots import PAPER, Plot, drawing
from spark_ray.evaluation.report import ReportParts, SliceGroup, slice_groups
from spark_ray.evaluation.results import PDF, RESULTS, Results

_A4 = (8.27, 11.69)
_LEFT, _TOP, _BOTTOM = 0.08, 0.95, 0.05
_WIDTH = 1 - 2 * _LEFT
_SIZE, _CELL_SIZE = 8.5, 7.5  # of letters, in points
_LINE_IN, _ROW_IN = 0.17, 0.2
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, and knows most alphabets
    "font.size": _SIZE,
    "pdf.fonttype": 42,  # text can be searched and copied
}
_FRAME_IN = 1.1
_NO_DATE = {"CreationDate": None}

_Rows = Sequence[Sequence[str]]


def write_pdf(output: Folder, parts: ReportParts) -> None:
    """Write `report.pdf`.

    Raises:
        StorageError: it can't be written.
    """
    file = io.BytesIO()
    with drawing(_STYLE), PdfPages(file, metadata=_NO_DATE) as pages:
        for figure in _pages(parts):
            pages.savefig(figure)
    output.write(PDF, file.getvalue())


def _pages(parts: ReportParts) -> Iterator[Figure]:
    yield _numbers_page(parts.results)
    if parts.comparison is not None and parts.comparison_plot is not None:
        yield _comparison_page(parts.comparison, parts.comparison_plot)
    if parts.plots:
        yield _plots_page(parts.plots)
    yield from _slice_pages(parts.results, slice_groups(parts.results))
    for group in parts.examples:
        yield from _example_pages(group)


class _Page:
    """A sheet that is filled from the top; `at` is how far it is, in inches."""

    def __init__(self, title: str) -> None:
        self.figure = Figure(figsize=_A4)
        self.at = (1 - _TOP) * _A4[1]
        self.write(title, size=15, weight="bold")
        self.at += 0.1

    def has_room(self, height: float) -> bool:
        return self.at + height <= _A4[1] * (1 - _BOTTOM)

    def write(self, text: str, indent: float = 0.0, size: float = _SIZE, **style: Any) -> None:
        """Lines of text below what is there; too long ones are broken."""
        for line in _broken(text, indent, size):
            self.figure.text(_LEFT + indent, self._y(0.0), line, va="top", size=size, **style)
            self.at += _LINE_IN * size / _SIZE

    def axes(self, height: float, left: float = 0.0, width: float = 1.0) -> Any:
        """An empty axes of so many inches' height at the present place, which stays where it is."""
        return self.figure.add_axes(
            (_LEFT + left * _WIDTH, self._y(height), width * _WIDTH, height / _A4[1])
        )

    def table(self, rows: _Rows, widths: Sequence[float]) -> None:
        """Rows of cells; the first is the head. Widths are shares of the page."""
        tall = 1 + max(text.count("\n") for text in rows[0])
        height = _table_height(rows)
        axes = self.axes(height)
        axes.axis("off")
        table = axes.table(
            [[_cell(text, width) for text, width in zip(row, widths, strict=True)] for row in rows],
            colWidths=widths,
            bbox=(0, 0, sum(widths), 1),
            edges="horizontal",
            cellLoc="right",
        )
        table.auto_set_font_size(False)
        table.set_fontsize(_CELL_SIZE)
        for (row, column), cell in table.get_celld().items():
            cell.set_edgecolor(PAPER.grid)
            cell.get_text().set_color(PAPER.ink if row == 0 else "black")
            cell.set_height((tall if row == 0 else 1) / (len(rows) + tall - 1))
            if column == 0:
                cell.set_text_props(ha="left")
                cell.PAD = 0.0
        self.at += height + 0.15

    def _y(self, below: float) -> float:
        return 1 - (self.at + below) / _A4[1]


def _table_height(rows: _Rows) -> float:
    return _ROW_IN * (len(rows) + max(text.count("\n") for text in rows[0]))


def _broken(text: str, indent: float = 0.0, size: float = _SIZE) -> list[str]:
    columns = _columns(_WIDTH - indent, size)
    lines = visible(text, TEXT_LAYOUT).splitlines()
    return [part for line in lines for part in textwrap.wrap(line, columns) or [""]]


def _columns(share: float, size: float) -> int:
    """How many letters of average width fit into a share of the page."""
    return round(share * _A4[0] * 72 / (0.57 * size))


def _cell(text: str, share: float) -> str:
    columns = _columns(share * _WIDTH, _CELL_SIZE)
    text = visible(text, "\n")
    return text if len(text) <= columns or "\n" in text else text[: max(1, columns - 1)] + "…"


def _numbers_page(results: Results) -> Figure:
    page = _Page(f"Evaluation: {results.name}")
    dataset = results.dataset
    version = f"@{dataset.version}" if dataset.version else ""
    for name, value in {
        "model": results.model.name,
        "weights": results.model.weights_hash or "–",
        "dataset": f"{dataset.name}{version}, split {dataset.split}, at {dataset.location}",
        "manifest": dataset.manifest_sha256,
        "clips": f"{results.clips.evaluated} of {results.clips.asked}; "
        f"{results.clips.failed} could not be read, "
        f"{results.clips.without_reference} have no reference",
        "evaluated": f"{results.created}, SparkRay {results.code_version}",
        "BLEU": results.bleu_signature or "–",
    }.items():
        page.write(f"{name}: {value}", color=PAPER.ink)
    page.at += 0.15
    rows = [("", "value", "clips")]
    for metric in METRICS:
        scores = getattr(results.overall, metric.group)
        if scores is not None:
            value = metric.text(metric.of(results.overall))
            rows.append((long_title(metric), value, f"{scores.clips:,}"))
    page.table(rows, (0.4, 0.2, 0.2))
    page.write("Settings", weight="bold")
    for name, value in results.settings.items():
        page.write(f"{name}: {value}", color=PAPER.ink, size=7.5)
    return page.figure


def _comparison_page(comparison: Comparison, plot: Plot) -> Figure:
    page = _Page("Side by side")
    if comparison.others:
        page.write(f"Judged other clips or references: {', '.join(comparison.others)}.")
        page.at += 0.1
    head = ("", *(run.name for run in comparison.runs))
    rows = [(long_title(row.metric), *map(row.metric.text, row.values)) for row in comparison.rows]
    widths = (0.22, *[0.78 / len(comparison.runs)] * len(comparison.runs))
    page.table([head, *rows], widths)
    _place(page, plot, _WIDTH * _A4[0])
    return page.figure


def _plots_page(plots: Sequence[Plot]) -> Figure:
    page = _Page("Distributions")
    for plot in plots:
        page.write(f"{plot.title}: {plot.note}")
        page.at += 0.05
        _place(page, plot, 4.6)
    return page.figure


def _place(page: _Page, plot: Plot, width: float) -> None:
    """A plot as a picture, `width` inches wide, or less where the page ends before it."""
    figure = Figure(figsize=plot.size, layout="constrained", dpi=200)
    plot.draw(figure, PAPER)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    pixels = _pixels(file.getvalue())
    room = _A4[1] * (1 - _BOTTOM) - page.at
    height = min(width * pixels.shape[0] / pixels.shape[1], room)
    width = height * pixels.shape[1] / pixels.shape[0]
    axes = page.axes(height, width=width / (_WIDTH * _A4[0]))
    axes.imshow(pixels, aspect="auto")
    axes.axis("off")
    page.at += height + 0.2


def _slice_pages(results: Results, groups: Sequence[SliceGroup]) -> Iterator[Figure]:
    metrics = headline([results.overall])
    titles = [long_title(m).replace(" ", "\n", 1).replace("→ ", "→\n") for m in metrics]
    widths = (0.2, *[0.8 / (len(metrics) + 1)] * (len(metrics) + 1))
    page: _Page | None = None
    for group in groups:
        rows = [(group.kind, "clips", *titles)]
        rows += [
            (name, f"{scores.clips:,}", *(metric.text(metric.of(scores)) for metric in metrics))
            for name, scores in group.rows
        ]
        if page is None or not page.has_room(_table_height(rows) + 0.3):
            if page is not None:
                yield page.figure
            page = _Page("Slices")
        page.table(rows, widths)
        if group.more:
            page.write(f"{group.more} more are in {RESULTS}.", color=PAPER.ink)
    if page is not None:
        yield page.figure


def _example_pages(group: ExampleGroup) -> Iterator[Figure]:
    page = _Page(group.title)
    for example in group.examples:
        texts = _example_texts(example)
        lines = sum(len(_broken(text, indent)) for text, indent, _ in texts)
        if not page.has_room(_FRAME_IN + 0.3 + _LINE_IN * lines):
            yield page.figure
            page = _Page(group.title)
        _draw_example(page, example, texts)
    yield page.figure


def _example_texts(example: Example) -> list[tuple[str, float, str]]:
    """Each with its indent and its colour."""
    prediction = example.prediction
    texts = []
    for name, result in (("caption", prediction.caption), ("transcript", prediction.transcript)):
        if result is not None:
            texts.append((f"{name}: {_cut(result.reference)}", 0.0, "black"))
            texts.append((f"model: {_cut(result.predicted) or '–'}", 0.02, PAPER.series[0]))
    return [*texts, (f"{prediction.source_path} · {prediction.id}", 0.0, PAPER.ink)]


def _draw_example(page: _Page, example: Example, texts: list[tuple[str, float, str]]) -> None:
    for number, frame in enumerate(example.frames):
        axes = page.axes(_FRAME_IN, left=0.25 * number, width=0.24)
        axes.imshow(_pixels(frame.jpeg))
        axes.set_anchor("NW")
        axes.axis("off")
    page.at += _FRAME_IN + 0.05
    for text, indent, colour in texts:
        page.write(text, indent, color=colour)
    page.at += 0.2


def _cut(text: str) -> str:
    return textwrap.shorten(text, 400, placeholder=" …")


def _pixels(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None, "made here"
    return image
