"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from spark_ray.core.background import beside

_LINE_EVERY_S = 10.0


class ProgressReport:
    """Counts towards a total and tells people about it, on standard error.

    Args:
        title: what is being done.
        total: how many, or None where nobody knows.
        unit: what is counted, in the plural.
    """

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._done = 0
        self._note = ""
        self._started = self._last_line = time.monotonic()
        self._first = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("[yellow]{task.fields[note]}"),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, rate="", note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._done:
            self._print_line()

    def advance(self, count: int, note: str = "") -> None:
        """Count `count` more; `note` (e.g. "3 rejects") stands at the end of the line."""
        if not self._done:
            # What comes before the first, e.g. loading a model, says nothing about the rate.
            self._first, self._began = count, time.monotonic()
        self._done += count
        self._note = note or self._note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, rate=self._rate(), note=self._note)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._print_line()

    def _rate(self) -> str:
        return f"{self._per_second():.1f} {self._unit}/s"

    def _per_second(self) -> float:
        if self._done > self._first:
            return (self._done - self._first) / max(time.monotonic() - self._began, 1e-9)
        return self._done / max(time.monotonic() - self._started, 1e-9)

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        total = f"/{self._total}" if self._total is not None else ""
        parts = [f"{self._title}: {self._done}{total} {self._unit}", self._rate()]
        if self._total and self._first < self._done < self._total:
            parts.append(f"{(self._total - self._done) / self._per_second():.0f} s left")
        print(", ".join([*parts, *filter(None, [self._note])]), file=sys.stderr, flush=True)


@contextmanager
def progress_elsewhere(
    title: str,
    total: int | None,
    unit: str,
    look: Callable[[], tuple[int, str] | None],
    every_s: float,
) -> Iterator[None]:
    """Report, while the block runs, on work that other processes do.

    Args:
        title, total, unit: as of `ProgressReport`.
        look: how many are done by now, and a note on it, or None before there is anything to say;
            called in a thread.
        every_s: seconds between two looks.
    """

    def follow(over: threading.Event) -> None:
        shown = 0
        with ProgressReport(title, total, unit) as progress:
            while not over.wait(every_s):
                if (seen := look()) is not None:
                    done, note = seen
                    progress.advance(done - shown, note)
                    shown = done

    with beside(follow, "progress"):
        yield
