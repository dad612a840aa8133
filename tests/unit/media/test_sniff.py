"""Files are known by their first bytes, as every encoder at hand writes them."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_factory import pictures
from PIL import Image

from spark_ray.media.audio_codec import encode_audio
from spark_ray.media.encode import write_video
from spark_ray.media.sniff import SNIFFED_BYTES, media_type

TONE = np.round(9000 * np.sin(np.arange(16_000) / 9)).astype(np.int16)


@pytest.mark.parametrize(
    ("suffix", "mime"),
    [
        ("mp4", "video/mp4"),
        ("mov", "video/quicktime"),
        ("mkv", "video/x-matroska"),
        ("avi", "video/x-msvideo"),
        ("ts", "video/mp2t"),
    ],
)
def test_videos(suffix: str, mime: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    write_video(file, pictures(10), Fraction(25))
    assert media_type(file.read_bytes()[:SNIFFED_BYTES]) == ("video", mime)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_pictures(form: str) -> None:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, form)
    assert media_type(data.getvalue()) == ("image", f"image/{form.lower()}")


@pytest.mark.parametrize(
    ("form", "codec", "mime"),
    [
        ("mp3", "libmp3lame", "audio/mpeg"),
        ("adts", "aac", "audio/aac"),
        ("ogg", "libopus", "audio/ogg"),
        ("ipod", "aac", "audio/mp4"),
    ],
)
def test_sound(form: str, codec: str, mime: str) -> None:
    data = io.BytesIO()
    with av.open(data, "w", format=form) as container:
        stream = container.add_stream(codec, rate=48_000)
        frame = av.AudioFrame.from_ndarray(TONE[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert media_type(data.getvalue()) == ("audio", mime)


def test_lossless_sound() -> None:
    assert media_type(encode_audio(TONE, "flac")) == ("audio", "audio/flac")
    assert media_type(encode_audio(TONE, "wav")) == ("audio", "audio/wav")


@pytest.mark.parametrize(
    "data", [b"", b"G", b"\xff", b"RIFF1234JUNK", b"#EXTM3U\n", b"<svg/>", b"%PDF-1.7", b"PK\3\4"]
)
def test_everything_else_is_nothing(data: bytes) -> None:
    assert media_type(data) is None
