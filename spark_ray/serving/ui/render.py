"""HTML of the pages' parts, from templates that escape whatever comes from outside."""

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from spark_ray.datasets.display import (
    TEXT_LAYOUT,
    bytes_text,
    percent_text,
    seconds_text,
    value_text,
    visible,
)

HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """The template of that name with these values."""
    return _environment().get_template(f"{template}.html.j2").render(**values)


def style() -> str:
    """The pages' style sheet. Colours are Gradio's own variables, so it is right in dark too."""
    return (HERE / "ui.css").read_text("utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("spark_ray.serving.ui"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "plain": visible,
        "prose": lambda text: visible(text, TEXT_LAYOUT),
        "count": lambda number: f"{number:,}",
        "bytes": bytes_text,
        "seconds": seconds_text,
        "value": value_text,
        "share": _share,
        "metric": _metric,
        "date": _date,
    }
    environment.globals |= {"percent": percent_text}
    return environment


def _share(part: float, whole: float) -> float:
    """Percent of the whole, for a bar's width."""
    return round(100 * min(1.0, max(0.0, part / whole)), 3) if whole else 0.0


def _metric(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _date(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
