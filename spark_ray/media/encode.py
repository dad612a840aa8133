"""Writing small video files: the counterpart of decoding, for synthetic clips and for tests.

`write_video` covers the common case of one video track with perhaps sound and subtitles;
`write_tracks` takes any number of each. Encoders run on one thread with bit-exact flags and muxers
leave out dates and random ids, so that the same input gives the same bytes on one machine.
"""

import heapq
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec.context import Flags as CodecFlags
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.subtitles.stream import SubtitleStream
from av.subtitles.subtitle import SubtitleSet
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc
from av.video.stream import VideoStream

from spark_ray.core.errors import ConfigError
from spark_ray.core.schema import Segment

# Ticks a second for variable frame rates: 24, 25, 30, 50, 60 and 30000/1001 fall on whole ticks,
# and MPEG-4 Part 2 admits no finer clock than 65535.
VFR_CLOCK = 60_000

# Settings for speed: these clips are drawn in hundreds, and judged by a model, not by an eye.
FAST_OPTIONS: dict[str, dict[str, str]] = {
    # B-frames, which ultrafast leaves out, are what decoders get wrong. With mbtree, which slower
    # presets turn on, the bytes differ from run to run even on one thread.
    "libx264": {"preset": "ultrafast", "bf": "2", "crf": "23", "mbtree": "0"},
    "libx265": {
        "preset": "ultrafast",
        "crf": "22",
        "x265-params": "log-level=error:pools=none:frame-threads=1",
    },
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "30"},
    # From preset 11 on SVT-AV1 4.1 writes streams that dav1d refuses, if the picture is noiseless.
    "libsvtav1": {"preset": "10", "crf": "32", "svtav1-params": "lp=1"},
    # Quantiser 3, in FFmpeg's unit of 1/118; without it the bit rate would be a mere 200 kbit/s.
    "mpeg4": {"flags": "+qscale", "global_quality": "354"},
    "aac": {"aac_coder": "fast"},
}

DEFAULT_AUDIO_CODEC = {
    ".mp4": "aac",
    ".mov": "aac",
    ".ts": "aac",
    ".mkv": "libopus",
    ".webm": "libopus",
    # AVI has no edit list, so the priming samples of MP3 would push the second frame back.
    ".avi": "pcm_s16le",
}
SUBTITLE_CODEC = {".mp4": "mov_text", ".mov": "mov_text", ".mkv": "subrip", ".webm": "webvtt"}

# Text subtitle encoders take ASS events and refuse to open without a script header.
_ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, Alignment, Encoding
Style: Default,Arial,16,&Hffffff,2,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


@dataclass(frozen=True)
class ColorTags:
    """What the stream says of its colours. Pixels are converted to `space` and only labelled with
    the other two, so RGB input is taken as already coded with that transfer curve."""

    primaries: ColorPrimaries
    transfer: ColorTrc
    space: Colorspace


BT709 = ColorTags(ColorPrimaries.BT709, ColorTrc.BT709, Colorspace.ITU709)
HDR10 = ColorTags(ColorPrimaries.BT2020, ColorTrc.SMPTE2084, Colorspace.BT2020)


@dataclass(frozen=True, kw_only=True)
class VideoTrack:
    """Frames to encode, `[H, W, 3]` uint8 RGB, all of one size.

    Frame *i* is shown at `i / rate` seconds, or at `pts[i]` where `pts` is given. `gop` bounds the
    distance between keyframes. `rotation` is the display matrix in degrees counter-clockwise, as
    `av.VideoFrame.rotation` reports it. `options` are laid over `FAST_OPTIONS`.
    """

    frames: Iterable[np.ndarray]
    rate: Fraction
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    gop: int | None = None
    pts: Sequence[float] | None = None
    rotation: int = 0
    sample_aspect_ratio: Fraction | None = None
    color: ColorTags | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    language: str | None = None
    default: bool = False


@dataclass(frozen=True, kw_only=True)
class AudioTrack:
    """Sound to encode: int16 `[samples]`, or `[samples, 2]` for stereo.

    `codec` None takes the usual one of the container. Without resampling unless the codec refuses
    `sample_rate` (Opus does).
    """

    pcm: np.ndarray
    sample_rate: int
    codec: str | None = None
    start_s: float = 0.0
    language: str | None = None
    default: bool = False


@dataclass(frozen=True, kw_only=True)
class SubtitleTrack:
    """Cues to embed as text, in order of time. `codec` None takes the container's usual one."""

    cues: Sequence[Segment]
    codec: str | None = None
    language: str | None = None
    default: bool = False


Track = VideoTrack | AudioTrack | SubtitleTrack
Packets = Iterator["Packet[Stream]"]


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    rate: Fraction,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    gop: int | None = None,
    pts: Sequence[float] | None = None,
    rotation: int = 0,
    sample_aspect_ratio: Fraction | None = None,
    color: ColorTags | None = None,
    options: Mapping[str, str] | None = None,
    audio: tuple[np.ndarray, int] | None = None,
    audio_codec: str | None = None,
    subtitles: Sequence[Segment] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one video track, with sound `(pcm, sample_rate)` and subtitle cues where given.

    See `VideoTrack`, `AudioTrack` and `write_tracks` for the meaning of each, and the errors.
    """
    tracks: list[Track] = [
        VideoTrack(
            frames=frames,
            rate=rate,
            codec=codec,
            pixel_format=pixel_format,
            gop=gop,
            pts=pts,
            rotation=rotation,
            sample_aspect_ratio=sample_aspect_ratio,
            color=color,
            options=options or {},
        )
    ]
    if audio is not None:
        tracks.append(AudioTrack(pcm=audio[0], sample_rate=audio[1], codec=audio_codec))
    if subtitles:
        tracks.append(SubtitleTrack(cues=subtitles))
    write_tracks(path, tracks, metadata=metadata)


def write_tracks(
    path: str | Path,
    tracks: Sequence[Track],
    *,
    metadata: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
) -> None:
    """Encode the tracks and interleave them into one file; the suffix chooses the container.

    Frames are taken as they are encoded, so memory stays at the encoder's look-ahead. Raises
    `ConfigError` where a video track is empty or the container has no usual codec for a track, and
    `ValueError` where it doesn't hold the codec that was asked for.
    """
    path = Path(path)
    muxer_options = {"fflags": "+bitexact"} | dict(container_options or {})
    with av.open(str(path), "w", container_options=muxer_options) as container:
        container.metadata.update(metadata or {})
        packets = [_open_track(container, path, track) for track in tracks]
        container.start_encoding()
        for packet in heapq.merge(*packets, key=_decode_time):
            container.mux(packet)


def _decode_time(packet: "Packet[Stream]") -> Fraction:
    assert packet.dts is not None
    return packet.dts * packet.time_base


def _open_track(container: OutputContainer, path: Path, track: Track) -> Packets:
    """Add the track's stream; its packets follow, in decode order, once the header is written."""
    if isinstance(track, VideoTrack):
        stream, packets = _open_video(container, path, track)
    elif isinstance(track, AudioTrack):
        stream, packets = _open_audio(container, path, track)
    else:
        stream, packets = _open_subtitles(container, path, track)
    if track.language:
        stream.metadata["language"] = track.language
    if track.default:
        stream.disposition = Disposition.default
    return packets


def _open_video(
    container: OutputContainer, path: Path, track: VideoTrack
) -> tuple[Stream, Packets]:
    frames = iter(track.frames)
    first = next(frames, None)
    if first is None:
        raise ConfigError(f"frames: there are none to write into {path}")
    if track.codec == "libsvtav1":
        # SVT writes its banner straight to stderr and takes its log level from nowhere else.
        os.environ.setdefault("SVT_LOG", "1")

    # MP4 sums decode times into its duration, which reordered frames of unequal length distort.
    no_reordering = {"bf": "0"} if track.pts is not None else {}
    options = FAST_OPTIONS.get(track.codec, {}) | no_reordering | dict(track.options)
    stream = container.add_stream(track.codec, rate=track.rate, options=options)
    assert isinstance(stream, VideoStream)
    context = stream.codec_context
    context.height, context.width = first.shape[:2]
    context.pix_fmt = track.pixel_format
    context.thread_count = 1
    context.flags |= CodecFlags.bitexact | CodecFlags.frame_duration
    context.time_base = 1 / track.rate if track.pts is None else Fraction(1, VFR_CLOCK)
    if track.gop is not None:
        context.gop_size = track.gop
    if track.sample_aspect_ratio is not None:
        context.sample_aspect_ratio = track.sample_aspect_ratio
    if track.color is not None:
        context.color_primaries = track.color.primaries
        context.color_trc = track.color.transfer
        context.colorspace = track.color.space
    if track.rotation:
        stream.set_display_rotation(track.rotation)
    if track.codec == "libx265" and path.suffix in {".mp4", ".mov"}:
        # Apple's players open HEVC in MP4 under this tag only.
        context.codec_tag = "hvc1"
    return stream, _encode_video(stream, track, chain([first], frames))


def _encode_video(stream: VideoStream, track: VideoTrack, frames: Iterable[np.ndarray]) -> Packets:
    for (start, end), pixels in zip(_frame_spans(track), frames, strict=False):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame = frame.reformat(
            format=track.pixel_format,
            dst_colorspace=track.color.space if track.color else None,
            threads=1,
        )
        if track.color is not None:
            frame.color_primaries = track.color.primaries
            frame.color_trc = track.color.transfer
        frame.pts, frame.duration = start, end - start
        frame.time_base = stream.codec_context.time_base
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _frame_spans(track: VideoTrack) -> Iterator[tuple[int, int]]:
    """Begin and end of each frame in ticks of the codec's clock."""
    if track.pts is None:
        yield from pairwise(iter(range(2**31)))
    else:
        ticks = [round(seconds * VFR_CLOCK) for seconds in track.pts]
        yield from pairwise([*ticks, ticks[-1] + round(VFR_CLOCK / track.rate)])


def _open_audio(
    container: OutputContainer, path: Path, track: AudioTrack
) -> tuple[Stream, Packets]:
    codec = track.codec or _usual_codec(DEFAULT_AUDIO_CODEC, path, "sound")
    rates = av.Codec(codec, "w").audio_rates
    rate = track.sample_rate
    if rates and rate not in rates:
        rate = min((known for known in rates if known > rate), default=max(rates))
    stream = container.add_stream(codec, rate=rate, options=FAST_OPTIONS.get(codec))
    assert isinstance(stream, AudioStream)
    stream.codec_context.layout = "mono" if track.pcm.ndim == 1 else "stereo"
    stream.codec_context.flags |= CodecFlags.bitexact
    return stream, _encode_audio(stream, track)


def _encode_audio(stream: AudioStream, track: AudioTrack) -> Packets:
    step = 8192
    offset = round(track.start_s * track.sample_rate)
    for begin in range(0, len(track.pcm), step):
        samples = np.ascontiguousarray(track.pcm[begin : begin + step]).reshape(1, -1)
        layout = "mono" if track.pcm.ndim == 1 else "stereo"
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate = track.sample_rate
        frame.time_base = Fraction(1, track.sample_rate)
        frame.pts = begin + offset
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _open_subtitles(
    container: OutputContainer, path: Path, track: SubtitleTrack
) -> tuple[Stream, Packets]:
    codec = track.codec or _usual_codec(SUBTITLE_CODEC, path, "subtitles")
    stream = container.add_stream(codec)
    assert isinstance(stream, SubtitleStream)
    stream.codec_context.subtitle_header = _ASS_HEADER
    # AVSubtitle counts its display time in milliseconds whatever the stream's clock.
    stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
    return stream, _encode_subtitles(stream, track)


def _encode_subtitles(stream: SubtitleStream, track: SubtitleTrack) -> Packets:
    for cue in track.cues:
        start_ms, end_ms = round(cue.start * 1000), round(cue.end * 1000)
        text = cue.text.replace("\n", "\\N")
        event = SubtitleSet.create(
            f"0,0,Default,,0,0,0,,{text}".encode(), 0, end_ms - start_ms, pts=start_ms
        )
        packet = stream.codec_context.encode_subtitle(event)
        packet.stream = stream
        packet.time_base = Fraction(1, 1000)
        yield packet


def _usual_codec(table: Mapping[str, str], path: Path, what: str) -> str:
    if path.suffix not in table:
        known = ", ".join(table)
        raise ConfigError(f"{path}: no usual codec for {what} in this container; known: {known}")
    return table[path.suffix]
