"""Jobs that are sent to a cluster from elsewhere: over lines that break, by people who leave."""

import io
import json
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builds
import pytest
import yaml
from lines import Line
from ray.job_submission import JobStatus, JobSubmissionClient

from spark_ray import __version__
from spark_ray.cluster.follow import Follower

LINES = 24
HALF = """
import pathlib, sys, time
for i in range({lines}):
    if i == {lines} // 2:
        while not pathlib.Path(sys.argv[1]).exists():
            time.sleep(0.05)
    print("line", i, flush=True)
    time.sleep(0.05)
"""


@pytest.fixture
def laptop(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The user's shell: the token, and a RAY_ADDRESS of some other cluster, which is not meant."""
    return {
        **environment,
        "RAY_ADDRESS": "http://127.0.0.1:9",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HOME": str(tmp_path),
    }


def client_of(address: str, token: str) -> JobSubmissionClient:
    """In this process, whose Ray may belong to another cluster, with another token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_API_SERVER_ADDRESS", address)
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
def client(head: dict[str, Any], token: str) -> JobSubmissionClient:
    return client_of(head["jobs"], token)


@pytest.fixture
def line(head: dict[str, Any]) -> Iterator[Line]:
    line = Line(int(head["jobs"].rpartition(":")[2]))
    yield line
    line.cut()


class Command:
    """A `spark-ray …` of the user's shell; what it writes can be read while it runs."""

    def __init__(self, environment: dict[str, str], folder: Path, *arguments: object) -> None:
        name = secrets.token_hex(4)
        self._files = [folder / f"{name}.{stream}" for stream in ("out", "err")]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.process = subprocess.Popen(
                builds.command(*arguments),
                cwd=folder,
                env=environment,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    def shows(self, text: str) -> None:
        """Wait until it has written this."""
        builds.wait_until(lambda: text in self.out, f"{text!r} in {self.err!r}")

    def finish(self) -> tuple[int, str, str]:
        self.process.wait(timeout=400)
        return self.process.returncode, self.out, self.err


def count(client: JobSubmissionClient, gate: Path) -> str:
    """A job that counts to the half, and on when the gate is there."""
    job_id = f"count-{secrets.token_hex(4)}"
    program = shlex.join([sys.executable, "-c", HALF.format(lines=LINES), str(gate)])
    client.submit_job(entrypoint=program, submission_id=job_id)
    return job_id


def counted(log: str) -> list[int]:
    """The numbers that the job printed, as they were seen."""
    return [int(line.split()[1]) for line in log.splitlines() if line.startswith("line ")]


def test_a_job_is_sent_with_its_settings_and_files_and_nothing_of_the_laptop(
    head: dict[str, Any], laptop: dict[str, str], client: JobSubmissionClient, tmp_path: Path
) -> None:
    shared, mine = tmp_path / "shared", tmp_path / "laptop"
    videos = builds.write_numbers(shared / "in", range(1, 5))
    for beside in videos.glob("*.txt"):
        beside.unlink()
    mine.mkdir()
    captions = {f"clip_{number:03d}.mp4": f"sent along {number}" for number in range(1, 5)}
    (mine / "captions.json").write_text(json.dumps(captions))
    job = {
        "job": "data build",
        "settings": {
            "input": [str(videos)],
            "output": str(shared / "set"),
            "captions_file": "captions.json",
        },
        "files": ["captions.json"],
        "env": {"SPARK_RAY_RESOLUTION": "32x32"},
        "env_from": ["SECRET_OF_MINE"],
    }
    (mine / "job.yaml").write_text(yaml.safe_dump(job))
    shell = {**laptop, "SECRET_OF_MINE": "hush-hush"}
    sent = Command(
        shell, tmp_path, "submit", "laptop/job.yaml", "--address", head["jobs"], "--", "--fps", 2
    )
    status, out, err = sent.finish()

    assert status == 0, out + err
    assert f"published {shared / 'set' / 'v1'}: 4 clips" in out
    assert "hush-hush" not in out + err
    version = shared / "set" / "v1"
    lines = builds.manifest(version)
    assert sorted(line["meta"]["caption"] for line in lines) == sorted(captions.values())
    settings = json.loads((version / "metadata.json").read_text())["config"]
    assert (settings["fps"], settings["resolution"]) == (2.0, [32, 32])

    (details,) = [j for j in client.list_jobs() if (j.submission_id or "") in err and j.metadata]
    assert details.runtime_env is not None
    assert details.runtime_env["env_vars"]["SECRET_OF_MINE"] == "hush-hush"
    assert str(mine) not in details.model_dump_json()
    assert details.metadata == {"spark_ray_job": "data build", "spark_ray_version": __version__}


def test_a_job_that_fails_gives_its_own_exit_status(
    head: dict[str, Any], laptop: dict[str, str], tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    status, out, err = Command(
        laptop, tmp_path, "submit", "--job", "data build", "--address", head["jobs"],
        "--", "--input", missing, "--output", tmp_path / "set",
    ).finish()  # fmt: skip

    assert status == 2, out + err
    assert f"error: input: '{missing}' does not exist" in out
    assert "its exit status is 2" in err
    assert "Traceback" not in out + err


def test_a_cut_line_is_taken_up_again_and_nothing_is_lost_or_doubled(
    laptop: dict[str, str], client: JobSubmissionClient, line: Line, tmp_path: Path
) -> None:
    job_id = count(client, tmp_path / "gate")
    address = f"http://127.0.0.1:{line.port}"
    following = Command(laptop, tmp_path, "jobs", "logs", job_id, "--follow", "--address", address)
    following.shows("line 0")
    line.cut()
    # The job goes on meanwhile, even to its end; what it writes must not be missing later.
    (tmp_path / "gate").touch()
    builds.wait_until(lambda: client.get_job_status(job_id).is_terminal(), "the job to end")
    line.mend()
    status, out, err = following.finish()

    assert status == 0, out + err
    assert counted(out) == list(range(LINES))
    assert "lost; the job goes on" in err
    assert "connected again" in err


def test_a_line_that_falls_silent_is_replaced(
    client: JobSubmissionClient, token: str, line: Line, tmp_path: Path
) -> None:
    """As after a laptop's sleep: nobody says that the connection is dead."""
    job_id = count(client, tmp_path / "gate")
    output = io.StringIO()
    through_line = client_of(f"http://127.0.0.1:{line.port}", token)
    silenced = 0

    class SilencedOnce(io.StringIO):
        def write(self, text: str) -> int:
            nonlocal silenced
            if not silenced and "line" in text:
                silenced = line.silence()
                (tmp_path / "gate").touch()
            return output.write(text)

    job = Follower(through_line, job_id, silence_s=2, retry_s=0.2, output=SilencedOnce()).follow()

    assert silenced
    assert job.status == JobStatus.SUCCEEDED
    assert counted(output.getvalue()) == list(range(LINES))


def test_a_reader_that_has_seen_enough_ends_it(client: JobSubmissionClient, tmp_path: Path) -> None:
    """`… --follow | head`: a closed pipe is no cut line."""
    job_id = count(client, tmp_path / "gate")

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        Follower(client, job_id, output=Closed()).follow()
    client.stop_job(job_id)


def test_ctrl_c_leaves_the_job_running_until_it_is_stopped(
    head: dict[str, Any], laptop: dict[str, str], client: JobSubmissionClient, tmp_path: Path
) -> None:
    job_id = f"sleep-{secrets.token_hex(4)}"
    client.submit_job(
        entrypoint=f"""{sys.executable} -uc 'print("up"); import time; time.sleep(600)'""",
        submission_id=job_id,
    )
    cluster = ("--address", head["jobs"])
    following = Command(laptop, tmp_path, "jobs", "logs", job_id, "--follow", *cluster)
    following.shows("up")
    following.process.send_signal(signal.SIGINT)
    status, _, err = following.finish()
    assert status == 130
    assert f"spark-ray jobs logs {job_id} --follow" in err
    assert client.get_job_status(job_id) == JobStatus.RUNNING

    status, out, err = Command(laptop, tmp_path, "jobs", "list", *cluster).finish()
    assert status == 0, err
    (row,) = [row for row in out.splitlines() if job_id in row]
    assert "running" in row

    status, out, err = Command(laptop, tmp_path, "jobs", "stop", job_id, *cluster).finish()
    assert (status, out) == (0, f"stopping {job_id}\n"), err
    builds.wait_until(lambda: client.get_job_status(job_id) == JobStatus.STOPPED, "the job to stop")
    status, out, err = Command(laptop, tmp_path, "jobs", "stop", job_id, *cluster).finish()
    assert (status, out) == (0, f"{job_id} has ended already\n"), err
    status, out, err = Command(laptop, tmp_path, "jobs", "logs", job_id, *cluster).finish()
    assert status == 0, err
    # Ray and the job write into the same log, in whatever order they get to.
    assert "up" in out.splitlines()


def test_a_wrong_token_is_one_sentence(
    head: dict[str, Any], laptop: dict[str, str], tmp_path: Path
) -> None:
    wrong = {**laptop, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = ("jobs", "stop", "none", "--address", head["jobs"])
    status, out, err = Command(wrong, tmp_path, *command).finish()
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {head['jobs']}: refuses this token")
    assert err.count("\n") == 1


def test_a_token_that_is_not_sent_is_one_sentence(
    head: dict[str, Any], laptop: dict[str, str], tmp_path: Path
) -> None:
    """Ray sends it to a named address only where it is told to."""
    silent = {name: value for name, value in laptop.items() if name != "RAY_AUTH_MODE"}
    status, out, err = Command(silent, tmp_path, "jobs", "list", "--address", head["jobs"]).finish()
    assert (status, out) == (1, "")
    assert err.startswith(
        f"error: {head['jobs']}: wants Ray's token, which is sent only with RAY_A"
    )
    assert err.count("\n") == 1


def test_an_unknown_job_is_one_sentence(
    head: dict[str, Any], laptop: dict[str, str], tmp_path: Path
) -> None:
    status, out, err = Command(
        laptop, tmp_path, "jobs", "logs", "nobody", "--address", head["jobs"]
    ).finish()
    assert (status, out) == (1, "")
    assert err.startswith(f"error: nobody: {head['jobs']} knows no such job")


def test_no_cluster_there_is_one_sentence(laptop: dict[str, str], tmp_path: Path) -> None:
    """RAY_ADDRESS names a port where nothing listens."""
    status, out, err = Command(laptop, tmp_path, "jobs", "list").finish()
    assert (status, out) == (1, "")
    assert err.startswith("error: http://127.0.0.1:9: no Ray cluster answers there")
    assert err.count("\n") == 1


def test_the_doctor_looks_at_the_cluster(
    head: dict[str, Any], laptop: dict[str, str], tmp_path: Path
) -> None:
    bare = head["jobs"].removeprefix("http://")  # as people type it
    doctor = Command(laptop, tmp_path, "doctor", "--address", bare, "--outputs", tmp_path)
    status, out, err = doctor.finish()
    lines = [line for line in out.splitlines() if "cluster " in line]
    assert status in (0, 1), err
    assert any(f"{bare} answers, and runs Ray" in line for line in lines), out
    (nodes,) = [line for line in lines if " 1 node, " in line]
    assert nodes.startswith("ok     cluster")

    wrong = {**laptop, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    status, out, _ = Command(wrong, tmp_path, "doctor", "--address", head["jobs"]).finish()
    assert status == 1
    assert "wrong  cluster" in out
    assert "refuses this token" in out
