"""A Qwen2-VL of 0.3 M random weights with the processor of a real one, and what it says.

vLLM's smallest attention head has 32 numbers, and it asks for the family's whole processor: hence
not the checkpoint of `tests/tiny_checkpoints.py`. The weights are drawn wide, so that what it says
differs from picture to picture, and it says nothing but words of its vocabulary, each a token: two
texts are equal only where all their tokens are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoProcessor,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

WORDS = [
    f"{adjective}{noun}"
    for adjective in ("red", "blue", "small", "round", "slow", "wet", "loud", "kind")
    for noun in ("dog", "cat", "ball", "house", "tree", "boat", "cloud", "lamp")
]

_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_PIXELS = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
_SIZE = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}

# Of the family's own, what matters here.
_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] in ('video', 'video_url') %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(folder: Path, width: int = 64, layers: int = 2) -> Path:
    """Save the checkpoint, or one of another width, a multiple of 32, and depth."""
    tokens = [*_SPECIAL, *sorted(ByteLevel.alphabet()), *(f"Ġ{word}" for word in WORDS)]
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Qwen2Tokenizer(vocab=ids, merges=[], extra_special_tokens=list(_SPECIAL[1:]))
    videos = Qwen2VLVideoProcessor(size=_SIZE, fps=2, min_frames=2, max_frames=64, **_PIXELS)
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=_SIZE, **_PIXELS),
        tokenizer=tokenizer,
        video_processor=videos,
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    # Without this older file, vLLM finds no video processor.
    videos.save_pretrained(folder / "videos")
    (file,) = (folder / "videos").iterdir()
    file.rename(folder / "video_preprocessor_config.json")
    (folder / "videos").rmdir()

    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(_config(ids, width, layers))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(12 if "attn" in name else 4)
        first_word = len(tokens) - len(WORDS)
        model.lm_head.weight[:first_word] = 0
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.save_pretrained(folder)
    return folder


def _config(ids: dict[str, int], width: int, layers: int) -> Qwen2VLConfig:
    text = {
        "vocab_size": len(ids),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6]},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 2,
        "embed_dim": 64,
        "hidden_size": width,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
        dtype="float32",
    )


class Reference:
    """What `transformers` itself says, greedily."""

    def __init__(self, folder: Path) -> None:
        self._processor: Any = AutoProcessor.from_pretrained(folder)
        self._model: Any = Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()

    def say(
        self,
        prompt: str,
        max_new_tokens: int,
        *,
        images: Sequence[Image.Image] = (),
        video: Sequence[Image.Image] = (),
    ) -> str:
        """The answer to a prompt about pictures, or about frames as a video."""
        parts = [{"type": "image"} for _ in images] + [{"type": "video"}] * bool(video)
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
        text = self._processor.apply_chat_template(messages, add_generation_prompt=True)
        shown: dict[str, Any] = {}
        if images:
            shown["images"] = list(images)
        if video:
            shown |= {
                "videos": [np.stack([np.asarray(f) for f in video])],
                "do_sample_frames": False,
            }
        inputs = self._processor(text=[text], return_tensors="pt", **shown)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        return str(self._processor.tokenizer.decode(answer, skip_special_tokens=True)).strip()
