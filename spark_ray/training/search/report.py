"""A study as one HTML file that opens anywhere: pictures to point at, and every trial."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spark_ray.core.errors import MissingDependency
from spark_ray.core.provenance import code_version, now_iso
from spark_ray.core.storage import Folder
from spark_ray.datasets.report import report_environment
from spark_ray.training.search.records import REPORT, Study


def write_report(studies: Sequence[Study], target: str | None = None) -> str:
    """Write the report of a study, or of several beside each other; where it is.

    Args:
        target: the file; unset: the first study's report.html.

    Raises:
        MissingDependency: Plotly or Optuna is not installed.
    """
    page = render(studies).encode("utf-8", "backslashreplace")
    if target is None:
        studies[0].folder.write(REPORT, page)
        return studies[0].folder / REPORT
    parent, _, name = target.rpartition("/")
    Folder(parent or ".").write(name, page)
    return target


def check_packages() -> None:
    """Whether a report can be made; for those who make one only after hours.

    Raises:
        MissingDependency: Plotly or Optuna is not installed.
    """
    for package in ("optuna", "plotly"):
        try:
            import_module(package)
        except ImportError as error:
            raise MissingDependency(package, "tune", "a study's report") from error


def render(studies: Sequence[Study]) -> str:
    check_packages()
    from plotly.offline import get_plotlyjs

    from spark_ray.training.search import charts

    figures: dict[str, Any] = {"history": charts.history(studies)}
    shares = [charts.importances(study) for study in studies]
    for number, study in enumerate(studies):
        figures[f"curves-{number}"] = charts.learning_curves(study)
        figures[f"parallel-{number}"] = charts.parallel_coordinates(study)
        figures[f"pareto-{number}"] = charts.pareto(study)
        if shares[number]:
            figures[f"importance-{number}"] = charts.importance_bars(shares[number])
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    return (
        _environment()
        .get_template("study.html.j2")
        .render(
            studies=studies,
            counts=[Counter(trial.state for trial in study.trials) for study in studies],
            figures=_as_data({name: json.loads(f.to_json()) for name, f in drawn.items()}),
            drawn=set(drawn),
            plotly_js=Markup(get_plotlyjs()),  # noqa: S704 - the package's own file
            written=now_iso(),
            code_version=code_version(),
        )
    )


def _as_data(value: Any) -> Markup:
    """JSON inside a script element: nothing in it may look like the element's end."""
    text = json.dumps(value, allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - no tag is left


@cache
def _environment() -> Environment:
    environment = report_environment()
    environment.undefined = StrictUndefined
    assert environment.loader is not None
    environment.loader = ChoiceLoader(
        [PackageLoader("spark_ray.training.search"), environment.loader]
    )
    environment.filters["short"] = _short
    return environment


def _short(value: Any) -> str:
    """A parameter or a metric, at the width of a table's cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)
