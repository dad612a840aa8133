"""The learning rate of every step.

Each stage has a schedule of its own, as it has an optimizer of its own: it begins with small steps
and, unless the rate is constant, ends with small ones.
"""

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def rate_at(step: int, stage: range, warmup_ratio: float, schedule: Schedule) -> float:
    """The factor of the highest rate at `step`, which is one of `stage`.

    It rises linearly through `warmup_ratio` of the steps, while the new optimizer's estimates are
    of a few gradients, and falls to 0 along half a cosine or a line, or stays.
    """
    done = step - stage.start
    rise = min(1.0, (done + 1) / max(1, round(warmup_ratio * len(stage))))
    progress = done / len(stage)
    if schedule == "constant":
        return rise
    if schedule == "linear":
        return rise * (1.0 - progress)
    return rise * 0.5 * (1.0 + math.cos(math.pi * progress))
