"""Pictures and sound that come by themselves, made into what a clip holds."""

import io
import threading
from typing import BinaryIO

import av
import cv2
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageOps, UnidentifiedImageError

from spark_ray.core.errors import CorruptMedia, MediaLimitExceeded, NotAVideo
from spark_ray.media.audio_codec import AudioCodec, encode_audio
from spark_ray.media.audio_track import AudioTrack
from spark_ray.media.geometry import PictureOptions, encode_jpeg, fit_picture
from spark_ray.media.source import MediaLimits, deadline

_PICTURES = ("JPEG", "PNG", "WEBP")
# FFmpeg also opens playlists, which name further files and hosts.
_SOUND_CONTAINERS = "wav,flac,ogg,mp3,aac,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"


def read_picture(data: bytes, options: PictureOptions, max_pixels: int) -> bytes:
    """A JPEG, PNG or WebP, upright and at the size that frames are stored in, as JPEG.

    The size is known before a pixel is decoded, so that a small file can't fill the memory.

    Raises:
        MediaLimitExceeded: it has more than `max_pixels`.
        CorruptMedia: it can't be decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_PICTURES) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise MediaLimitExceeded(
                    f"the picture has {width}×{height} pixels, more than max_pixels={max_pixels}"
                )
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except MediaLimitExceeded:
        raise
    except Image.DecompressionBombError as error:
        raise MediaLimitExceeded(f"the picture has more than max_pixels={max_pixels}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise CorruptMedia(f"the picture can't be decoded: {error}") from error
    pixels = cv2.cvtColor(np.asarray(upright), cv2.COLOR_RGB2BGR)
    return encode_jpeg(fit_picture(pixels, options).image, options.jpeg_quality)


def read_sound(
    file: BinaryIO,
    limits: MediaLimits,
    max_s: float,
    codec: AudioCodec = "flac",
    gone: threading.Event | None = None,
) -> tuple[bytes, float]:
    """The best audio stream of a file as 16 kHz mono, and its length in seconds.

    Raises:
        NotAVideo: it is no container of sound, or holds none.
        MediaLimitExceeded: it is longer than `max_s`.
        CorruptMedia: nothing of it can be decoded.
        MediaTimeout: decoding took more than `limits.decode_timeout_s`.
        CancelledError: `gone` was set meanwhile, because nobody waits for the sound.
    """
    check = deadline(limits.decode_timeout_s, "decoding the sound", gone)
    track = AudioTrack()
    try:
        with av.open(
            file, "r", options={"format_whitelist": _SOUND_CONTAINERS}, metadata_errors="replace"
        ) as container:
            stream = container.streams.best("audio")
            if not isinstance(stream, av.AudioStream):
                raise NotAVideo("it holds no sound")
            start_s: float | None = None
            for frame in container.decode(stream):
                check()
                time_s = track.end_s if frame.time is None else frame.time
                start_s = time_s if start_s is None else start_s
                track.push(frame, max(0.0, time_s - start_s))
                if track.end_s > max_s:
                    raise MediaLimitExceeded(f"its sound is longer than {max_s:g} s")
    except FFmpegError as error:
        raise CorruptMedia(f"its sound can't be decoded: {error.strerror}") from error
    track.finish()
    samples = track.take(0.0, None)
    if samples is None:
        raise CorruptMedia("no sound in it can be decoded")
    return encode_audio(samples, codec), track.end_s
