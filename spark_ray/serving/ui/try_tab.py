"""*Try it*: a clip is dropped, and what is in it appears as it comes to be known."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import gradio as gr

from spark_ray.media.sniff import SNIFFED_BYTES, media_type
from spark_ray.serving.ui.client import Api
from spark_ray.serving.ui.render import render
from spark_ray.serving.ui.visitors import Visitors

_OWN_CHOICE = ("the server's choice", "")
_THUMBNAILS = 12
_Parts = tuple[str, str]


def add(visitors: Visitors) -> Callable[[gr.Blocks], None]:
    """Lay the tab out; the returned function has it filled when the page is loaded."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            file = gr.File(
                label="A video, a recording or a picture", type="filepath", elem_id="try-file",
                file_types=["video", "audio", "image"], height=150,
            )  # fmt: skip
            player = gr.HTML(elem_id="try-player")
            seer = gr.Dropdown([_OWN_CHOICE], value="", label="Caption by")
            listener = gr.Dropdown([_OWN_CHOICE], value="", label="Transcript by")
            again = gr.Button("Describe it", variant="primary", elem_id="try-run")
        with gr.Column(scale=3, min_width=420):
            view = gr.HTML(render("clip_empty"), elem_id="try-clip")
            texts = gr.HTML(elem_id="try-texts")

    async def choices(request: gr.Request) -> tuple[Any, Any]:
        async with visitors.server(request) as api:
            models = (await api.get("/v1/models"))["data"]
        return tuple(
            gr.Dropdown([_OWN_CHOICE, *(m["id"] for m in models if ability in m["abilities"])])
            for ability in ("caption", "transcribe")
        )  # type: ignore[return-value]

    async def describe(
        path: str | None, caption_model: str, transcription_model: str, request: gr.Request
    ) -> AsyncIterator[_Parts]:
        if path is None:
            yield render("clip_empty"), ""
            return
        yield render("clip_waiting"), ""
        models = {
            "caption_model": caption_model or None,
            "transcription_model": transcription_model or None,
        }
        try:
            async with visitors.server(request) as api:
                async for parts in _described(api, Path(path), models):
                    yield parts
        except gr.Error:
            yield render("clip_empty"), ""  # or it would seem to go on
            raise

    inputs = [file, seer, listener]
    shown = [view, texts]
    file.upload(_play, file, player, api_visibility="private", show_progress="hidden")
    file.clear(lambda: "", None, player, api_visibility="private", show_progress="hidden")
    for trigger in (file.upload, again.click):
        trigger(describe, inputs, shown, api_visibility="private", show_progress="hidden")

    def fill(blocks: gr.Blocks) -> None:
        blocks.load(
            choices, None, [seer, listener], api_visibility="private", show_progress="hidden"
        )

    return fill


async def _described(api: Api, file: Path, models: dict[str, str | None]) -> AsyncIterator[_Parts]:
    asset = await api.upload(file)
    wanted = {"asset": asset["id"], **models, "thumbnails": _THUMBNAILS, "stream": True}
    clip = ""
    written = {"caption": "", "transcript": ""}
    async for name, data in api.events("POST", "/v1/analyze", wanted):
        if name == "clip":
            clip = render("clip", clip=data)
        elif name == "answer":
            yield clip, render("texts", answer=data, written=written)
            continue
        else:
            written[name] += data["text"]
        yield clip, render("texts", answer=None, written=written)


def _play(path: str | None) -> str:
    if path is None:
        return ""
    with Path(path).open("rb") as file:
        kind, _ = media_type(file.read(SNIFFED_BYTES)) or ("unknown", "")
    return render("player", path=path, kind=kind)
