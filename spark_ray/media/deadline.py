"""A bound in time on reads that may never return.

A read on a dead network mount sits in the kernel and can't be interrupted. So it is done in a
thread that is left behind when its time is up; the caller goes on. A stuck thread costs its stack.
Decoding also checks the clock by itself (`source.deadline`), so an abandoned thread ends as soon as
its read returns.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from spark_ray.core.errors import MediaTimeout

Item = TypeVar("Item")

_GRACE_S = 5.0
_LIMIT = "decode_timeout_s"

_idle: list["_Helper"] = []
os.register_at_fork(after_in_child=_idle.clear)  # a child has the list, but not the threads


def within(work: Callable[[], Item], timeout_s: float, doing: str, limit: str = _LIMIT) -> Item:
    """What `work()` returns, if it does so within `timeout_s` seconds.

    Raises:
        MediaTimeout: it does not; the thread that does it is abandoned.
        Whatever `work` raises.
    """
    (value,) = iterate_with_deadline(lambda: iter([work()]), timeout_s, doing, limit)
    return value


def iterate_with_deadline(
    produce: Callable[[], Iterator[Item]], item_timeout_s: float, doing: str, limit: str = _LIMIT
) -> Iterator[Item]:
    """Items of `produce()`, each within `item_timeout_s` seconds of the one before.

    `doing` and `limit` are for the message: what is done, and what sets its time.

    Raises:
        MediaTimeout: an item did not come; the thread that makes it is abandoned.
        Whatever `produce` raises.
    """
    done = object()
    items: queue.Queue[object] = queue.Queue(maxsize=1)
    abandoned = threading.Event()
    ended = False

    def run() -> None:
        try:
            for item in produce():
                items.put(item)
                if abandoned.is_set():
                    return
            items.put(done)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            items.put(_Failure(error))

    helper = _idle_or_new_helper()
    helper.start(run)
    try:
        while True:
            try:
                item = items.get(timeout=item_timeout_s + _GRACE_S)
            except queue.Empty:
                raise MediaTimeout(
                    f"{doing} made no progress for {item_timeout_s:g} s ({limit})"
                ) from None
            ended = item is done or isinstance(item, _Failure)
            if isinstance(item, _Failure):
                raise item.error
            if ended:
                return
            yield item  # type: ignore[misc]
    finally:
        if ended:
            _idle.append(helper)
        else:
            helper.leave()
            abandoned.set()
            with suppress(queue.Empty):
                items.get_nowait()  # frees a producer that waits to hand over its next item


class _Helper:
    """A thread that does one piece of work after the other.

    A new one for each clip would cost 6 % of decoding: memory that malloc keeps for a thread goes
    back to the system when it ends, and its pages are zeroed again for the next one.
    """

    def __init__(self) -> None:
        self._works: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="decode", daemon=True).start()

    def start(self, work: Callable[[], None]) -> None:
        self._works.put(work)

    def leave(self) -> None:
        """End the thread once its present work lets go of it."""
        self._works.put(None)

    def _run(self) -> None:
        while (work := self._works.get()) is not None:
            work()


def _idle_or_new_helper() -> _Helper:
    try:
        return _idle.pop()
    except IndexError:
        return _Helper()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
