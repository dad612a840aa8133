"""Segments of a transcript as subtitle files."""

import pysubs2

from spark_ray.core.schema import Segment


def as_srt(segments: list[Segment]) -> str:
    return _as(segments, "srt")


def as_vtt(segments: list[Segment]) -> str:
    return _as(segments, "vtt")


def _as(segments: list[Segment], form: str) -> str:
    file = pysubs2.SSAFile()
    for segment in segments:
        event = pysubs2.SSAEvent(
            start=pysubs2.make_time(s=segment.start), end=pysubs2.make_time(s=segment.end)
        )
        event.plaintext = segment.text
        file.append(event)
    return str(file.to_string(form))
