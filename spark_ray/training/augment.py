"""Changes to a training clip that leave its texts true, or change them along."""

import re
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field

_MIRRORED = {"left": "right", "right": "left"}
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


class AugmentOptions(BaseModel):
    """How training clips are varied."""

    augment_mirror: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of clips shown mirrored, their captions' 'left' and 'right' exchanged; "
        "leave it at 0 where pictures hold writing",
    )
    augment_shift: float = Field(
        0.0, ge=0, le=0.5, description="furthest shift of a clip's pictures, as a share of a side"
    )
    augment_light: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="largest change of brightness and contrast, as a share",
    )


def augment(
    pixels: np.ndarray, caption: str | None, options: AugmentOptions, rng: np.random.Generator
) -> tuple[np.ndarray, str | None]:
    """Vary a clip's frames, all in the same way: `[F, S, S, 3]` uint8 stays that.

    What is drawn does not depend on which options are on, so turning one off changes nothing else.
    """
    mirror = rng.random()
    down, across, gain, offset = rng.uniform(-1, 1, 4)
    if mirror < options.augment_mirror:
        pixels = pixels[:, :, ::-1]
        caption = swap_sides(caption) if caption else caption
    if options.augment_shift:
        side = options.augment_shift * pixels.shape[1]
        pixels = _shift(pixels, round(down * side), round(across * side))
    if options.augment_light:
        light = options.augment_light
        levels = (np.arange(256) - 128) * (1 + light * gain) + 128 * (1 + light * offset)
        pixels = levels.clip(0, 255).astype(np.uint8).take(pixels)
    return pixels, caption


def swap_sides(text: str) -> str:
    """'A bird flies left' as it is seen in a mirror: 'A bird flies right'."""

    def swap(match: re.Match[str]) -> str:
        word = match[0]
        other = _MIRRORED[word.lower()]
        return other.capitalize() if word[0].isupper() else other

    return _SIDES.sub(swap, text)


def _shift(pixels: np.ndarray, down: int, across: int) -> np.ndarray:
    """Move the pictures; the edge is repeated where nothing comes in."""
    size: Sequence[int] = pixels.shape[1:3]
    rows = (np.arange(size[0]) - down).clip(0, size[0] - 1)
    columns = (np.arange(size[1]) - across).clip(0, size[1] - 1)
    return pixels.take(rows, axis=1).take(columns, axis=2)
