"""One pass over a video: sampled frames, scene cuts, sound and subtitles of its clips.

The usual preparation runs a program for each of these, and decodes the file every time. Here each
packet is decoded once, and every consumer looks at the frame while it is there.
"""

from __future__ import annotations  # PyAV's packets are generic for type checkers alone

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import av
from pydantic import Field

from spark_ray.core.errors import CorruptMedia, MediaLimitExceeded
from spark_ray.core.schema import FrameSample, Scene, Segment, VideoInfo
from spark_ray.media.audio_codec import AudioCodec
from spark_ray.media.clip_sound import SETTLE_S, ClipSound
from spark_ray.media.geometry import PictureOptions, PictureRenderer, encode_jpeg, quarter_turn
from spark_ray.media.open_clips import Candidate, OpenClip
from spark_ray.media.packets import choose_decoder
from spark_ray.media.sampling import SamplingGrid, SamplingOptions, thumbnail
from spark_ray.media.scenes import SceneDetector, SceneOptions, scenes_between
from spark_ray.media.source import MediaLimits, MediaSource, deadline, open_source
from spark_ray.media.subtitles import SubtitleTrack

_SPAN_TOLERANCE_S = 0.5
_EPSILON_S = 1e-6


class DecodeOptions(PictureOptions, SamplingOptions, SceneOptions, MediaLimits):
    """How a video is cut into clips, and decoded."""

    decode: Literal["exact", "fast"] = Field(
        "exact",
        description="'fast' skips frames that no other frame needs, and the deblocking filter: "
        "about half the time, frames a little off in time and pixels",
    )
    extract_audio: bool = Field(True, description="keep the sound as 16 kHz mono")
    audio_format: AudioCodec = Field("flac", description="how the sound is stored; both lossless")
    split: Literal["none", "fixed", "scenes"] = Field(
        "fixed",
        description="what becomes a clip: the whole video, equal spans of at most clip_max_s, or "
        "each scene (cut further at clip_max_s); 'none' rejects videos longer than clip_max_s",
    )
    clip_max_s: float = Field(60.0, gt=0, description="longest clip, in seconds")


@dataclass(frozen=True)
class Span:
    """A part of a video, in seconds from its first frame; `end_s` None means to its end."""

    start_s: float = 0.0
    end_s: float | None = None


@dataclass
class DecodedClip:
    """What one pass knows of one clip. Times are seconds from the clip's start."""

    start_s: float
    end_s: float
    info: VideoInfo
    samples: list[FrameSample]
    frames: list[bytes]
    scenes: list[Scene]
    audio: bytes | None
    subtitles: list[Segment]
    subtitle_language: str | None
    decode_s: float


def decode_clips(
    file: BinaryIO,
    span: Span,
    options: DecodeOptions,
    subtitle_language: str | None = None,
    gone: threading.Event | None = None,
) -> Iterator[DecodedClip]:
    """Decode `span` of the video in `file` and yield its clips in order of time.

    A bounded span is one clip. An open one is one clip too unless `options.split` cuts it at its
    scenes, or it grows beyond `clip_max_s`. Memory is bounded by one clip, not by the video.
    Subtitles are those in `subtitle_language`, or else in that of the sound.

    Raises:
        CancelledError: `gone` was set meanwhile, because nobody waits for the clips.
        MediaError: one of its subclasses, when the file can't be used or takes too long. Clips that
            were yielded before stay good.
    """
    with open_source(file, options, subtitle_language) as source:
        yield from _Pass(source, span, options, gone).run()


class _Pass:
    """The state of one pass over one span."""

    def __init__(
        self,
        source: MediaSource,
        span: Span,
        options: DecodeOptions,
        gone: threading.Event | None,
    ) -> None:
        self._source = source
        self._gone = gone
        self._span = span
        self._options = options
        self._start_s = span.start_s - _EPSILON_S
        self._end_s = math.inf if span.end_s is None else span.end_s - _EPSILON_S
        self._time_base_s = float(source.time_base)
        self._limit_s = options.clip_max_s
        if options.split != "scenes":
            self._limit_s += _SPAN_TOLERANCE_S  # no second clip for the last few frames
        self._frame_s = 1 / source.info.fps if source.info.fps else 0.0
        self._grid = SamplingGrid(options.fps, span.start_s)
        self._renderer = PictureRenderer(options, source.video.sample_aspect_ratio)
        self._detector = (
            SceneDetector(options, source.rate, source.time_base)
            if options.scene_detection or options.split == "scenes"
            else None
        )
        self._sound = (
            ClipSound(source, span.start_s, span.end_s, 2 * self._limit_s + self._frame_s)
            if source.audio and options.extract_audio
            else None
        )
        self._subtitles = SubtitleTrack(source)
        self._decoder = choose_decoder(
            source,
            self._grid,
            fast=options.decode == "fast",
            every_frame=self._detector is not None or self._may_be_cut(),
        )
        self._check_deadline = self._new_deadline()
        self._started_at = time.perf_counter()

        self._open: list[OpenClip] = []  # the last one still grows
        self._cuts: list[float] = []
        self._frames_seen = 0
        self._corrupt_frames = 0
        self._first_s: float | None = None
        self._frame_before: av.VideoFrame | None = None  # the one on show as the span begins
        self._extent_s = self._shown_until_s = span.start_s
        self._past_end = False
        self._holds_packets = False  # those of frames within the span
        self._waits_for_keyframe = False

    def run(self) -> Iterator[DecodedClip]:
        self._subtitles.read_before(self._span.start_s, self._check_deadline)
        self._waits_for_keyframe = self._source.seek_before(self._span.start_s - self._lead_s())
        for packet in self._packets():
            self._check_deadline()
            if packet.stream is self._source.video:
                self._note_extent(packet)
                for frame in self._decoder.push(packet) if not self._has_seen_all() else ():
                    self._on_frame(frame)
            elif packet.stream is self._source.audio and self._sound:
                self._sound.push(packet, self._growing_since_s())
            elif packet.stream is self._source.subtitles:
                self._subtitles.push(packet)
            yield from self._completed_clips()
            if self._has_seen_all() and self._sound_reached(self._span.end_s):
                break
        else:
            for frame in self._decoder.finish():
                self._on_frame(frame)
            self._find_end()
        if self._sound:
            self._sound.finish()
        self._fill_empty_span()
        self._check_integrity()
        yield from self._remaining_clips()

    def _packets(self) -> Iterator[av.Packet[Any]]:
        source = self._source
        streams = [source.video, source.audio if self._sound else None, source.subtitles]
        demuxer = source.container.demux(*[s for s in streams if s is not None])
        while True:
            try:
                packet = next(demuxer)
            except (StopIteration, av.error.EOFError):
                return
            except av.error.InvalidDataError:
                # A demuxer stops for good at damage that it can't step over.
                self._decoder.errors += 1
                return
            if packet.stream is self._source.video and packet.is_keyframe:
                self._waits_for_keyframe = False
            elif packet.stream is self._source.video and self._waits_for_keyframe:
                continue
            if packet.size:
                yield packet

    def _may_be_cut(self) -> bool:
        """Whether clips may have to end within this span, at any frame: then all must be seen."""
        duration_s = self._source.info.duration
        return self._span.end_s is None and (
            not duration_s or duration_s - self._span.start_s > self._limit_s
        )

    def _lead_s(self) -> float:
        """How far before the span to begin, so that its first sound and cuts are right."""
        watch_s = self._detector.lead_s if self._detector else 0.0
        return max(SETTLE_S, min(watch_s, self._options.clip_max_s))

    def _new_deadline(self) -> Callable[[], None]:
        return deadline(self._options.decode_timeout_s, "decoding one clip", self._gone)

    # One frame ------------------------------------------------------------------------------------

    def _on_frame(self, frame: av.VideoFrame) -> None:
        time_s = self._frame_time(frame)
        if time_s < self._start_s:
            self._on_frame_before(frame, time_s)
            return
        if self._past_end or time_s >= self._end_s:
            self._past_end = True
            if not self._has_seen_all():
                self._find_cuts(frame, time_s)
            return
        if self._first_s is None:
            self._begin_span(frame, time_s)
        self._frames_seen += 1
        if time_s < self._open[-1].start_s - _EPSILON_S:
            self._corrupt_frames += 1  # time ran back across a clip's start
            return
        self._corrupt_frames += frame.is_corrupt
        if frame.pts is None:
            self._extent_s = max(self._extent_s, time_s + self._frame_s)
        self._find_cuts(frame, time_s)
        self._split_if_too_long(time_s)
        if self._grid.wants(time_s):
            self._grid.take(time_s)
            self._open[-1].candidates.append(self._render(frame, time_s))
        self._shown_until_s = time_s + self._frame_s

    def _on_frame_before(self, frame: av.VideoFrame, time_s: float) -> None:
        if self._first_s is None and time_s >= -_EPSILON_S:
            self._frame_before = frame
            self._find_cuts(frame, time_s)

    def _begin_span(self, frame: av.VideoFrame, time_s: float) -> None:
        self._first_s = time_s
        self._frame_before = None
        self._describe_picture(frame)
        self._open.append(OpenClip(self._span.start_s))

    def _has_seen_all(self) -> bool:
        """Whether no frame that follows can add to the span, not even a cut reported late."""
        pending_s = self._detector.pending_s if self._detector else None
        return self._past_end and (pending_s is None or pending_s >= self._end_s)

    def _frame_time(self, frame: av.VideoFrame) -> float:
        if frame.pts is not None:
            return self._source.seconds(frame.pts)
        # Timestamps may be missing altogether; then the stated rate has to serve.
        return self._frames_seen * self._frame_s

    def _note_extent(self, packet: av.Packet[Any]) -> None:
        """Remember how far the video goes; packets tell, also those that need no decoding."""
        if packet.pts is not None:
            time_s = self._source.seconds(packet.pts)
            duration_s = (packet.duration or 0) * self._time_base_s or self._frame_s
            self._extent_s = max(self._extent_s, time_s + duration_s)
            self._holds_packets |= self._start_s <= time_s < self._end_s

    def _describe_picture(self, frame: av.VideoFrame) -> None:
        rotation = -quarter_turn(frame.rotation) % 360
        info = self._source.info
        info.rotation = rotation
        if rotation % 180:
            info.width, info.height = info.height, info.width

    def _find_cuts(self, frame: av.VideoFrame, time_s: float) -> None:
        if self._detector is None:
            return
        pts = frame.pts - self._source.zero_pts if frame.pts is not None else None
        found = self._detector.process(
            frame, round(time_s / self._time_base_s) if pts is None else pts
        )
        # A cut at the first frame of the span is no cut in it.
        first_s = math.inf if self._first_s is None else self._first_s + _EPSILON_S
        cuts = [cut for cut in found if first_s < cut < self._end_s]
        self._cuts += cuts
        if self._options.split == "scenes" and cuts:
            for cut in cuts:
                self._begin_clip(cut)
            self._grid.restart(time_s)

    def _split_if_too_long(self, time_s: float) -> None:
        if self._span.end_s is None and time_s - self._open[-1].start_s >= self._limit_s:
            if self._options.split == "none":
                raise MediaLimitExceeded(
                    f"it lasts longer than clip_max_s={self._options.clip_max_s:g}; "
                    "raise that, or let split=fixed or split=scenes cut it"
                )
            self._begin_clip(time_s)
            self._grid.restart(time_s)

    def _begin_clip(self, at_s: float) -> None:
        """End the growing clip at `at_s`, which may lie some frames back, and begin the next."""
        if at_s > self._open[-1].start_s:
            next_clip = self._open[-1].cut_off(at_s, self._shown_until_s, self._limit_s)
            self._open.append(next_clip)

    def _render(self, frame: av.VideoFrame, time_s: float) -> Candidate:
        picture = self._renderer.render(frame)
        jpeg = encode_jpeg(picture.image, self._options.jpeg_quality)
        return Candidate(time_s, thumbnail(picture.content), jpeg)

    def _find_end(self) -> None:
        """The file has ended. Its last picture may be on show until after the span."""
        if not self._holds_packets and self._source.duration_is_rough and self._sound:
            # Nobody said for how long: as long as there is sound.
            self._extent_s = max(self._extent_s, self._sound.end_s - _SPAN_TOLERANCE_S)
        self._past_end = self._past_end or self._extent_s >= self._end_s

    def _fill_empty_span(self) -> None:
        """Show the frame before the span where none lies in it but the video goes on."""
        frame, start_s = self._frame_before, self._span.start_s
        goes_on = self._past_end or self._extent_s > start_s + _EPSILON_S
        if frame is None or self._holds_packets or not goes_on:
            return
        self._begin_span(frame, start_s)
        self._frames_seen += 1
        self._corrupt_frames += frame.is_corrupt
        self._open[-1].candidates.append(self._render(frame, start_s))

    # Clips ----------------------------------------------------------------------------------------

    def _growing_since_s(self) -> float:
        return self._open[-1].start_s if self._open else self._span.start_s

    def _sound_reached(self, end_s: float | None) -> bool:
        return self._sound is None or self._sound.reached(end_s, self._extent_s)

    def _completed_clips(self) -> Iterator[DecodedClip]:
        while len(self._open) > 1 and self._sound_reached(self._open[0].end_s):
            yield self._close(self._open.pop(0), last=False)
            self._check_deadline = self._new_deadline()

    def _remaining_clips(self) -> Iterator[DecodedClip]:
        if self._open:
            growing = self._open[-1]
            longest_s = growing.start_s + 2 * self._limit_s
            end_s = self._span.end_s if self._past_end else self._extent_s
            growing.end_s = min(end_s or self._extent_s, longest_s)
        while self._open:
            clip = self._open.pop(0)
            yield self._close(clip, last=not self._open and not self._past_end)

    def _close(self, clip: OpenClip, *, last: bool) -> DecodedClip:
        assert clip.end_s is not None
        start, end = clip.start_s, clip.end_s
        samples, frames = clip.chosen(self._options)
        language, cues = self._subtitles.between(start, end)
        elapsed = time.perf_counter() - self._started_at
        self._started_at = time.perf_counter()
        return DecodedClip(
            start_s=start,
            end_s=end,
            info=self._source.info.model_copy(update={"decode_errors": self._errors}),
            samples=samples,
            frames=frames,
            scenes=scenes_between(self._cuts, start, end) if self._options.scene_detection else [],
            audio=self._encoded_sound(start, None if last else end),
            subtitles=cues,
            subtitle_language=language,
            decode_s=elapsed,
        )

    def _encoded_sound(self, start_s: float, end_s: float | None) -> bytes | None:
        if self._sound is None:
            return None
        # The last clip keeps a tail of sound that outlasts the picture, within reason.
        bound_s = start_s + 2 * self._options.clip_max_s if end_s is None else end_s
        return self._sound.encoded(start_s, bound_s, self._options.audio_format)

    # Integrity ------------------------------------------------------------------------------------

    @property
    def _errors(self) -> int:
        return self._decoder.errors + self._corrupt_frames

    def _check_integrity(self) -> None:
        """Reject what is mostly damage: packets that don't decode, or an end that never comes."""
        limit = self._options.max_corrupt_ratio
        if self._frames_seen == 0:
            if self._decoder.errors:
                raise CorruptMedia("none of its video frames can be decoded")
            if self._span.start_s > 0:
                return  # The announced duration was longer than the video by less than a clip.
            raise CorruptMedia("its video stream holds no frames")
        damaged = self._errors / (self._decoder.packets or 1)
        if damaged > limit:
            raise CorruptMedia(
                f"{damaged:.0%} of its video is damaged, more than max_corrupt_ratio={limit:g}"
            )
        expected_s = self._span.end_s or self._source.info.duration
        span_s = expected_s - self._span.start_s
        reached_s = self._extent_s
        if self._source.duration_is_rough:
            # Another stream may last longer, and some containers count from zero.
            sound_s = self._sound.end_s if self._sound else 0.0
            reached_s = max(reached_s, sound_s) + max(0.0, self._source.zero_s)
        missing_s = expected_s - reached_s
        if not self._past_end and missing_s > max(limit * span_s, _SPAN_TOLERANCE_S):
            raise CorruptMedia(
                f"it ends after {self._extent_s:.1f} s of the announced {expected_s:.1f} s"
            )
