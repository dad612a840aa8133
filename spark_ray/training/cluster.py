"""A run on the cluster: what each worker may use, Ray Train's trainer, and its failures as ours."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow.fs
import ray
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import (
    HEALTH_CHECK_INTERVAL_S_ENV_VAR,
    WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
)
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from spark_ray.core.background import start_thread
from spark_ray.core.errors import ConfigError
from spark_ray.core.storage import Folder, filesystem, is_remote
from spark_ray.core.wording import counted
from spark_ray.datasets.capacity import Resources, have_room, living_nodes
from spark_ray.training.config import TrainConfig
from spark_ray.training.failures import FailForGood, known_error
from spark_ray.training.worker import TrainJob, train_worker

_RECORD = "checkpoint_manager_snapshot.json"
"""Ray Train's, in a run's folder: its checkpoints, without those whose upload was cut off."""

_LEAST_CPUS = 0.01
_EPSILON = 1e-6


@dataclass(frozen=True)
class RunContext:
    """What a run is given by the study that it is a trial of; a run of its own needs none.

    Args:
        resources: the CPUs and GPUs that it may take; unset: all of the cluster.
        callbacks: who else is told of its checkpoints, and may end it.
        tags: of its MLflow run.
        parent: a checkpoint of another run that it begins with, in the place of fresh weights.
    """

    resources: Resources | None = None
    callbacks: tuple[UserCallback, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    parent: Checkpoint | None = None


def beside_driver() -> dict[str, Any]:
    """Options of an actor whose loss would end the run: any node but the driver's may be lost."""
    here = ray.get_runtime_context().get_node_id()
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }


def await_nodes(config: TrainConfig, runs: int = 1) -> None:
    """Wait for the nodes that so many runs need and that the cluster's autoscaler starts.

    Where the configuration leaves it open, a worker is given a GPU if one is there or may come.

    Raises:
        ConfigError: a worker needs more than any node has, or may have.
        SparkRayError: nodes were to come, and did not.
    """
    gpus = config.gpus_per_worker
    if gpus is None:
        # Rather refused for want of a second GPU than trained on CPUs.
        is_there = have_room(_needs(config, 1.0) * runs) or have_room([{"GPU": 1.0}])
        gpus = 1.0 if is_there else 0.0
    have_room(_needs(config, gpus) * runs) or have_room(_needs(config, gpus))
    check_worker(config, living_nodes())


def _needs(config: TrainConfig, gpus: float) -> list[dict[str, float]]:
    """What the fewest workers of a run and their data actors take, each of one node."""
    data = config.data_cpus or _LEAST_CPUS
    worker = config.cpus_per_worker or max(_LEAST_CPUS, 1 - data * config.data_workers)
    each = [{"CPU": worker, "GPU": gpus}, *[{"CPU": data}] * config.data_workers]
    return each * config.num_workers[0]


def check_worker(config: TrainConfig, nodes: Sequence[Resources]) -> None:
    """
    Raises:
        ConfigError: a worker would wait for ever: it needs more than any node has.
    """
    for setting, kind, needed in (
        ("cpus_per_worker", "CPU", config.cpus_per_worker or 0.0),
        ("gpus_per_worker", "GPU", config.gpus_per_worker or 0.0),
        ("data_cpus", "CPU", config.data_cpus or 0.0),
    ):
        largest = max((node.get(kind, 0.0) for node in nodes), default=0.0)
        if needed > largest + _EPSILON:
            raise ConfigError(
                f"{setting}: {needed:g} {kind}s are more than any node has, or comes with; the "
                f"largest has {largest:g}"
            )


def share_resources(
    config: TrainConfig, resources: Resources, nodes: Sequence[Resources] = ()
) -> tuple[TrainConfig, ScalingConfig, int]:
    """What each worker and each of its data actors may use, of what there is for the run.

    Unset, a worker gets two thirds of its share of the CPUs and its data actors the rest. Data
    actors that found no CPU would never start, and the training would wait for them for ever, as
    it would for a worker that is larger than every node.

    Args:
        resources: what the run may take.
        nodes: what each node has; unset: one has all that the run may take.

    Raises:
        ConfigError: that is too little, or has no GPU for fp16.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    least, most = config.num_workers[0], config.num_workers[-1]
    gpu = config.gpus_per_worker
    if gpu is None:
        gpu = 1.0 if gpus else 0.0
    if config.mixed_precision == "fp16" and not gpu:
        raise ConfigError(
            "mixed_precision: fp16 needs GPUs, and this cluster has none; choose bf16 or fp32"
        )
    nodes = nodes or [resources]
    hosts = [node.get("CPU", 0.0) for node in nodes if node.get("GPU", 0.0) >= gpu] or [cpus]
    # Elastic or not: Ray starts as many workers as find room.
    share = min(cpus / most, math.fsum(hosts) / most, max(hosts))
    worker = config.cpus_per_worker or _round_down(share * 2 / 3)
    left = (cpus / most if config.cpus_per_worker else share) - worker
    largest = max(node.get("CPU", 0.0) for node in nodes)
    data = config.data_cpus or _round_down(min(left / config.data_workers, largest))
    needed = least * (worker + data * config.data_workers)
    if needed > cpus + _EPSILON or data <= 0:
        raise ConfigError(
            f"num_workers: {counted(least, 'worker')} with {worker:g} CPUs and "
            f"{config.data_workers} data actors of {data:g} CPUs each need {needed:g} CPUs, but "
            f"the run has {cpus:g}; lower num_workers, cpus_per_worker or data_cpus"
        )
    if least * gpu > gpus + _EPSILON:
        raise ConfigError(
            f"num_workers: {counted(least, 'worker')} of {gpu:g} GPUs need {least * gpu:g}, but "
            f"the run has {gpus:g}; lower num_workers or gpus_per_worker"
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


def say_what_is_awaited(config: TrainConfig, scaling: ScalingConfig, free: Resources) -> None:
    """Where the fewest workers and their data actors, as `share_resources` made them, must wait.

    What another job holds is free when it ends; what a server holds never is.
    """
    worker = cast(dict[str, float], scaling.resources_per_worker)["CPU"]
    data = cast(float, config.data_cpus) * config.data_workers
    needed = config.num_workers[0] * (worker + data)
    held = needed - free.get("CPU", 0.0)
    if held > _EPSILON:
        print(
            f"  waiting      for {held:.3g} of {needed:.3g} CPUs, which others hold; fewer "
            "workers, --cpus-per-worker and --data-cpus make do with less",
            file=sys.stderr,
        )


def _round_down(cpus: float) -> float:
    """To whole CPUs, or to hundredths of one: Ray schedules no 1.5."""
    return float(math.floor(cpus)) if cpus >= 1 else math.floor(cpus * 100) / 100


def fit(
    config: TrainConfig, scaling: ScalingConfig, job: TrainJob, callbacks: tuple[UserCallback, ...]
) -> Result:
    # For twenty seconds after a node's death Ray Train counts it among those that a run may begin
    # on anew. It waits for it in vain, for a minute if left alone, before it counts again.
    os.environ.setdefault(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, "20")
    # How often it asks each worker how it is, and takes one report of it: until then a checkpoint
    # does not count, and the next one waits. The usual two seconds are long beside a small step.
    os.environ.setdefault(HEALTH_CHECK_INTERVAL_S_ENV_VAR, "0.5")
    parent, _, name = config.output_dir.rstrip("/").rpartition("/")
    path, storage = ray_storage(parent)
    trainer = TorchTrainer(
        cast(Callable[[dict[Any, Any]], None], train_worker),
        # By reference: to read it, the controller would have to load the model's code.
        train_loop_config={"job": ray.put(job)},
        scaling_config=scaling,
        run_config=RunConfig(
            name=name,
            callbacks=cast(Any, [FailForGood(), *callbacks]),  # the annotation is that of V1
            storage_path=path or "/",
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
        return _in_thread(trainer.fit)
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            known = known_error(failure)
            if known is not None:
                raise known from None
        raise
    except TrainingFailedError as error:
        known = known_error(error)
        if known is None:
            raise
        raise known from None


def resumed_step(output: Folder) -> int | None:
    """The step of the checkpoint that Ray Train goes on from; None where the run has none yet.

    Ray's own reader of its record logs advice to start anew, and refuses another version's.
    """
    if not output.exists(_RECORD):
        return None
    latest = json.loads(output.read(_RECORD))["latest_checkpoint_result"]
    return latest and int(latest["metrics"]["step"])


def ray_storage(location: str) -> tuple[str, pyarrow.fs.FileSystem | None]:
    """A folder as Ray names it: the path in a bucket apart from the file system that it is on."""
    if not is_remote(location):
        return location, None
    fs, _ = filesystem(location)
    return location.partition("://")[2], PyFileSystem(FSSpecHandler(fs))


def _in_thread(function: Callable[[], Result]) -> Result:
    """Call it where it can't take Ctrl-C for itself: Ray Train would end the process as done.

    After Ctrl-C the thread is left behind; what it waits for ends with the session.
    """
    outcome = start_thread(function, "fit")
    while not outcome.done():
        wait([outcome], timeout=0.5)
    return outcome.result()
