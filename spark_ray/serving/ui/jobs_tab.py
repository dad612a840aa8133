"""*Jobs*: builds of datasets, begun, watched and cancelled."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from spark_ray.core.errors import ConfigError
from spark_ray.core.yaml_text import read_yaml
from spark_ray.serving.ui.datasets_tab import CHOOSE
from spark_ray.serving.ui.render import render
from spark_ray.serving.ui.visitors import Visitors

_QUIET: Any = {"api_visibility": "private", "show_progress": "hidden"}
_MOST_LOG_CHARS = 20_000


class Panel:
    """Where a page shows a job: for the one that was chosen last, which its button would stop.

    Gradio lets a job that was chosen before be followed on, into the same place.
    """

    def __init__(self) -> None:
        self.holder = object()

    def taken(self) -> object:
        self.holder = object()
        return self.holder


def add(visitors: Visitors, tab: gr.Tab) -> None:
    """Lay the tab out. A job that is begun or chosen is followed until it ends."""
    chosen, panel = gr.State(""), gr.State(Panel())
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            name = gr.Textbox("", label="Name of the dataset", elem_id="job-name")
            files = gr.File(
                label="Videos", file_count="multiple", type="filepath", height=150,
                file_types=["video"], elem_id="job-files",
            )  # fmt: skip
            urls = gr.Textbox("", label="s3:// addresses, one a line", lines=2, elem_id="job-urls")
            settings = gr.Code(
                "", label="Settings of the build (YAML), such as fps: 2", language="yaml", lines=3,
                elem_id="job-settings",
            )  # fmt: skip
            start = gr.Button("Start", variant="primary", elem_id="job-start")
        with gr.Column(scale=2, min_width=420):
            with gr.Row():
                reload = gr.Button(
                    "Reload", scale=0, min_width=110, size="sm", elem_classes="sr-low"
                )
            jobs = gr.HTML(elem_id="jobs", js_on_load=CHOOSE)
            job = gr.HTML(elem_id="job")
            cancel = gr.Button("Cancel this job", variant="stop", visible=False, elem_id="job-stop")
            with gr.Accordion("Log", open=False, elem_id="job-log-fold") as fold:
                log = gr.HTML(elem_id="job-log")

    async def show(request: gr.Request) -> str:
        async with visitors.server(request) as api:
            return render("jobs", jobs=await api.get("/v1/jobs"))

    async def begin(
        dataset: str, paths: list[str] | None, addresses: str, text: str, request: gr.Request
    ) -> str:
        values = build_settings(text)
        if not dataset.strip():
            raise gr.Error("Give the dataset a name.", title="")
        async with visitors.server(request) as api:
            assets = [(await api.upload(Path(path)))["id"] for path in paths or []]
            body = {
                "name": dataset.strip(), "assets": assets, "urls": addresses.split(),
                "settings": values,
            }  # fmt: skip
            begun = await api.post("/v1/jobs", body)
        return str(begun["id"])

    async def follow(
        job_id: str, panel: Panel, request: gr.Request
    ) -> AsyncIterator[tuple[Any, Any]]:
        mine = panel.taken()
        if not job_id:
            yield "", gr.Button(visible=False)
            return
        async with visitors.server(request) as api:
            async for _, state in api.events("GET", f"/v1/jobs/{job_id}/events"):
                if panel.holder is not mine:
                    yield gr.skip(), gr.skip()  # else its last words would be shown once more
                    return
                yield render("job", job=state), gr.Button(visible=state["finished"] is None)

    async def read_log(job_id: str, request: gr.Request) -> str:
        if not job_id:
            return ""
        async with visitors.server(request) as api:
            text = await api.text(f"/v1/jobs/{job_id}/logs")
        return render("log", text=text[-_MOST_LOG_CHARS:])

    async def stop(job_id: str, request: gr.Request) -> None:
        async with visitors.server(request) as api:
            await api.delete(f"/v1/jobs/{job_id}")

    for trigger in (tab.select, reload.click):
        trigger(show, None, jobs, **_QUIET)
    begun = start.click(begin, [name, files, urls, settings], chosen, **_QUIET)
    picked = jobs.click(_choice, None, chosen, **_QUIET)
    for step in (begun.success(show, None, jobs, **_QUIET), picked):
        ended = step.success(
            follow, [chosen, panel], [job, cancel], trigger_mode="multiple", **_QUIET
        )
        ended.then(show, None, jobs, **_QUIET).then(read_log, chosen, log, **_QUIET)
    fold.expand(read_log, chosen, log, **_QUIET)
    cancel.click(stop, chosen, None, **_QUIET)


def _choice(event: gr.EventData) -> str:
    return str(event.choice)


def build_settings(text: str) -> dict[str, Any]:
    """
    Raises:
        gr.Error: the text is no YAML, gives a setting twice, or has no `name: value` lines.
    """
    try:
        values = read_yaml(text, "The settings") or {}
    except ConfigError as error:
        raise gr.Error(f"{error}.", title="") from error
    if not isinstance(values, dict):
        raise gr.Error("The settings must be 'name: value' lines, such as fps: 2.", title="")
    return values
