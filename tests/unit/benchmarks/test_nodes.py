"""What the benchmarks of many nodes count, on courses that are known."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import netns, nodes
from benchmarks.node_jobs import Job, Outcome
from benchmarks.node_scale import clips_per_s

ONE_MORE = """
import sys, time
from pathlib import Path
done = Path(sys.argv[1])
while (count := len(done.read_bytes())) < 20:
    done.write_bytes(bytes(count + 1))
    time.sleep(0.1)
"""


class Desk:
    """In the place of a cluster: where drivers run."""

    desk = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drivers: list[subprocess.Popen[bytes]] = []

    def run(self, host: int, command: list[str], name: str) -> Any:
        self.drivers.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        (self.folder / "log").touch()
        return self.drivers[-1], self.folder / "log"


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    return Desk(tmp_path)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Twenty things to do, one each tenth of a second."""
    done = tmp_path / "done"
    done.touch()
    command = [sys.executable, "-c", ONE_MORE, str(done)]
    nothing = Outcome(None, np.zeros(0))
    return Job("count", command, 20, lambda: len(done.read_bytes()), lambda: nothing)


def test_throughput_counts_from_where_every_node_works():
    """The second node came five seconds later; from then on two clips came a second."""
    notes = [(float(second), "one") for second in range(6)]
    notes += [(6 + half / 2, ("one", "two")[half % 2]) for half in range(1, 21)]
    assert clips_per_s(notes, 1) == pytest.approx(25 / 16)
    assert clips_per_s(notes, 2) == pytest.approx(2.0, rel=0.06)


def test_a_node_that_does_nothing_is_no_measurement():
    with pytest.raises(RuntimeError, match="1 of 2 nodes"):
        clips_per_s([(0.0, "one"), (1.0, "one")], 2)


@pytest.mark.alone
def test_a_job_is_followed_to_its_end(desk: Any, job: Job):
    course = nodes.follow(desk, job)
    assert course.starts == 1
    assert course.stalled_s < 1.5
    assert job.progress() == 20


@pytest.mark.alone
def test_a_job_whose_driver_is_lost_is_started_again_once_the_accident_is_over(desk: Any, job: Job):
    over: list[float] = []

    def accident() -> None:
        desk.drivers[0].kill()
        time.sleep(1.5)
        over.append(time.monotonic())

    course = nodes.follow(desk, job, accident)
    assert over
    assert course.starts == 2
    assert 1.5 <= course.stalled_s < 4
    assert job.progress() == 20


def test_an_accident_that_fails_is_an_error(desk: Any, job: Job):
    def accident() -> None:
        raise OSError("no such host")

    with pytest.raises(OSError, match="no such host"):
        nodes.follow(desk, job, accident)


def test_a_job_that_fails_by_itself_is_an_error(desk: Any, job: Job):
    broken = Job("broken", [sys.executable, "-c", "exit(3)"], 5, lambda: 0, job.outcome)
    with pytest.raises(RuntimeError, match="broken ended"):
        nodes.follow(desk, broken)


def test_outcomes_are_compared_to_the_byte_or_within_rounding():
    outcome = Outcome({"a": 1}, np.array([1.0, 2.0]))
    assert outcome.is_of(Outcome({"a": 1}, np.array([1.0, 2.0001])))
    assert not outcome.is_of(Outcome({"a": 1}, np.array([1.0, 2.01])))
    assert not outcome.is_of(Outcome({"a": 2}, np.array([1.0, 2.0])))
    assert not outcome.is_of(Outcome({"a": 1}, np.array([1.0, 2.0, 3.0])))


@pytest.mark.skipif(not netns.available(), reason="needs root and network namespaces")
def test_hosts_reach_each_other_until_a_link_is_cut_and_die_whole():
    with netns.Network() as network:
        one, other = network.add_host(), network.add_host()

        def answer() -> str:
            """`refused` comes from a host that is there, where nobody listens."""
            reach = f"create_connection(('{network.address(other)}', 80), 0.5)"
            program = f"import socket; socket.{reach}"
            command = network.on(one, [sys.executable, "-c", program])
            return subprocess.run(command, capture_output=True, text=True).stderr

        assert "refused" in answer()
        network.cut(other)
        assert "timed out" in answer()
        network.mend(other)
        assert any("refused" in answer() for _ in range(10)), "a moment is needed to be found again"
        sleeper = subprocess.Popen(network.on(other, ["sleep", "60"]))
        network.kill(other)
        assert sleeper.wait(5) != 0
        assert "refused" not in answer()
        nodes.in_thread(lambda: network.boot(other)).result()
        outlives_thread = any("refused" in answer() for _ in range(10))
        assert outlives_thread, "a host goes with the thread that started it"
