"""Clips that are not whole yet: the last one grows, those before it wait for their sound."""

from dataclasses import dataclass, field

from spark_ray.core.schema import FrameSample
from spark_ray.media.sampling import SamplingOptions, Thumbnail, choose_frames


@dataclass
class Candidate:
    """A frame that the sampling grid chose. Its time counts from the video's start."""

    time_s: float
    thumb: Thumbnail
    jpeg: bytes


@dataclass
class OpenClip:
    """A clip whose end is not known yet, or whose sound has not all been read."""

    start_s: float
    end_s: float | None = None
    candidates: list[Candidate] = field(default_factory=list)

    def chosen(self, options: SamplingOptions) -> tuple[list[FrameSample], list[bytes]]:
        """What smart sampling decides on each candidate, and the JPEGs of those that it keeps."""
        samples = choose_frames(
            [c.time_s - self.start_s for c in self.candidates],
            [c.thumb for c in self.candidates],
            options,
        )
        kept = zip(self.candidates, samples, strict=True)
        return samples, [c.jpeg for c, sample in kept if sample.dropped_by is None]

    def cut_off(self, at_s: float, shown_until_s: float, limit_s: float) -> "OpenClip":
        """End at `at_s`, which may lie some frames back, and return the clip that begins there.

        A damaged timestamp may leap by hours, by more than `limit_s`; then the end is
        `shown_until_s`, that of the last picture.
        """
        self.end_s = shown_until_s if at_s - shown_until_s > limit_s else at_s
        later = [c for c in self.candidates if c.time_s >= at_s]
        self.candidates = [c for c in self.candidates if c.time_s < at_s]
        return OpenClip(at_s, candidates=later)
