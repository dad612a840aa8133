"""The training job's configuration: model, data, optimisation, engine, checkpoints, tracking."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from spark_ray.core.anatomy import FREEZABLE, LORA_TARGETS, TASKS, Task
from spark_ray.core.config import Gpus, JobConfig
from spark_ray.core.errors import ConfigError, unknown_choice
from spark_ray.core.storage import absolute, is_remote, local_path
from spark_ray.datasets.config import check_outlives_job, in_job_files
from spark_ray.models.registered import check_model_name
from spark_ray.training.augment import AugmentOptions
from spark_ray.training.curriculum import Stage, check_curriculum, default_curriculum
from spark_ray.training.schedule import Schedule
from spark_ray.training.tracking_uri import check_tracking_uri, default_tracking_uri

EngineName = Literal["ddp", "zero1", "zero2", "zero3"]


class ModelOptions(BaseModel):
    """What is trained, and what it starts from."""

    size: Literal["tiny", "small", "base"] = Field(
        "tiny", description="tiny (CPU, 1.7 M parameters), small (0.2 B) or base (9 B)"
    )
    init_from: str | None = Field(
        None, description="an Apotheon to go on from: a folder, models:/name@alias or a hub id"
    )
    vision_checkpoint: str | None = Field(
        None, description="CLIP weights to start from: a folder or a hub id"
    )
    audio_checkpoint: str | None = Field(
        None, description="Whisper weights to start from: a folder or a hub id"
    )
    text_checkpoint: str | None = Field(
        None, description="Llama weights and tokenizer to start from: a folder or a hub id"
    )
    vocab_size: int = Field(
        1024,
        ge=300,
        description="tokens of the tokenizer that is learned from the dataset where no "
        "text_checkpoint brings one",
    )
    frozen: list[str] = Field([], description="what never learns: " + ", ".join(FREEZABLE))
    lora: list[str] = Field(
        [], description="parts that learn through adapters alone: " + ", ".join(LORA_TARGETS)
    )
    lora_rank: int = Field(16, ge=1, description="inner width of the adapters")
    lora_alpha: int = Field(32, ge=1, description="the adapters' scale times their rank")
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, more time"
    )

    @field_validator("frozen")
    @classmethod
    def _knows_parts(cls, parts: list[str]) -> list[str]:
        for part in parts:
            if part not in FREEZABLE:
                raise unknown_choice("part", part, FREEZABLE)
        return parts

    @field_validator("lora")
    @classmethod
    def _adaptable(cls, parts: list[str]) -> list[str]:
        for part in parts:
            if part not in LORA_TARGETS:
                raise unknown_choice("part", part, LORA_TARGETS)
        return parts


class DataOptions(AugmentOptions):
    """How batches are made."""

    max_frames: int = Field(
        16, ge=1, description="frames of a clip that the model sees, evenly chosen"
    )
    data_workers: int = Field(1, ge=1, description="actors that prepare batches, for each worker")
    data_cpus: float | None = Field(
        None, gt=0, description="CPUs of each; unset: a share of those that training leaves"
    )
    data_cache_bytes: int = Field(
        256 << 20,
        ge=0,
        description="decoded clips that each of them keeps, in bytes; helps with small datasets",
    )
    data_ahead_bytes: int = Field(
        256 << 20,
        ge=1 << 20,
        description="finished batches that wait for each worker in Ray's object store, in bytes",
    )
    prefetch_batches: int = Field(4, ge=1, description="micro-batches ready ahead of the step")
    seed: int = Field(0, ge=0, description="of weights, order and augmentation")


class OptimizationOptions(BaseModel):
    """How it learns."""

    tasks: list[Task] = Field(
        list(TASKS), min_length=1, description="what it learns to write: caption, transcript"
    )
    epochs: int = Field(10, ge=1, description="times that the training split is seen")
    max_steps: int | None = Field(None, ge=1, description="stop after so many steps")
    batch_size: int = Field(
        4, ge=1, description="clips in a worker's micro-batch; contrast is among those of all"
    )
    gradient_accumulation: int = Field(8, ge=1, description="micro-batches in a step")
    learning_rate: float = Field(3e-5, gt=0, description="highest rate of AdamW")
    schedule: Schedule = Field(
        "cosine", description="how the rate falls in each stage after its warm-up"
    )
    warmup_ratio: float = Field(
        0.05, ge=0, lt=1, description="share of each stage's steps in which the rate rises"
    )
    weight_decay: float = Field(0.01, ge=0, description="of matrices; never of norms and biases")
    beta1: float = Field(0.9, ge=0, lt=1, description="of AdamW")
    beta2: float = Field(0.98, ge=0, lt=1, description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    mixed_precision: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="arithmetic")
    max_skipped_steps: int = Field(
        10,
        ge=1,
        description="stop after so many steps in a row whose loss or gradient was not finite",
    )
    curriculum: list[Stage] | None = Field(
        None,
        description="stages, one after the other; unset: text and image, then audio, then video",
    )


class EngineOptions(BaseModel):
    """Where it runs."""

    engine: EngineName = Field(
        "zero2", description="DeepSpeed ZeRO stage, or ddp for PyTorch's own data parallelism"
    )
    offload: list[Literal["optimizer", "parameters"]] = Field(
        [], description="what ZeRO keeps in the memory of the host: optimizer, parameters (zero3)"
    )
    deepspeed_config: str | None = Field(
        None, description="JSON file laid over the shipped DeepSpeed configuration"
    )
    num_workers: list[int] = Field(
        [1], description="processes that train; two numbers: at least and at most (elastic)"
    )
    cpus_per_worker: float | None = Field(
        None, gt=0, description="CPUs of each worker; unset: its share, less that of data_workers"
    )
    threads_per_worker: int | None = Field(
        None, ge=1, description="computing threads of each worker; unset: as many as its share"
    )
    gpus_per_worker: Gpus | None = Field(
        None, description="GPUs of each worker; unset: 1 where the cluster has any"
    )
    max_failures: int = Field(
        3, ge=0, description="lost workers after which training goes on from its last checkpoint"
    )
    ray_address: str | None = Field(
        None, description="Ray cluster to use; unset: RAY_ADDRESS, or a local one for this job"
    )

    dashboard: bool = Field(
        False, description="also start the Ray dashboard, when the job starts a local cluster"
    )

    @field_validator("num_workers", mode="before")
    @classmethod
    def _one_or_two(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @field_validator("num_workers")
    @classmethod
    def _in_order(cls, value: list[int]) -> list[int]:
        if len(value) not in (1, 2) or value[0] < 1 or value[-1] < value[0]:
            raise ValueError("give one number of 1 or more, or two: at least and at most")
        return value


class CheckpointOptions(BaseModel):
    """What is kept."""

    output_dir: str = Field(
        min_length=1,
        description="the run's folder (local or s3://); the same command again resumes it",
    )
    checkpoint_every_steps: int | None = Field(
        None, ge=1, description="steps between checkpoints; unset: one at the end of each epoch"
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="how many of the best are kept, by validation loss, beside the last"
    )
    validate_every_epochs: int = Field(1, ge=1, description="epochs between validations")


class TrackingOptions(BaseModel):
    """Who is told."""

    tracking_uri: str | None = Field(
        None,
        description="MLflow server or database; unset: MLFLOW_TRACKING_URI, or mlflow.db in "
        "the working folder",
    )
    experiment: str = Field("apotheon", description="MLflow experiment")
    register_as: str | None = Field(
        None, description="name under which the best model goes into the MLflow registry"
    )
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="10^12 operations a second of one device, for MFU; unset: known for common "
        "GPUs in bf16 and fp16, and MFU is left out elsewhere",
    )

    _usable = field_validator("tracking_uri")(check_tracking_uri)
    _registrable = field_validator("register_as")(check_model_name)


class TrainConfig(
    JobConfig,
    ModelOptions,
    OptimizationOptions,
    DataOptions,
    EngineOptions,
    CheckpointOptions,
    TrackingOptions,
):
    """Train Apotheon on a published dataset; the same command again resumes where it stopped.

    Exit status: 0 trained, 1 stopped by a failure, 2 wrong usage or configuration.
    """

    dataset: str | None = Field(
        None, min_length=1, description="published dataset: path, path@version or s3://"
    )
    manifest_path: str | None = Field(
        None, min_length=1, description="its manifest.jsonl, in place of dataset"
    )

    @model_validator(mode="after")
    def _check_together(self) -> "TrainConfig":
        if self.dataset is None and self.manifest_path is None:
            raise ValueError(
                "dataset is required: give --dataset or --manifest-path, or set one of them in "
                "the YAML file"
            )
        if self.dataset is not None and self.manifest_path is not None:
            raise ValueError(
                f"manifest_path: {self.manifest_path} comes beside dataset {self.dataset}; give "
                "one of them, --dataset or --manifest-path"
            )
        check_curriculum(self.stages, self.epochs, self.tasks)
        if self.engine == "ddp" and (self.offload or self.deepspeed_config):
            raise ValueError(
                "offload and deepspeed_config need engine zero1, zero2 or zero3, not ddp"
            )
        if "parameters" in self.offload and self.engine != "zero3":
            raise ValueError(f"offload: parameters needs engine zero3, not {self.engine}")
        if self.init_from and (
            self.vision_checkpoint or self.audio_checkpoint or self.text_checkpoint
        ):
            raise ValueError("init_from brings all parts; leave the part checkpoints out")
        return self

    @property
    def reference(self) -> str:
        """The dataset, however it was named."""
        reference = self.dataset or self.manifest_path
        assert reference is not None
        return reference

    @property
    def model_name(self) -> str:
        """What a model without a name of its own is called; one that goes on may have any size."""
        return "apotheon" if self.init_from else f"apotheon-{self.size}"

    @property
    def stages(self) -> list[Stage]:
        return self.curriculum or default_curriculum(self.epochs, self.tasks)

    @property
    def global_batch(self) -> int:
        """Clips in a micro-batch of all workers; it stays the same when workers are lost."""
        return self.batch_size * self.num_workers[-1]

    def located(self) -> "TrainConfig":
        """With local paths made absolute, since workers have other working folders.

        Raises:
            ConfigError: a local path lies in the folder that Ray unpacks a job's files into, and
                deletes with it.
        """
        check_outlives_job("output_dir", self.output_dir)
        if in_job_files() and not (self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")):
            raise ConfigError(
                "tracking_uri: a job needs a server or an absolute sqlite:/// path, since Ray "
                "deletes its working folder; or set MLFLOW_TRACKING_URI"
            )
        settings: dict[str, Any] = {
            "output_dir": absolute(self.output_dir),
            "tracking_uri": self.tracking_uri or default_tracking_uri(str(Path.cwd())),
        }
        for name in ("dataset", "manifest_path"):
            value = getattr(self, name)
            if value is not None:
                settings[name] = absolute(value)
        for name in _LOCAL_OR_ID:
            value = getattr(self, name)
            if value is not None and not is_remote(value) and local_path(value).exists():
                settings[name] = absolute(value)
        return self.model_copy(update=settings)

    def content_settings(self) -> dict[str, Any]:
        """The settings that decide the weights; a run can't be resumed under others."""
        return self.model_dump(mode="json", exclude=OPERATIONAL)


_LOCAL_OR_ID = (
    "init_from",
    "vision_checkpoint",
    "audio_checkpoint",
    "text_checkpoint",
    "deepspeed_config",
)

OPERATIONAL = {
    # Positions count the micro-batches of validations too, so when these come is no detail.
    *(set(CheckpointOptions.model_fields) - {"validate_every_epochs"}),
    *TrackingOptions.model_fields,
    "num_workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "threads_per_worker",
    "max_failures",
    "ray_address",
    "dashboard",
    "max_steps",
    "data_workers",
    "data_cpus",
    "data_cache_bytes",
    "data_ahead_bytes",
    "prefetch_batches",
    "offload",
    "deepspeed_config",  # its content counts, not its name
    "gradient_checkpointing",
    "batch_size",
    "max_skipped_steps",
}


def run_name(output_dir: str) -> str:
    """What a run is called in MLflow, metrics and logs: the last part of its folder."""
    return output_dir.rstrip("/").rpartition("/")[2]


def check_resumable(
    output_dir: str, settings: Mapping[str, Any], recorded: Mapping[str, Any]
) -> None:
    """
    Raises:
        ConfigError: the run in this folder was started with other settings; names the first.
    """
    now, before = (found.get("global_batch") for found in (settings, recorded))
    if now != before:
        raise ConfigError(
            f"batch_size: times the most workers, it was {before} in {output_dir} and is {now} "
            f"now; with other workers, give the batch_size that makes it {before} again, or "
            "another output_dir"
        )
    for name in sorted({*settings, *recorded}):
        if settings.get(name) != recorded.get(name):
            raise ConfigError(
                f"{name}: {output_dir} holds a run with {recorded.get(name)!r}, and now it is "
                f"{settings.get(name)!r}; give the former to resume, or another output_dir"
            )
