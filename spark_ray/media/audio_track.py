"""The sound of a clip: any stream to 16 kHz mono, aligned with the picture."""

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from spark_ray.media.audio_codec import SAMPLE_RATE

_GAP_S = 0.1
_RESAMPLED_AT_ONCE = 16_384
"""Samples: a packet has about a thousand, and calling the resampler costs more than resampling."""


class AudioTrack:
    """Collects 16-bit mono samples whose index is their time from the video's start.

    Sound that begins after the picture is preceded by silence, sound before it is cut, and a hole
    of more than 0.1 s between packets is silence too, so speech stays where it was spoken. Pieces
    are laid out only when a clip takes them: a packet with a wild timestamp costs its own bytes.
    """

    def __init__(self) -> None:
        self._resampler = self._new_resampler()
        self._waiting = av.AudioFifo()  # for the resampler
        self._format: tuple[str, str, int] | None = None  # what the resampler was fed
        self._chunks: list[tuple[int, NDArray[np.int16]]] = []  # samples from an index on
        self._first: int | None = None  # index of the first sample that is not yet taken
        self._next = 0  # index after the last collected sample
        self._expected_s = 0.0
        self.errors = 0

    @staticmethod
    def _new_resampler() -> av.AudioResampler:
        return av.AudioResampler("s16", "mono", SAMPLE_RATE)

    @property
    def end_s(self) -> float:
        """Seconds up to which sound is known."""
        waiting_s = self._waiting.samples / self._format[2] if self._format else 0.0
        return self._next / SAMPLE_RATE + waiting_s

    def push(self, frame: av.AudioFrame, time_s: float) -> None:
        """Add a decoded frame that begins `time_s` seconds after the video's start."""
        if self._first is None or abs(time_s - self._expected_s) > _GAP_S:
            self._drain()
            self._move_to(round(time_s * SAMPLE_RATE))
            self._expected_s = time_s
        # Counted in samples, so that many small holes add up to a gap.
        self._expected_s += frame.samples / frame.sample_rate
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._format:
            # A resampler that was fed 16 kHz mono first passes anything on as it is.
            self._drain()
            self._format = form
        frame.pts = None  # holes are dealt with here
        try:
            self._waiting.write(frame)
        except (ValueError, FFmpegError):
            self.errors += 1
        if self._waiting.samples >= _RESAMPLED_AT_ONCE:
            self._resample()

    def finish(self) -> None:
        """Take what the resampler still holds; no frame may follow."""
        self._drain()

    def take(self, start_s: float, end_s: float | None) -> NDArray[np.int16] | None:
        """Samples of `[start_s, end_s)`, forgotten up to `end_s`; None where no sound is known."""
        self._resample()
        if self._first is None:
            return None
        start = round(start_s * SAMPLE_RATE)
        end = self._next if end_s is None else min(self._next, round(end_s * SAMPLE_RATE))
        if end <= max(start, self._first):
            return None
        sound = np.zeros(end - start, np.int16)
        for index, chunk in self._chunks:
            part = chunk[max(0, start - index) : max(0, end - index)]
            at = max(0, index - start)
            sound[at : at + len(part)] = part
        self._chunks = [(index, c) for index, c in self._chunks if index + len(c) > end]
        self._first = end
        return sound

    def forget(self, start_s: float, end_s: float) -> None:
        """Drop the pieces that lie wholly within `[start_s, end_s)`; there it is silent now."""
        start, end = round(start_s * SAMPLE_RATE), round(end_s * SAMPLE_RATE)
        self._chunks = [
            (index, c) for index, c in self._chunks if index < start or index + len(c) > end
        ]

    def _resample(self) -> None:
        frame = self._waiting.read()
        if frame is None:
            return
        try:
            self._append(self._resampler.resample(frame))
        except (ValueError, FFmpegError):
            self.errors += 1
            self._resampler = self._new_resampler()

    def _drain(self) -> None:
        self._resample()
        if self._format is not None:
            self._append(self._resampler.resample(None))
            self._resampler = self._new_resampler()
            self._waiting = av.AudioFifo()

    def _move_to(self, index: int) -> None:
        if self._first is None:
            self._first = index
        elif index <= self._next:
            # Sound that repeats what is already known is appended as it comes: packets with broken
            # timestamps are far more common than true overlaps.
            return
        self._next = index

    def _append(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            samples = frame.to_ndarray().reshape(-1).astype(np.int16, copy=False)
            self._chunks.append((self._next, samples))
            self._next += len(samples)
