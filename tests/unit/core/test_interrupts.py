"""Ctrl-C while processes are started is held back, and not lost."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from spark_ray.core.interrupts import interrupts_held


@pytest.fixture(autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """They are not in what a shell has put into the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_comes_after_the_block() -> None:
    done = []

    def interrupted() -> None:
        with interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the block")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_happens() -> None:
    with interrupts_held():
        pass


def test_an_error_of_the_block_comes_first() -> None:
    with pytest.raises(ValueError, match="mine"), interrupts_held():
        raise ValueError("mine")


def test_where_interrupts_are_ignored_they_stay_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_have_no_handlers_to_set() -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with interrupts_held():
                pass
        except BaseException as error:  # noqa: BLE001 - the test reads it
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed
