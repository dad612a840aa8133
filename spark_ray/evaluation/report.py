"""The evaluation's report: one HTML file that needs nothing beside itself, in the house's look."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader
from pydantic_core import to_jsonable_python

from spark_ray.core.storage import Folder
from spark_ray.datasets.report import report_environment
from spark_ray.datasets.settings import Setting
from spark_ray.evaluation.comparison import Comparison
from spark_ray.evaluation.config import EvaluateConfig
from spark_ray.evaluation.examples import ExampleGroup, mark_differences
from spark_ray.evaluation.metrics import GROUP_TITLES, METRICS, headline, long_title, metrics_of
from spark_ray.evaluation.plots import Plot
from spark_ray.evaluation.results import PREDICTIONS, REPORT, RESULTS, Results, Scores

_SLICES = 20
_FAILURES = 20


@dataclass(frozen=True)
class ReportParts:
    """All that a report shows, as a page or as a PDF."""

    results: Results
    plots: Sequence[Plot]
    examples: Sequence[ExampleGroup]
    comparison: Comparison | None
    comparison_plot: Plot | None


@dataclass(frozen=True)
class SliceGroup:
    """The largest slices of one kind; `more` are left out."""

    kind: str
    rows: tuple[tuple[str, Scores], ...]
    more: int


def write_report(output: Folder, parts: ReportParts) -> None:
    """Write `report.html`.

    Raises:
        StorageError: it can't be written.
    """
    results = parts.results
    page = (
        _environment()
        .get_template("evaluation.html.j2")
        .render(
            results=results,
            overall=results.overall,
            groups={group: metrics_of(group) for group in GROUP_TITLES},
            group_titles=GROUP_TITLES,
            headline=headline([results.overall]),
            slices=slice_groups(results),
            plots=parts.plots,
            examples=parts.examples,
            comparison=parts.comparison,
            comparison_plot=parts.comparison_plot,
            failures=results.failures[:_FAILURES],
            settings=_explain(results.settings),
            metrics=METRICS,
            files={"predictions": PREDICTIONS, "results": RESULTS},
        )
    )
    # Halves of surrogate pairs, which JSON may hold, are no text that UTF-8 could carry.
    output.write(REPORT, page.encode("utf-8", "backslashreplace"))


def _environment() -> Environment:
    environment = report_environment()
    assert environment.loader is not None
    environment.loader = ChoiceLoader([PackageLoader("spark_ray.evaluation"), environment.loader])
    environment.filters |= {"long_title": long_title}
    environment.globals |= {"mark_differences": mark_differences}
    return environment


def slice_groups(results: Results) -> list[SliceGroup]:
    """Slices by size, those of each kind that divides the clips at all, and as no other did."""
    groups = []
    seen = []
    for kind, slices in results.slices.items():
        sizes = sorted(scores.model_dump_json() for scores in slices.values())
        if len(slices) < 2 or sizes in seen:
            continue
        seen.append(sizes)
        ordered = sorted(slices.items(), key=lambda item: -item[1].clips)
        if kind == "duration":
            ordered = list(slices.items())
        groups.append(SliceGroup(kind, tuple(ordered[:_SLICES]), len(ordered[_SLICES:])))
    return groups


def _explain(settings: dict[str, Any]) -> list[Setting]:
    """Settings with their meaning, those that were given first."""
    explained = []
    for name, value in settings.items():
        field = EvaluateConfig.model_fields[name]
        default = to_jsonable_python(field.get_default(call_default_factory=True), fallback=str)
        changed = field.is_required() or value != default
        explained.append(Setting(name, value, field.description or "", changed))
    return sorted(explained, key=lambda setting: not setting.changed)
