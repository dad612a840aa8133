"""A study's configuration: what every trial has, what varies, how it is searched, where it runs."""

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from spark_ray.core.config import JobConfig
from spark_ray.core.errors import ConfigError
from spark_ray.core.storage import absolute
from spark_ray.datasets.config import check_outlives_job
from spark_ray.training.config import TrainConfig
from spark_ray.training.search.space import (
    STUDY_OWNED,
    Choice,
    Parameter,
    Params,
    check_inheritable,
    check_paths,
    corners,
    grid_values,
    needs_stages,
    parse_space,
    settings_of,
)
from spark_ray.training.tracking_uri import check_tracking_uri


class SearchOptions(BaseModel):
    """What is searched, and how."""

    train: dict[str, Any] = Field(
        description="settings of every trial, as spark-ray train apotheon has them; in the file"
    )
    space: dict[str, Parameter] = Field(
        min_length=1,
        description="what varies, in the file: a setting, or curriculum.STAGE.SETTING, and "
        "{type: float | int, min, max, log} or {type: choice, values}",
    )
    metric: list[str] = Field(
        ["validation_loss"],
        min_length=1,
        description="what a trial is judged by, of all that a run logs; several: a Pareto front",
    )
    mode: list[Literal["min", "max"]] = Field(["min"], description="whether each is wanted low")
    search: Literal["random", "grid", "optuna"] = Field(
        "random", description="where trials are placed; optuna: its TPE, which learns from others"
    )
    scheduler: Literal["none", "asha", "hyperband", "pbt"] = Field(
        "none",
        description="asha: stops what is worse than others were at that step; hyperband: several "
        "of it, from hasty to patient; pbt: the worst go on from the best, with varied parameters",
    )
    num_samples: int = Field(16, ge=1, le=10_000, description="trials; a grid counts them itself")
    search_seed: int = Field(0, ge=0, description="of the search; trials have seed")
    grace_steps: int | None = Field(
        None, ge=1, description="asha, hyperband: steps before any is stopped; unset: 1/8 of a run"
    )
    reduction_factor: float = Field(
        2.0, gt=1, description="asha, hyperband: one of so many goes on, so many times as long"
    )
    brackets: int = Field(3, ge=1, le=8, description="hyperband: halvings, each more patient")
    perturbation_epochs: int = Field(
        1, ge=1, description="pbt: epochs between comparisons; each starts the workers anew"
    )
    quantile_fraction: float = Field(
        0.25, gt=0, le=0.5, description="pbt: share that gives up, and that is taken over"
    )

    @field_validator("space", mode="before")
    @classmethod
    def _parameters(cls, value: Any) -> Any:
        return parse_space(value) if isinstance(value, dict) else value

    @field_validator("metric", "mode", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]


class StudyOptions(BaseModel):
    """Where it is kept, and who is told."""

    study_dir: str = Field(
        min_length=1,
        description="the study's folder (local or s3://); the same command again resumes it",
    )
    retry_failed: bool = Field(False, description="when resuming, also try failed trials again")
    tracking_uri: str | None = Field(
        None,
        description="MLflow server or database; unset: MLFLOW_TRACKING_URI, or mlflow.db in "
        "the working folder",
    )
    experiment: str = Field("apotheon", description="MLflow experiment")

    _usable = field_validator("tracking_uri")(check_tracking_uri)


class ShareOptions(BaseModel):
    """How the cluster is shared out."""

    max_concurrent: int | None = Field(
        None, ge=1, description="trials at a time; unset: as many as find a CPU or GPU a worker"
    )
    ray_address: str | None = Field(
        None, description="Ray cluster to use; unset: RAY_ADDRESS, or a local one for this job"
    )
    dashboard: bool = Field(
        False, description="also start the Ray dashboard, when the job starts a local cluster"
    )


class StudyConfig(JobConfig, SearchOptions, StudyOptions, ShareOptions):
    """Tune a training: spark-ray tune STUDY.yaml runs many trials, each a run on Ray Train.

    Then: spark-ray tune list | show | report | promote.

    Exit status: 0 done (trials that failed are counted in the last line), 1 no trial came to
    anything, 2 wrong usage or configuration.
    """

    @model_validator(mode="after")
    def _check_together(self) -> "StudyConfig":
        if len(self.mode) == 1:
            self.mode = self.mode * len(self.metric)
        if len(self.mode) != len(self.metric):
            raise ConfigError(f"mode: has {len(self.mode)} entries, and metric {len(self.metric)}")
        if len(set(self.metric)) != len(self.metric):
            raise ConfigError("metric: names one twice")
        if len(self.metric) > 1 and (self.search != "optuna" or self.scheduler != "none"):
            raise ConfigError(
                "metric: several of them need search optuna and scheduler none; nothing else "
                "compares trials in more than one way"
            )
        owned = sorted(STUDY_OWNED & set(self.train))
        if owned:
            raise ConfigError(f"train: {owned[0]} belongs to the study, not to its trials")
        check_paths(self.space, self.base())
        if self.search == "grid":
            grid_values(self.space)
        if self.scheduler == "pbt":
            self._check_pbt()
        for params in corners(self.space):
            self._check_point(params)
        return self

    def _check_pbt(self) -> None:
        if self.search != "random":
            raise ConfigError(
                f"search: pbt changes parameters by itself, so it goes with random, not "
                f"{self.search}"
            )
        check_inheritable(self.space)
        if self.num_samples < 2:
            raise ConfigError("num_samples: pbt needs a population of 2 trials or more")
        every = self.base().get("validate_every_epochs", 1)
        if self.perturbation_epochs % every:
            raise ConfigError(
                f"perturbation_epochs: {self.perturbation_epochs} is no multiple of "
                f"validate_every_epochs ({every}), so trials would be compared by old losses"
            )

    def _check_point(self, params: Params) -> None:
        try:
            config = self.trial_config(params, self.study_dir)
        except ConfigError as error:
            shown = ", ".join(f"{path}={value}" for path, value in params.items())
            raise ConfigError(f"space: a trial with {shown} can't be: {error}") from error
        if len(config.num_workers) > 1:
            raise ConfigError(
                "num_workers: a trial takes a fixed number of workers, or trials could not be "
                "fitted beside each other; give one number"
            )

    def base(self) -> dict[str, Any]:
        """The settings of every trial; with all its stages where the space names one.

        Raises:
            ConfigError: they can't be those of a run.
        """
        if not needs_stages(self.space) or self.train.get("curriculum"):
            return self.train
        stages = TrainConfig.from_values(**{**self.train, "output_dir": "unused"}).stages
        return {**self.train, "curriculum": [stage.model_dump(mode="json") for stage in stages]}

    def trial_config(self, params: Params, output_dir: str) -> TrainConfig:
        """The run that a point of the space stands for.

        Raises:
            ConfigError: it can't be one.
        """
        owned = {
            "output_dir": output_dir,
            "tracking_uri": self.tracking_uri,
            "experiment": self.experiment,
        }
        return TrainConfig.from_values(**settings_of(params, self.space, self.base()), **owned)

    def located(self) -> "StudyConfig":
        """With local paths made absolute, since workers have other working folders.

        Raises:
            ConfigError: a local path lies in the folder that Ray deletes with a job's files.
        """
        check_outlives_job("study_dir", self.study_dir)
        study = absolute(self.study_dir)
        first = self.trial_config(next(corners(self.space)), study)

        def here(name: str, value: Any) -> Any:
            return getattr(first.model_copy(update={name: value}).located(), name)

        train = {name: here(name, value) for name, value in self.train.items() if name in _PATHS}
        chosen = {
            name: parameter.model_copy(update={"values": [here(name, v) for v in parameter.values]})
            for name, parameter in self.space.items()
            if name in _PATHS and isinstance(parameter, Choice)
        }
        return self.model_copy(
            update={
                "study_dir": study,
                "tracking_uri": first.located().tracking_uri,
                "train": {**self.train, **train},
                "space": {**self.space, **chosen},
            }
        )

    def content_settings(self) -> dict[str, Any]:
        """The settings that decide what is tried; a study can't be resumed under others."""
        return self.model_dump(mode="json", exclude=_OPERATIONAL)


_OPERATIONAL = {*StudyOptions.model_fields, *ShareOptions.model_fields}

_PATHS = (
    "dataset",
    "manifest_path",
    "init_from",
    "vision_checkpoint",
    "audio_checkpoint",
    "text_checkpoint",
    "deepspeed_config",
)
