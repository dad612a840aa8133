"""How often the parts of a build are read for those who follow it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from spark_ray.core.errors import StorageError
from spark_ray.serving import job_progress
from spark_ray.serving.job_progress import JobProgress


class Clock:
    """Time that passes when something is read, and when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.reads = 0.0, 0
        monkeypatch.setattr(job_progress.time, "monotonic", lambda: self.now)

    def read(self) -> tuple[int, int]:
        self.now += 2.0
        self.reads += 1
        return self.reads, 9


def test_what_takes_long_to_read_is_read_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, progress = Clock(monkeypatch), JobProgress()
    told = set()
    for _ in range(160):  # for 80 s, twice a second
        told.add(progress.of("job-1", clock.read))
        clock.now += 0.5
    assert told == {(1, 9), (2, 9)}
    assert progress.of("job-2", clock.read) == (3, 9), "another job is another matter"


def test_those_who_ask_at_once_do_not_read_at_once() -> None:
    progress, go_on, reads = JobProgress(), threading.Event(), []

    def read() -> tuple[int, int]:
        reads.append(1)
        assert go_on.wait(10)
        return 4, 9

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(progress.of, "job-1", read)
        while not reads:
            time.sleep(0.001)
        second = threads.submit(progress.of, "job-1", read)
        assert second.result(10) is None
        go_on.set()
        assert first.result(10) == (4, 9)
    assert len(reads) == 1


def test_storage_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, progress = Clock(monkeypatch), JobProgress()

    def fail() -> None:
        raise StorageError("gone")

    with pytest.raises(StorageError):
        progress.of("job-1", fail)
    assert progress.of("job-1", clock.read) == (1, 9)
