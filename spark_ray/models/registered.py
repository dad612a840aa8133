"""Models that were registered with MLflow: `models:/apotheon@champion` and `models:/apotheon/3`.

The registry is the one that MLflow itself would use: `MLFLOW_REGISTRY_URI`, else
`MLFLOW_TRACKING_URI`, else `mlflow.db` in the working folder.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from spark_ray.core.errors import ConfigError, MissingDependency, ModelError, RegistryUnavailable
from spark_ray.core.storage import storage_errors
from spark_ray.models.cache import cached_folder

log = logging.getLogger(__name__)

SCHEME = "models:/"
SQLITE = "sqlite:///"

CHECKPOINT = "checkpoint"
"""Where in an MLflow model its own folder lies, as `save_pretrained` wrote it."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_REFERENCE = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")
_PASSWORD = re.compile(r"//[^/@\s]*@")

# What the user set goes before these. MLflow reports its usage over the network unless told not
# to, and asks a server that is gone for four minutes, without a word; 3 retries are 15 seconds.
_DEFAULTS = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}

_KNOWN_MODELS = 20


def import_mlflow(needed_for: str) -> ModuleType:
    """MLflow, quiet and impatient. The first import of a process takes about 2 s.

    Raises:
        MissingDependency: it is not installed.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow
    except ImportError as error:
        raise MissingDependency("mlflow", "train", needed_for) from error
    return mlflow


def check_model_name(name: str | None) -> str | None:
    """The name itself, if a model may be registered under it; None is none.

    Raises:
        ConfigError: it may not.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} can't be a model's name; use letters, digits, '._-'")
    return name


def find_registered(reference: str, setting: str) -> tuple[Path, str]:
    """The local folder with the `config.json` of a registered model, and its version number.

    Files on this machine are used where they are. Others are fetched once into the user's cache
    folder, under a lock, since the actors of a node all ask at the same time.

    Raises:
        MissingDependency: MLflow is not installed.
        ModelError: the reference, the registry or the model's files can't be found.
        RegistryUnavailable: the registry does not answer.
        StorageError: the model's files can't be read from their bucket or server.
    """
    with _registry(reference, setting) as (client, name, version):
        source = client.get_model_version_download_uri(name, version)
        with storage_errors(shown_uri(source), "read"):
            folder = _local_folder(source, f"{name}-{version}", setting, reference)
        return folder, version


def pinned_reference(reference: str, setting: str) -> str:
    """The reference with the version that it stands for now: models:/apotheon/3.

    Raises:
        MissingDependency, ModelError, RegistryUnavailable: as `find_registered`.
    """
    with _registry(reference, setting) as (_, name, version):
        return f"{SCHEME}{name}/{version}"


def of_version(reference: str, version: str) -> str:
    """A well-formed reference with another version: that of `models:/apotheon@x` which was used."""
    match = _REFERENCE.fullmatch(reference)
    assert match is not None
    return f"{SCHEME}{match['name']}/{version}"


def replace_files(reference: str, setting: str, files: Iterable[Path]) -> None:
    """Put small files into a registered model's folder, in the place of those of the same name.

    Raises:
        MissingDependency, ModelError: as `find_registered`.
        StorageError: the model's files can't be written to.
    """
    with _registry(reference, setting) as (client, name, version):
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        source = client.get_model_version_download_uri(name, version)
        with storage_errors(shown_uri(source), "write to"):
            repository = get_artifact_repository(source)
            for file in files:
                repository.log_artifact(str(file), CHECKPOINT)


@contextmanager
def _registry(reference: str, setting: str) -> Iterator[tuple[Any, str, str]]:
    """A client of the registry, and the name and version number that are meant."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ModelError(
            f"{setting}: {reference} is no registered model; write 'models:/name@alias' or "
            "'models:/name/version', such as models:/apotheon@champion"
        )
    mlflow = import_mlflow(f"{setting}={reference}")
    uri = mlflow.get_registry_uri()
    _check_exists(uri, setting, reference)
    try:
        # Unless told, it would also open the tracking store, and make that if it is not there.
        client = mlflow.MlflowClient(uri, uri)
        version = _version(client, match)
        if version is None:
            raise ModelError(
                f"{setting}: {reference} is not registered at {shown_uri(uri)}; "
                f"{known_models(client)}"
            )
        yield client, match["name"], version
    except mlflow.MlflowException as error:
        raise RegistryUnavailable(
            f"{setting}: {reference} can't be fetched from {shown_uri(uri)} ({first_line(error)}); "
            "check MLFLOW_TRACKING_URI and whether its server runs"
        ) from error


def open_client(uri: str) -> Any:
    """A client of a tracking server and its registry, or of a SQLite file, made if need be.

    Making one takes 6 s. MLflow fails when two processes do so at once, hence the lock.
    """
    from filelock import FileLock
    from mlflow import MlflowClient

    if not uri.startswith(SQLITE):
        return MlflowClient(uri, uri)
    file = Path(uri.removeprefix(SQLITE))
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        return MlflowClient(uri, uri)


def known_models(client: Any) -> str:
    """What is registered, as a clause for the message to one who asked for something else."""
    models = client.search_registered_models(max_results=_KNOWN_MODELS)
    if not models:
        return "nothing is registered there yet"
    return "known there: " + "; ".join(_describe(client, model) for model in models)


def shown_uri(uri: str) -> str:
    """An address, or a text with some, as it may be printed: without users and passwords."""
    return _PASSWORD.sub("//", uri)


def first_line(error: Exception) -> str:
    """What went wrong, without the traceback or SQL that MLflow puts below it, or passwords."""
    lines = str(error).strip().splitlines()
    return shown_uri(lines[0]) if lines else type(error).__name__


def _check_exists(uri: str, setting: str, reference: str) -> None:
    """Opening a SQLite file that is not there would make an empty registry, which takes 6 s."""
    file = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and not file.is_file():
        raise ModelError(
            f"{setting}: {reference} can't be looked up: there is no model registry "
            f"{file.absolute()}; set MLFLOW_TRACKING_URI to the one that the training wrote to"
        )


def _version(client: Any, match: re.Match[str]) -> str | None:
    """The version number that is meant, or None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        if match["alias"]:
            found = client.get_model_version_by_alias(match["name"], match["alias"])
        else:
            found = client.get_model_version(match["name"], match["version"])
    except MlflowException as error:
        # A missing alias is an invalid parameter to one store, a missing resource to another.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return str(found.version)


def _describe(client: Any, model: Any) -> str:
    versions = sorted(
        int(found.version)
        for found in client.search_model_versions(f"name='{model.name}'", max_results=1000)
    )
    aliases = ", ".join(f"@{alias} is {model.aliases[alias]}" for alias in sorted(model.aliases))
    numbers = ", ".join(map(str, versions)) or "none"
    return f"{model.name} (versions {numbers}{f'; {aliases}' if aliases else ''})"


def _local_folder(source: str, label: str, setting: str, reference: str) -> Path:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    repository = get_artifact_repository(source)
    here = None
    if isinstance(repository, LocalArtifactRepository):
        here = Path(repository.artifact_dir)
        if not here.is_dir():
            raise ModelError(
                f"{setting}: the files of {reference} are not on this machine, where they should "
                f"be in {here}; run there, or track to a server that keeps them"
            )
    files = dict(_files(repository, None))
    # The one nearest to the root: parts of a model may have configurations of their own.
    configs = [path for path in files if Path(path).name == "config.json"]
    if not configs:
        raise ModelError(f"{setting}: {reference} holds no config.json, so it is no model")
    inside = Path(min(configs, key=lambda path: path.count("/"))).parent
    if here:
        return here / inside

    size_bytes = sum(size for path, size in files.items() if Path(path).parent == inside)

    def fill(folder: Path) -> Path:
        log.warning(
            "%s: %s: fetching %.1f MB from the model registry", setting, reference, size_bytes / 1e6
        )
        return Path(repository.download_artifacts(inside.as_posix(), str(folder)))

    return cached_folder(label, source, fill)


def _files(repository: Any, folder: str | None) -> Iterator[tuple[str, int]]:
    """Paths and bytes of all files."""
    entries = repository.list_artifacts(folder)
    yield from ((entry.path, entry.file_size or 0) for entry in entries if not entry.is_dir)
    for entry in entries:
        if entry.is_dir:
            yield from _files(repository, entry.path)
