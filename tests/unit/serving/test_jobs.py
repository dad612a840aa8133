"""The keeper of jobs: which of them it submits again, and which have failed for good."""

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
from ray.job_submission import JobStatus
from ray.util.state.exception import RayStateApiException
from sqlalchemy.orm import Session

from spark_ray.core.errors import ConfigError, StorageError
from spark_ray.serving import job_keeper as keeper_module
from spark_ray.serving import job_logs
from spark_ray.serving import jobs as jobs_module
from spark_ray.serving.assets import AssetStore
from spark_ray.serving.database import Database, Job
from spark_ray.serving.errors import ApiError
from spark_ray.serving.job_keeper import JobKeeper
from spark_ray.serving.jobs import RUNNING, JobBook
from spark_ray.serving.schemas import JobRequest
from spark_ray.serving.settings import ServeSettings

TRACEBACK = """Traceback (most recent call last):
ConnectionError: Failed to connect to Ray cluster at 10.0.0.1:6379
"""


class RayJobs:
    """Ray's Jobs API, with drivers that have ended before one looks."""

    def __init__(self, exit_code: int | None, log: str) -> None:
        self.submitted: list[str] = []
        self.node: str | None = "node"
        self.sent_bytes = 0
        self._exit_code, self._log = exit_code, log

    def list_jobs(self) -> list[Any]:
        return [
            SimpleNamespace(submission_id=name, status=JobStatus.RUNNING) for name in self.submitted
        ]

    def submit_job(self, *, entrypoint: str, submission_id: str) -> None:
        self.submitted.append(submission_id)

    def get_job_status(self, submission: str) -> JobStatus:
        return JobStatus.FAILED

    def get_job_info(self, submission: str) -> Any:
        return SimpleNamespace(driver_exit_code=self._exit_code, driver_node_id=self.node)

    def get_log(
        self, address: str, *, submission_id: str, node_id: str, tail: int, encoding: None
    ) -> Any:
        """Stands for Ray's function of that name: pieces of the last lines."""
        end = b"".join(self._log.encode().splitlines(keepends=True)[-tail:])
        for start in range(0, len(end), 1 << 16):
            yield end[start : start + (1 << 16)]
            self.sent_bytes += 1 << 16


def kept(tmp_path: Path, jobs: RayJobs, rounds: int, *, cancelled: bool = False) -> Job:
    """A job after so many rounds of the keeper, and one more after somebody cancelled it."""

    async def keep() -> Job:
        keeper = JobKeeper(ServeSettings.from_values(state=str(tmp_path)).located())
        keeper._task.cancel()
        keeper._client = jobs  # type: ignore[assignment]
        request = JobRequest(name="set", assets=["a"])
        with keeper._database.session() as session:
            job = keeper._book.create(session, "me", request, ["/films/a.mp4"])
        for _ in range(rounds):
            keeper.reconcile()
        if cancelled:
            keeper._book.cancel(job)
            keeper.reconcile()
        return keeper._book.get(job.id, "me")

    with (
        patch.object(job_logs, "get_log", jobs.get_log),
        patch.object(job_logs, "_cluster", str),
    ):
        return asyncio.run(keep())


@pytest.mark.parametrize(
    ("exit_code", "log"),
    [(-9, ""), (137, "begun"), (1, TRACEBACK), (1, ""), (143, "interrupted; run the same")],
)
def test_a_job_whose_driver_was_lost_or_broke_is_submitted_again(
    tmp_path: Path, exit_code: int, log: str
) -> None:
    jobs = RayJobs(exit_code, log)
    job = kept(tmp_path, jobs, rounds=2)
    assert (job.state, job.attempts) == (RUNNING, 2)
    assert jobs.submitted == [f"{job.id}-1", f"{job.id}-2"]


@pytest.mark.parametrize("status", [JobStatus.STOPPED, JobStatus.SUCCEEDED])
def test_a_wish_to_stop_a_job_that_has_published_came_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: JobStatus
) -> None:
    published = SimpleNamespace(location="/sets/v3", read=lambda name: b"{}")
    monkeypatch.setattr(keeper_module, "resolve_published", lambda output: published)
    monkeypatch.setattr(keeper_module, "asdict", lambda publication: publication)
    monkeypatch.setattr(keeper_module, "publication_of", lambda metadata: {"clips": 2})
    jobs = RayJobs(0, "")
    monkeypatch.setattr(jobs, "get_job_status", lambda submission: status)
    job = kept(tmp_path, jobs, rounds=1, cancelled=True)
    if status == JobStatus.SUCCEEDED:
        assert (job.state, job.result) == (
            "succeeded", {"dataset": "mine:set", "version": "v3", "clips": 2}
        )  # fmt: skip
    else:
        assert (job.state, job.result) == ("cancelled", None)
    entries = Database(f"sqlite:///{tmp_path}/serving.db").audited("me", 9)
    assert [entry.action for entry in entries] == ["job.create", "job.cancel", f"job.{job.state}"]


def test_a_job_ends_once(tmp_path: Path) -> None:
    """Also where a second keeper looks after it, or it is cancelled at that moment."""

    async def end_twice() -> tuple[str, list[str]]:
        keeper = JobKeeper(ServeSettings.from_values(state=str(tmp_path)).located())
        keeper._task.cancel()
        with keeper._database.session() as session:
            job = keeper._book.create(session, "me", JobRequest(name="set"), ["/films/a.mp4"])
        keeper._book.cancel(job)
        keeper._end(job, "failed", error="its settings are no longer known")
        entries = keeper._database.audited("me", 9)
        return keeper._book.get(job.id, "me").state, [entry.action for entry in entries]

    assert asyncio.run(end_twice()) == ("cancelled", ["job.create", "job.cancel"])


def test_a_key_has_so_many_jobs_that_have_not_ended(tmp_path: Path) -> None:
    settings = ServeSettings.from_values(state=str(tmp_path), limits={"max_jobs_per_key": 2})
    database = Database(settings.located().database)
    book = JobBook(settings.located(), database)

    def begin(owner: str) -> Job:
        with database.session() as session:
            return book.create(session, owner, JobRequest(name="set"), ["/films/a.mp4"])

    first, _ = begin("me"), begin("me")
    with pytest.raises(ApiError, match="2 jobs that have not ended") as refused:
        begin("me")
    assert (refused.value.status, refused.value.code) == (429, "too_many_jobs")
    begin("you")
    book.cancel(first)
    begin("me")


def test_a_job_whose_driver_is_lost_every_time_is_given_up(tmp_path: Path) -> None:
    job = kept(tmp_path, RayJobs(1, TRACEBACK), rounds=9)
    assert (job.state, job.attempts) == ("failed", 5)
    assert "exit status 1" in str(job.error)
    assert "5 times" in str(job.error)


@pytest.mark.parametrize(
    ("exit_code", "log", "reason"),
    [
        (2, "error: fps: must be above 0\n", "fps: must be above 0"),
        (1, "begun\nnothing published: every video was rejected", "nothing published: every"),
    ],
)
def test_a_build_that_says_why_it_can_not_be_done_is_not_tried_again(
    tmp_path: Path, exit_code: int, log: str, reason: str
) -> None:
    job = kept(tmp_path, RayJobs(exit_code, log), rounds=3)
    assert (job.state, job.attempts) == ("failed", 1)
    assert str(job.error).startswith(reason)


@pytest.mark.parametrize("line", ["0123456789" * 6 + "\n", "0123456789" * 600_000 + "\n"])
def test_of_a_long_log_no_more_than_its_end_is_read(tmp_path: Path, line: str) -> None:
    last = "error: fps: must be above 0\n"
    jobs = RayJobs(2, line * (6_000_060 // len(line)) + last)
    job = kept(tmp_path, jobs, rounds=2)
    assert (job.state, job.error) == ("failed", "fps: must be above 0")
    log = (tmp_path / "jobs" / job.id / "log-1.txt").read_bytes()
    assert log.endswith(last.encode())
    assert len(log) <= 1 << 20
    if len(line) < 100:
        assert jobs.sent_bytes < 2 << 20, "each time that it is read, and it was twice"


@pytest.mark.parametrize("why", ["no driver", "no file", "no cluster"])
def test_a_log_that_there_is_not_is_empty(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = RayJobs(1, "begun\n")
    jobs.node = None if why == "no driver" else "node"

    def get_log(*given: Any, **settings: Any) -> Any:
        raise RayStateApiException("A file is not found at: x" if why == "no file" else "no answer")
        yield

    monkeypatch.setattr(job_logs, "get_log", get_log)
    monkeypatch.setattr(job_logs, "_cluster", str)
    if why == "no cluster":
        with pytest.raises(RayStateApiException, match="no answer"):
            job_logs.read_log(jobs, "job-1")  # type: ignore[arg-type]
    else:
        assert job_logs.read_log(jobs, "job-1") == ""  # type: ignore[arg-type]


def test_a_job_whose_log_was_lost_with_its_node_is_not_held_up(tmp_path: Path) -> None:
    class Lost(RayJobs):
        def get_log(self, *given: Any, **settings: Any) -> Any:
            raise RayStateApiException("Agent for node id: node doesn't exist.")
            yield

    jobs = Lost(None, "")
    assert kept(tmp_path / "once", jobs, rounds=2).attempts == 2
    job = kept(tmp_path / "always", Lost(None, ""), rounds=9)
    assert (job.state, job.attempts) == ("failed", 5)
    for attempt in range(1, 6):
        log = tmp_path / "always" / "jobs" / job.id / f"log-{attempt}.txt"
        assert "could not be read" in log.read_text()


def test_an_owner_hears_of_names_and_not_of_where_things_lie(tmp_path: Path) -> None:
    """In what went wrong, and in the log, of which the server itself keeps the whole truth."""
    settings = ServeSettings.from_values(state=str(tmp_path)).located()
    asset = f"asset-{'5' * 24}"
    said = (
        f"building {tmp_path}/datasets/me/set/v1 from {tmp_path}/jobs/ID/build.yaml\n"
        f"error: {tmp_path}/assets/55/{asset}/file: is no video; see {tmp_path}/other/a\n"
        '  File "/usr/lib/python3/x.py", line 3\n'
    )
    jobs = RayJobs(2, said)
    job = kept(tmp_path, jobs, rounds=2)
    book = JobBook(settings, Database(settings.database))
    assert str(tmp_path) in str(job.error)
    assert book.info(job).error == f"{asset}: is no video; see …/other/a"
    log = tmp_path / "jobs" / job.id / "log-1.txt"
    log.write_text(log.read_text().replace("ID", job.id))
    assert book.log(job) == (
        f"building mine:set/v1 from {job.id}/build.yaml\n"
        f"error: {asset}: is no video; see …/other/a\n"
        '  File "…/x.py", line 3\n'
    )


def test_what_a_lost_attempt_printed_is_told_too(tmp_path: Path) -> None:
    class Wordy(RayJobs):
        def get_log(self, *given: Any, submission_id: str, **settings: Any) -> Any:
            yield f"this is {submission_id[-1]}\n".encode()

    settings = ServeSettings.from_values(state=str(tmp_path)).located()
    jobs = Wordy(-9, "")
    job = kept(tmp_path, jobs, rounds=3)
    book = JobBook(settings, Database(settings.database))
    with (
        patch.object(job_logs, "get_log", jobs.get_log),
        patch.object(job_logs, "_cluster", str),
        patch.object(jobs_module, "jobs_client", lambda: jobs),
    ):
        log = book.log(job)
    assert job.attempts == 3
    assert log == ("this is 1\n\n--- attempt 2 ---\nthis is 2\n\n--- attempt 3 ---\nthis is 3\n")


def test_the_keeper_begins_with_clearing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    just_booted = SimpleNamespace(monotonic=lambda: 5.0, time=time.time)
    monkeypatch.setattr(keeper_module, "time", just_booted)
    left = tmp_path / "assets" / "writing" / ".000000000000000-0.00.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    os.utime(left, (0, 0))
    kept(tmp_path, RayJobs(0, ""), rounds=1)
    assert not left.exists()


def test_a_job_that_was_cancelled_as_its_keeper_died_does_not_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had been handed over, which nobody but Ray knew of."""

    class Running(RayJobs):
        stopped: list[str] = []  # noqa: RUF012

        def get_job_status(self, submission: str) -> JobStatus:
            return JobStatus.RUNNING

        def stop_job(self, submission: str) -> None:
            self.stopped.append(submission)

    class Killed(BaseException):
        """So that nothing catches it."""

    jobs = Running(0, "")

    async def keep() -> str:
        def keeper() -> JobKeeper:
            made = JobKeeper(ServeSettings.from_values(state=str(tmp_path)).located())
            made._task.cancel()
            made._client = jobs  # type: ignore[assignment]
            return made

        first = keeper()
        with first._database.session() as session:
            job, other = (
                first._book.create(session, "me", JobRequest(name=name), ["/films/a.mp4"])
                for name in ("set", "other")
            )
        with monkeypatch.context() as patched:
            patched.setattr(keeper_module, "update", Mock(side_effect=Killed))
            with pytest.raises(Killed):
                first.reconcile()
        first._book.cancel(job)
        keeper().reconcile()
        return first._book.get(other.id, "me").state

    assert asyncio.run(keep()) == RUNNING
    assert jobs.stopped == jobs.submitted[:1]
    assert len(jobs.submitted) == 2


@pytest.mark.parametrize("name", ["job-\0", "job-0123456789abcdef\0", "", "../job-0"])
def test_what_is_no_id_of_a_job_is_not_asked_of_the_database(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite finds nothing under it; to PostgreSQL a NUL in a text is an error."""
    settings = ServeSettings.from_values(state=str(tmp_path)).located()
    book = JobBook(settings, Database(settings.database))
    monkeypatch.setattr(Session, "get", None)  # a call of it fails
    with pytest.raises(ApiError, match="there is no job") as refused:
        book.get(name, "me")
    assert refused.value.status == 404


def test_an_asset_that_cannot_be_removed_holds_up_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(store: AssetStore, used: set[str]) -> None:
        raise StorageError("s3://state/assets: can't remove it: access denied")

    monkeypatch.setattr(AssetStore, "remove_expired", fail)
    jobs = RayJobs(0, "")
    kept(tmp_path, jobs, rounds=1)
    assert len(jobs.submitted) == 1


def test_what_a_job_still_has_to_read_is_kept_beyond_its_time(tmp_path: Path) -> None:
    limits = {"asset_lifetime_s": 0.05}

    async def keep() -> list[bool]:
        settings = ServeSettings.from_values(state=str(tmp_path), limits=limits).located()
        keeper = JobKeeper(settings)
        keeper._task.cancel()
        keeper._client = RayJobs(0, "")  # type: ignore[assignment]
        assets, files = keeper._assets, []
        for _ in range(2):
            asset = assets.begin("me")
            with assets.part(asset, 0) as part:
                part.write(b"fLaC" + bytes(99))
            files.append(Path(assets.location(assets.complete(asset))))
        with keeper._database.session() as session:
            keeper._book.create(session, "me", JobRequest(name="set"), [str(files[0])])
        await asyncio.sleep(0.1)
        keeper.reconcile()
        return [file.exists() for file in files]

    assert asyncio.run(keep()) == [True, False]


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ({"settings": {"captions_file": "s3://private/names.csv"}}, "s3://films/a.mp4"),
        ({"settings": {"caption_model": "/home/somebody"}}, "s3://films/a.mp4"),
        ({"settings": {"transcription_model": "s3://private/model"}}, "s3://films/a.mp4"),
        ({"settings": {"max_pixels": 10**12}}, "s3://films/a.mp4"),
        ({}, "s3://films/others.TXT "),  # whose lines could name any place
    ],
)
def test_a_job_reads_nothing_but_what_its_owner_may_name(
    tmp_path: Path, asked: dict[str, Any], place: str
) -> None:
    settings = ServeSettings.from_values(state=str(tmp_path)).located()
    database = Database(settings.database)
    book, request = JobBook(settings, database), JobRequest(name="set", **asked)
    refused = pytest.raises(ApiError, match=r"server's own|addresses that it lists")
    with refused, database.session() as session:
        book.create(session, "me", request, [place])


@pytest.mark.parametrize("setting", ["caption_backend", "transcription_backend"])
def test_a_backend_that_there_is_not_shows_before_the_job_runs(
    tmp_path: Path, setting: str
) -> None:
    settings = ServeSettings.from_values(state=str(tmp_path)).located()
    database = Database(settings.database)
    request = JobRequest(name="set", settings={setting: "blipp"})
    refused = pytest.raises(ConfigError, match=f"{setting}: 'blipp' is unknown; choose one of")
    with refused, database.session() as session:
        JobBook(settings, database).create(session, "me", request, ["s3://films/a.mp4"])


@pytest.mark.parametrize(
    "asked",
    [
        {"decode_workers": 10_000},
        {"caption_workers": 1},
        {"transcription_workers": 64},
        {"model_gpus": 8},
        {"caption_batch_size": 4096},
        {"transcription_device": "cuda:1"},
        {"ray_address": "10.0.0.1:6379"},
    ],
)
def test_how_much_of_the_cluster_a_job_takes_is_the_servers_to_say(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    settings = ServeSettings.from_values(
        state=str(tmp_path), job_settings={"decode_workers": 3, "model_gpus": 0.5}
    ).located()
    database = Database(settings.database)
    book = JobBook(settings, database)
    refused = pytest.raises(ApiError, match=f"'{next(iter(asked))}' is the server's own to set")
    with refused, database.session() as session:
        book.create(session, "me", JobRequest(name="set", settings=asked), ["s3://films/a.mp4"])
    with database.session() as session:
        job = book.create(session, "me", JobRequest(name="set"), ["s3://films/a.mp4"])
    config = book.build_config(job)
    assert (config.decode_workers, config.model_gpus) == (3, 0.5)


def test_a_job_that_cannot_be_dealt_with_does_not_hold_up_others(tmp_path: Path) -> None:
    class Broken(RayJobs):
        def get_job_status(self, submission: str) -> JobStatus:
            raise RuntimeError("Ray says nothing of this one")

    jobs = Broken(1, "")

    async def keep() -> list[str]:
        settings = ServeSettings.from_values(state=str(tmp_path), jobs_at_once=3).located()
        keeper = JobKeeper(settings)
        keeper._task.cancel()
        keeper._client = jobs  # type: ignore[assignment]
        made: list[Job] = []
        for name, asked in (("first", {}), ("outdated", {"fps": 2}), ("last", {})):
            request = JobRequest(name=name, assets=["a"], settings=asked)
            with keeper._database.session() as session:
                made.append(keeper._book.create(session, "me", request, ["/films/a.mp4"]))
            if name == "first":
                keeper.reconcile()
            if name == "outdated":
                with keeper._database.session() as session:
                    stored = session.get_one(Job, made[-1].id)
                    stored.request = {**stored.request, "settings": {"no_longer_known": 2}}
        keeper.reconcile()
        return [keeper._book.get(job.id, "me").state for job in made]

    assert asyncio.run(keep()) == [RUNNING, "failed", RUNNING]
    assert len(jobs.submitted) == 2


def test_a_job_goes_on_with_what_was_built_of_its_media_and_discards_that_of_others(
    tmp_path: Path,
) -> None:
    """Or one that was cancelled would stand in the way of every later one of its name."""
    settings = ServeSettings.from_values(state=str(tmp_path)).located()
    database = Database(settings.database)
    book = JobBook(settings, database)
    request = JobRequest(name="set", assets=["a"])
    with database.session() as session:
        first, again, other = (
            book.build_config(book.create(session, "me", request, media))
            for media in (["/films/a.mp4"], ["/films/a.mp4"], ["/films/b.mp4"])
        )
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert other.supersede


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"clip_max_s": 61}, "clip_max_s may be 60 here at most"),
        ({"caption_max_new_tokens": 257}, "caption_max_new_tokens may be 256 here at most"),
        ({"shard_bytes": 1 << 40}, "'shard_bytes' is the server's own to set"),
    ],
)
def test_a_job_takes_no_more_of_a_worker_for_a_clip_than_a_request(
    tmp_path: Path, asked: dict[str, Any], said: str
) -> None:
    settings = ServeSettings.from_values(state=str(tmp_path)).located()
    database = Database(settings.database)
    book = JobBook(settings, database)
    request = JobRequest(name="set", assets=["a"], settings=asked)
    with pytest.raises(ApiError, match=said), database.session() as session:
        book.create(session, "me", request, ["/films/a.mp4"])


def test_a_job_is_shown_also_where_the_servers_settings_now_contradict_its_own(
    tmp_path: Path,
) -> None:
    settings = ServeSettings.from_values(state=str(tmp_path)).located()
    database = Database(settings.database)
    request = JobRequest(name="set", assets=["a"], settings={"min_clip_s": 5})
    with database.session() as session:
        job = JobBook(settings, database).create(session, "me", request, ["/films/a.mp4"])
        job.state = RUNNING
    now = ServeSettings.from_values(state=str(tmp_path), job_settings={"clip_max_s": 2}).located()
    told = JobBook(now, database).info(job)
    assert (told.state, told.done, told.total) == (RUNNING, None, None)
