"""*System*: the cluster, its deployments and queues, and the newest jobs. For operators."""

from typing import Any

import gradio as gr

from spark_ray.serving.ui.render import render
from spark_ray.serving.ui.visitors import Visitors

_QUIET: Any = {"api_visibility": "private", "show_progress": "hidden"}


def add(visitors: Visitors, tab: gr.Tab) -> None:
    """Lay the tab out; without scope `admin` it says so."""
    with gr.Row():
        reload = gr.Button("Reload", scale=0, min_width=110, size="sm", elem_classes="sr-low")
    shown = gr.HTML(elem_id="system")

    async def show(request: gr.Request) -> str:
        if not visitors.session(request).may("admin"):
            return render("system_refused")
        async with visitors.server(request) as api:
            return render("system", system=await api.get("/v1/system"))

    for trigger in (tab.select, reload.click):
        trigger(show, None, shown, **_QUIET)
