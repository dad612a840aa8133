"""One of our jobs with its settings, as it goes to a cluster."""

import shlex
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Self, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from spark_ray.core.config import JobConfig
from spark_ray.core.errors import ConfigError, unknown_choice
from spark_ray.core.storage import is_remote

CONFIGS = {
    "data build": "spark_ray.datasets.config:BuildConfig",
    "train apotheon": "spark_ray.training.config:TrainConfig",
    "tune": "spark_ray.training.search.config:StudyConfig",
    "evaluate": "spark_ray.evaluation.config:EvaluateConfig",
}

_RESULTS = ("output", "output_dir", "study_dir")


class Workload(BaseModel):
    """A job of ours, and its settings."""

    model_config = ConfigDict(extra="forbid")

    job: str = Field(description="what runs, as after `spark-ray`: " + ", ".join(CONFIGS))
    settings: dict[str, Any] = Field(default_factory=dict, description="as in its --config file")

    @field_validator("job")
    @classmethod
    def _known_job(cls, job: str) -> str:
        if job not in CONFIGS:
            raise unknown_choice("job", job, CONFIGS)
        return job

    @model_validator(mode="after")
    def _settings_are_its_own(self) -> Self:
        check_for_cluster(self.job, config_class(self.job).from_values(**self.settings))
        return self


def config_class(job: str) -> type[JobConfig]:
    """The class that describes a job's settings; imported only now, for it may bring torch."""
    module, _, name = CONFIGS[job].partition(":")
    return cast(type[JobConfig], getattr(import_module(module), name))


def entrypoint(job: str, settings_file: str) -> str:
    """The shell line that runs a job on a cluster."""
    return shlex.join(["python", "-m", "spark_ray.cli", *job.split(), "--config", settings_file])


def check_for_cluster(job: str, config: JobConfig) -> None:
    """
    Raises:
        ConfigError: a setting means something on this machine only.
    """
    for name, text in texts(config.model_dump(mode="json", exclude_unset=True)):
        if text.startswith("~"):
            raise ConfigError(
                f"{name}: {text!r} is in somebody's home folder, which a cluster has not; give an "
                "absolute path of the cluster, or s3://"
            )
    for name in _RESULTS:
        if name not in type(config).model_fields:
            continue
        location = getattr(config, name)
        if location is None or not (is_remote(location) or location.startswith("/")):
            raise ConfigError(
                f"{name}: {location!r} would lie with the job's files, which Ray deletes after "
                f"{job!r}; give an absolute path that the cluster's nodes share, or s3://"
            )


def texts(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every text among the settings, with the name of the setting that holds it."""
    for name, value in settings.items():
        for text in _texts_in(value):
            yield name, text


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts_in(item)
