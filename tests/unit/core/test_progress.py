"""What people see of long work when nobody watches a terminal."""

import re
import threading

import pytest

from spark_ray.core import progress
from spark_ray.core.progress import ProgressReport, Seen, progress_elsewhere


def test_the_end_is_one_line_with_count_rate_and_note(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressReport("Building", 3, "units") as report:
        report.advance(1)
        report.advance(2, "1 reject")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Building: 3/3 units, ")
    assert err.endswith(" units/s, 1 reject\n")
    assert err.count("\n") == 1


def test_lines_come_now_and_then_with_the_time_that_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ProgressReport("Looking", 40, "files") as report:
        for _ in range(4):
            now[0] += 6.0
            report.advance(5)
    assert capsys.readouterr().err.splitlines() == [
        "Looking: 10/40 files, 0.8 files/s, 36 s left",
        "Looking: 20/40 files, 0.8 files/s, 24 s left",
        "Looking: 20/40 files, 0.8 files/s, 24 s left",
    ]


def test_what_comes_before_the_first_says_nothing_about_the_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ProgressReport("Training", 100, "steps") as report:
        now[0] += 300.0  # loading a model, say
        report.advance(1)
        now[0] += 10.0
        report.advance(10)
    assert "Training: 11/100 steps, 1.0 steps/s, 89 s left" in capsys.readouterr().err


def test_an_unknown_total_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReport("Counting", None, "lines") as report:
        report.advance(7)
    assert capsys.readouterr().err.startswith("Counting: 7 lines, ")


def test_nothing_done_and_failed_work_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReport("Building", 3, "units"):
        pass
    report = ProgressReport("Building", 3, "units")
    report.__enter__()
    report.advance(1)
    report.__exit__(KeyError, KeyError(), None)
    assert capsys.readouterr().err == ""


def test_one_of_one_is_singular(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReport("Looking at files", 1, "files") as report:
        report.advance(1)
    assert capsys.readouterr().err.startswith("Looking at files: 1/1 file, ")


def test_all_rates_are_of_the_same_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ProgressReport("Training", 100, "steps") as report:
        now[0] += 300.0
        report.advance(1, "", {"clips": 32})
        now[0] += 5.0
        report.advance(9, "", {"clips": 9 * 32})
        now[0] += 5.0
        report.advance(1, "", {"clips": 32})
    assert "Training: 11/100 steps, 1.0 steps/s, 32 clips/s, 89 s left" in capsys.readouterr().err


def test_work_elsewhere_is_told_by_what_has_come_since_the_last_look(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = iter([None, Seen(2, "a", {"clips": 8}), Seen(5, "b", {"clips": 20})])
    looked = threading.Event()

    def look() -> Seen | None:
        try:
            return next(seen)
        except StopIteration:
            looked.set()
            return None

    with progress_elsewhere("Training", 5, "steps", look, every_s=0.01):
        assert looked.wait(10)
    line = capsys.readouterr().err
    steps, clips = (float(rate) for rate in re.findall(r"([\d.]+) (?:steps|clips)/s", line))
    assert line.startswith("Training: 5/5 steps, ")
    assert clips == pytest.approx(4 * steps, rel=0.02)
