"""Send one of our jobs to a cluster: its settings, its files, its environment, this very code."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from ray.job_submission import JobSubmissionClient

import spark_ray
from spark_ray import __version__
from spark_ray.cluster.config import SubmitConfig
from spark_ray.cluster.jobs_api import cluster_errors
from spark_ray.cluster.workload import check_for_cluster, config_class, entrypoint, texts
from spark_ray.core.errors import ClusterError, ConfigError
from spark_ray.core.storage import is_remote, is_there

SETTINGS = "settings.yaml"
JOB_LABEL = "spark_ray_job"

_MOST_BYTES = 256 << 20
_INPUT = "input"  # always files, folders or patterns


@dataclass(frozen=True)
class Package:
    """What goes to the cluster. The folder holds the settings and the files, and nothing else."""

    job: str
    folder: Path
    settings: Mapping[str, Any]
    environment: Mapping[str, str] = field(repr=False)

    def cluster_paths(self) -> list[str]:
        """Absolute paths among the settings, which the cluster's nodes must know."""
        return sorted({text for _, text in texts(self.settings) if text.startswith("/")})

    def needs_tracking(self) -> bool:
        """Whether it ends at once where the cluster's nodes don't say where runs are tracked."""
        tracked = "tracking_uri" in config_class(self.job).model_fields
        said = self.settings.get("tracking_uri") or "MLFLOW_TRACKING_URI" in self.environment
        return tracked and not said


@contextmanager
def packed(config: SubmitConfig, base: Path, flags: Sequence[str]) -> Iterator[Package]:
    """Check the job's settings here, and lay out what it takes along.

    Args:
        base: the folder that `files` are relative to.
        flags: of the job itself; they go before its settings.

    Raises:
        ConfigError: a setting or file is wrong, or means something on this machine only.
    """
    environment = {**config.env, **_taken_over(config.env_from)}
    with tempfile.TemporaryDirectory(prefix="spark-ray-submit-") as name:
        folder = Path(name) / "job"
        folder.mkdir()
        settings = _settings(config, Path(name) / "given.yaml", flags)
        for file in config.files:
            _take(base, file, folder)
        _check_files_go_along(settings, config.files, base)
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        (folder / SETTINGS).write_text(text)
        yield Package(config.job, folder, settings, environment)


def send(client: JobSubmissionClient, package: Package) -> str:
    """Hand the package to the cluster; the id by which it knows the job from now on.

    Raises:
        ClusterError: the cluster can't be reached, or refuses it.
    """
    job_id = f"{package.job.replace(' ', '-')}-{secrets.token_hex(4)}"
    with cluster_errors(client.get_address()):
        try:
            client.submit_job(
                entrypoint=entrypoint(package.job, SETTINGS),
                submission_id=job_id,
                runtime_env={
                    "working_dir": str(package.folder),
                    "py_modules": [str(Path(spark_ray.__file__).parent)],
                    "env_vars": dict(package.environment),
                },
                metadata={JOB_LABEL: package.job, "spark_ray_version": __version__},
            )
        except ValueError as error:  # Ray's word for files that are too large
            raise ClusterError(f"{package.job}: {error}") from error
    return job_id


def _settings(config: SubmitConfig, given: Path, flags: Sequence[str]) -> dict[str, Any]:
    """What was set for the job, and nothing that is as it would be by itself."""
    if any(flag == "--config" or flag.startswith("--config=") for flag in flags):
        if config.settings:
            raise ConfigError(
                "settings: are given twice, in the job's file and by a --config after --; "
                "give them once"
            )
        file = []
    else:
        given.write_text(yaml.safe_dump(config.settings, allow_unicode=True))
        file = ["--config", str(given)]
    cls = config_class(config.job)
    try:
        job = cls.from_command_line([*file, *flags], f"spark-ray {config.job}")
    except ConfigError as error:
        text = str(error).replace(f"--config {given}: ", "").replace(f"in {given}, ", "")
        raise ConfigError(f"settings of {config.job}: {text}") from error
    check_for_cluster(config.job, job)
    return job.model_dump(mode="json", exclude_unset=True)


def _taken_over(names: Sequence[str]) -> dict[str, str]:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(
            f"env_from: {missing[0]} is not set in this shell; set it or leave it out"
        )
    return {name: os.environ[name] for name in names}


def _take(base: Path, file: str, folder: Path) -> None:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(
            f"files: {file!r} leads out of {base}; only what lies in it goes along, by its "
            "relative path"
        )
    source = base / path
    if not source.exists() or source.is_symlink():
        raise ConfigError(f"files: {file!r} does not exist in {base}, or is a link")
    size_bytes = 0
    for part in [source, *source.rglob("*")]:
        shown = str(part.relative_to(base))
        if part.is_symlink() and (part.is_dir() or not part.exists()):
            raise ConfigError(
                f"files: {shown!r} is a link to a folder, or to nothing; list what it stands for"
            )
        if not part.resolve().is_relative_to(base.resolve()):
            raise ConfigError(f"files: {shown!r} leads out of {base}")
        size_bytes += part.stat().st_size if part.is_file() else 0
    if size_bytes > _MOST_BYTES:
        raise ConfigError(
            f"files: {file!r} has {size_bytes >> 20} MiB, more than the {_MOST_BYTES >> 20} MiB "
            "that go along with a job; put it into a bucket"
        )
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        # In these Ray would read what else to leave out: what lies here on purpose.
        ignored = shutil.ignore_patterns(".gitignore", ".rayignore")
        shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def _check_files_go_along(settings: Mapping[str, Any], files: Sequence[str], base: Path) -> None:
    """
    Raises:
        ConfigError: a setting names something that lies here, and would not be there.
    """
    sent = [PurePosixPath(file) for file in files]
    for name, text in texts(settings):
        path = PurePosixPath(text)
        if is_remote(text) or path.is_absolute() or any(path.is_relative_to(f) for f in sent):
            continue
        is_word = "/" not in text and "." not in text  # whatever else bears the name
        if name == _INPUT or (not is_word and is_there(base / path)):
            raise ConfigError(
                f"{name}: {text!r} does not go along; list it under files, or put it where the "
                "cluster can reach it"
            )
