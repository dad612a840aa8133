"""Pictures and recordings by themselves, the malicious ones included."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from spark_ray.core.errors import CorruptMedia, MediaLimitExceeded, NotAVideo
from spark_ray.media.audio_codec import decode_audio, encode_audio
from spark_ray.media.decode import DecodeOptions
from spark_ray.media.single_files import read_picture, read_sound

OPTIONS = DecodeOptions.model_validate({"resolution": "64x64"})
TONE = np.round(9000 * np.sin(np.arange(32_000) / 9)).astype(np.int16)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def shown(jpeg: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_fitted_as_frames_are(form: str) -> None:
    image = Image.new("RGB", (128, 64), (200, 30, 40))
    pixels = shown(read_picture(saved(image, form), OPTIONS, 10_000))
    assert pixels.shape == (64, 64, 3)
    assert np.abs(pixels[32, 32].astype(int) - (200, 30, 40)).max() < 12
    assert pixels[2, 32].max() < 12, "padded above, as a wide film is"


def test_a_picture_is_turned_as_its_camera_says() -> None:
    image = Image.new("RGB", (64, 32))
    image.paste((255, 255, 255), (0, 0, 32, 32))  # light on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    pixels = shown(read_picture(saved(image, "JPEG", exif=exif), OPTIONS, 10_000))
    assert pixels[8, 32].min() > 200
    assert pixels[56, 32].max() < 50


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    )
    with pytest.raises(MediaLimitExceeded, match="max_pixels=1000000"):
        read_picture(bomb, OPTIONS, 1_000_000)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe0 nothing more", b"GIF89a" + bytes(50)])
def test_what_is_no_picture_is_said(data: bytes) -> None:
    with pytest.raises(CorruptMedia, match="can't be decoded"):
        read_picture(data, OPTIONS, 10_000)


@pytest.mark.parametrize("codec", ["flac", "wav"])
def test_sound_comes_back_sample_for_sample(codec: str) -> None:
    audio, seconds = read_sound(io.BytesIO(encode_audio(TONE, codec)), OPTIONS, 10.0)
    assert seconds == pytest.approx(2.0)
    assert np.array_equal(np.round(decode_audio(audio) * 32768).astype(np.int16), TONE)


def test_sound_is_bounded_in_length() -> None:
    with pytest.raises(MediaLimitExceeded, match="longer than 1 s"):
        read_sound(io.BytesIO(encode_audio(TONE, "flac")), OPTIONS, 1.0)


def test_what_is_no_sound_is_said() -> None:
    with pytest.raises((CorruptMedia, NotAVideo)):
        read_sound(io.BytesIO(b"fLaC" + bytes(100)), OPTIONS, 1.0)
    with pytest.raises(CorruptMedia):
        read_sound(io.BytesIO(b"#EXTM3U\nfile:///etc/passwd\n"), OPTIONS, 1.0)
