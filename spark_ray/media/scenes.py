"""Hard cuts, exactly PySceneDetect's, from frames that are decoded anyway.

PySceneDetect's SceneManager decodes a file by itself, in a second pass. Here its ContentDetector is
fed from our one pass. Two things are made cheaper without changing a bit of the result: the score,
and the conversion of the pixels that the score looks at.
"""

import math
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from spark_ray.core.errors import MissingDependency
from spark_ray.core.schema import Scene

try:
    from scenedetect import ContentDetector, FrameTimecode
    from scenedetect.common import Timecode
    from scenedetect.scene_manager import compute_downscale_factor
except ModuleNotFoundError as error:
    # No extra can bring it: it insists on opencv-python, which clashes with the headless build.
    raise MissingDependency(
        "scenedetect", None, "finding scenes", "pip install --no-deps 'scenedetect>=0.7'"
    ) from error

_BLOCK_FORMATS = frozenset(("yuv420p", "yuvj420p"))


class SceneOptions(BaseModel):
    """How scenes are found."""

    scene_detection: bool = Field(
        True, description="find hard cuts (PySceneDetect's content score)"
    )
    scene_threshold: float = Field(
        27.0, gt=0, le=255, description="content score, 0 to 255, at which a frame begins a scene"
    )
    min_scene_frames: int = Field(
        15, ge=1, description="frames that a scene has at least; quicker cuts are merged"
    )


class _CheaperContentDetector(ContentDetector):
    """ContentDetector with default weights, scored by one integer L1 norm.

    The original takes the mean absolute difference of each HSV channel and averages the three. The
    sum of all three over 3·H·W is the same number, exact in integers up to the division.
    """

    score = 0.0
    _last_hsv: NDArray[np.uint8] | None = None

    def _calculate_frame_score(self, timecode: Any, frame_img: NDArray[np.uint8]) -> float:
        hsv = cv2.cvtColor(frame_img, cv2.COLOR_BGR2HSV)
        last, self._last_hsv = self._last_hsv, hsv
        if last is None:
            return 0.0
        self.score = cv2.norm(hsv, last, cv2.NORM_L1) / (hsv.shape[0] * hsv.shape[1]) / 3.0
        return self.score


class SceneDetector:
    """Finds the cuts of one stream, frame by frame.

    A quick cut is merged with its neighbours, so the detector looks back, and reports some cuts
    late. In the middle of a video it has to see the frames of the `lead_s` seconds before. Then it
    finds every cut that is `min_scene_frames` from the next, as if it had seen all. Of a group of
    quicker ones PySceneDetect reports the first, the last or both, depending on the groups before;
    the answer here depends on those within the lead.
    """

    def __init__(self, options: SceneOptions, rate: Fraction, time_base: Fraction) -> None:
        self._detector = _CheaperContentDetector(
            threshold=options.scene_threshold, min_scene_len=options.min_scene_frames
        )
        # FrameTimecode wants a rate to number frames by; a stream that states none has 25.
        # Each timecode takes it over from the first, which has looked at it.
        self._first = FrameTimecode(0, fps=rate if rate > 0 else Fraction(25))
        self._time_base = time_base
        self._downscaler: Downscaler | None = None
        self._threshold = options.scene_threshold
        self._shortest = options.min_scene_frames
        self._pending: FrameTimecode | None = None

    @property
    def lead_s(self) -> float:
        """Seconds to watch before a span: one shortest scene to settle in, one to remember."""
        return 2 * self._shortest / float(self._first.frame_rate)

    @property
    def pending_s(self) -> float | None:
        """Time of a cut that may yet be reported, after frames to come; None if there is none."""
        return None if self._pending is None else self._pending.seconds

    def process(self, frame: av.VideoFrame, pts: int) -> list[float]:
        """Cuts, in seconds from pts 0, that are certain now that this frame is seen.

        Args:
            frame: the next frame in presentation order.
            pts: its timestamp in the stream's time base, counted from the stream's first frame.
        """
        if self._downscaler is None:
            self._downscaler = Downscaler(frame.width, frame.height)
        if (frame.width, frame.height) != self._downscaler.size:
            return []  # As PySceneDetect does: frames of another size take no part.
        image = self._downscaler(frame)
        timecode = FrameTimecode(Timecode(pts=pts, time_base=self._time_base), fps=self._first)
        cuts = self._detector.process_frame(timecode, image)
        if cuts:
            self._pending = None
        elif self._detector.score >= self._threshold:
            self._pending = timecode
        elif self._pending is not None and timecode - self._pending >= self._shortest:
            self._pending = None
        return [cut.seconds for cut in cuts]


def scenes_between(cuts: list[float], start_s: float, end_s: float) -> list[Scene]:
    """The scenes of a clip, in seconds from its start; one scene if there is no cut in it."""
    inner = sorted({cut for cut in cuts if start_s < cut < end_s})
    edges = [start_s, *inner, end_s]
    return [
        Scene(start_time=round(a - start_s, 6), end_time=round(b - start_s, 6))
        for a, b in pairwise(edges)
    ]


class Downscaler:
    """A frame as PySceneDetect sees it: BGR at most 256 pixels wide or high, bilinear.

    OpenCV's bilinear shrink by a factor `s` reads the source at `(j + ½)·s - ½`, so most pixels of
    a large picture are converted to BGR only to be ignored. Here those that matter are moved into a
    smaller 4:2:0 frame first, and the result is the same to the bit:

    - An odd whole factor (720p, 2160p) reads one pixel, the centre. Each gets a 2×2 block of its
      own, since a block shares its colour.
    - For others (1080p) two rows are read for each row of the result. A shrink by `s - d` has the
      same weights for the same row `j`, `d·(j + ½)` rows earlier; so the rows that matter are
      closed up, in pairs, since a pair shares its colour, and shrunk by the smaller factor. Where
      rounding could differ, a comparison on noise tells, and the plain way is taken.
    """

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self._small = small_size(width, height)
        self._scaler = VideoReformatter()
        self._factor = _odd_factor(width, height)
        self._pairs = None if self._factor else _compact_row_pairs(width, height)
        self._gathered: av.VideoFrame | None = None

    def __call__(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """(h, w, 3) BGR picture of the frame, which must have the size given at the start."""
        if frame.format.name not in _BLOCK_FORMATS:
            return shrink(_bgr(frame, self._scaler), self._small)
        if self._factor is not None:
            blocks = _bgr(self._gather_centres(frame, self._factor), self._scaler)
            return cv2.resize(blocks, self._small, interpolation=cv2.INTER_NEAREST)
        if self._pairs is not None:
            frame = self._gather_rows(frame, self._pairs)
        return shrink(_bgr(frame, self._scaler), self._small)

    def _gather_centres(self, frame: av.VideoFrame, factor: int) -> av.VideoFrame:
        width, height = self._small
        gathered = self._smaller_frame(frame, 2 * width, 2 * height)
        luma, *chroma = zip(gathered.planes, frame.planes, strict=True)
        first = factor // 2
        _lines(luma[0])[::2, : 2 * width : 2] = _pixels(luma[1])[first::factor, first::factor]
        # A colour belongs to two columns and two rows: of the centres, the even and the odd ones
        # are each equally far apart. Slices cost half of what OpenCV's exact nearest takes.
        even, odd = slice(first // 2, None, factor), slice((factor + first) // 2, None, factor)
        for target, source in chroma:
            into, colours = _lines(target)[:, :width], _pixels(source)
            for row, rows in enumerate((even, odd)):
                for column, columns in enumerate((even, odd)):
                    into[row::2, column::2] = colours[rows, columns]
        return gathered

    def _gather_rows(self, frame: av.VideoFrame, pairs: NDArray[np.intp]) -> av.VideoFrame:
        gathered = self._smaller_frame(frame, frame.width, 2 * len(pairs))
        for target, source, rows in zip(gathered.planes, frame.planes, (2, 1, 1), strict=True):
            lines = _lines(source).reshape(-1, rows * source.line_size)
            if target.line_size == source.line_size:
                into = _lines(target).reshape(-1, rows * target.line_size)
                lines.take(pairs, axis=0, out=into, mode="clip")
            else:
                taken = lines.take(pairs, axis=0).reshape(-1, source.line_size)
                _lines(target)[:, : source.width] = taken[:, : source.width]
        return gathered

    def _smaller_frame(self, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        if self._gathered is None or self._gathered.format.name != frame.format.name:
            self._gathered = av.VideoFrame(width, height, frame.format.name)
        self._gathered.colorspace = frame.colorspace
        self._gathered.color_range = frame.color_range
        return self._gathered


def small_size(width: int, height: int) -> tuple[int, int]:
    """Width and height at which PySceneDetect compares frames of this size."""
    factor = compute_downscale_factor(max(width, height))
    return max(1, round(width / factor)), max(1, round(height / factor))


def shrink(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """As PySceneDetect's SceneManager does before it scores; a no-op for small pictures."""
    if (image.shape[1], image.shape[0]) == size:
        return np.ascontiguousarray(image)
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def _odd_factor(width: int, height: int) -> int | None:
    """The odd whole factor by which pictures of this size are shrunk, to even sides; or None."""
    small = small_size(width, height)
    factor = width // small[0]
    whole = (small[0] * factor, small[1] * factor) == (width, height)
    odd = factor >= 3 and factor % 2 == 1
    return factor if whole and odd and not (small[0] % 2 or small[1] % 2) else None


@lru_cache(maxsize=64)
def _compact_row_pairs(width: int, height: int) -> NDArray[np.intp] | None:
    """For each pair of rows of the compact picture the pair of the full one; None: not worth it."""
    small = small_size(width, height)
    factor = height / small[1]
    dropped = 4 * math.floor((factor - 2) / 4)  # a multiple of 4 keeps pairs of rows whole
    if dropped <= 0 or height % 2 or width % 2:
        return None
    compact_height = height - dropped * small[1]
    if compact_height % 2:
        return None
    pairs = np.arange(compact_height // 2)
    for row in range(small[1]):
        upper = math.floor((row + 0.5) * factor - 0.5)
        for needed in (upper, min(upper + 1, height - 1)):
            pairs[(needed - dropped * row - dropped // 2) // 2] = needed // 2
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    compact = noise.reshape(-1, 2, width, 3)[pairs].reshape(compact_height, width, 3)
    return pairs if np.array_equal(shrink(noise, small), shrink(compact, small)) else None


def _lines(plane: Any) -> NDArray[np.uint8]:
    """View of a plane as (rows, bytes), with the padding at the end of each row."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height]


def _pixels(plane: Any) -> NDArray[np.uint8]:
    """View of a plane of one byte a pixel, without the padding."""
    return _lines(plane)[:, : plane.width]


def _bgr(frame: av.VideoFrame, scaler: VideoReformatter) -> NDArray[np.uint8]:
    """Pixels by the plain conversion of `VideoFrame.to_ndarray`, which PySceneDetect uses."""
    plane = scaler.reformat(frame, format="bgr24", threads=1).planes[0]
    return _lines(plane)[:, : plane.width * 3].reshape(plane.height, plane.width, 3)
