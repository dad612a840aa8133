"""A tiny random Apotheon and clips for it, for the tests of this folder and of training."""

from functools import cache

import numpy as np
import torch

from spark_ray.apotheon import ApotheonModel, ApotheonProcessor
from spark_ray.apotheon.adaptation import set_trainable
from spark_ray.apotheon.sizes import processor_for, tiny
from spark_ray.apotheon.tokenization import train_tokenizer

TEXTS = (
    "a red circle moves left",
    "a blue square grows, then a green star moves right",
    "the train to london leaves at six",
    "my friend bought a small boat",
)


@cache
def processor() -> ApotheonProcessor:
    tokenizer = train_tokenizer(TEXTS * 4, 400)
    return processor_for(tiny(tokenizer), tokenizer, max_frames=6)


def model(seed: int = 0) -> ApotheonModel:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    made = ApotheonModel(tiny(processor().tokenizer))
    set_trainable(made, (), frames=True, audio=True)
    return made.eval()


def frames(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng([seed, count])
    return list(rng.integers(0, 255, (count, 96, 128, 3), dtype=np.uint8))


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, 7])
    return rng.normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)


def batch() -> dict[str, torch.Tensor]:
    """Four clips: whole, without sound, without pictures, and long with one text alone."""
    made = processor()(
        frames=[frames(3, 1), frames(5, 2), [], frames(9, 3)],
        frame_times=[[0.0, 0.5, 1.0], [0.0, 0.2, 0.4, 0.6, 0.8], [], [i / 4 for i in range(9)]],
        audio=[sound(2.0, 1), None, sound(3.0, 2), sound(5.5, 3)],
        captions=[TEXTS[0], TEXTS[1], None, TEXTS[0]],
        transcripts=[TEXTS[2], None, TEXTS[3], TEXTS[2]],
    )
    return dict(made)


MEDIA = ("pixel_values", "frame_times", "frame_mask", "input_features", "audio_frames")


def media(tensors: dict[str, torch.Tensor], clips: slice = slice(None)) -> dict[str, torch.Tensor]:
    return {name: tensors[name][clips] for name in MEDIA if name in tensors}
