"""The learning rate of every step."""

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def rate_at(step: int, stage: range, total: int, warmup_ratio: float, schedule: Schedule) -> float:
    """The factor of the highest rate at `step`, counted from 0, of a run of `total`.

    Over the run it falls to 0 along half a cosine or a line, or stays. In each stage it rises
    linearly at first, through `warmup_ratio` of its steps: a stage starts with a new optimizer,
    whose first estimates are of single gradients.

    Args:
        stage: the steps of the stage that `step` is in.
    """
    rise = min(1.0, (step - stage.start + 1) / max(1, round(warmup_ratio * len(stage))))
    progress = step / total
    if schedule == "constant":
        return rise
    if schedule == "linear":
        return rise * (1.0 - progress)
    return rise * 0.5 * (1.0 + math.cos(math.pi * progress))
