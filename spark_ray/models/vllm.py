"""Any vision-language model that vLLM knows, on an engine in the captioner's own process.

The engine is held by the actor, as each backend's model is, and not by a processor of
`ray.data.llm`: so a clip's row stays as it is, a clip that the model can't take is a reject, and
one that kills its process is given up, which a processor's own rows and restarts don't know of.
"""

import base64
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from spark_ray.core.errors import ConfigError, CorruptMedia, MissingDependency, ModelError
from spark_ray.core.schema import Caption, Clip
from spark_ray.models.captioning import CaptionOptions, captioners
from spark_ray.models.frame_captioner import FrameCaptioner, clip_caption, decode_frame
from spark_ray.models.pretrained import Placement
from spark_ray.models.weights import Weights

DEFAULT_MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
DEFAULT_PROMPT = "Describe what happens here in one or two sentences."

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # nothing is reported to anybody unless the user says so
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # which cores are whose is for Ray to say
}


def require_vllm(needed_for: str) -> None:
    """Raises MissingDependency where vLLM is not installed. Importing it would take 5 s."""
    if importlib.util.find_spec("vllm") is None:
        raise MissingDependency("vllm", "vllm", needed_for)


def engine_settings(
    *, context_tokens: int | None, cache_bytes: int | None, most_requests: int, on_gpu: bool
) -> dict[str, Any]:
    """What every engine of ours is made with; None leaves a choice to vLLM."""
    return {
        "max_model_len": context_tokens,
        "kv_cache_memory_bytes": cache_bytes,
        "max_num_seqs": most_requests,
        # Compiling a model for a CPU takes longer than most captions do.
        "enforce_eager": not on_gpu,
        # All the frames that we sampled, and not 32 of them.
        "media_io_kwargs": {"video": {"num_frames": -1}},
        # Memory is measured with the longest video that the model could be shown; off a GPU there
        # is nothing to measure.
        "skip_mm_profiling": not on_gpu,
    }


def as_picture(jpeg: bytes) -> dict[str, Any]:
    """A JPEG as a picture of a conversation."""
    url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def as_video(frames: Sequence[bytes]) -> dict[str, Any]:
    """JPEG frames as one video of a conversation. vLLM takes them for one frame a second."""
    data = ",".join(base64.b64encode(jpeg).decode() for jpeg in frames)
    return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{data}"}}


@captioners.register("vllm")
class VllmCaptioner(FrameCaptioner):
    """A clip's caption comes from its frames as one video, `all_captions` from each frame alone.

    Where the model sees no videos, the most central of its frames' captions is the clip's.

    Cost: one generation for each kept frame and one for the clip, all clips of a call at once;
    `caption_batch_size` bounds how many of them are in work at a time. Pictures are prepared in the
    process of the engine, one after the other, while a GPU waits. An engine takes about a minute to
    start on a GPU. The default has 3.8 G parameters: 7.5 GB to download.
    """

    default_model = DEFAULT_MODEL
    default_prompt = DEFAULT_PROMPT
    gpu_dtype = torch.bfloat16

    def __init__(self, options: CaptionOptions) -> None:
        require_vllm("caption_backend=vllm")
        if options.caption_device != "auto":
            raise ConfigError(
                f"caption_device: {options.caption_device!r} can't be chosen with "
                "caption_backend=vllm, which takes the GPUs that its actor has; leave it out"
            )
        super().__init__(options)

    def load_weights(self, weights: Weights, placement: Placement) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # An engine in a process of its own would outlive an actor that is killed.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM, SamplingParams

        on_gpu = placement.device.type == "cuda"
        settings = engine_settings(
            context_tokens=self.options.caption_context_tokens,
            cache_bytes=self.options.caption_cache_bytes,
            most_requests=self.options.caption_batch_size,
            on_gpu=on_gpu,
        )
        try:
            self.engine = LLM(
                str(weights.folder),
                **settings,
                dtype=str(placement.dtype).removeprefix("torch."),
                tensor_parallel_size=max(1, torch.cuda.device_count()),
                limit_mm_per_prompt={"image": 1, "video": 1},
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"caption_model: vLLM can't load {weights.name}: {reason}") from error
        seen = self.engine.renderer.get_mm_processor().info.supported_mm_limits
        self.sees_videos = "video" in seen
        self.sampling = SamplingParams(
            temperature=0, max_tokens=self.options.caption_max_new_tokens
        )

    def caption(self, clips: Sequence[Clip]) -> dict[str, Caption]:
        """As `FrameCaptioner.caption`, with the clip's text from its frames in sequence."""
        clips = [clip for clip in clips if clip.frames]
        pictures = [_pictures(clip) for clip in clips]
        videos = [[as_video(clip.frames)] for clip in clips] if self.sees_videos else []
        texts = iter(self._ask([[_picture(i)] for images in pictures for i in images] + videos))
        alone = [[next(texts) for _ in images] for images in pictures]
        whole: list[str | None] = list(texts) or [None] * len(clips)
        return {
            clip.clip_id: clip_caption(clip.clip_id, captions, text)
            for clip, captions, text in zip(clips, alone, whole, strict=True)
        }

    def describe(self, images: list[Image.Image]) -> list[str]:
        return self._ask([[_picture(image)] for image in images])

    def _ask(self, media: list[list[dict[str, Any]]]) -> list[str]:
        """The model's words about each of these, in their order."""
        question = {"type": "text", "text": self.prompt}
        conversations = [[{"role": "user", "content": [*shown, question]}] for shown in media]
        answers = self.engine.chat(conversations, self.sampling, use_tqdm=False)
        return [answer.outputs[0].text for answer in answers]


def _picture(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_pil", "image_pil": image}


def _pictures(clip: Clip) -> list[Image.Image]:
    images = [decode_frame(jpeg, clip.clip_id) for jpeg in clip.frames]
    if len({image.size for image in images}) > 1:
        raise CorruptMedia(f"the frames of clip {clip.clip_id} differ in size")
    return images
