"""Long work, as it stands in the database: builds of datasets that were asked for over HTTP.

What is wanted stands there, and how far it is on the dataset's own storage; `job_keeper` holds both
together.
"""

import builtins
import re
import secrets
import time

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from spark_ray.core.errors import ConfigError, unknown_choice
from spark_ray.core.provenance import text_hash
from spark_ray.core.storage import Folder
from spark_ray.datasets.build import build_progress
from spark_ray.datasets.config import OPERATIONAL, BuildConfig
from spark_ray.datasets.ingest import LIST_SUFFIXES
from spark_ray.models.captioning import captioners
from spark_ray.models.transcription import transcribers
from spark_ray.serving.database import Database, Job, audit_entry
from spark_ray.serving.dataset_names import OWN
from spark_ray.serving.errors import ApiError, not_found
from spark_ray.serving.job_logs import LOST_LOG, jobs_client, log_name, read_log
from spark_ray.serving.job_progress import JobProgress
from spark_ray.serving.schemas import JobInfo, JobRequest
from spark_ray.serving.settings import ServeSettings
from spark_ray.serving.shown import without_paths

_ID = re.compile(r"job-[0-9a-f]{16}")
WAITING, RUNNING, STOPPING = "queued", "running", "cancelling"
ENDED = frozenset(("succeeded", "failed", "cancelled"))

_FIXED = frozenset(("input", "output", "version"))
# Places that the server can read and a job's owner need not, and bounds that guard it. A server
# offers others by its `job_settings`.
_FIXED |= {"captions_file", "caption_model", "caption_revision", "transcription_model"}
_FIXED |= {"max_pixels", "max_frame_rate", "max_file_bytes", "shard_bytes"}
# How much of the cluster a job takes, which changes nothing in the dataset: others need it, too.
_FIXED |= OPERATIONAL


class JobBook:
    """Jobs as their owners see them."""

    def __init__(self, settings: ServeSettings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._progress = JobProgress()

    def create(
        self, session: Session, owner: str, request: JobRequest, locations: list[str]
    ) -> Job:
        """A job that waits, once the session is committed.

        Raises:
            ApiError, ConfigError: there is no input, or the settings are wrong.
        """
        if not locations:
            raise ApiError(400, "media_missing", "give 'assets' or 'urls' to build the dataset of")
        self._check_room(session, owner)
        lists = [
            place for place in locations if place.strip().lower().endswith(tuple(LIST_SUFFIXES))
        ]
        if lists:
            said = f"{lists[0]!r}: give the addresses that it lists"
            raise ApiError(400, "invalid_request", said, param="urls")
        fixed = sorted(_FIXED & set(request.settings))
        if fixed:
            said = f"settings: {fixed[0]!r} is the server's own to set"
            raise ApiError(400, "invalid_request", said, param="settings")
        job = Job(
            id=f"job-{secrets.token_hex(8)}",
            owner=owner,
            state=WAITING,
            request={"name": request.name, "inputs": locations, "settings": request.settings},
            submission=None,
            attempts=0,
            created=time.time(),
            finished=None,
            result=None,
            error=None,
        )
        config = self.build_config(job)  # wrong settings show now, and not in a log
        for backends in (captioners, transcribers):
            chosen = getattr(config, backends.setting)
            if chosen not in backends.names:
                raise unknown_choice(backends.setting, chosen, backends.names)
        self._check_bounds(request, config)
        remembered = audit_entry("job.create", key=owner, subject=job.id, dataset=request.name)
        session.add_all([job, remembered])
        return job

    def _check_bounds(self, request: JobRequest, config: BuildConfig) -> None:
        """What a clip, or its text, may take of a worker is what it may take in a request."""
        limits = self._settings.limits
        for name, most in (
            ("clip_max_s", limits.max_clip_s),
            ("caption_max_new_tokens", limits.max_new_tokens),
        ):
            if name in request.settings and getattr(config, name) > most:
                raise ApiError(
                    400, "invalid_request", f"settings: {name} may be {most:g} here at most",
                    param="settings",
                )  # fmt: skip

    def _check_room(self, session: Session, owner: str) -> None:
        """The keeper holds every job that has not ended in memory, with all that it names."""
        most = self._settings.limits.max_jobs_per_key
        mine = select(func.count()).where(Job.owner == owner, Job.state.not_in(ENDED))
        if session.scalars(mine).one() >= most:
            said = f"this key may have {most} jobs that have not ended"
            raise ApiError(429, "too_many_jobs", said, retry_after_s=60.0)

    def build_config(self, job: Job) -> BuildConfig:
        """What is built, with the job's settings over the server's.

        The same media are the same input: a job goes on with what one that was cancelled, or given
        up, has built of them, and discards what was begun of others.
        """
        return BuildConfig.from_values(
            **{
                **self._settings.job_settings,
                **job.request["settings"],
                "input": [Folder(self._settings.state) / list_of_inputs(job)[0]],
                "supersede": True,
                # Tenants have their own names: nobody adds a version to another's dataset.
                "output": f"{self._settings.jobs_output}/{job.owner}/{job.request['name']}",
            }
        )

    def get(self, job_id: str, owner: str) -> Job:
        """
        Raises:
            ApiError: the caller has no such job.
        """
        # What is no id is not looked for: PostgreSQL takes a text with a NUL for an error.
        with self._database.session() as session:
            job = session.get(Job, job_id) if _ID.fullmatch(job_id) else None
        if job is None or job.owner != owner:
            raise not_found("job", job_id)
        return job

    def list(self, owner: str, limit: int) -> list[Job]:
        with self._database.session() as session:
            mine = select(Job).where(Job.owner == owner).order_by(Job.created.desc())
            return list(session.scalars(mine.limit(limit)))

    def newest(self, limit: int) -> builtins.list[Job]:
        """Of all owners, for operators."""
        with self._database.session() as session:
            return list(session.scalars(select(Job).order_by(Job.created.desc()).limit(limit)))

    def cancel(self, job: Job) -> Job:
        """Ask for it to be stopped; one that has ended stays as it is."""
        now = time.time()
        with self._database.session() as session:
            session.execute(
                update(Job)
                .where(Job.id == job.id, Job.state == WAITING)
                .values(state="cancelled", finished=now)
            )
            session.execute(
                update(Job).where(Job.id == job.id, Job.state == RUNNING).values(state=STOPPING)
            )
            session.add(audit_entry("job.cancel", key=job.owner, subject=job.id))
        return self.get(job.id, job.owner)

    def info(self, job: Job) -> JobInfo:
        """What the owner is told, with the progress as the storage has it."""
        done = total = None
        if job.state in (RUNNING, STOPPING):
            units = self._progress.of(job.id, lambda: self._units(job))
            done, total = units or (None, None)
        return JobInfo.model_validate(
            {
                "id": job.id,
                "name": job.request["name"],
                "state": job.state,
                "done": done,
                "total": total,
                "attempts": job.attempts,
                "created": job.created,
                "finished": job.finished,
                "result": job.result,
                "error": None if job.error is None else self._shown(job, job.error),
            }
        )

    def _units(self, job: Job) -> tuple[int, int] | None:
        try:
            return build_progress(self.build_config(job))
        except ConfigError:
            return None  # the server's own settings are others than they were; the keeper ends it

    def log(self, job: Job) -> str:
        """What the build printed, attempt by attempt."""
        folder = Folder(self._settings.state).sub(f"jobs/{job.id}")
        said = []
        for attempt in range(1, job.attempts + 1):
            if attempt > 1:
                said.append(f"\n--- attempt {attempt} ---\n")
            if folder.exists(log_name(attempt)):
                said.append(folder.read(log_name(attempt)).decode("utf-8", "replace"))
            elif attempt == job.attempts and job.submission is not None:
                said.append(read_log(jobs_client(), job.submission))
            else:
                said.append(LOST_LOG)
        return self._shown(job, "".join(said))

    def _shown(self, job: Job, said: str) -> str:
        """What a build says, with places named as its owner knows them."""
        settings, name = self._settings, job.request["name"]
        return without_paths(
            said,
            {
                f"{settings.jobs_output}/{job.owner}/{name}": f"{OWN}{name}",
                f"{settings.state}/jobs/{job.id}": job.id,
                str(settings.jobs_output): "…",
                settings.state: "…",
            },
        )


def list_of_inputs(job: Job) -> tuple[str, bytes]:
    """The list of its media: its name below the server's `state`, and what it holds."""
    listed = "\n".join(job.request["inputs"])
    return f"jobs/inputs/{text_hash(listed)[:24]}.txt", listed.encode()
