"""Of two jobs in one folder the second is refused, and one that was killed bars nobody."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from spark_ray.core import claim
from spark_ray.core.claim import Claim, alone
from spark_ray.core.errors import FolderInUse, SparkRayError
from spark_ray.core.storage import Folder

BUILD = ("build", "--version")

KINDS = ("local", "without locks", "remote")


@pytest.fixture(params=KINDS)
def version(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Folder:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    for name, seconds in (("_RENEWED_EVERY_S", 0.05), ("_DEAD_AFTER_S", 1.0)):
        monkeypatch.setattr(claim, name, seconds)
    monkeypatch.setattr(claim, "_LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(claim, "_ENDING_S", 0.2)
    if request.param == "remote":
        return Folder(f"memory://{uuid4().hex}/set/v1")
    if request.param == "without locks":
        monkeypatch.setattr(fcntl, "flock", no_locks)
    folder = Folder(str(tmp_path / "set" / "v1"))
    folder.create()
    return folder


def litter(version: Folder) -> list[str]:
    return Folder(version.location.rpartition("/")[0]).names()


def leave_behind(version: Folder, **changed: object) -> None:
    """A claim as a build leaves it that was killed."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = {"host": claim.socket.gethostname(), "processes": claim._processes(), "pid": ended.pid}
    claim._Place(version).write(Claim.model_validate({**left, "job": "killed", **changed}))


def test_a_second_build_is_refused_while_the_first_lives(version: Folder) -> None:
    with alone(version, *BUILD):
        for _ in range(2):
            with (
                pytest.raises(FolderInUse, match=r"v1: another build of it is running.*--version"),
                alone(version, *BUILD),
            ):
                pass
        with ExitStack() as other:
            other.enter_context(alone(beside(version), *BUILD))
    with alone(version, *BUILD):
        pass
    assert litter(version) == []


def beside(version: Folder) -> Folder:
    other = Folder(version.location.replace("/v1", "/v2"))
    other.create()
    return other


def test_a_build_that_fails_bars_nobody(version: Folder) -> None:
    with pytest.raises(SparkRayError, match="the disk is full"), alone(version, *BUILD):
        raise SparkRayError("the disk is full")
    with alone(version, *BUILD):
        pass
    assert litter(version) == []


@pytest.mark.parametrize("version", KINDS[1:], indirect=True)
def test_the_claim_of_a_process_that_is_gone_is_void_at_once(
    version: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_behind(version)
    with alone(version, *BUILD):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("version", KINDS[1:], indirect=True)
@pytest.mark.parametrize(
    "changed", [{"host": "another"}, {"processes": "of a container"}, {"pid": os.getpid()}]
)
def test_a_claim_that_stands_still_is_void_after_a_while(
    version: Folder, changed: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    leave_behind(version, **changed)
    started = time.monotonic()
    with alone(version, *BUILD):
        assert time.monotonic() - started >= 1.0
    assert "waiting" in capsys.readouterr().err
    assert litter(version) == []


@pytest.mark.parametrize("version", KINDS[1:], indirect=True)
def test_a_build_that_was_taken_for_dead_leaves_the_claim_of_its_successor(version: Folder) -> None:
    with alone(version, *BUILD):
        leave_behind(version, job="successor", host="another")
        time.sleep(0.2)
    left = claim._Place(version).read()
    assert left is not None
    assert left.job == "successor"


@pytest.mark.parametrize("version", KINDS[2:], indirect=True)
def test_a_whole_bucket_is_claimed_inside(version: Folder) -> None:
    bucket = Folder(version.location.removesuffix("/set/v1"))
    with alone(bucket, "tuning", "--study-dir"):
        assert [name.partition(".")[2] for name in bucket.names()] == ["claim.json"]
        with (
            pytest.raises(FolderInUse, match="another tuning"),
            alone(bucket, "tuning", "--study-dir"),
        ):
            pass
    assert bucket.names() == []


def test_the_refusal_says_what_is_running_and_what_to_give_instead(version: Folder) -> None:
    told = "another training of it is running.*; wait for its end, or give another --output-dir"
    with (
        alone(version, "training", "--output-dir"),
        pytest.raises(FolderInUse, match=told),
        alone(version, "training", "--output-dir"),
    ):
        pass


@pytest.mark.parametrize("version", KINDS[:1], indirect=True)
def test_the_lock_of_a_killed_process_is_gone_with_it(version: Folder) -> None:
    hold = (
        "import sys, time; from spark_ray.core.storage import Folder; "
        "from spark_ray.core.claim import alone\n"
        "with alone(Folder(sys.argv[1]), 'build', '--version'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, version.location], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(FolderInUse, match="another build"), alone(version, *BUILD):
        pass
    holder.kill()
    holder.communicate()
    with alone(version, *BUILD):
        pass


def test_a_build_waits_for_one_that_is_just_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a job is sent again a moment before its old driver is gone."""
    monkeypatch.setattr(claim, "_LOOK_EVERY_S", 0.02)
    version = Folder(str(tmp_path / "set" / "v1"))
    version.create()
    hold = (
        "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), 2); "
        "print('held', flush=True); time.sleep(0.5)"
    )
    command = [sys.executable, "-c", hold, version.location]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ending:
        assert ending.stdout is not None
        assert ending.stdout.readline() == "held\n"
        with alone(version, *BUILD):
            pass


def test_a_folder_that_was_removed_while_one_waited_for_it_is_locked_anew(tmp_path: Path) -> None:
    """Else the one who waited would have the old folder, and the next one a new one beside it."""
    version = Folder(str(tmp_path / "v1"))
    waiting = threading.Event()
    told: list[str] = []

    def wait() -> None:
        waiting.set()
        with alone(version, "build", "--version"):
            with pytest.raises(FolderInUse), alone(version, "build", "--version"):
                told.append("two are in")
            told.append("one is in")

    second = threading.Thread(target=wait)
    with alone(version, "build", "--version"):
        second.start()
        waiting.wait()
        time.sleep(0.2)
        (tmp_path / "v1").rmdir()
    second.join()
    assert told == ["one is in"]
