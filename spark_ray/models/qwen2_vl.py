"""Qwen2-VL: watches the frames of a clip as one video, so its caption can say what happens.

The pictures are prepared here with the family's own PIL image processor. Its video processor needs
torchvision, which has no CPU build on the package index; a video differs only in that neighbouring
frames share a patch, and `_join_frames` does that.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

from spark_ray.core.errors import CorruptMedia
from spark_ray.core.schema import Caption, Clip
from spark_ray.models.captioning import captioners
from spark_ray.models.frame_captioner import FrameCaptioner, clip_caption, decode_frame
from spark_ray.models.pretrained import Placement, load_model, load_processor
from spark_ray.models.weights import Weights

MAX_FRAME_TOKENS = 768
"""Larger frames are scaled down to this many language-model tokens (28×28 pixels each)."""

MAX_VIDEO_TOKENS = 16_384
"""All frames of a clip share this budget, so a long clip is seen smaller, not out of memory."""

# What the family was tuned on; the weights understand no other form of conversation.
_MESSAGE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{vision}<|vision_end|>{prompt}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@captioners.register("qwen2_vl")
class Qwen2VlCaptioner(FrameCaptioner):
    """The clip's caption comes from its frames as one video, `all_captions` from each frame alone.

    Cost: every frame is encoded twice, and each clip takes one generation more than it has frames;
    the frames' own captions are nearly all of it. `caption_batch_size` counts the frames of a
    forward pass in both; a clip with more frames than that is watched in a pass of its own.
    The default has 2.2 G parameters: 4.4 GB to download, and as much GPU memory plus the frames'.
    """

    default_model = "Qwen/Qwen2-VL-2B-Instruct"
    default_prompt = "Describe what happens here in one or two sentences."
    gpu_dtype = torch.bfloat16

    def load_weights(self, weights: Weights, placement: Placement) -> None:
        self.placement = placement
        self.model = load_model(
            Qwen2VLForConditionalGeneration, weights, "caption_model", placement
        )
        self.tokenizer = load_processor(AutoTokenizer, weights, "caption_model")
        self.image_processor = load_processor(Qwen2VLImageProcessorPil, weights, "caption_model")

    def caption(self, clips: Sequence[Clip]) -> dict[str, Caption]:
        """As `FrameCaptioner.caption`, with the clip's text from its frames in sequence."""
        captions = self.frame_captions(clips)
        texts: dict[str, str] = {}
        for batch in _packed(clips, self.options.caption_batch_size):
            answers = self.watch(batch)
            texts |= {clip.clip_id: text for clip, text in zip(batch, answers, strict=True)}
        return {
            clip_id: clip_caption(clip_id, captions[clip_id], text)
            for clip_id, text in texts.items()
        }

    def describe(self, images: list[Image.Image]) -> list[str]:
        patches, grids = self._patches(images, MAX_FRAME_TOKENS)
        vision = [self._pads("<|image_pad|>", grid) for grid in grids]
        return self._answer(vision, {"pixel_values": patches, "image_grid_thw": grids})

    def watch(self, clips: Sequence[Clip]) -> list[str]:
        """One caption for each clip, which must have frames, from those frames as a video."""
        videos = [self._video(clip) for clip in clips]
        grids = torch.stack([grid for _, grid in videos])
        vision = [self._pads("<|video_pad|>", grid) for grid in grids]
        patches = torch.cat([patches for patches, _ in videos])
        return self._answer(vision, {"pixel_values_videos": patches, "video_grid_thw": grids})

    def _video(self, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches `(patches, features)` of the clip, and its grid `(time, height, width)`."""
        images = [decode_frame(jpeg, clip.clip_id) for jpeg in clip.frames]
        if len({image.size for image in images}) > 1:
            raise CorruptMedia(f"the frames of clip {clip.clip_id} differ in size")
        span = self.image_processor.temporal_patch_size
        images += images[-1:] * (-len(images) % span)
        budget = MAX_VIDEO_TOKENS * span // len(images)
        patches, grids = self._patches(images, min(MAX_FRAME_TOKENS, budget))
        grid = torch.tensor([len(images) // span, *grids[0, 1:]])
        return _join_frames(patches, len(images), span, self.image_processor.patch_size), grid

    def _patches(
        self, images: list[Image.Image], max_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches of all pictures `(patches, features)` and their grids `(pictures, 3)`."""
        processor = self.image_processor
        smallest = processor.size["shortest_edge"]  # an area in pixels, whatever its name says
        largest = max_tokens * (processor.patch_size * processor.merge_size) ** 2
        size = {"shortest_edge": smallest, "longest_edge": max(smallest, largest)}
        inputs = processor(images=images, size=size, return_tensors="pt")
        return inputs["pixel_values"], inputs["image_grid_thw"]

    def _pads(self, token: str, grid: torch.Tensor) -> str:
        """The placeholders that the encoded picture or video will take the place of."""
        return token * (int(grid.prod()) // self.image_processor.merge_size**2)

    def _answer(self, vision: list[str], pixels: dict[str, torch.Tensor]) -> list[str]:
        # Padding goes left, so that every row's answer begins where its prompt ends; the mask
        # keeps it out of attention and out of the position ids.
        text = [_MESSAGE.format(vision=pads, prompt=self.prompt) for pads in vision]
        tokens = self.tokenizer(text, padding=True, padding_side="left", return_tensors="pt")
        ids = tokens["input_ids"]
        config = self.model.config
        kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": tokens["attention_mask"],
            "mm_token_type_ids": kinds,
            **{
                name: value.to(self.placement.dtype) if value.is_floating_point() else value
                for name, value in pixels.items()
            },
        }
        inputs = {name: value.to(self.placement.device) for name, value in inputs.items()}
        answer = self.generate(self.model, inputs)[:, ids.shape[1] :]
        captions: list[str] = self.tokenizer.batch_decode(answer, skip_special_tokens=True)
        return captions


def _join_frames(patches: torch.Tensor, frames: int, span: int, patch_size: int) -> torch.Tensor:
    """Video patches from those of its frames, each of which holds its picture `span` times.

    Of every `span` frames, the first gives the first slot of the joint patch, and so on:
    `(frames · places, features)` becomes `(frames / span · places, features)`.
    """
    features = patches.shape[1]
    channels = features // (span * patch_size**2)
    slots = patches.view(frames // span, span, -1, channels, span, patch_size**2)
    joint = torch.stack([slots[:, slot, :, :, slot] for slot in range(span)], dim=3)
    return joint.reshape(-1, features)


def _packed(clips: Sequence[Clip], max_frames: int) -> Iterator[list[Clip]]:
    """Clips that have frames, in runs of at most `max_frames` frames or of one clip."""
    batch: list[Clip] = []
    frames = 0
    for clip in clips:
        if batch and frames + len(clip.frames) > max_frames:
            yield batch
            batch, frames = [], 0
        if clip.frames:
            batch.append(clip)
            frames += len(clip.frames)
    if batch:
        yield batch
