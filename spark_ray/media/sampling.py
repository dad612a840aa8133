"""Which frames of a clip are worth keeping: a regular grid in time, then two rules that thin it.

Smart sampling decides on thumbnails, after a clip's frames are known and before anything is stored,
so that the decision can be repeated from the recorded scores alone.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from spark_ray.core.schema import FrameSample

_EPSILON_S = 1e-6
_CELLS = 32
_VISIBLE_CHANGE = 8.0
_HASH_SIDE = 8


class SamplingOptions(BaseModel):
    """How frames are chosen."""

    fps: float = Field(1.0, gt=0, le=1000, description="frames sampled for each second of video")
    smart_sampling: bool = Field(
        True, description="drop sampled frames that have not moved or look like a kept one"
    )
    motion_threshold: float = Field(
        0.3,
        ge=0,
        le=1,
        description="share of the picture that must have changed since the last kept frame",
    )
    perceptual_hashing: bool = Field(
        True, description="also drop frames whose average hash nearly equals a kept frame's"
    )
    hash_distance: int = Field(
        2, ge=0, le=64, description="bits of 64 by which two hashes may differ and count as equal"
    )


@dataclass
class SamplingGrid:
    """Decides, frame by frame, whether the regular grid selects it.

    For each target time `origin + k / fps` the first frame at or after it is taken; a target that
    has no frame before the next one (a gap, a low frame rate) takes none.
    """

    fps: float
    origin_s: float = 0.0
    next_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.next_s = self.origin_s

    def wants(self, time_s: float) -> bool:
        return time_s + _EPSILON_S >= self.next_s

    def take(self, time_s: float) -> None:
        """Move on to the first target after a frame that was taken."""
        self.next_s = self.origin_s + (self.cell(time_s) + 1) / self.fps

    def cell(self, time_s: float) -> int:
        """Number of the last target at or before this time; of its frames the first is taken."""
        return math.floor((time_s + _EPSILON_S - self.origin_s) * self.fps)

    def restart(self, time_s: float) -> None:
        """Begin a new clip: its first frame is its first target."""
        self.origin_s = self.next_s = time_s


@dataclass(frozen=True)
class Thumbnail:
    """What smart sampling remembers of a frame: 32×32 mean luma, and the 64-bit average hash."""

    luma: NDArray[np.float32]
    hash_bits: NDArray[np.bool_]


def thumbnail(picture: NDArray[np.uint8]) -> Thumbnail:
    """Thumbnail of an (H, W, 3) BGR picture; pass it without padding, which never moves."""
    gray = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    luma = cv2.resize(gray, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA).astype(np.float32)
    return Thumbnail(luma, average_hash(gray))


def average_hash(gray: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The 8×8 average hash, 64 booleans: is a cell brighter than the mean of all cells?

    After N. Krawetz, "Looks Like It" (2011).
    """
    cells = cv2.resize(gray, (_HASH_SIDE, _HASH_SIDE), interpolation=cv2.INTER_AREA)
    return (cells > cells.mean()).reshape(-1)


def motion_score(frame: Thumbnail, kept: Thumbnail) -> float:
    """Share of the picture that has visibly changed between two frames, 0 to 1.

    The picture is divided into 32×32 cells; a cell has changed when its mean luma differs by more
    than 8 of 255 levels, above what noise and compression leave in a cell's mean. The default
    threshold 0.3 therefore reads: less than about a third of the picture looks different. Between
    frames a second apart a still slide scores 0.00 to 0.02, a slow pan 0.15 to 0.25, a scene in
    which characters move 0.3 to 0.6, a hard cut 0.7 and more.
    """
    return float(np.mean(np.abs(frame.luma - kept.luma) > _VISIBLE_CHANGE))


def choose_frames(
    times: list[float], thumbnails: list[Thumbnail], options: SamplingOptions
) -> list[FrameSample]:
    """Decide about each candidate frame of one clip, in time order.

    The first frame is always kept, so no clip is left without one. A frame is compared with the
    last *kept* frame, so slow drift adds up until it counts; its hash is compared with those of all
    kept frames, so a view that returns is not stored twice.
    """
    samples: list[FrameSample] = []
    last_kept: Thumbnail | None = None
    hashes = _packed(thumbnails)
    kept_hashes, kept = np.empty_like(hashes), 0
    for time_s, thumb, hash_ in zip(times, thumbnails, hashes, strict=True):
        sample = FrameSample(time=round(time_s, 6))
        if last_kept is not None:
            sample.motion = round(motion_score(thumb, last_kept), 6)
            sample.hash_distance = int(np.bitwise_count(kept_hashes[:kept] ^ hash_).min())
            sample.dropped_by = _dropped_by(sample, options)
        if sample.dropped_by is None:
            last_kept = thumb
            kept_hashes[kept] = hash_
            kept += 1
        samples.append(sample)
    return samples


def _packed(thumbnails: list[Thumbnail]) -> NDArray[np.uint64]:
    """Each hash as one number. A frame meets all kept ones: 54,000 in half an hour at 30 fps."""
    bits = np.array([thumb.hash_bits for thumb in thumbnails], bool).reshape(-1, _HASH_SIDE**2)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _dropped_by(
    sample: FrameSample, options: SamplingOptions
) -> Literal["motion", "duplicate"] | None:
    if not options.smart_sampling:
        return None
    if sample.motion is not None and sample.motion < options.motion_threshold:
        return "motion"
    if options.perceptual_hashing and (sample.hash_distance or 0) <= options.hash_distance:
        return "duplicate"
    return None
