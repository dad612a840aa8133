"""The keeper of jobs: it holds what is wanted and what runs together.

It submits each build to Ray's Jobs API, as `ray job submit` would, and submits it again when its
driver or the whole cluster was lost; the build then resumes.
"""

import asyncio
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state.exception import RayStateApiException
from sqlalchemy import select, update

from spark_ray.core.errors import ConfigError, SparkRayError
from spark_ray.core.logging import configure_logging, get_logger
from spark_ray.core.storage import Folder
from spark_ray.datasets.layout import METADATA, resolve_published
from spark_ray.datasets.publish import publication_of
from spark_ray.monitoring.logs import serve_ids
from spark_ray.monitoring.metrics import JOBS
from spark_ray.serving.assets import AssetStore
from spark_ray.serving.database import Database, Job, audit_entry
from spark_ray.serving.dataset_names import OWN
from spark_ray.serving.job_logs import LOST_LOG, jobs_client, log_name, read_log
from spark_ray.serving.jobs import ENDED, RUNNING, STOPPING, WAITING, JobBook, list_of_inputs
from spark_ray.serving.settings import ServeSettings
from spark_ray.serving.shown import shown_source

log = get_logger(__name__)

_MOST_ATTEMPTS = 5
_POLL_S = 1.0
_CLEAN_UP_EVERY_S = 3600.0
_FAILED_FOR_GOOD = (1, 2)  # exit statuses of `data build`: nothing to publish, wrong settings
_LAST_WORDS = ("error: ", "nothing published: ")


class JobKeeper:
    """Holds jobs and Ray's Jobs API together. One replica; a second would do no harm."""

    def __init__(self, settings: ServeSettings) -> None:
        configure_logging(ids=serve_ids)
        self._settings = settings
        self._database = Database(settings.database)
        self._book = JobBook(settings, self._database)
        self._assets = AssetStore(settings.state, self._database, settings.limits)
        self._cleaned = float("-inf")
        self._took_over = False
        self._client: JobSubmissionClient | None = None
        self._beat = time.monotonic()
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def check_health(self) -> None:
        if time.monotonic() - self._beat > 120 or self._task.done():
            raise RuntimeError("the keeper of jobs stands still")

    async def _keep(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.reconcile)
            except Exception as error:  # noqa: BLE001 - the next round may find the world in order
                log.error("jobs not reconciled", error=f"{type(error).__name__}: {error}")
            self._beat = time.monotonic()
            await asyncio.sleep(_POLL_S)

    def reconcile(self) -> None:
        """One round: look after what runs, then begin what waits."""
        with self._database.session() as session:
            jobs = list(
                session.scalars(
                    select(Job).where(Job.state.not_in(ENDED)).order_by(Job.created, Job.id)
                )
            )
        if not self._took_over:
            self._stop_unwanted()
            self._took_over = True
        if time.monotonic() - self._cleaned > _CLEAN_UP_EVERY_S:
            self._clean_up(jobs)
        for state in (WAITING, RUNNING, STOPPING):
            JOBS.set(sum(job.state == state for job in jobs), state=state)
        running = [job for job in jobs if job.state != WAITING]
        for job in running:
            self._carefully(self._look_after, job)
        busy = {_dataset(job) for job in running}
        room = self._settings.jobs_at_once - len(running)
        for job in jobs:
            if room > 0 and job.state == WAITING and _dataset(job) not in busy:
                self._carefully(self._submit, job)
                busy.add(_dataset(job))
                room -= 1

    def _stop_unwanted(self) -> None:
        """What runs of jobs that have ended: one that was cancelled after the keeper before us had
        handed it over, and before it could remember that, would run on."""
        submissions = [
            known.submission_id
            for known in self._ray_jobs().list_jobs()
            if known.submission_id and not known.status.is_terminal()
        ]
        with self._database.session() as session:
            ended = set(
                session.scalars(
                    select(Job.id).where(
                        Job.id.in_(map(_job_of, submissions)), Job.state.in_(ENDED)
                    )
                )
            )
        for submission in submissions:
            if _job_of(submission) in ended:
                log.warning("unwanted job stopped", submission=submission)
                self._ray_jobs().stop_job(submission)

    def _clean_up(self, jobs: list[Job]) -> None:
        """Remove what is out of date. Something that can't be removed does not hold up jobs."""
        self._cleaned = time.monotonic()
        used = {shown_source(place) for job in jobs for place in job.request["inputs"]}
        try:
            self._assets.remove_expired(used)
        except SparkRayError as error:  # tried again in an hour
            log.error("assets not removed", error=str(error))

    def _carefully(self, step: Callable[[Job], None], job: Job) -> None:
        """One job that can't be dealt with does not hold up those of others."""
        try:
            step(job)
        except ConfigError as error:  # the server's own settings are others than they were
            self._end(job, "failed", error=str(error))
        except Exception as error:  # noqa: BLE001 - the next round may find the world in order
            log.error("job not kept", job=job.id, error=f"{type(error).__name__}: {error}")

    def _look_after(self, job: Job) -> None:
        status = self._status(job)
        if status == JobStatus.SUCCEEDED:
            self._succeed(job)  # also where a wish to stop it came too late: it is published
        elif job.state == STOPPING:
            if status in (JobStatus.PENDING, JobStatus.RUNNING):
                assert job.submission is not None
                self._ray_jobs().stop_job(job.submission)
            else:
                self._end(job, "cancelled")
        elif status in (JobStatus.FAILED, JobStatus.STOPPED):
            self._failed(job)
        elif status is None:
            self._again(job, "its cluster was lost")  # a new one knows nothing; the dataset does

    def _status(self, job: Job) -> JobStatus | None:
        """What Ray says of its last submission; None where it knows of none."""
        if job.submission is None or not self._is_known(job.submission):
            return None
        return self._ray_jobs().get_job_status(job.submission)

    def _is_known(self, submission: str) -> bool:
        return any(known.submission_id == submission for known in self._ray_jobs().list_jobs())

    def _submit(self, job: Job) -> None:
        """Hand it to Ray, then remember that: killed in between, the next round does it again."""
        attempt = job.attempts + 1
        submission = f"{job.id}-{attempt}"
        folder = Folder(self._settings.state).sub(f"jobs/{job.id}")
        config = self._book.build_config(job)
        Folder(self._settings.state).write(*list_of_inputs(job))
        folder.write("build.yaml", config.as_yaml().encode())
        entrypoint = [sys.executable, "-m", "spark_ray.cli", "data", "build"]
        entrypoint += ["--config", folder / "build.yaml"]
        if not self._is_known(submission):
            self._ray_jobs().submit_job(entrypoint=shlex.join(entrypoint), submission_id=submission)
        with self._database.session() as session:
            changed = session.execute(
                update(Job)
                .where(Job.id == job.id, Job.state == job.state)
                .values(state=RUNNING, submission=submission, attempts=attempt)
            )
            cancelled = changed.rowcount != 1  # type: ignore[attr-defined]
        if cancelled:
            self._ray_jobs().stop_job(submission)
        log.info("job submitted", job=job.id, attempt=attempt, cancelled=cancelled)

    def _succeed(self, job: Job) -> None:
        try:
            version = resolve_published(self._book.build_config(job).output)
        except SparkRayError as error:
            self._end(job, "failed", error=str(error))
            return
        metadata = json.loads(version.read(METADATA))
        result = {
            "dataset": f"{OWN}{job.request['name']}",
            "version": version.location.rstrip("/").rpartition("/")[2],
            **asdict(publication_of(metadata)),
        }
        self._end(job, "succeeded", result=result)

    def _failed(self, job: Job) -> None:
        """Again, if its driver was lost; not, if the build itself said that it can't be done."""
        assert job.submission is not None
        code = self._ray_jobs().get_job_info(job.submission).driver_exit_code
        last_words: list[str] = []
        if code in _FAILED_FOR_GOOD:  # or its log may be lost as well, with the driver's node
            said = read_log(self._ray_jobs(), job.submission).splitlines()
            last_words = [line for line in said if line.startswith(_LAST_WORDS)]
        # Python, too, exits with 1, when something broke that the build says nothing of.
        if last_words:
            self._end(job, "failed", error=last_words[-1].removeprefix("error: "))
        else:
            self._again(job, f"its driver was lost (exit status {code})")

    def _again(self, job: Job, reason: str) -> None:
        log.warning("job lost", job=job.id, attempt=job.attempts, reason=reason)
        self._keep_log(job)
        if job.attempts < _MOST_ATTEMPTS:
            self._submit(job)
        else:
            self._end(job, "failed", error=f"{reason}, {job.attempts} times in all")

    def _end(self, job: Job, state: str, *, result: Any = None, error: str | None = None) -> None:
        self._keep_log(job)
        with self._database.session() as session:
            ended = session.execute(
                update(Job)
                .where(Job.id == job.id, Job.state.not_in(ENDED))
                .values(state=state, result=result, error=error, finished=time.time())
            )
            if ended.rowcount == 1:  # type: ignore[attr-defined]
                session.add(audit_entry(f"job.{state}", key=job.owner, subject=job.id))

    def _keep_log(self, job: Job) -> None:
        """What its attempt printed, while Ray still knows of it."""
        if job.submission is None or self._status(job) is None:
            return
        try:
            said = read_log(self._ray_jobs(), job.submission)
        except (RayStateApiException, OSError, RuntimeError) as failure:
            # Its node may be gone for good, and the attempt has ended nevertheless.
            log.warning("log lost", job=job.id, error=str(failure))
            said = LOST_LOG
        folder = Folder(self._settings.state).sub(f"jobs/{job.id}")
        folder.write(log_name(job.attempts), said.encode())

    def _ray_jobs(self) -> JobSubmissionClient:
        self._client = self._client or jobs_client()
        return self._client


def _job_of(submission: str) -> str:
    """The id of the job that a submission is an attempt at."""
    return submission.rpartition("-")[0]


def _dataset(job: Job) -> tuple[str, str]:
    return job.owner, job.request["name"]
