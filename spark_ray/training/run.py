"""The training job: check, train on Ray Train, keep the best model, register it."""

import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayTaskError
from rich.console import Console
from rich.table import Table

from spark_ray.apotheon import ApotheonConfig
from spark_ray.apotheon.adaptation import set_trainable
from spark_ray.apotheon.sizes import parameter_table
from spark_ray.core.claim import alone, ended_meanwhile
from spark_ray.core.errors import ConfigError, SparkRayError
from spark_ray.core.progress import Seen, progress_elsewhere
from spark_ray.core.provenance import code_version, content_hash, git_commit
from spark_ray.core.storage import Folder, open_read
from spark_ray.core.wording import counted
from spark_ray.datasets.capacity import living_nodes
from spark_ray.datasets.samples import SampleIndex, load_index
from spark_ray.datasets.session import ray_session
from spark_ray.monitoring.logs import job_ids
from spark_ray.training.board import Board
from spark_ray.training.checks import prepare, shapes_alone
from spark_ray.training.cluster import (
    RunContext,
    await_nodes,
    beside_driver,
    fit,
    resumed_step,
    say_what_is_awaited,
    share_resources,
)
from spark_ray.training.config import TrainConfig, check_resumable, run_name
from spark_ray.training.deepspeed_engine import deepspeed_config
from spark_ray.training.failures import StoppedEarly
from spark_ray.training.outcome import leave_behind
from spark_ray.training.plan import RunPlan
from spark_ray.training.start import one_version
from spark_ray.training.state import MODEL, RUN
from spark_ray.training.worker import TrainJob

_LOOK_EVERY_S = 1.0
_HEADS = {
    "caption": "caption_loss",
    "transcript": "transcription_loss",
    "contrast": "contrastive_loss",
}


@dataclass(frozen=True)
class TrainResult:
    """What a run came to: the best model's folder, and the metrics that were known at that time."""

    output: Folder
    model: str
    steps: int
    metrics: dict[str, float]
    registered: str | None


def train(config: TrainConfig, context: RunContext | None = None) -> TrainResult:
    """Train, or go on training, as the configuration says.

    Args:
        context: of a trial, whose study sees to it that nobody else works in its folder.

    Raises:
        FolderInUse: another training of the same run is running.
        StoppedEarly: a callback of the context has ended it.
        SparkRayError: the dataset, the configuration or the cluster can't do it, or a worker
            failed too often; what was reached is in the last checkpoint.
    """
    config = config.located()
    output = Folder(config.output_dir)
    claim = _claim(output) if context is None else nullcontext()
    context = context or RunContext()
    zero_config = _zero_config(config, config.offload)
    settings = run_settings(config)
    earlier = _earlier_run(output, config, settings)
    config = _go_on_from_one_version(config, earlier)
    index = load_index(earlier.get("dataset", config.reference))
    plan, model_config = prepare(config, index)
    finished = earlier.get("finished")
    if finished is not None and finished["steps"] >= plan.steps:
        print(
            f"  is done      {counted(finished['steps'], 'step')}; nothing is left to do",
            file=sys.stderr,
        )
        return TrainResult(output, output / MODEL, **finished)
    print_plan(plan, model_config)
    output.create()
    with claim, ray_session(config):
        _check_unchanged(output, earlier)
        if context.resources is None:
            await_nodes(config)
        resources = context.resources or ray.cluster_resources()
        shares, scaling, threads = share_resources(config, resources, living_nodes())
        plan = RunPlan(shares, plan.processor, plan.train, plan.validation)
        board, run_id = _start_board(plan, index, earlier.get("tracking_run"), context.tags)
        record = {
            "settings": settings,
            "tracking_run": run_id,
            "dataset": _pinned(config, index),
            "init_from": config.init_from,
        }
        _write_record(output, record)
        job = TrainJob(
            ray.put(plan), model_config, zero_config, board, threads, job_ids(), context.parent
        )
        print(f"  starting     {_workers(config)} on Ray", file=sys.stderr)
        if context.resources is None:
            say_what_is_awaited(shares, scaling, ray.available_resources())
        status = "FAILED"

        def look() -> Seen | None:
            step, metrics, seen = ray.get(board.last.remote())
            return Seen(step, _note(metrics, plan), seen) if step else None

        try:
            with progress_elsewhere("Training", plan.steps, "steps", look, _LOOK_EVERY_S):
                result = fit(config, scaling, job, context.callbacks)
            status = "FINISHED"
        except StoppedEarly:
            status = "KILLED"
            raise
        finally:
            ray.get(board.finish.remote(status))
        with tempfile.TemporaryDirectory(prefix="spark-ray-model-") as folder:
            metrics, registered = leave_behind(Path(folder), plan, index, result, run_id)
        steps = int(cast(Any, result).return_value["steps"])
        finished = {"steps": steps, "metrics": metrics, "registered": registered}
        _write_record(output, {**record, "finished": finished})
    return TrainResult(output, output / MODEL, **finished)


def run_settings(config: TrainConfig) -> dict[str, Any]:
    """All that a run is resumed under, or not at all.

    Raises:
        SparkRayError: a file that the configuration names can't be read.
    """
    settings: dict[str, Any] = {
        **config.content_settings(),
        "global_batch": config.global_batch,
        "zero_config": _zero_config(config, offload=[]),
    }
    if config.manifest_path is not None:  # it may be edited, unlike a published version
        with open_read(config.manifest_path) as file:
            settings["manifest_sha256"] = content_hash(file)
    return settings


def _zero_config(config: TrainConfig, offload: Sequence[str]) -> dict[str, Any] | None:
    """DeepSpeed's configuration, read once and here: workers may not have the user's file."""
    if config.engine == "ddp":
        return None
    stage = int(config.engine[-1])
    return deepspeed_config(stage, config.deepspeed_config, offload)


def _earlier_run(
    output: Folder, config: TrainConfig, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What is known of the run in this folder; empty for a new one.

    Raises:
        ConfigError: the folder holds a run with other settings, or no run at all.
    """
    found = _read_record(output)
    if found:
        check_resumable(config.output_dir, settings, found["settings"])
        step = resumed_step(output)
        where = f"from step {step}" if step else "from its start: it had no checkpoint yet"
        print(f"  resumes      the run in {output.location}, {where}", file=sys.stderr)
        return found
    if output.names():
        raise ConfigError(
            f"output_dir: {output.location} holds something else than a training run; give a new "
            "or empty folder"
        )
    return {}


def _claim(output: Folder) -> AbstractContextManager[None]:
    return alone(output, "training", "--output-dir")


def _check_unchanged(output: Folder, earlier: Mapping[str, Any]) -> None:
    """
    Raises:
        FolderInUse: another training worked here after this one had looked, and has ended.
    """
    if _read_record(output) != earlier:
        raise ended_meanwhile(output.location, "training")


def _read_record(output: Folder) -> dict[str, Any]:
    """Empty before a run has begun."""
    found: dict[str, Any] = json.loads(output.read(RUN)) if output.exists(RUN) else {}
    return found


def _go_on_from_one_version(config: TrainConfig, earlier: Mapping[str, Any]) -> TrainConfig:
    """With the version that an alias in `init_from` stands for, or stood for when the run began.

    Raises:
        ModelError: the registry has no such model.
    """
    init_from = earlier.get("init_from") or one_version(config.init_from)
    return config.model_copy(update={"init_from": init_from})


def _pinned(config: TrainConfig, index: SampleIndex) -> str:
    """The very version that is trained on: a newer one may be there when the run is resumed."""
    return config.reference if config.manifest_path else index.version.location


def _write_record(output: Folder, record: Mapping[str, Any]) -> None:
    """Remember what this run is, so that the same command resumes it and another is refused."""
    output.write(RUN, json.dumps(record, indent=1, sort_keys=True).encode())


def _start_board(
    plan: RunPlan, index: SampleIndex, run_id: str | None, given_tags: Mapping[str, str]
) -> tuple[Any, str | None]:
    """The board, and the MLflow run that it goes on with or began.

    Raises:
        ConfigError: MLflow can't be used as the configuration says.
    """
    config = plan.config
    tracking = {
        "uri": config.tracking_uri,
        "experiment": config.experiment,
        "run_name": run_name(config.output_dir),
        "run_id": run_id,
    }
    tags = {
        "dataset": index.version.location,
        "manifest_sha256": index.manifest_sha256(),
        "code_version": code_version(),
        "git_commit": git_commit() or "unknown",
        **given_tags,
    }
    board: Any = ray.remote(Board).options(**beside_driver()).remote()
    settings = config.model_dump(mode="json")
    try:
        return board, ray.get(board.start.remote(tracking, settings, tags))
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, SparkRayError) else error) from None


def _workers(config: TrainConfig) -> str:
    least, most = config.num_workers[0], config.num_workers[-1]
    return counted(most, "worker") if least == most else f"{least} to {most} workers"


def _note(metrics: dict[str, float], plan: RunPlan) -> str:
    heads = [
        f"{name} {metrics[key]:.2f}"
        for name, key in _HEADS.items()
        if metrics.get(key)  # 0 where the stage has no such texts
    ]
    stage = plan.stages[int(metrics["stage"])].name
    parts = [f"{stage}: loss {metrics['loss']:.3f} ({', '.join(heads)})"]
    if "validation_loss" in metrics:
        parts.append(
            f"validation {metrics['validation_loss']:.3f} at step {metrics['validated_step']}"
        )
    parts.append(f"rate {metrics['learning_rate']:.1e}")
    parts.append(f"gradient {metrics['grad_norm']:.1f}")
    parts.append(f"{metrics['memory_gb']:.1f} GB")
    if "mfu" in metrics:
        parts.append(f"MFU {metrics['mfu']:.0%}")
    if metrics["data_wait"] > 0.05:
        parts.append(f"waits {metrics['data_wait']:.0%} for data")
    if metrics["skipped"]:
        parts.append(f"{counted(int(metrics['skipped']), 'step')} skipped")
    return ", ".join(parts)


def print_plan(plan: RunPlan, model_config: ApotheonConfig) -> None:
    """Say what is going to be trained, on what, and how."""
    config = plan.config
    model = shapes_alone(model_config, config)
    set_trainable(model, set(config.frozen), frames=True, audio=True)
    origin = f" from {config.init_from}" if config.init_from else ""
    lines = [
        f"Training {config.output_dir}",
        f"  dataset      {plan.train.location}",
        f"  clips        {plan.train.table.num_rows} to train"
        + (f", {plan.validation.table.num_rows} to validate" if plan.validation else ""),
        f"  model        {config.model_name}{origin}, {config.mixed_precision}, {config.engine}",
        f"  steps        {plan.steps}",
    ]
    lines += [
        f"  stage        {stage.name}: {counted(stage.epochs, 'epoch')} of "
        f"{', '.join(stage.modalities)}, "
        f"{counted(plan.batch(stage) * config.gradient_accumulation, 'clip')} a step"
        + ("" if steps.start < plan.steps else " (not reached)")
        for stage, steps in zip(plan.stages, plan.stage_steps, strict=True)
    ]
    print("\n".join(lines), file=sys.stderr)
    table = Table("part", "parameters", "learning")
    for name, count, learning in parameter_table(model):
        table.add_row(name, f"{count:,}", f"{learning:,}" if learning else "–")
    Console(stderr=True).print(table)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
