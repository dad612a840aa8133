"""The weights that jobs take: here, to be fetched, or nowhere; and where fetched ones go."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from spark_ray.core.errors import SparkRayError
from spark_ray.core.storage import is_folder, is_there, user_path
from spark_ray.doctor.config import DoctorConfig
from spark_ray.doctor.findings import Finding
from spark_ray.models.registered import SCHEME as REGISTERED
from spark_ray.models.weights import (
    SAFETENSORS,
    check_reference,
    offline,
    resolve_weights,
)

_TIMEOUT_S = 5.0


def check_models(config: DoctorConfig) -> Iterator[Finding]:
    yield check_cache(hub_cache())
    if tracker := os.environ.get("MLFLOW_TRACKING_URI"):
        yield check_tracker(tracker)
    for reference in config.models:
        yield check_model(reference)


def hub_cache() -> Path:
    """Where the hub's client puts what it fetches; see its documentation for the variables."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def check_cache(folder: Path) -> Finding:
    there = folder
    while not is_there(there) and there != there.parent:
        there = there.parent
    if not is_folder(there) or not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            "models",
            "wrong",
            f"{folder}, where weights are kept, can't be written; mend it or set HF_HOME",
        )
    how = "nothing is downloaded (HF_HUB_OFFLINE)" if offline() else "weights are downloaded to"
    return Finding("models", "ok", f"{how}; kept in {folder}" if offline() else f"{how} {folder}")


def check_model(reference: str) -> Finding:
    """Whether a model's weights are on this machine, without fetching any."""
    try:
        check_reference(reference, "models")
        if reference.startswith(REGISTERED) or is_folder(user_path(reference)):
            weights = resolve_weights(
                reference, setting="models", revision=None, kind=SAFETENSORS, instead="leave it out"
            )
            size = sum(file.stat().st_size for file in weights.files) / 1e9
            return Finding("models", "ok", f"{reference}: {size:.2f} GB in {weights.folder}")
    except SparkRayError as error:
        return Finding("models", "wrong", str(error))
    return _check_hub_model(reference)


def _check_hub_model(reference: str) -> Finding:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(reference, local_files_only=True)
    except errors.LocalEntryNotFoundError:
        if offline():
            text = f"{reference} is not on this machine, and HF_HUB_OFFLINE=1 forbids fetching it"
            return Finding("models", "wrong", text)
        return Finding("models", "note", f"{reference} is fetched from the hub when it is needed")
    return Finding("models", "ok", f"{reference} is in {folder}")


def check_tracker(uri: str) -> Finding:
    """An MLflow server answers on /health; files and databases are their own matter."""
    if not uri.startswith(("http://", "https://")):
        return Finding("models", "ok", f"runs and models are registered in {uri}")
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_TIMEOUT_S):  # noqa: S310
            return Finding("models", "ok", f"MLflow answers at {uri}")
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        return Finding(
            "models",
            "wrong",
            f"MLFLOW_TRACKING_URI: {uri} does not answer ({reason}); start it or correct the name",
        )
