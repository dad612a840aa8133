"""Opening a video: which streams of the file we use, and what they say about themselves."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import BinaryIO

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Discard, Disposition, Stream
from pydantic import BaseModel, Field

from spark_ray.core.errors import (
    CorruptMedia,
    MediaLimitExceeded,
    MediaTimeout,
    NotAVideo,
    UnsupportedCodec,
)
from spark_ray.core.schema import VideoInfo
from spark_ray.media.languages import LanguageCode, language_code

VIDEO_EXTENSIONS = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg")
)
"""What users call a video. Only decides whether a file that is none is worth a reject."""

# FFmpeg also opens playlists and scripts (HLS, concat, …) that name further files and hosts: a
# way out of the input folder for anyone who can put a file into it. Containers only.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg"
_TEXT_SUBTITLES = frozenset(("mov_text", "subrip", "srt", "ass", "ssa", "webvtt", "text"))
_READ_BYTES = 1 << 18
_SEEK_LEADS_S = (0.0, 10.0, 60.0)
_TIME_TAG = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_PQ, _HLG = 16, 18  # ITU-T H.273 transfer characteristics


class MediaLimits(BaseModel):
    """What a file may ask of a worker before it is rejected."""

    max_pixels: int = Field(
        8192 * 4320, gt=0, description="largest frame, in pixels (width × height)"
    )
    max_frame_rate: float = Field(1000.0, gt=0, description="highest frame rate, in frames/s")
    max_file_bytes: int = Field(1 << 40, gt=0, description="largest source file, in bytes")
    max_corrupt_ratio: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of a clip's video that may be damaged or missing before it is rejected",
    )
    decode_timeout_s: float = Field(
        900.0, gt=0, description="seconds that one clip may take to read and decode"
    )
    audio_language: LanguageCode | None = Field(
        None, description="ISO 639 code of the audio track to prefer, e.g. 'en' or 'eng'"
    )


@dataclass
class MediaSource:
    """An open container and the streams that we read from it."""

    container: InputContainer
    video: av.VideoStream
    audio: av.AudioStream | None
    subtitles: Stream | None
    info: VideoInfo
    rate: Fraction
    """Frames per second as the container states it; 0 where it doesn't."""
    zero_pts: int
    """The video's first timestamp: the zero of all our times."""
    time_base: Fraction
    """Of the video stream, in seconds."""
    duration_is_rough: bool
    """Whether the announced duration is the container's, which may be that of another stream."""

    def seconds(self, pts: int, time_base: Fraction | None = None) -> float:
        """A timestamp of the video stream, or of one with another time base, from the start."""
        if time_base is None:
            return (pts - self.zero_pts) * self.time_base.numerator / self.time_base.denominator
        return pts * time_base.numerator / time_base.denominator - self.zero_s

    @cached_property
    def zero_s(self) -> float:
        return float(self.zero_pts * self.time_base)

    def seek_before(self, time_s: float) -> bool:
        """Go to a keyframe at or before a time; where none can be found, to the start.

        MP4 and Matroska have an index and land on the keyframe itself. MPEG-TS is searched by
        timestamps and may land after it, so the search begins further and further ahead. Returns
        whether packets before the first keyframe have to be skipped.
        """
        if time_s <= 0 or self.info.container == "avi":
            return False  # AVI has no presentation times; they are counted from the start
        for lead_s in _SEEK_LEADS_S:
            target = self.zero_pts + int((time_s - lead_s) / self.time_base)
            if target > self.zero_pts and self._keyframe_follows(target, time_s):
                self.container.seek(target, stream=self.video)
                return True
        # Not to the first frame's own time: MPEG-TS would land after it. Zero is before it.
        self.container.seek(0)
        return False

    def _keyframe_follows(self, target: int, time_s: float) -> bool:
        """Whether reading on from `target` meets a keyframe at or before `time_s`."""
        try:
            self.container.seek(target, stream=self.video)
            for packet in self.container.demux(self.video):
                if packet.pts is None or self.seconds(packet.pts) > time_s:
                    return False
                if packet.is_keyframe:
                    return True
        except FFmpegError:
            return False
        return False


def probe(file: BinaryIO, limits: MediaLimits) -> VideoInfo:
    """What the headers of a file tell. The shape of its pixels and its colours may be missing.

    FFmpeg decodes a keyframe to learn those, which is most of what a look at a short clip costs,
    and is done again when the clip is decoded.

    Raises:
        As `open_source`.
    """
    with _opened(file, limits, None, {"skip_frame": "all"}) as source:
        return source.info


@contextmanager
def open_source(
    file: BinaryIO, limits: MediaLimits, subtitle_language: str | None = None
) -> Iterator[MediaSource]:
    """Open the container in `file` and choose its streams.

    The best video stream (the file's default, then the largest), the audio track in the
    preferred language or else the best, and the text subtitles in `subtitle_language` or else in
    that of the sound. `file` stays the caller's to close.

    Raises:
        NotAVideo, UnsupportedCodec, CorruptMedia: the file can't be used.
        MediaLimitExceeded: it asks for more than `limits` allow.
    """
    with _opened(file, limits, subtitle_language, {}) as source:
        yield source


@contextmanager
def _opened(
    file: BinaryIO, limits: MediaLimits, subtitle_language: str | None, options: dict[str, str]
) -> Iterator[MediaSource]:
    """`open_source` with options for FFmpeg's first look at the streams."""
    try:
        container = av.open(
            file,
            "r",
            options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file", **options},
            metadata_errors="replace",
            buffer_size=_READ_BYTES,
        )
    except FFmpegError as error:
        raise NotAVideo(
            "it is no readable video: not MP4, MOV, MKV, WebM, AVI or MPEG-TS inside, "
            "or cut off before its index"
        ) from error
    try:
        yield _choose_streams(container, limits, subtitle_language)
    except FFmpegError as error:
        raise CorruptMedia(f"it can't be demultiplexed: {error.strerror}") from error
    finally:
        with suppress(FFmpegError):
            container.close()


def _choose_streams(
    container: InputContainer, limits: MediaLimits, subtitle_language: str | None
) -> MediaSource:
    video = _best_video(container)
    if video.codec_context is None:
        raise UnsupportedCodec(f"no decoder for its video codec (stream {video.index})")
    codec = video.codec_context
    if codec.width <= 0 or codec.height <= 0:
        raise CorruptMedia("its video stream has no dimensions")
    if codec.width * codec.height > limits.max_pixels:
        raise MediaLimitExceeded(
            f"{codec.width}×{codec.height} is more than max_pixels={limits.max_pixels}"
        )
    shown = square_pixel_size(codec.width, codec.height, video.sample_aspect_ratio)
    if shown[0] * shown[1] > limits.max_pixels:
        raise MediaLimitExceeded(
            f"{shown[0]}×{shown[1]} with square pixels is more than max_pixels={limits.max_pixels}"
        )
    rate = _fraction(video.guessed_rate or video.average_rate or Fraction(0))
    if rate > limits.max_frame_rate:
        raise MediaLimitExceeded(
            f"{float(rate):.0f} frames/s is more than max_frame_rate={limits.max_frame_rate:g}"
        )
    # The decoder may still meet other dimensions in the bitstream than the container announced.
    codec.options = {**codec.options, "max_pixels": str(limits.max_pixels)}
    codec.thread_type = "NONE"
    codec.thread_count = 1

    audio = _best_audio(container, limits.audio_language)
    subtitles = _best_subtitles(container, subtitle_language, audio.language if audio else None)
    used = {stream.index for stream in (video, audio, subtitles) if stream is not None}
    for stream in container.streams:
        if stream.index not in used:
            stream.discard = Discard.all

    return MediaSource(
        container=container,
        video=video,
        audio=audio,
        subtitles=subtitles,
        info=_describe(container, video, audio, rate),
        duration_is_rough=_stream_duration_s(container, video) is None,
        rate=rate,
        zero_pts=_first_pts(container, video),
        time_base=_fraction(video.time_base),
    )


def _best_video(container: InputContainer) -> av.VideoStream:
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    candidates = [s for s in container.streams.video if not s.disposition & pictures]
    if not candidates:
        raise NotAVideo("it has no video stream")
    return max(candidates, key=_picture_rank)


def _picture_rank(stream: av.VideoStream) -> tuple[bool, bool, int]:
    """Decodable first, then what the file calls its default, then the largest picture."""
    codec = stream.codec_context
    pixels = codec.width * codec.height if codec is not None else 0
    return codec is not None, bool(stream.disposition & Disposition.default), pixels


def _best_audio(container: InputContainer, language: str | None) -> av.AudioStream | None:
    decodable = [s for s in container.streams.audio if s.codec_context is not None]
    preferred = [s for s in decodable if _is_in(s, language)]
    if preferred:
        return preferred[0]
    best = container.streams.best("audio")
    if best in decodable:
        return best
    return decodable[0] if decodable else None


def _best_subtitles(container: InputContainer, *languages: str | None) -> Stream | None:
    """Of the text subtitles, those in the first of the languages that has any, or else the first.

    Ordinary ones before forced ones, which only translate what is foreign.
    """
    texts = [
        s
        for s in container.streams.subtitles
        if s.codec_context is not None and s.codec_context.name in _TEXT_SUBTITLES
    ]
    in_languages = ([s for s in texts if _is_in(s, language)] for language in languages)
    candidates = next(filter(None, in_languages), texts)
    ordinary = [s for s in candidates if not s.disposition & Disposition.forced]
    return next(iter(ordinary or candidates), None)


def _is_in(stream: Stream, language: str | None) -> bool:
    code = language_code(language)
    return code is not None and language_code(stream.language) == code


def _describe(
    container: InputContainer, video: av.VideoStream, audio: av.AudioStream | None, rate: Fraction
) -> VideoInfo:
    codec = video.codec_context
    width, height = square_pixel_size(codec.width, codec.height, video.sample_aspect_ratio)
    return VideoInfo(
        duration=_duration_s(container, video),
        width=width,
        height=height,
        fps=round(float(rate), 6),
        codec=codec.codec.canonical_name,
        container=container.format.name.partition(",")[0],
        pixel_format=codec.pix_fmt,
        hdr=codec.color_trc in (_PQ, _HLG),
        audio_codec=audio.codec_context.codec.canonical_name if audio else None,
        audio_language=_known(audio.language) if audio else None,
    )


def _duration_s(container: InputContainer, video: av.VideoStream) -> float:
    """Announced duration in seconds, 0.0 where the container announces none."""
    of_stream = _stream_duration_s(container, video)
    if of_stream is not None:
        return of_stream
    if container.duration:
        return container.duration / av.time_base
    return 0.0


def _first_pts(container: InputContainer, video: av.VideoStream) -> int:
    """The video's first timestamp.

    Where its pictures are too rare for FFmpeg to learn it, FFmpeg reports begin and duration of the
    container, those of the sound. Then the index, made while FFmpeg looked, has the first keyframe.
    """
    if _is_matroska(container) and video.duration and len(video.index_entries):
        return video.index_entries[0].timestamp
    return video.start_time or 0


def _is_matroska(container: InputContainer) -> bool:
    return container.format.name.startswith("matroska")


def _stream_duration_s(container: InputContainer, video: av.VideoStream) -> float | None:
    # Matroska has no field for it: where FFmpeg reports one, it is the container's.
    if video.duration and not _is_matroska(container):
        return float(video.duration * _fraction(video.time_base))
    # FFmpeg and mkvmerge write a tag, as the time of its end.
    tag = _TIME_TAG.fullmatch(video.metadata.get("DURATION", ""))
    if tag is None:
        return None
    end_s = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    return (
        max(0.0, end_s - float(_first_pts(container, video) * _fraction(video.time_base))) or None
    )


def square_pixel_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Size at which pixels of the given aspect ratio become square, never smaller than stored."""
    if not aspect or aspect.numerator <= 0 or aspect.denominator <= 0 or aspect == 1:
        return width, height
    ratio = float(_fraction(aspect))
    if ratio > 1:
        return round(width * ratio), height
    return width, round(height / ratio)


def _known(language: str | None) -> str | None:
    return None if language in (None, "", "und") else language


def _fraction(value: object) -> Fraction:
    # PyAV 19 will return its own rational type.
    return Fraction(value.numerator, value.denominator)  # type: ignore[attr-defined]


def deadline(seconds: float, doing: str, gone: threading.Event | None = None) -> Callable[[], None]:
    """A check that raises `MediaTimeout` once `seconds` have passed.

    Where `gone` is set, because nobody waits for the outcome, it raises `CancelledError`.
    """
    end = time.monotonic() + seconds

    def check() -> None:
        if gone is not None and gone.is_set():
            raise CancelledError(f"{doing} was given up: nobody waits for it")
        if time.monotonic() > end:
            raise MediaTimeout(f"{doing} took more than {seconds:g} s (decode_timeout_s)")

    return check
