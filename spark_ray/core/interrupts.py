"""Ctrl-C where Python would lose it, and SIGTERM where Ray does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while the block runs, and raise it afterwards.

    For blocks that start processes: Python swallows what is raised in its hooks around a fork, and
    the program would go on as if nobody had pressed anything.

    Raises:
        KeyboardInterrupt: after the block, if it came meanwhile.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def hear_sigterm() -> None:
    """Give SIGTERM back to its Python handler, once Ray is started.

    Ray's native code takes the signal for a crash of the driver: it prints a stack, and aborts the
    process three seconds later, in the midst of whatever it does about its end.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
