"""How far builds are, read from their storage no more often than that takes.

A build of 100,000 clips has some hundred megabytes of parts, which take seconds to read, and
everybody who follows a job asks twice a second.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

Units = tuple[int, int]
"""Those that are done, and all."""

_SHARE = 20  # reading takes up to this part of the time
_MOST_KNOWN = 1000


@dataclass
class _Known:
    units: Units | None = None
    again_s: float = float("-inf")
    is_being_read: bool = False


class JobProgress:
    """What was read last, of each job. May be asked by several threads."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def of(self, job_id: str, read: Callable[[], Units | None]) -> Units | None:
        """The job's units as `read` has them, or had them shortly before.

        Raises:
            Whatever `read` raises.
        """
        with self._lock:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known.setdefault(job_id, _Known())
            if known.is_being_read or time.monotonic() < known.again_s:
                return known.units
            known.is_being_read = True
        started_s = time.monotonic()
        try:
            known.units = read()
        finally:
            ended_s = time.monotonic()
            known.again_s = ended_s + _SHARE * (ended_s - started_s)
            known.is_being_read = False
        return known.units
