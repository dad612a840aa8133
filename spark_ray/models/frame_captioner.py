"""What all captioners of single pictures share: from clips to forward passes and back.

The frames of all clips in a call are flattened into forward passes of `caption_batch_size`, so a
GPU is as full with many short clips as with a few long ones; the answers return by clip id.
Decoding is greedy and nothing is sampled: up to the rounding of the device's arithmetic, a caption
does not depend on which clips shared its batch.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, TypeVar

import torch
from PIL import Image, UnidentifiedImageError

from spark_ray.core.errors import CorruptMedia, NothingSaid
from spark_ray.core.schema import Caption, Clip, ModelInfo
from spark_ray.models.captioning import CaptionOptions
from spark_ray.models.pretrained import Placement, choose_placement
from spark_ray.models.weights import (
    SAFETENSORS,
    WantedWeights,
    Weights,
    check_weights,
    resolve_weights,
)

Item = TypeVar("Item")

NO_DOWNLOAD = "set caption_model to a local folder, or caption_backend to sidecar or none"


class FrameCaptioner(ABC):
    """Captions every kept frame by itself; the clip's text is the most central of them.

    Cost: one image encoding and one generation for each kept frame.
    """

    uses_accelerator = True
    default_model: ClassVar[str]
    default_prompt: ClassVar[str | None] = None
    gpu_dtype: ClassVar[torch.dtype] = torch.float16

    def __init__(self, options: CaptionOptions) -> None:
        self.options = options
        self.prompt = options.caption_prompt or self.default_prompt

    def load(self) -> ModelInfo:
        """Find the weights, load them, and say which they are.

        Raises:
            ModelError: they can't be found, fetched or read, or don't fit the backend.
        """
        options = self.options
        placement = choose_placement(options.caption_device, options.caption_dtype, self.gpu_dtype)
        weights = resolve_weights(**self._wanted())
        self.load_weights(weights, placement)
        return weights.info(self.prompt)

    def check_weights(self) -> None:
        check_weights(**self._wanted())

    def _wanted(self) -> WantedWeights:
        return {
            "reference": self.options.caption_model or self.default_model,
            "setting": "caption_model",
            "revision": self.options.caption_revision,
            "kind": SAFETENSORS,
            "instead": NO_DOWNLOAD,
        }

    def caption(self, clips: Sequence[Clip]) -> dict[str, Caption]:
        """Captions by clip id; clips without frames are left out.

        Raises:
            CorruptMedia: a frame is no readable JPEG.
            NothingSaid: the model said nothing about any frame of a clip.
        """
        captions = self.frame_captions(clips)
        return {clip_id: clip_caption(clip_id, texts) for clip_id, texts in captions.items()}

    def frame_captions(self, clips: Sequence[Clip]) -> dict[str, list[str]]:
        """A text for every kept frame in frame order, by clip id."""
        texts: dict[str, list[str]] = {clip.clip_id: [] for clip in clips if clip.frames}
        for batch in batched(all_frames(clips), self.options.caption_batch_size):
            captions = self.describe([image for _, image in batch])
            for (clip_id, _), text in zip(batch, captions, strict=True):
                texts[clip_id].append(text)
        return texts

    @abstractmethod
    def load_weights(self, weights: Weights, placement: Placement) -> None:
        """Load the model and its processor from a local folder."""

    @abstractmethod
    def describe(self, images: list[Image.Image]) -> list[str]:
        """One caption for each picture, in their order."""

    def generate(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Token ids of shape `(batch, length)`, greedy whatever the checkpoint prefers."""
        with torch.inference_mode():
            tokens: torch.Tensor = model.generate(
                **inputs,
                max_new_tokens=self.options.caption_max_new_tokens,
                do_sample=False,
                num_beams=1,
            )
        return tokens


def clip_caption(clip_id: str, captions: list[str], whole: str | None = None) -> Caption:
    """The clip's caption from those of its frames; `whole` is the model's own text for the clip.

    Raises:
        NothingSaid: all of them are empty.
    """
    captions = [" ".join(text.split()) for text in captions]
    text = " ".join(whole.split()) if whole is not None else most_central(captions)
    if not text:
        raise NothingSaid(
            f"caption_model said nothing about clip {clip_id}; raise caption_max_new_tokens, "
            "or change caption_prompt"
        )
    return Caption(text=text, all_captions=captions)


def most_central(captions: Sequence[str]) -> str:
    """The caption that shares most words with all the others: the medoid.

    The similarity of two captions is the share of their distinct words that both have (Jaccard).
    One odd frame can't win, and the result is a sentence that the model said. The earliest frame
    wins a tie; empty captions take no part. An empty string if there is nothing to choose from.
    """
    said = [text for text in captions if text]
    words = [frozenset(text.lower().split()) for text in said]
    scores = [sum(len(own & other) / len(own | other) for other in words) for own in words]
    return said[scores.index(max(scores))] if said else ""


def all_frames(clips: Iterable[Clip]) -> Iterator[tuple[str, Image.Image]]:
    """Every kept frame with its clip's id, decoded only when its turn comes."""
    for clip in clips:
        for jpeg in clip.frames:
            yield clip.clip_id, decode_frame(jpeg, clip.clip_id)


def decode_frame(jpeg: bytes, clip_id: str) -> Image.Image:
    """The frame in RGB, as displayed."""
    try:
        with Image.open(io.BytesIO(jpeg)) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise CorruptMedia(f"a frame of clip {clip_id} is no readable JPEG: {error}") from error


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Runs of `size` items; the last may be shorter. `itertools.batched` came with Python 3.12."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
