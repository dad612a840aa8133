"""The learning rate of every step."""

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def rate_at(step: int, total: int, warmup_ratio: float, schedule: Schedule) -> float:
    """The factor of the highest rate at `step`, counted from 0, of `total`.

    Rises linearly through the warm-up, then falls to 0 along half a cosine or a line, or stays.
    """
    warmup = round(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
