"""The training job: check, train on Ray Train, keep the best model, register it."""

import json
import logging
import math
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow.fs
import ray
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from rich.console import Console
from rich.table import Table

from spark_ray.apotheon import TASKS, ApotheonConfig, ApotheonModel
from spark_ray.apotheon.adaptation import set_trainable
from spark_ray.apotheon.sizes import parameter_table
from spark_ray.core.errors import ConfigError, DatasetError, SparkRayError
from spark_ray.core.progress import ProgressReport
from spark_ray.core.storage import Folder, filesystem, is_remote
from spark_ray.datasets.build import ray_session
from spark_ray.datasets.samples import SampleIndex, load_index, read_clip
from spark_ray.training.board import Board
from spark_ray.training.config import TrainConfig, check_resumable
from spark_ray.training.outcome import leave_behind
from spark_ray.training.plan import RunPlan
from spark_ray.training.start import add_adapters, starting_point
from spark_ray.training.state import MODEL
from spark_ray.training.worker import TrainJob, train_worker

RUN = "run.json"
_LOOKED_AT = 16


@dataclass(frozen=True)
class TrainResult:
    """What a run came to. `metrics` are the last ones, `model` the best model's folder."""

    output: Folder
    model: str
    steps: int
    metrics: dict[str, float]
    registered: str | None


def train(config: TrainConfig) -> TrainResult:
    """Train, or go on training, as the configuration says.

    Raises:
        SparkRayError: the dataset, the configuration or the cluster can't do it, or a worker
            failed too often; what was reached is in the last checkpoint.
    """
    config = config.located()
    output = Folder(config.output_dir)
    index = load_index(config.reference)
    plan, model_config = prepare(config, index)
    check_resumed_run(output, config)
    print_plan(plan, model_config)
    with ray_session(config):
        settings, scaling, threads = share_resources(config)
        plan = RunPlan(settings, plan.processor, plan.train, plan.validation)
        board = _start_board(output, plan)
        run_id = ray.get(board.run_id.remote())
        _record(output, config, run_id)
        job = TrainJob(ray.put(plan), model_config, board, threads)
        status = "FAILED"
        try:
            with _progress(board, plan.steps):
                result = _fit(config, scaling, job)
            status = "FINISHED"
        finally:
            ray.get(board.finish.remote(status))
        _, metrics = ray.get(board.last.remote())
        with tempfile.TemporaryDirectory(prefix="spark-ray-model-") as folder:
            registered = leave_behind(Path(folder), plan, index, result, metrics, run_id)
    steps = int(cast(Any, result).return_value["steps"])
    return TrainResult(output, output / MODEL, steps, metrics, registered)


def prepare(config: TrainConfig, index: SampleIndex) -> tuple[RunPlan, ApotheonConfig]:
    """All that can be known before a GPU is taken.

    Raises:
        SparkRayError: something is wrong with the dataset, the curriculum or a checkpoint.
    """
    train = index.split("train")
    validation = index.split("validation") if _has(index, "validation") else None
    check_dataset(train, config)
    model_config, processor = starting_point(config, train)
    for task, weight in zip(TASKS, ("caption_weight", "transcription_weight"), strict=True):
        if task not in config.tasks:
            setattr(model_config, weight, 0.0)
    plan = RunPlan(config, processor, train, validation)
    assert plan.segments  # raises where the split is smaller than one step
    return plan, model_config


def _has(index: SampleIndex, split: str) -> bool:
    return split in index.table["split"].to_pylist()


def check_dataset(train: SampleIndex, config: TrainConfig) -> None:
    """
    Raises:
        DatasetError: a head has no text to learn from, a stage shows what no clip has, or files
            that the manifest names are gone.
    """
    for task in config.tasks:
        if not train.count(task):
            others = [other for other in TASKS if other != task]
            raise DatasetError(
                f"{train.location}: no clip of its train split has a {task}; build it with a "
                f"{'caption' if task == 'caption' else 'transcription'}_backend, or train with "
                f"--tasks {' '.join(others)}"
            )
    for stage in config.stages:
        if "audio" in stage.modalities and not train.count("has_audio"):
            raise DatasetError(
                f"{train.location}: stage {stage.name!r} of the curriculum needs audio, but no "
                "clip of the train split has any; give a curriculum without it"
            )
    step = max(1, train.table.num_rows // _LOOKED_AT)
    for row in range(0, train.table.num_rows, step):
        read_clip(train.version, train.table.slice(row, 1).to_pylist()[0])


def check_resumed_run(output: Folder, config: TrainConfig) -> None:
    """
    Raises:
        ConfigError: the folder holds a run with other settings, or no run at all.
    """
    if output.exists(RUN):
        recorded = json.loads(output.read(RUN))
        check_resumable(config, recorded["settings"])
        print(f"  resumes      the run in {output.location}", file=sys.stderr)
    elif output.names():
        raise ConfigError(
            f"output_dir: {output.location} holds something else than a training run; give a new "
            "or empty folder"
        )


def _record(output: Folder, config: TrainConfig, run_id: str | None) -> None:
    """Remember what this run is, so that the same command resumes it and another is refused."""
    settings = {**config.content_settings(), "global_batch": config.global_batch}
    record = {"settings": settings, "tracking_run": run_id}
    output.write(RUN, json.dumps(record, indent=1, sort_keys=True).encode())


def _start_board(output: Folder, plan: RunPlan) -> Any:
    config = plan.config
    run_id = None
    if output.exists(RUN):
        run_id = json.loads(output.read(RUN)).get("tracking_run")
    tracking = {
        "uri": config.tracking_uri,
        "experiment": config.experiment,
        "run_name": config.output_dir.rstrip("/").rpartition("/")[2],
        "run_id": run_id,
    }
    return ray.remote(Board).options(num_cpus=0).remote(tracking, config.model_dump(mode="json"))


def share_resources(config: TrainConfig) -> tuple[TrainConfig, ScalingConfig, int]:
    """What each worker and each of its data actors may use, of what the cluster has.

    Unset, a worker gets two thirds of its share of the CPUs and its data actors the rest. Data
    actors that found no CPU would never start, and the training would wait for them for ever.

    Raises:
        ConfigError: the cluster is too small, or has no GPU for fp16.
    """
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    least, most = config.num_workers[0], config.num_workers[-1]
    gpu = config.gpus_per_worker
    if gpu is None:
        gpu = 1.0 if gpus else 0.0
    if config.mixed_precision == "fp16" and not gpu:
        raise ConfigError(
            "mixed_precision: fp16 needs GPUs, and this cluster has none; choose bf16 or fp32"
        )
    share = cpus / least if config.num_workers[0] != most else cpus / most
    worker = config.cpus_per_worker or _round_down(share * 2 / 3)
    data = config.data_cpus or _round_down((share - worker) / config.data_workers)
    needed = least * (worker + data * config.data_workers)
    if needed > cpus + 1e-6 or data <= 0:
        raise ConfigError(
            f"num_workers: {least} workers with {worker:g} CPUs and {config.data_workers} data "
            f"actors of {data:g} CPUs each need {needed:g} CPUs, but the cluster has {cpus:g}; "
            "lower num_workers, cpus_per_worker or data_cpus"
        )
    if least * gpu > gpus:
        raise ConfigError(
            f"num_workers: {least} workers of {gpu:g} GPUs need {least * gpu:g}, but the cluster "
            f"has {gpus:g}; lower num_workers or gpus_per_worker"
        )
    resources_per_worker = {"CPU": worker}
    if gpu:
        resources_per_worker["GPU"] = gpu
    scaling = ScalingConfig(
        # Train V2 takes a range too; the annotation is that of V1.
        num_workers=cast(int, most if least == most else (least, most)),
        use_gpu=bool(gpu),
        resources_per_worker=resources_per_worker,
    )
    threads = config.threads_per_worker or max(1, round(share))
    return config.model_copy(update={"data_cpus": data}), scaling, threads


def _round_down(cpus: float) -> float:
    """To whole CPUs, or to hundredths of one: Ray schedules no 1.5."""
    return float(math.floor(cpus)) if cpus >= 1 else math.floor(cpus * 100) / 100


def _fit(config: TrainConfig, scaling: ScalingConfig, job: TrainJob) -> Result:
    parent, _, name = config.output_dir.rstrip("/").rpartition("/")
    storage: pyarrow.fs.FileSystem | None = None
    if is_remote(config.output_dir):
        fs, _ = filesystem(config.output_dir)
        storage = PyFileSystem(FSSpecHandler(fs))
        parent = parent.partition("://")[2]
    trainer = TorchTrainer(
        cast(Callable[[dict[Any, Any]], None], train_worker),
        train_loop_config={"job": job},
        scaling_config=scaling,
        run_config=RunConfig(
            name=name,
            storage_path=parent or "/",
            storage_filesystem=storage,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=config.keep_checkpoints,
                checkpoint_score_attribute="score",
                checkpoint_score_order="min",
            ),
        ),
    )
    try:
        return trainer.fit()
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            known = _known_error(failure)
            if known is not None:
                raise known from None
        raise
    except TrainingFailedError as error:
        known = _known_error(error)
        if known is None:
            raise
        raise known from None


def _known_error(error: BaseException | None) -> SparkRayError | None:
    """The error of ours among the causes of Ray's."""
    while error is not None:
        if isinstance(error, SparkRayError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None


@contextmanager
def _progress(board: Any, steps: int) -> Iterator[None]:
    """Show the board's numbers while the block runs."""
    over = threading.Event()

    def follow() -> None:
        with ProgressReport("Training", steps, "steps") as progress:
            shown = None
            while not over.wait(1.0):
                step, metrics = ray.get(board.last.remote())
                if shown is None:
                    shown = 0
                if step > shown:
                    progress.advance(step - shown, note=_note(metrics))
                    shown = step

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _note(metrics: dict[str, float]) -> str:
    parts = [f"loss {metrics['loss']:.3f}"]
    if "validation_loss" in metrics:
        parts.append(f"validation {metrics['validation_loss']:.3f}")
    parts.append(f"{metrics['samples_per_s']:.0f} clips/s")
    if metrics["data_wait"] > 0.05:
        parts.append(f"waits {metrics['data_wait']:.0%} for data")
    if metrics["skipped"]:
        parts.append(f"{metrics['skipped']:.0f} steps skipped")
    return ", ".join(parts)


def print_plan(plan: RunPlan, model_config: ApotheonConfig) -> None:
    """Say what is going to be trained, on what, and how."""
    config = plan.config
    # On the meta device, shapes alone: the weights of `base` would take 36 GB here.
    with torch.device("meta"):
        model = ApotheonModel(model_config)
        add_adapters(model, config)
    set_trainable(model, set(config.frozen), frames=True, audio=True)
    lines = [
        f"Training {config.output_dir}",
        f"  dataset      {plan.train.location}",
        f"  clips        {plan.train.table.num_rows} to train"
        + (f", {plan.validation.table.num_rows} to validate" if plan.validation else ""),
        f"  model        apotheon-{config.size}, {config.mixed_precision}, {config.engine}",
        f"  steps        {plan.steps}",
    ]
    lines += [
        f"  stage        {stage.name}: {stage.epochs} epochs of {', '.join(stage.modalities)}, "
        f"{plan.batch(stage) * config.gradient_accumulation} clips a step"
        for stage in plan.stages
    ]
    print("\n".join(lines), file=sys.stderr)
    table = Table("part", "parameters", "learning")
    for name, count, learning in parameter_table(model):
        table.add_row(name, f"{count:,}", f"{learning:,}" if learning else "–")
    Console(stderr=True).print(table)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
