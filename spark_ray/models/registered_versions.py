"""What a registry knows of a model: its versions, what they learned from, and how good they are.

Only the small files beside the weights are read; no weights are fetched.
"""

import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from spark_ray.core.errors import ModelError
from spark_ray.core.storage import storage_errors
from spark_ray.models.model_card import MODEL_CARD
from spark_ray.models.registered import CHECKPOINT, SCHEME, first_line, import_mlflow, shown_uri
from spark_ray.models.training_record import TRAINING_RECORD, TrainingRecord

_MOST_CARD_CHARS = 200_000


@dataclass(frozen=True)
class ModelVersion:
    """A version of a model. `created_s` is seconds since 1970; folders have no number or time."""

    version: str | None
    aliases: tuple[str, ...]
    created_s: float | None
    record: TrainingRecord | None


def model_versions(reference: str, most: int) -> list[ModelVersion]:
    """The newest versions of `models:/name`, or the one that a model's folder is.

    Raises:
        MissingDependency: MLflow is not installed.
        ModelError: the registry can't be asked.
    """
    if not reference.startswith(SCHEME):
        folder = Path(reference)
        is_recorded = (folder / TRAINING_RECORD).is_file()
        record = TrainingRecord.read(folder) if is_recorded else None
        return [ModelVersion(None, (), None, record)]
    name = reference.removeprefix(SCHEME)
    mlflow = import_mlflow(f"model={reference}")
    uri = mlflow.get_registry_uri()
    try:
        client = mlflow.MlflowClient(uri, uri)
        aliases = defaultdict(list)
        for alias, version in client.get_registered_model(name).aliases.items():
            aliases[str(version)].append(alias)
        found = client.search_model_versions(
            f"name='{name}'", max_results=most, order_by=["version_number DESC"]
        )
        return [
            ModelVersion(
                str(version.version),
                tuple(sorted(aliases[str(version.version)])),
                version.creation_timestamp / 1000,
                _record(client, name, str(version.version)),
            )
            for version in found
        ]
    except mlflow.MlflowException as error:
        raise ModelError(
            f"model: {reference} can't be looked up at {shown_uri(uri)} ({first_line(error)})"
        ) from error


def model_card(reference: str, version: str | None) -> str | None:
    """The card of a version of `models:/name`, or of the model in a folder, as Markdown.

    Raises:
        MissingDependency: MLflow is not installed.
        ModelError: the registry can't be asked, or has no such version.
    """
    if not reference.startswith(SCHEME):
        file = Path(reference) / MODEL_CARD
        return file.read_text("utf-8")[:_MOST_CARD_CHARS] if file.is_file() else None
    mlflow = import_mlflow(f"model={reference}")
    uri = mlflow.get_registry_uri()
    try:
        client = mlflow.MlflowClient(uri, uri)
        data = _small_file(client, reference.removeprefix(SCHEME), str(version), MODEL_CARD)
    except mlflow.MlflowException as error:
        raise ModelError(
            f"model: {reference}/{version} has no card at {shown_uri(uri)} ({first_line(error)})"
        ) from error
    return None if data is None else data.decode("utf-8", "replace")[:_MOST_CARD_CHARS]


def _record(client: Any, name: str, version: str) -> TrainingRecord | None:
    data = _small_file(client, name, version, TRAINING_RECORD)
    try:
        return None if data is None else TrainingRecord.model_validate_json(data)
    except ValidationError:
        return None  # of another version of SparkRay: its model may still be served


def _small_file(client: Any, name: str, version: str, file: str) -> bytes | None:
    """A file of a registered model's folder; None where there is none."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    source = client.get_model_version_download_uri(name, version)
    with storage_errors(shown_uri(source), "read"), tempfile.TemporaryDirectory() as scratch:
        repository = get_artifact_repository(source)
        entries = repository.list_artifacts(CHECKPOINT)
        if not any(PurePosixPath(entry.path).name == file for entry in entries):
            return None
        return Path(repository.download_artifacts(f"{CHECKPOINT}/{file}", scratch)).read_bytes()
