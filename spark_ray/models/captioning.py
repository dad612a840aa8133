"""Which captioner sees the clips, and with what settings.

The only module of the room that a job needs for captions: importing it costs nothing, since a
backend's own module, and torch with it, is imported when `build_captioner` is asked for it.
"""

from typing import Literal

from pydantic import BaseModel, Field

from spark_ray.core.errors import ConfigError
from spark_ray.models.protocols import Captioner
from spark_ray.models.registry import BackendModule, Registry

DType = Literal["auto", "float32", "float16", "bfloat16"]


class CaptionOptions(BaseModel):
    """Who captions, and how."""

    caption_backend: str = Field(
        "sidecar",
        description="Who writes the captions: blip, blip2, florence2, qwen2_vl, vllm or apotheon "
        "(models), sidecar (text files beside the videos, or captions_file), or none.",
    )
    caption_model: str | None = Field(
        None,
        description="Weights of the caption model: a folder, s3://, models:/name@alias or a "
        "hub id. Unset means the backend's usual one.",
    )
    caption_revision: str | None = Field(
        None,
        description="Branch, tag or commit of a hub id. Without one, the newest is taken, and two "
        "builds a month apart may differ.",
    )
    caption_batch_size: int = Field(
        8,
        ge=1,
        description="Frames in one forward pass, or requests in work at a time (vllm, which wants "
        "some 64). Higher fills a GPU better until its memory ends; on a CPU it gains little.",
    )
    caption_prompt: str | None = Field(
        None,
        description="What the model is asked: the beginning of the caption (blip), a question "
        "(blip2), a task token (florence2), an instruction (qwen2_vl, vllm).",
    )
    caption_max_new_tokens: int = Field(
        64,
        ge=1,
        description="Longest caption, in tokens. Too low cuts sentences off, too high costs time "
        "where a model does not stop by itself.",
    )
    captions_file: str | None = Field(
        None,
        description="For the backend sidecar: a .jsonl, .json, .csv or .tsv with one caption a row "
        "and the video's path, file name or id. Goes before files beside the videos.",
    )
    caption_device: str = Field(
        "auto", description="Device of the caption model: auto, cpu, cuda, cuda:1, mps."
    )
    caption_dtype: DType = Field(
        "auto",
        description="Arithmetic of the caption model; auto is 16 bits on a GPU, float32 on a CPU.",
    )
    caption_context_tokens: int | None = Field(
        None,
        ge=1,
        description="For the backend vllm: the longest clip with its caption, in tokens. Unset "
        "means the model's own, whose cache may not fit a small GPU; a longer clip is a reject.",
    )
    caption_cache_bytes: int | None = Field(
        None,
        ge=1 << 20,
        description="For the backend vllm: memory of its key-value cache. Unset means what is left "
        "of nine tenths of the GPU, so that no other model has room there.",
    )


captioners: Registry[CaptionOptions, Captioner] = Registry(
    "caption_backend",
    {
        "apotheon": BackendModule("spark_ray.models.apotheon", "models"),
        "blip": BackendModule("spark_ray.models.blip", "models"),
        "blip2": BackendModule("spark_ray.models.blip2", "models"),
        "florence2": BackendModule("spark_ray.models.florence2", "models"),
        "qwen2_vl": BackendModule("spark_ray.models.qwen2_vl", "models"),
        "sidecar": BackendModule("spark_ray.models.sidecar", "models"),
        "vllm": BackendModule("spark_ray.models.vllm", "vllm"),
        "none": BackendModule("spark_ray.models.none", "models"),
    },
)

_MODEL_SETTINGS = ("caption_model", "caption_revision", "caption_prompt")


def build_captioner(options: CaptionOptions) -> Captioner:
    """The captioner that the options name, checked, small, and without its weights.

    Raises:
        ConfigError: the backend or a setting is unknown, or two settings contradict each other.
        MissingDependency: the backend needs a package that is not installed.
    """
    backend = options.caption_backend
    factory = captioners.get(backend)

    unused: tuple[str, ...] = _MODEL_SETTINGS if backend in {"sidecar", "none"} else ()
    if backend != "sidecar":
        unused += ("captions_file",)
    if backend != "vllm":
        unused += ("caption_context_tokens", "caption_cache_bytes")
    for setting in unused:
        if getattr(options, setting) is not None:
            raise ConfigError(
                f"{setting} has no effect with caption_backend={backend}; remove one of the two"
            )

    # A job's whole configuration inherits these fields; only ours travel to the actors.
    own = {name: getattr(options, name) for name in CaptionOptions.model_fields}
    return factory(CaptionOptions.model_validate(own))
