"""Logs are JSON lines where no person watches, and quiet unless asked."""

import json
import subprocess
import sys

PROGRAM = """
import logging
from spark_ray.core.logging import configure_logging, get_logger
configure_logging({level} ids=lambda: {{"job": "01", "path": "?"}})
log = get_logger("spark_ray.room")
log.info("a detail", size=3)
log.warning("look here", path="ü.mp4")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it broke")
logging.getLogger("elsewhere").warning("not ours")
"""


def logged(level: str = "") -> tuple[str, list[dict]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(level=level)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONIOENCODING": "utf-8"},
    )
    ours = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return done.stdout, ours


def test_a_warning_is_one_json_line_on_standard_error() -> None:
    out, lines = logged()
    assert out == ""
    assert [line["event"] for line in lines] == ["look here", "it broke"]
    first = lines[0]
    assert (first["path"], first["level"], first["logger"]) == (
        "ü.mp4", "warning", "spark_ray.room",
    )  # fmt: skip
    assert [line["job"] for line in lines] == ["01", "01"]
    assert "T" in first["timestamp"]
    assert "ZeroDivisionError" in lines[1]["exception"]


def test_more_is_said_when_asked_for() -> None:
    _, lines = logged("'info',")
    assert [line["event"] for line in lines] == ["a detail", "look here", "it broke"]
