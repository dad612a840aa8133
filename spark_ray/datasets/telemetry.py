"""What a build tells operators: counted where it is committed, so that it is work that stays."""

from collections.abc import Sequence

from spark_ray.core.schema import Clip
from spark_ray.monitoring import metrics


def count_committed(rows: Sequence[Clip], commit_s: float) -> None:
    """Count the rows of a part that was just committed, which took `commit_s` seconds."""
    for clip in rows:
        metrics.CLIPS.inc(status=clip.status)
        if clip.reject is not None:
            metrics.REJECTS.inc(stage=clip.reject.stage, reason=clip.reject.error)
        if clip.status == "ok":
            metrics.VIDEO_SECONDS.inc(clip.duration_s)
        for sample in clip.samples:
            metrics.FRAMES.inc(decision=sample.dropped_by or "kept")
        for step in clip.steps:
            _stage(step.name, step.duration_s, 1)
    _stage("commit", commit_s, len(rows))


def _stage(name: str, seconds: float, clips: int) -> None:
    metrics.STAGE_BUSY.inc(seconds, stage=name)
    metrics.STAGE_SECONDS.observe(seconds / clips, stage=name)
