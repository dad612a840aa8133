"""Log lines say which job, clip or request they are about."""

import asyncio
import json
import re
import subprocess
import sys

import httpx2 as httpx
from ray.serve import context
from starlette.responses import JSONResponse
from structlog.contextvars import get_contextvars

from spark_ray.monitoring.logs import job_ids, serve_ids
from spark_ray.serving.envelope import Envelope
from spark_ray.serving.settings import RequestLimits

# In a process of its own, as a worker is: a logger remembers how it was configured at first.
WORKER = """
import json, os
from spark_ray.core.schema import Clip, clips_to_table
from spark_ray.datasets.stages import StagePool, rejected

class Refusing:
    name, holds_weights = "refusing", False
    def setup(self): pass
    def process(self, clips):
        for clip in clips:
            yield rejected(clip, self.name, ValueError("no"))

pool = StagePool([Refusing()])
del os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"]  # a worker on another node has no such thing
clip = Clip(clip_id="aa-0-1", video_id="aa", unit_id="aa", source_path="a.mp4")
list(pool(clips_to_table([clip])))
"""
SUBMITTED = {"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "job-7-1"}}'}


def test_a_reject_is_logged_with_its_clip_and_the_job_that_it_belongs_to() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        capture_output=True,
        text=True,
        check=True,
        env={**SUBMITTED, "SPARK_RAY_LOG_LEVEL": "info"},
    )
    (line,) = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert (line["event"], line["clip"], line["submission"], line["stage"], line["error"]) == (
        "rejected", "aa-0-1", "job-7-1", "refusing", "ValueError",
    )  # fmt: skip


def test_without_a_job_there_is_no_submission() -> None:
    assert "submission" not in job_ids()


def test_a_request_keeps_its_id_through_the_gateway() -> None:
    async def app(scope: dict, receive: object, send: object) -> None:
        answer = JSONResponse(get_contextvars())
        await answer(scope, receive, send)  # type: ignore[arg-type]

    async def ask() -> tuple[str, dict]:
        transport = httpx.ASGITransport(
            Envelope(app, RequestLimits.model_validate({}), re.compile(""))
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.get("/")
        return answer.headers["x-request-id"], answer.json()

    request_id, seen = asyncio.run(ask())
    assert seen == {"request_id": request_id}
    assert "request_id" not in get_contextvars()


def test_a_replica_logs_the_request_that_it_answers() -> None:
    before = context._get_serve_request_context()
    assert serve_ids() == {}
    context._serve_request_context.set(context._RequestContext(request_id="req-1"))
    try:
        assert serve_ids() == {"request_id": "req-1"}
    finally:
        context._serve_request_context.set(before)
