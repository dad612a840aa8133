"""The page: a head, and a tab for each thing that one comes for."""

import gradio as gr

from spark_ray.serving.ui import datasets_tab, jobs_tab, models_tab, system_tab, try_tab
from spark_ray.serving.ui.render import render
from spark_ray.serving.ui.visitors import Visitors

# The system's own fonts: nothing is fetched, and text looks as elsewhere on the visitor's screen.
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Consolas", "DejaVu Sans Mono", "monospace")
THEME = gr.themes.Base(
    primary_hue="teal", secondary_hue="teal", neutral_hue="slate", text_size="md",
    radius_size="md", font=_FONT, font_mono=_MONO,
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_background_fill="white",
    block_background_fill_dark="*neutral_900",
    block_border_width="1px",
    block_shadow="none",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_600",
    button_primary_text_color="white",
)  # fmt: skip

_TOGGLE = """element.addEventListener('click', event => {
  if (event.target.closest('[data-theme-toggle]')) document.body.classList.toggle('dark');
})"""
_QUEUED = 256
_AT_ONCE = 32
_CACHE_S = 3600


def build_pages(visitors: Visitors) -> gr.Blocks:
    """The whole front end. Each tab fills itself when it is opened."""
    with gr.Blocks(
        title="SparkRay",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(_CACHE_S, _CACHE_S),
    ) as blocks:
        head = gr.HTML(render("head", session=None), js_on_load=_TOGGLE, elem_id="head")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Try it", id="try"):
                fill_try = try_tab.add(visitors)
            with gr.Tab("Datasets", id="datasets") as datasets:
                datasets_tab.add(visitors, datasets)
            with gr.Tab("Jobs", id="jobs") as jobs:
                jobs_tab.add(visitors, jobs)
            with gr.Tab("Models", id="models") as models:
                models_tab.add(visitors, models)
            with gr.Tab("System", id="system") as system:
                system_tab.add(visitors, system)

        def greet(request: gr.Request) -> str:
            return render("head", session=visitors.session(request))

        blocks.load(greet, None, head, api_visibility="private", show_progress="hidden")
        fill_try(blocks)
    blocks.queue(default_concurrency_limit=_AT_ONCE, max_size=_QUEUED)
    return blocks
