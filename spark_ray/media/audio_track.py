"""The sound of a clip: any stream to 16 kHz mono, aligned with the picture."""

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from spark_ray.media.audio_codec import SAMPLE_RATE

_GAP_S = 0.1


class AudioTrack:
    """Collects 16-bit mono samples whose index is their time from the video's start.

    Sound that begins after the picture is preceded by silence, sound before it is cut, and a hole
    of more than 0.1 s between packets is filled, so speech stays where it was spoken.
    """

    def __init__(self) -> None:
        self._resampler = self._new_resampler()
        self._chunks: list[NDArray[np.int16]] = []
        self._first: int | None = None  # index of the first collected sample
        self._next = 0  # index after the last collected sample
        self._expected_s: float | None = None
        self.errors = 0

    @staticmethod
    def _new_resampler() -> av.AudioResampler:
        return av.AudioResampler("s16", "mono", SAMPLE_RATE)

    @property
    def end_s(self) -> float:
        """Seconds up to which sound is known."""
        return self._next / SAMPLE_RATE

    def push(self, frame: av.AudioFrame, time_s: float) -> None:
        """Add a decoded frame that begins `time_s` seconds after the video's start."""
        if self._expected_s is None or abs(time_s - self._expected_s) > _GAP_S:
            self._drain()
            self._move_to(round(time_s * SAMPLE_RATE))
        self._expected_s = time_s + frame.samples / frame.sample_rate
        try:
            resampled = self._resampler.resample(frame)
        except (ValueError, FFmpegError):
            # The stream changed its layout or rate midway, which a resampler refuses.
            self._drain()
            self._resampler = self._new_resampler()
            resampled = self._resampler.resample(frame)
        self._append(resampled)

    def finish(self) -> None:
        """Take what the resampler still holds; no frame may follow."""
        self._drain()

    def take(self, start_s: float, end_s: float | None) -> NDArray[np.int16] | None:
        """Samples of `[start_s, end_s)`, forgotten up to `end_s`; None where no sound is known."""
        if self._first is None:
            return None
        start = round(start_s * SAMPLE_RATE)
        end = self._next if end_s is None else min(self._next, round(end_s * SAMPLE_RATE))
        known = np.concatenate(self._chunks) if self._chunks else np.empty(0, np.int16)
        if end <= max(start, self._first):
            return None
        silence = np.zeros(max(0, self._first - start), np.int16)
        sound = known[max(0, start - self._first) : end - self._first]
        self._chunks, self._first = [known[end - self._first :].copy()], end
        return np.concatenate([silence, sound])

    def _drain(self) -> None:
        if self._expected_s is not None:
            self._append(self._resampler.resample(None))
            self._resampler = self._new_resampler()

    def _move_to(self, index: int) -> None:
        if self._first is None:
            self._first = self._next = index
        elif index > self._next:
            self._chunks.append(np.zeros(index - self._next, np.int16))
            self._next = index
        # Sound that repeats what is already known (index < _next) is appended as it comes: packets
        # with broken timestamps are far more common than true overlaps.

    def _append(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            samples = frame.to_ndarray().reshape(-1).astype(np.int16, copy=False)
            self._chunks.append(samples)
            self._next += len(samples)
