"""*Models*: what is served, its versions with their metrics and cards, and versions compared."""

from http import HTTPStatus
from typing import Any

import gradio as gr

from spark_ray.serving.ui.client import ApiProblem
from spark_ray.serving.ui.render import render
from spark_ray.serving.ui.visitors import Visitors

_QUIET: Any = {"api_visibility": "private", "show_progress": "minimal"}


def add(visitors: Visitors, tab: gr.Tab) -> None:
    """Lay the tab out. Choosing a model fills its versions, choosing one of them its card."""
    with gr.Row():
        name = gr.Dropdown([], label="Model", elem_id="model-name", scale=2)
        compared = gr.Dropdown(
            [], label="Compare versions", multiselect=True, elem_id="model-compared", scale=2
        )
        reload = gr.Button("Reload", scale=0, min_width=110, size="sm", elem_classes="sr-low")
    details = gr.HTML(elem_id="model-details")
    comparison = gr.HTML(elem_id="model-comparison")
    with gr.Row():
        version = gr.Dropdown([], label="Card of version", elem_id="model-version", scale=1)
    card = gr.Markdown(elem_id="model-card", container=True)

    async def names(current: str | None, request: gr.Request) -> Any:
        async with visitors.server(request) as api:
            known = [model["id"] for model in (await api.get("/v1/models"))["data"]]
        return gr.Dropdown(known, value=current if current in known else next(iter(known), None))

    async def show(model: str | None, request: gr.Request) -> tuple[Any, Any, str]:
        if not model:
            return gr.Dropdown([]), gr.Dropdown([]), ""
        async with visitors.server(request) as api:
            found = await api.get(f"/v1/models/{model}")
        known = [_label(one) for one in found["versions"]]
        return (
            gr.Dropdown(known, value=known[:2] if len(known) > 1 else []),
            gr.Dropdown(known, value=next(iter(known), None)),
            render("model", model=found),
        )

    async def compare(model: str | None, labels: list[str], request: gr.Request) -> str:
        if not model or len(labels) < 2:
            return ""
        async with visitors.server(request) as api:
            found = await api.get(f"/v1/models/{model}")
        versions = [one for one in found["versions"] if _label(one) in labels]
        return render("model_comparison", versions=versions, rows=metric_rows(versions))

    async def read_card(model: str | None, label: str | None, request: gr.Request) -> str:
        if not model or not label:
            return ""
        number = None if label == _ONLY else label.partition(" ")[0]
        async with visitors.server(request) as api:
            try:
                text = await api.text(f"/v1/models/{model}/card", {"version": number})
            except ApiProblem as problem:
                if problem.status != HTTPStatus.NOT_FOUND:
                    raise
                return "*It has no card.*"
        return without_front_matter(text)

    for trigger in (tab.select, reload.click):
        trigger(names, name, name, **_QUIET).then(
            show, name, [compared, version, details], **_QUIET
        )
    name.input(show, name, [compared, version, details], **_QUIET)
    compared.change(compare, [name, compared], comparison, **_QUIET)
    version.change(read_card, [name, version], card, **_QUIET)


_ONLY = "the only one"


def _label(version: dict[str, Any]) -> str:
    """A version as lists show it: its number and aliases."""
    if version["version"] is None:
        return _ONLY
    return " ".join([version["version"], *(f"@{alias}" for alias in version["aliases"])])


def metric_rows(versions: list[dict[str, Any]]) -> list[tuple[str, list[float | None]]]:
    """Name and values, one a version, of every metric that any of them has."""
    measured = [
        {
            f"{skill}: {name}": value
            for skill, values in version["metrics"].items()
            for name, value in values.items()
        }
        | {f"training: {name}": value for name, value in version["training_metrics"].items()}
        for version in versions
    ]
    names = sorted({name for metrics in measured for name in metrics})
    return [(name, [metrics.get(name) for metrics in measured]) for name in names]


def without_front_matter(markdown: str) -> str:
    """A card without the YAML at its top, which is for hubs to read."""
    if not markdown.startswith("---\n"):
        return markdown
    _, _, rest = markdown.removeprefix("---\n").partition("\n---\n")
    return rest or markdown
