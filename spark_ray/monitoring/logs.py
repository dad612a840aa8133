"""Ids that every log line of a process carries, so that one search finds all lines of a job."""

import json
import os
import sys

_JOB_ENVIRONMENT = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray's Jobs API tells a driver what it was submitted as."""


def job_ids() -> dict[str, str]:
    """`job`, as Ray counts it, and `submission`, where Ray's Jobs API started it.

    Known on the driver; hand them to workers, which can't know the second.
    """
    ids: dict[str, str] = {}
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ids["job"] = ray.get_runtime_context().get_job_id()
    submitted = json.loads(os.environ.get(_JOB_ENVIRONMENT, "{}")).get("metadata", {})
    if "job_submission_id" in submitted:
        ids["submission"] = submitted["job_submission_id"]
    return ids


def serve_ids() -> dict[str, str]:
    """`request_id`, in a replica that is answering one: as the gateway and the caller know it."""
    context = sys.modules.get("ray.serve.context")
    if context is None:
        return {}
    request_id = context._get_serve_request_context().request_id
    return {"request_id": request_id} if request_id else {}
