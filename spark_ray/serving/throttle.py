"""How much a key may ask for: requests a minute, and requests at a time.

Each replica of the gateway allows its share; Serve spreads requests evenly among them.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from spark_ray.serving.errors import ApiError
from spark_ray.serving.keys import Caller


@dataclass
class _Usage:
    tokens: float
    filled: float
    running: int = 0


class Throttle:
    """A token bucket and a count of running requests for each key."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._usage: dict[str, _Usage] = {}

    @contextmanager
    def admit(self, caller: Caller) -> Iterator[None]:
        """Count a request while the block runs.

        Raises:
            ApiError: the key has asked for too much; the error says when to try again.
        """
        most_running = max(1, math.ceil(caller.max_concurrent / self._replicas))
        a_second = caller.requests_per_minute / 60 / self._replicas
        usage = self._filled(caller, a_second)
        if usage.running >= most_running:
            raise ApiError(
                429,
                "too_many_concurrent_requests",
                f"this key may have {caller.max_concurrent} requests at a time; wait for one",
                retry_after_s=1.0,
            )
        if usage.tokens < 1:
            raise ApiError(
                429,
                "rate_limit_exceeded",
                f"this key may send {caller.requests_per_minute} requests a minute",
                retry_after_s=(1 - usage.tokens) / a_second,
            )
        usage.tokens -= 1
        usage.running += 1
        try:
            yield
        finally:
            usage.running -= 1

    def _filled(self, caller: Caller, a_second: float) -> _Usage:
        now = time.monotonic()
        # Ten seconds' worth at once, but at least one: clients come in bursts.
        most = max(1.0, 10 * a_second)
        usage = self._usage.setdefault(caller.id, _Usage(most, now))
        usage.tokens = min(most, usage.tokens + (now - usage.filled) * a_second)
        usage.filled = now
        return usage
