"""*Datasets*: published versions, their funnels and clips, and two versions side by side."""

from typing import Any
from urllib.parse import quote

import gradio as gr

from spark_ray.serving.ui.client import Api
from spark_ray.serving.ui.render import render
from spark_ray.serving.ui.visitors import Visitors

_PAGE = 24
_THUMBNAILS = 4
_MANY_THUMBNAILS = 8
_ANY = ("any", "")
_TEXT_FILTERS = {"any": {}, "with caption": {"captioned": True},
                 "without caption": {"captioned": False}, "with transcript": {"transcribed": True},
                 "without transcript": {"transcribed": False}}  # fmt: skip
CHOOSE = """element.addEventListener('click', event => {
  const chosen = event.target.closest('[data-choice]');
  if (chosen) trigger('click', {choice: chosen.dataset.choice});
})
element.addEventListener('keydown', event => {
  const chosen = event.target.closest('[data-choice]');
  if (chosen && event.key === 'Enter') trigger('click', {choice: chosen.dataset.choice});
})"""
"""Makes elements with `data-choice` clickable; the function gets it as `event.choice`."""
_QUIET: Any = {"api_visibility": "private", "show_progress": "minimal"}

Step = tuple[Any, Any, Any]
"""A function with its inputs and outputs."""


def add(visitors: Visitors, tab: gr.Tab) -> None:
    """Lay the tab out. Choosing a dataset fills the versions, choosing a version all below."""
    with gr.Row():
        name = gr.Dropdown([], label="Dataset", elem_id="dataset-name", scale=2)
        version = gr.Dropdown([], label="Version", elem_id="dataset-version", scale=1)
        reload = gr.Button("Reload", scale=0, min_width=110, size="sm", elem_classes="sr-low")
    problem = gr.HTML()
    with gr.Tabs():
        with gr.Tab("Overview"):
            fills = [_add_overview(visitors, name, version)]
        with gr.Tab("Clips") as clips:
            of_clips = _add_clips(visitors, name, version)
        with gr.Tab("Compare") as comparison:
            of_comparison = _add_comparison(visitors, name)
    for opened, steps in ((clips, of_clips), (comparison, of_comparison)):
        fills += steps
        for step in steps:
            opened.select(*step, **_QUIET)

    async def names(current: str | None, request: gr.Request) -> tuple[Any, str]:
        async with visitors.server(request) as api:
            found = (await api.get("/v1/datasets"))["datasets"]
        known = [dataset["name"] for dataset in found]
        chosen = current if current in known else next(iter(known), None)
        return gr.Dropdown(known, value=chosen), render("datasets", datasets=found)

    async def versions(dataset: str | None, request: gr.Request) -> Any:
        if not dataset:
            return gr.Dropdown([], value=None)
        async with visitors.server(request) as api:
            found = [one["version"] for one in (await api.get(_of(dataset)))["versions"]]
        return gr.Dropdown(found, value=next(iter(found), None))

    begun: list[Any] = [
        trigger(names, name, [name, problem], **_QUIET).then(versions, name, version, **_QUIET)
        for trigger in (tab.select, reload.click)
    ]
    begun.append(name.input(versions, name, version, **_QUIET))
    # Not `version.change`: two datasets may both have a v1, and then it does not change.
    for chosen in (*(step.then for step in begun), version.input):
        for step in fills:
            chosen(*step, **_QUIET)


def _add_overview(visitors: Visitors, name: gr.Dropdown, version: gr.Dropdown) -> Step:
    overview = gr.HTML(elem_id="dataset-overview")

    async def show(dataset: str | None, chosen: str | None, request: gr.Request) -> str:
        if not dataset or not chosen:
            return ""
        async with visitors.server(request) as api:
            return render("version", version=await api.get(_of(dataset, chosen)))

    return show, [name, version], overview


def _add_clips(visitors: Visitors, name: gr.Dropdown, version: gr.Dropdown) -> list[Step]:
    with gr.Row():
        text = gr.Textbox(
            "", label="Words in caption, transcript, label or file", scale=3, elem_id="clip-text"
        )
        by_meaning = gr.Checkbox(label="by meaning", scale=0, min_width=160, elem_id="clip-meaning")
        split = gr.Dropdown(
            [_ANY, "train", "validation", "test"], value="", label="Split", elem_id="clip-split"
        )
        has = gr.Dropdown(list(_TEXT_FILTERS), value="any", label="Text", elem_id="clip-has")
        label = gr.Textbox("", label="Label", elem_id="clip-label")
    with gr.Row(elem_classes="sr-pager"):
        back = gr.Button("◀ Back", scale=0, min_width=110, size="sm")
        page = gr.Number(
            1, label="Page", show_label=False, container=False, precision=0, minimum=1, scale=0,
            min_width=90,
        )  # fmt: skip
        on = gr.Button("On ▶", scale=0, min_width=110, size="sm")
        found = gr.HTML(elem_id="clips-found")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=420):
            grid = gr.HTML(elem_id="clips", js_on_load=CHOOSE)
        with gr.Column(scale=2, min_width=320):
            details = gr.HTML(render("clip_hint"), elem_id="clip-details")

    async def show(
        dataset: str | None, chosen: str | None, words: str, meaning: bool, of_split: str,
        texts: str, of_label: str, number: float, request: gr.Request,
    ) -> tuple[str, str]:  # fmt: skip
        if not dataset or not chosen:
            return "", ""
        params: dict[str, Any] = {
            "split": of_split or None, "label": of_label.strip() or None,
            "limit": _PAGE, "thumbnails": _THUMBNAILS, **_TEXT_FILTERS[texts],
        }  # fmt: skip
        async with visitors.server(request) as api:
            if meaning and words.strip():
                params["clip_id"] = await _nearest(api, dataset, words)
            else:
                params |= {"q": words.strip() or None, "offset": _PAGE * (int(number or 1) - 1)}
            clips = await api.get(_of(dataset, chosen, "clips"), params)
        order = params.get("clip_id")
        if order is not None:
            clips["clips"].sort(key=lambda clip: order.index(clip["id"]))
        return render("clips", page=clips), render("clips_found", page=clips, size=_PAGE)

    async def look(
        event: gr.EventData, dataset: str, chosen: str, request: gr.Request
    ) -> str:  # fmt: skip
        async with visitors.server(request) as api:
            clip = await api.get(
                _of(dataset, chosen, "clips", event.choice), {"thumbnails": _MANY_THUMBNAILS}
            )
        return render("clip_details", clip=clip)

    inputs = [name, version, text, by_meaning, split, has, label, page]
    for changed in (text.submit, by_meaning.input, split.input, has.input, label.submit):
        changed(lambda: 1, None, page, **_QUIET).then(show, inputs, [grid, found], **_QUIET)
    page.submit(show, inputs, [grid, found], **_QUIET)
    for button, step in ((back, -1), (on, 1)):
        button.click(_step(step), page, page, **_QUIET).then(show, inputs, [grid, found], **_QUIET)
    grid.click(look, [name, version], details, **_QUIET)

    first = gr.State(1)
    return [(lambda: 1, None, page), (show, [*inputs[:-1], first], [grid, found])]


def _step(by: int) -> Any:
    return lambda number: max(1, int(number or 1) + by)


def _add_comparison(visitors: Visitors, name: gr.Dropdown) -> list[Step]:
    with gr.Row():
        before = gr.Dropdown([], label="Before", elem_id="compare-before")
        after = gr.Dropdown([], label="After", elem_id="compare-after")
        run = gr.Button("Compare", variant="primary", scale=0, min_width=130, elem_classes="sr-low")
    shown = gr.HTML(elem_id="comparison")

    async def choices(dataset: str | None, request: gr.Request) -> tuple[Any, Any]:
        versions: list[str] = []
        if dataset:
            async with visitors.server(request) as api:
                versions = [v["version"] for v in (await api.get(_of(dataset)))["versions"]]
        older = versions[1] if len(versions) > 1 else next(iter(versions), None)
        return gr.Dropdown(versions, value=older), gr.Dropdown(
            versions, value=next(iter(versions), None)
        )

    async def compare(
        dataset: str | None, old: str | None, new: str | None, request: gr.Request
    ) -> str:
        if not dataset or not old or not new:
            raise gr.Error("Choose a dataset and two of its versions.", title="")
        async with visitors.server(request) as api:
            path = _of(dataset, "compare")
            compared = await api.get(path, {"before": old, "after": new})
        return render("comparison", compared=compared)

    run.click(compare, [name, before, after], shown, **_QUIET)
    return [(choices, name, [before, after])]


async def _nearest(api: Api, dataset: str, text: str) -> list[str]:
    """Ids of the clips whose meaning is nearest to a text; of none, one that there isn't."""
    wanted = {"dataset": dataset, "text": text, "limit": _PAGE}
    hits = (await api.post("/v1/search", wanted))["hits"]
    return [hit["clip_id"] for hit in hits] or ["none"]


def _of(*parts: str) -> str:
    """The address of a part of a dataset."""
    return "/v1/datasets/" + "/".join(quote(part, safe=":") for part in parts)
