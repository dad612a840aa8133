"""Work in other threads: how it ends is known to who began it."""

import threading

import pytest

from spark_ray.core.background import beside, start_thread


def test_what_a_thread_returns_or_raises_is_its_callers():
    outcome = start_thread(lambda: threading.current_thread().daemon, "a daemon")
    assert outcome.result(timeout=10) is True

    def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        start_thread(fail, "fails").result(timeout=10)


def test_work_beside_a_block_is_told_of_its_end():
    ended = []

    def work(over: threading.Event) -> None:
        assert over.wait(10)
        ended.append(True)

    with beside(work, "works"):
        assert not ended
    assert ended
