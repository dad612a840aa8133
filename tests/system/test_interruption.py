"""Ctrl-C and SIGTERM: one sentence, a status that says so, and the same command goes on."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import builds
import pytest

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builds.write_numbers(tmp_path_factory.mktemp("interruption") / "in", range(1, 17))


@pytest.fixture
def driver(videos: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A build that starts its own local Ray, as on a laptop."""
    process = builds.start(builds.build_command(videos, tmp_path / "set", fps=2), RAY_ADDRESS="")
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.parametrize(
    "sent", [pytest.param(signal.SIGINT, marks=pytest.mark.nightly), signal.SIGTERM]
)
def test_interrupted_and_resumed(
    driver: subprocess.Popen[str], videos: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    version = tmp_path / "set" / "v1"
    builds.wait_until(lambda: builds.parts(version), "a part", driver=driver)
    driver.send_signal(sent)
    _, printed = driver.communicate(timeout=240)

    assert driver.returncode == STATUS[sent], printed
    assert "Traceback" not in printed
    assert "SIGTERM received" not in printed, "Ray took it for a crash"
    assert printed.splitlines()[-1] == "interrupted; run the same command again to go on"
    assert not (version / "metadata.json").exists(), "killed too late to mean anything"

    resumed = builds.run(driver.args, env={"RAY_ADDRESS": ""})

    builds.assert_published(resumed)
    assert "units are done" in resumed.stderr
    captions = sorted(line["meta"]["caption"] for line in builds.manifest(version))
    assert captions == sorted(map(builds.caption_of_number, range(1, 17)))


def test_interrupted_before_anything_has_begun(videos: Path, tmp_path: Path) -> None:
    """While Python still imports and Ray still starts, the sentence is the same."""
    driver = builds.start(builds.build_command(videos, tmp_path / "set"), RAY_ADDRESS="")
    driver_says = driver.stderr
    assert driver_says is not None
    first = driver_says.readline()
    assert first.startswith("Building")
    driver.send_signal(signal.SIGINT)
    _, printed = driver.communicate(timeout=240)
    assert driver.returncode == STATUS[signal.SIGINT], printed
    assert printed.splitlines()[-1] == "interrupted; run the same command again to go on"
