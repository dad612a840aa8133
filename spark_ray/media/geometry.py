"""From a decoded frame to the upright, square-pixel, standard-range picture that is stored."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field

from spark_ray.media.source import square_pixel_size

_HDR_TRANSFERS = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)

# A scaler computes a table of colours for its first HDR frame, in a second of CPU, and most videos
# need the same. So it outlives its stream; two streams never share one, since FFmpeg's scaler
# crashes when two threads use it.
_idle_scalers: list[VideoReformatter] = []


_SIDES = range(8, 8193)


def _parse_resolution(value: object) -> tuple[int, int]:
    given = value.lower().replace("×", "x").split("x") if isinstance(value, str) else value
    sides: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    if len(sides) not in (1, 2) or not all(str(side).strip().isdecimal() for side in sides):
        raise ValueError(
            f"write it as WIDTHxHEIGHT, e.g. 640x360, or as one number for a square, not {value!r}"
        )
    width, height = int(sides[0]), int(sides[-1])
    if width not in _SIDES or height not in _SIDES:
        raise ValueError(
            f"both numbers of WIDTHxHEIGHT must be from {_SIDES[0]} to {_SIDES[-1]} pixels, not "
            f"{width}x{height}"
        )
    return width, height


Resolution = Annotated[tuple[int, int], BeforeValidator(_parse_resolution)]


class PictureOptions(BaseModel):
    """How a frame becomes a stored picture."""

    resolution: Resolution = Field(
        (224, 224),
        description="size of stored frames, WIDTHxHEIGHT in pixels; one number is a square",
    )
    fit: Literal["pad", "crop", "stretch"] = Field(
        "pad", description="how another aspect ratio fits: black bars, centre crop, or distortion"
    )
    jpeg_quality: int = Field(90, ge=1, le=100, description="JPEG quality of stored frames")


@dataclass(frozen=True)
class Picture:
    """A frame at its final size, (H, W, 3) BGR, and the part of it that is not padding."""

    image: NDArray[np.uint8]
    content: NDArray[np.uint8]


class PictureRenderer:
    """Renders frames of one stream. Keeps scalers, so use one for each stream, in one thread."""

    def __init__(self, options: PictureOptions, aspect: Fraction | None) -> None:
        self._options = options
        self._aspect = aspect
        self._scaler = VideoReformatter()
        self._hdr_scaler: VideoReformatter | None = None

    def render(self, frame: av.VideoFrame) -> Picture:
        pixels = bgr_pixels(frame, self._scaler_for(frame))
        return fit_picture(pixels, self._options, quarter_turn(frame.rotation), self._aspect)

    def _scaler_for(self, frame: av.VideoFrame) -> VideoReformatter:
        if frame.color_trc not in _HDR_TRANSFERS:
            return self._scaler
        if self._hdr_scaler is None:
            try:
                self._hdr_scaler = _idle_scalers.pop()
            except IndexError:
                self._hdr_scaler = VideoReformatter()
            weakref.finalize(self, _idle_scalers.append, self._hdr_scaler)
        return self._hdr_scaler


def fit_picture(
    pixels: NDArray[np.uint8],
    options: PictureOptions,
    rotation: int = 0,
    aspect: Fraction | None = None,
) -> Picture:
    """(H, W, 3) pixels turned upright, made square and brought to `options.resolution`.

    Args:
        rotation: degrees counter-clockwise, a quarter turn.
        aspect: width over height of a pixel; None means square.
    """
    height, width = pixels.shape[:2]
    shown = square_pixel_size(width, height, aspect)
    sideways = rotation % 180 != 0
    if sideways:
        shown = shown[::-1]
    target = options.resolution
    if options.fit == "stretch":
        inner = target
    else:
        scale = (min if options.fit == "pad" else max)(target[0] / shown[0], target[1] / shown[1])
        inner = (max(1, round(shown[0] * scale)), max(1, round(shown[1] * scale)))

    stored = inner[::-1] if sideways else inner
    content = upright(_resize(pixels, stored), rotation)
    if options.fit == "crop":
        left, top = (inner[0] - target[0]) // 2, (inner[1] - target[1]) // 2
        content = content[top : top + target[1], left : left + target[0]]
    if inner == target or options.fit == "crop":
        return Picture(content, content)
    image = np.zeros((target[1], target[0], 3), np.uint8)
    left, top = (target[0] - inner[0]) // 2, (target[1] - inner[1]) // 2
    image[top : top + inner[1], left : left + inner[0]] = content
    return Picture(image, content)


def bgr_pixels(frame: av.VideoFrame, scaler: VideoReformatter) -> NDArray[np.uint8]:
    """(H, W, 3) BGR pixels of a frame in BT.709 standard dynamic range.

    PQ and HLG are converted with HDR reference white (203 cd/m², ITU-R BT.2408) at SDR white; other
    frames only change their pixel format, by the matrix and range that the frame is tagged with.
    """
    if frame.color_trc in _HDR_TRANSFERS:
        frame = scaler.reformat(
            frame,
            format="bgr24",
            dst_color_trc=ColorTrc.BT709,
            dst_color_primaries=ColorPrimaries.BT709,
            threads=1,
        )
    else:
        frame = scaler.reformat(frame, format="bgr24", threads=1)
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : frame.width * 3].reshape(frame.height, frame.width, 3)


def quarter_turn(degrees: float) -> int:
    """The quarter turn nearest to an angle: 0, 90, 180 or 270. A display matrix may hold any."""
    return round(degrees / 90) * 90 % 360


def upright(image: NDArray[np.uint8], rotation: int) -> NDArray[np.uint8]:
    """Turn by `rotation` degrees counter-clockwise, as FFmpeg reports a display matrix."""
    turns = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}
    code = turns.get(quarter_turn(rotation))
    return image if code is None else cv2.rotate(image, code)


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if (image.shape[1], image.shape[0]) == size:
        return np.ascontiguousarray(image)
    if size[0] >= image.shape[1] and size[1] >= image.shape[0]:
        return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)  # area averaging is blocky
    # Averaging 2×2 pixels takes a tenth of the time of other factors. The last step shrinks by two
    # or more, so that its cells still average over what a single step would.
    while _halves_evenly(image, size):
        half = (image.shape[1] // 2, image.shape[0] // 2)
        image = cv2.resize(image, half, interpolation=cv2.INTER_AREA)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _halves_evenly(image: NDArray[np.uint8], size: tuple[int, int]) -> bool:
    """Whether half of the picture is whole pixels, and at least twice as large as `size`."""
    height, width = image.shape[:2]
    return width % 2 == height % 2 == 0 and width >= 4 * size[0] and height >= 4 * size[1]


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV encodes any 8-bit picture"
    return data.tobytes()
