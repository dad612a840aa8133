"""`/v1/jobs`: builds of datasets, begun, watched, and stopped."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from ray.util.state.exception import RayStateApiException
from sqlalchemy.orm import Session

from spark_ray.core.errors import SparkRayError
from spark_ray.core.provenance import fingerprint
from spark_ray.serving.access import RunsJobs, UseServices
from spark_ray.serving.database import Job
from spark_ray.serving.errors import ApiError, as_api_error, body
from spark_ray.serving.idempotency import once
from spark_ray.serving.jobs import ENDED
from spark_ray.serving.schemas import JobInfo, JobRequest
from spark_ray.serving.services import Services

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_POLL_S = 0.5
_KEEP_ALIVE_S = 15.0

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=128,
        description="the same key again answers with what was begun before",
    ),
]


@router.post("", status_code=201)
async def create(
    wanted: JobRequest,
    response: Response,
    caller: RunsJobs,
    services: UseServices,
    idempotency_key: IdempotencyKey = None,
) -> JobInfo:
    """Begin a build of a dataset."""

    def begin(session: Session) -> str:
        locations = [
            services.assets.location(services.assets.find(session, asset, caller.id))
            for asset in wanted.assets
        ]
        for url in wanted.urls:
            services.fetcher.check_bucket(url)
        return services.jobs.create(session, caller.id, wanted, locations + wanted.urls).id

    job_id = await asyncio.to_thread(
        once,
        services.database,
        caller.id,
        idempotency_key,
        fingerprint(wanted.model_dump(mode="json")),
        begin,
    )
    response.headers["Location"] = f"/v1/jobs/{job_id}"
    return await _info(services, await _job(services, job_id, caller.id))


@router.get("")
async def show_all(
    caller: RunsJobs, services: UseServices, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> list[JobInfo]:
    """The newest jobs of this key."""
    jobs = await asyncio.to_thread(services.jobs.list, caller.id, limit)
    return [await _info(services, job) for job in jobs]


@router.get("/{job_id}")
async def show(job_id: str, caller: RunsJobs, services: UseServices) -> JobInfo:
    """How far a job is."""
    return await _info(services, await _job(services, job_id, caller.id))


@router.delete("/{job_id}", status_code=202)
async def cancel(job_id: str, caller: RunsJobs, services: UseServices) -> JobInfo:
    """Stop a job. A later one of that name goes on with what it has built, if of the same media."""
    job = await _job(services, job_id, caller.id)
    return await _info(services, await asyncio.to_thread(services.jobs.cancel, job))


@router.get("/{job_id}/logs", response_class=PlainTextResponse)
async def logs(job_id: str, caller: RunsJobs, services: UseServices) -> str:
    """What the build printed."""
    job = await _job(services, job_id, caller.id)
    try:
        return await services.outside(services.jobs.log, job)
    except (RuntimeError, OSError, RayStateApiException) as error:
        raise ApiError(
            503, "log_unavailable", "the log can't be read right now", retry_after_s=2.0
        ) from error


@router.get(
    "/{job_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def events(
    job_id: str, request: Request, caller: RunsJobs, services: UseServices
) -> StreamingResponse:
    """Server-sent events: the job each time that it changes, until it has ended, or an `error`."""
    job = await _job(services, job_id, caller.id)
    changes = _until_error(_changes(services, job), request.state.request_id)
    return StreamingResponse(changes, media_type="text/event-stream")


async def _until_error(changes: AsyncIterator[str], request_id: str) -> AsyncIterator[str]:
    """A database or storage that fails meanwhile is told, as the status has long been sent."""
    try:
        async for change in changes:
            yield change
    except SparkRayError as error:
        yield f"event: error\ndata: {json.dumps(body(as_api_error(error), request_id))}\n\n"


async def _changes(services: Services, job: Job) -> AsyncIterator[str]:
    shown, silent_s = None, 0.0
    while True:
        info = await _info(services, job)
        if info != shown:
            yield f"event: job\ndata: {json.dumps(info.model_dump(mode='json'))}\n\n"
            shown, silent_s = info, 0.0
        if info.state in ENDED:
            return
        await asyncio.sleep(_POLL_S)
        silent_s += _POLL_S
        if silent_s >= _KEEP_ALIVE_S:
            yield ": still there\n\n"  # or a proxy would take the connection for dead
            silent_s = 0.0
        job = await _job(services, job.id, job.owner)


async def _job(services: Services, job_id: str, owner: str) -> Job:
    return await asyncio.to_thread(services.jobs.get, job_id, owner)


async def _info(services: Services, job: Job) -> JobInfo:
    return await asyncio.to_thread(services.jobs.info, job)
