"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType, TracebackType
from typing import NamedTuple, Self

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


class Seen(NamedTuple):
    """How far work is: how much is done, a note on it, and what else was done with it, by unit."""

    done: int
    note: str = ""
    others: Mapping[str, float] = MappingProxyType({})


class ProgressReport:
    """Counts towards a total and tells people about it, on standard error.

    Args:
        title: what is being done.
        total: how many, or None where nobody knows.
        unit: what is counted, in the plural, which ends in s.
    """

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._done = 0
        self._others: Counter[str] = Counter()
        self._first_others: Counter[str] = Counter()
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

    def advance(
        self, count: int, note: str = "", others: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Count `count` more; `note` (e.g. "3 rejects") stands at the end of the line.

        Args:
            others: what else was done with these, by its unit; only their rate is told.
        """
        if not self._done:
            # What comes before the first, e.g. loading a model, says nothing about the rate.
            self._first, self._began = count, time.monotonic()
            self._first_others.update(others)
        self._done += count
        self._others.update(others)
        self._note = note or self._note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, rate=self._rate(), note=self._note)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._print_line()

    def _rate(self) -> str:
        """Rates of all units, over the same time."""
        rates = [f"{self._per_second(self._done, self._first):.1f} {self._unit}/s"]
        for unit, total in self._others.items():
            rates.append(f"{self._per_second(total, self._first_others[unit]):.0f} {unit}/s")
        return ", ".join(rates)

    def _per_second(self, total: float, first: float) -> float:
        if self._done > self._first:
            return (total - first) / max(time.monotonic() - self._began, 1e-9)
        return total / max(time.monotonic() - self._started, 1e-9)

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        total = f"/{self._total}" if self._total is not None else ""
        alone = (self._total or self._done) == 1
        unit = self._unit.removesuffix("s") if alone else self._unit
        parts = [f"{self._title}: {self._done}{total} {unit}", self._rate()]
        if self._total and self._first < self._done < self._total:
            rate = self._per_second(self._done, self._first)
            parts.append(f"{(self._total - self._done) / rate:.0f} s left")
        print(", ".join([*parts, *filter(None, [self._note])]), file=sys.stderr, flush=True)


@contextmanager
def progress_elsewhere(
    title: str,
    total: int | None,
    unit: str,
    look: Callable[[], Seen | None],
    every_s: float,
) -> Iterator[None]:
    """Report, while the block runs, on work that other processes do.

    Args:
        title, total, unit: as of `ProgressReport`.
        look: how far the work is by now, or None before there is anything to say; called in a
            thread.
        every_s: seconds between two looks.
    """

    def follow(over: threading.Event) -> None:
        shown = Seen(0)
        with ProgressReport(title, total, unit) as progress:
            while not over.wait(every_s):
                if (seen := look()) is not None:
                    others = {u: n - shown.others.get(u, 0) for u, n in seen.others.items()}
                    progress.advance(seen.done - shown.done, seen.note, others)
                    shown = seen

    with beside(follow, "progress"):
        yield
