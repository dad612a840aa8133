"""A trained model becomes a version in MLflow's model registry.

What is stored is the model's own folder, as `save_pretrained` wrote it, with its card and its
training record, inside an MLflow model that anyone can load with `mlflow.pyfunc`. Weights are
copied once, to where the registry keeps its artifacts.
"""

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from spark_ray import __version__
from spark_ray.core.errors import ModelError
from spark_ray.core.storage import storage_errors
from spark_ray.models.model_card import MODEL_CARD
from spark_ray.models.registered import (
    CHECKPOINT,
    check_model_name,
    first_line,
    import_mlflow,
    known_models,
    open_client,
    shown_uri,
)
from spark_ray.models.training_record import TrainingRecord
from spark_ray.models.weights import hash_weights
from spark_ray.training.tracking import experiment_id

CANDIDATE, CHAMPION = "candidate", "champion"

_CODE = Path(__file__).with_name("mlflow_model.py")
_PINNED = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry."""

    name: str
    version: str

    @property
    def uri(self) -> str:
        """What to give wherever a model is asked for."""
        return f"models:/{self.name}/{self.version}"


def register_model(
    folder: Path,
    *,
    tracking_uri: str,
    name: str = "apotheon",
    alias: str = CANDIDATE,
    tags: Mapping[str, str] | None = None,
) -> RegisteredModel:
    """Register the model in a folder, and let `alias` point to it.

    The folder holds what `save_pretrained` of model and processor wrote, `training.json` and the
    card. The same files are registered once: calling it again after a kill gives the same version.

    Raises:
        ConfigError: the name can't be one.
        MissingDependency: MLflow is not installed.
        ModelError: the folder lacks its card or its record, or the registry did not take it.
        StorageError: the files can't be stored; no version is left behind.
    """
    record = TrainingRecord.read(folder)
    if not (folder / MODEL_CARD).is_file():
        raise ModelError(f"{folder}: has no {MODEL_CARD}; write its card before registering it")
    check_model_name(name)
    import_mlflow("registering a model")
    with _registry_errors(tracking_uri):
        client = open_client(tracking_uri)
        content = hash_weights(tuple(path for path in folder.rglob("*") if path.is_file()))
        query = f"name='{name}' and tags.content_sha256='{content}'"
        found = client.search_model_versions(query)
        if found:
            version = str(found[0].version)
        else:
            every = {**_provenance(record), **(tags or {}), "content_sha256": content}
            version = _create_version(client, tracking_uri, name, folder, record, every)
        client.set_registered_model_alias(name, alias, version)
    return RegisteredModel(name, version)


def promote(
    name: str, version: str, *, tracking_uri: str, alias: str = CHAMPION
) -> RegisteredModel:
    """Let an alias, by default `champion`, point to a version, and to no other.

    Raises:
        MissingDependency: MLflow is not installed.
        ModelError: there is no such version, or the alias can't be one.
    """
    mlflow = import_mlflow("promoting a model")
    with _registry_errors(tracking_uri):
        client = open_client(tracking_uri)
        try:
            client.set_registered_model_alias(name, alias, version)
        except mlflow.MlflowException as error:
            raise ModelError(
                f"models:/{name}/{version} can't become @{alias} ({first_line(error)}); "
                f"{known_models(client)}"
            ) from error
    return RegisteredModel(name, version)


def aliased_version(name: str, alias: str, *, tracking_uri: str) -> str | None:
    """The version that an alias of a registered model points to; None where it points to none."""
    with _registry_errors(tracking_uri):
        model = open_client(tracking_uri).get_registered_model(name)
    found: str | None = model.aliases.get(alias)
    return found


@contextlib.contextmanager
def _registry_errors(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        with storage_errors(shown_uri(uri), "write to"):
            yield
    except MlflowException as error:
        raise ModelError(
            f"the model registry {shown_uri(uri)} did not do as asked: {first_line(error)}"
        ) from error


def _provenance(record: TrainingRecord) -> dict[str, str]:
    """From a version in the registry back to the run and the dataset."""
    dataset = record.dataset
    return {
        "dataset": dataset.location,
        "dataset_version": dataset.version,
        "dataset_manifest_sha256": dataset.manifest_sha256,
        "training_run": record.run_id or "none",
        "code_version": record.code_version,
        "git_commit": record.git_commit or "none",
    }


def _create_version(
    client: Any, uri: str, name: str, folder: Path, record: TrainingRecord, tags: dict[str, str]
) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    run = _run(client, record.run_id)
    run_id = run.info.run_id if run else None
    experiment = run.info.experiment_id if run else experiment_id(client, uri, name)
    logged = client.create_logged_model(experiment, name, run_id, tags)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            staged = Path(scratch) / "model"
            _stage(staged, folder, record, logged)
            client.log_model_artifacts(logged.model_id, str(staged))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    if run_id:
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, record.steps)])
    created = client.create_model_version(
        name,
        logged.artifact_location,
        run_id,
        tags,
        description=f"{record.steps} steps on {record.dataset.reference}; see {CHECKPOINT}/"
        f"{MODEL_CARD} for what it can do, and {CHECKPOINT}/training.json for where it comes from",
        # Without a run, MLflow would look for the model wherever its global settings point.
        model_id=logged.model_id if run_id else None,
    )
    return str(created.version)


def _run(client: Any, run_id: str | None) -> Any:
    """The run in this store; None for a model that was trained elsewhere."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _stage(target: Path, folder: Path, record: TrainingRecord, logged: Any) -> None:
    """The MLflow model as a folder; the checkpoint's files in it are links, to copy them once."""
    import mlflow

    model = mlflow.models.Model(
        run_id=record.run_id, artifact_path=logged.artifact_location, model_id=logged.model_id
    )
    with warnings.catch_warnings():
        # It asks for an example of an input, which it could not store: frames are bytes in lists.
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            target,
            python_model=str(_CODE),
            mlflow_model=model,
            signature=_signature(),
            pip_requirements=_requirements(record),
            metadata=_provenance(record),
        )
    for file in (path for path in folder.rglob("*") if path.is_file()):
        link = target / CHECKPOINT / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())
    # What `save_model(artifacts=...)` would write, after copying everything twice.
    saved = mlflow.models.Model.load(str(target))
    saved.flavors["python_function"]["artifacts"] = {
        CHECKPOINT: {"path": CHECKPOINT, "uri": CHECKPOINT}
    }
    saved.save(str(target / "MLmodel"))


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    clip = Schema(
        [
            ColSpec(Array(DataType.binary), "frames", required=False),
            ColSpec(Array(DataType.double), "frame_times", required=False),
            ColSpec(DataType.binary, "audio", required=False),
        ]
    )
    params = ParamSchema(
        [
            ParamSpec("task", DataType.string, "caption"),
            ParamSpec("max_new_tokens", DataType.long, 64),
            ParamSpec("num_beams", DataType.long, 1),
        ]
    )
    return ModelSignature(clip, Schema([ColSpec(DataType.string, "text", required=False)]), params)


def _requirements(record: TrainingRecord) -> list[str]:
    """The versions that the model was trained with; a build's suffix (`+cpu`) is no such thing."""
    found = {name: record.environment[name] for name in _PINNED if name in record.environment}
    pinned = [f"{name}=={Version(version).public}" for name, version in found.items()]
    return [f"spark-ray[models]=={__version__}", *pinned]
