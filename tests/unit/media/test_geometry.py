"""Stored pictures are upright, have square pixels, fit as asked, and look as they were meant."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc
from media_factory import clip_of, picture

from spark_ray.media.encode import BT709, HDR10, ColorTags, write_video
from spark_ray.media.geometry import PictureOptions, PictureRenderer

RED, GREEN, BLUE, WHITE = (200, 30, 30), (30, 180, 30), (30, 30, 200), (230, 230, 230)


def quadrants(size: tuple[int, int] = (128, 96)) -> np.ndarray:
    """Red top left, green top right, blue bottom left, white bottom right; RGB."""
    width, height = size
    frame = np.empty((height, width, 3), np.uint8)
    frame[: height // 2, : width // 2] = RED
    frame[: height // 2, width // 2 :] = GREEN
    frame[height // 2 :, : width // 2] = BLUE
    frame[height // 2 :, width // 2 :] = WHITE
    return frame


def stored(path: Path, frame: np.ndarray, **settings: object) -> np.ndarray:
    """The first stored picture, RGB, of a video that shows `frame`."""
    names = ("resolution", "fit", "smart_sampling")
    reading = {name: settings.pop(name) for name in names if name in settings}
    write_video(path, [frame] * 3, Fraction(25), **settings)
    return picture(clip_of(path, **reading).frames[0])[..., ::-1]


def corners(image: np.ndarray) -> list[tuple[int, ...]]:
    """Colours in the middle of the quadrants: top left, top right, bottom left, bottom right."""
    height, width = image.shape[:2]
    rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    return [tuple(int(v) for v in image[y, x]) for y in rows for x in columns]


def assert_colours(actual: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> None:
    assert np.abs(np.array(actual) - np.array(expected)).max() <= 12, actual


@pytest.mark.parametrize(
    ("counter_clockwise", "expected", "clockwise"),
    [
        (0, [RED, GREEN, BLUE, WHITE], 0),
        (90, [GREEN, WHITE, RED, BLUE], 270),
        (180, [WHITE, BLUE, GREEN, RED], 180),
        (270, [BLUE, RED, WHITE, GREEN], 90),
    ],
)
def test_a_turned_picture_is_stored_upright(
    tmp_path: Path, counter_clockwise: int, expected: list, clockwise: int
) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, [quadrants()] * 3, Fraction(25), rotation=counter_clockwise)
    shown = (128, 96) if counter_clockwise % 180 == 0 else (96, 128)
    clip = clip_of(path, resolution=shown)
    image = picture(clip.frames[0])
    assert_colours(corners(image[..., ::-1]), expected)
    assert (clip.info.width, clip.info.height, clip.info.rotation) == (*shown, clockwise)


@pytest.mark.parametrize("degrees", [1, 30, 45, 89, 91, 200])
def test_an_odd_angle_is_taken_for_the_nearest_quarter_turn(tmp_path: Path, degrees: int) -> None:
    write_video(tmp_path / "a.mp4", [quadrants()] * 3, Fraction(25), rotation=degrees)
    clip = clip_of(tmp_path / "a.mp4", resolution=(64, 64))
    assert clip.info.rotation % 90 == 0
    assert picture(clip.frames[0]).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("aspect", "shown"), [(Fraction(2), (256, 96)), (Fraction(1, 2), (128, 192))]
)
def test_pixels_become_square(tmp_path: Path, aspect: Fraction, shown: tuple[int, int]) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, [quadrants()] * 3, Fraction(25), sample_aspect_ratio=aspect)
    clip = clip_of(path, resolution=(256, 256))
    assert (clip.info.width, clip.info.height) == shown
    image = picture(clip.frames[0])
    filled = np.argwhere(image.max(axis=2) > 40)
    height, width = np.ptp(filled, axis=0) + 1
    assert width / height == pytest.approx(shown[0] / shown[1], rel=0.05)


def test_padding_keeps_the_shape_between_black_bars(tmp_path: Path) -> None:
    image = stored(tmp_path / "a.mp4", quadrants((128, 64)), resolution=(96, 96), fit="pad")
    assert image[:20].max() < 20
    assert image[-20:].max() < 20
    assert_colours(corners(image[24:72]), [RED, GREEN, BLUE, WHITE])


def test_cropping_keeps_the_middle(tmp_path: Path) -> None:
    frame = np.zeros((64, 192, 3), np.uint8)
    frame[:, :64], frame[:, 64:128], frame[:, 128:] = RED, GREEN, BLUE
    image = stored(tmp_path / "a.mp4", frame, resolution=(64, 64), fit="crop")
    assert_colours(corners(image), [GREEN] * 4)


def test_stretching_keeps_everything_and_distorts_it(tmp_path: Path) -> None:
    image = stored(tmp_path / "a.mp4", quadrants((128, 32)), resolution=(64, 64), fit="stretch")
    assert_colours(corners(image), [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("size", [(16, 480), (480, 16), (66, 34)])
@pytest.mark.parametrize("target", [(8, 8), (224, 224), (31, 500)])
def test_any_shape_fits_any_frame(
    tmp_path: Path, fit: str, size: tuple[int, int], target: tuple[int, int]
) -> None:
    image = stored(tmp_path / "a.mp4", quadrants(size), resolution=target, fit=fit)
    assert image.shape == (target[1], target[0], 3)


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [("libx265", "yuv420p10le"), ("libx264", "yuv422p10le"), ("libx264", "yuv444p")],
)
def test_deep_and_finely_sampled_colour_is_kept(
    tmp_path: Path, codec: str, pixel_format: str
) -> None:
    image = stored(tmp_path / "a.mkv", quadrants(), codec=codec, pixel_format=pixel_format)
    assert_colours(corners(image), [RED, GREEN, BLUE, WHITE])


def test_full_and_limited_range_look_alike(tmp_path: Path) -> None:
    limited = stored(tmp_path / "a.mp4", quadrants(), pixel_format="yuv420p")
    full = stored(tmp_path / "b.mp4", quadrants(), pixel_format="yuvj420p")
    assert_colours(corners(full), [RED, GREEN, BLUE, WHITE])
    assert_colours(corners(limited), corners(full))


def test_colours_follow_the_matrix_that_the_stream_names(tmp_path: Path) -> None:
    bt601 = ColorTags(ColorPrimaries.SMPTE170M, ColorTrc.SMPTE170M, Colorspace.ITU601)
    for name, tags in (("709", BT709), ("601", bt601)):
        image = stored(tmp_path / f"{name}.mp4", quadrants(), color=tags)
        assert_colours(corners(image), [RED, GREEN, BLUE, WHITE])


def pq(nits: float) -> int:
    """8-bit code value of a luminance by SMPTE ST 2084."""
    y = (nits / 10_000) ** 0.1593017578125
    return round(255 * ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375)


def test_hdr_is_shown_with_its_reference_white_near_white(tmp_path: Path) -> None:
    levels = (0.01, 36.5, 203.0, 1000.0)
    path = tmp_path / "a.mkv"
    write_video(
        path,
        [np.full((64, 64, 3), pq(nits), np.uint8) for nits in levels],
        Fraction(25),
        codec="libx265",
        pixel_format="yuv420p10le",
        color=HDR10,
    )
    clip = clip_of(path, fps=25.0)
    assert clip.info.hdr
    shown = [float(picture(data).mean()) for data in clip.frames]
    greys = dict(zip(levels, shown, strict=True))
    assert greys[0.01] < 12
    # 36.5 nits are 18 % grey under a white of 203: about 46 % of the SDR signal.
    assert 90 < greys[36.5] < 145
    assert greys[203.0] > 225
    assert greys[1000.0] >= greys[203.0]


def hdr_frame(size: tuple[int, int]) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(quadrants(size), format="rgb24").reformat(
        format="yuv420p10le", dst_colorspace=Colorspace.BT2020
    )
    frame.color_trc, frame.color_primaries = ColorTrc.SMPTE2084, ColorPrimaries.BT2020
    return frame


TWO_THREADS = """
import threading
import numpy as np
from test_geometry import hdr_frame
from spark_ray.media.geometry import PictureOptions, PictureRenderer

def render(size, count):
    renderer, frame = PictureRenderer(PictureOptions(), None), hdr_frame(size)
    return [renderer.render(frame).image for _ in range(count)]

sizes = [(1280, 720), (640, 480)]
alone = [render(size, 1)[0] for size in sizes]
wrong = []

def repeat(number):
    for image in render(sizes[number], 60):
        if not np.array_equal(image, alone[number]):
            wrong.append(number)

threads = [threading.Thread(target=repeat, args=(number,)) for number in (0, 1)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong, wrong
"""


def test_two_hdr_videos_can_be_rendered_at_once() -> None:
    # In a process of its own: a scaler in two threads crashes it.
    places = [str(Path(__file__).parent), *sys.path]
    script = f"import sys; sys.path[:] = {places!r}\n{TWO_THREADS}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_next_hdr_video_takes_over_the_table_of_colours() -> None:
    frame = hdr_frame((64, 48))

    def scaler_of(renderer: PictureRenderer) -> int:
        renderer.render(frame)
        return id(renderer._hdr_scaler)

    first = PictureRenderer(PictureOptions(), None)
    second = PictureRenderer(PictureOptions(), None)
    used = {scaler_of(first), scaler_of(second)}
    assert len(used) == 2
    del first, second
    assert scaler_of(PictureRenderer(PictureOptions(), None)) in used
