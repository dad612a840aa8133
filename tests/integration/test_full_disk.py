"""A disk that fills up stops the build with one sentence; with more room it goes on."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import builds
import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 300 kB. Mounting one takes root."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr!r}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_the_disk_is_full(
    cluster: str,
    numbers: Path,
    small_disk: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings = {"fps": 8, "smart_sampling": "false"}
    undisturbed = builds.build(numbers, tmp_path / "set", **settings)
    build = builds.build_command(
        numbers,
        small_disk / "set",
        fps=8,
    )
    command = [*build, "--no-smart-sampling"]

    full = builds.run(command)

    said = builds.assert_one_sentence(full, 1)
    assert "the disk is full" in said
    assert str(small_disk) in said

    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    builds.assert_published(builds.run(command))
    builds.assert_same(small_disk / "set" / "v1", undisturbed)
