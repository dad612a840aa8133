"""The training loop, as it runs in every Ray Train worker."""

import gc
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode
from safetensors import SafetensorError
from torch import Tensor

from spark_ray.apotheon import ApotheonConfig
from spark_ray.apotheon.losses import learned_tokens
from spark_ray.core.errors import SparkRayError
from spark_ray.core.logging import configure_logging, get_logger
from spark_ray.training.config import run_name
from spark_ray.training.curriculum import Stage
from spark_ray.training.data import Batch, load_batches
from spark_ray.training.engines import Engine, StepOptions, TorchEngine
from spark_ray.training.export import save_model
from spark_ray.training.meter import Meter, StepRecord
from spark_ray.training.plan import RunPlan, Segment
from spark_ray.training.ranks import gather, once_on_each_node
from spark_ray.training.schedule import rate_at
from spark_ray.training.start import add_adapters, choose_trainable, initial_model
from spark_ray.training.state import (
    CHECKPOINT_PREFIX,
    MODEL,
    TrainState,
    disk_error,
    load_rng,
    require_reachable,
    require_space,
    save_rng,
    scratch_folder,
)
from spark_ray.training.telemetry import report_checkpoint, report_step, report_validation
from spark_ray.training.tracking import environment
from spark_ray.training.validation import LOSSES, batch_losses, split_losses

log = get_logger(__name__)


class NonFiniteError(SparkRayError):
    """Losses or gradients were not finite too often in a row."""


@dataclass(frozen=True)
class TrainJob:
    """What every worker of a run gets.

    `plan` is a reference to the `RunPlan` in Ray's object store, `board` the actor that is told of
    each step, `zero_config` DeepSpeed's configuration, None for DDP, and `parent` the checkpoint
    of another run that this one begins with. Log lines carry `log_ids`.
    """

    plan: Any
    model_config: ApotheonConfig
    zero_config: dict[str, Any] | None
    board: Any
    threads: int
    log_ids: Mapping[str, str] = field(default_factory=dict)
    parent: Checkpoint | None = None


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train from the last checkpoint, or from the start, to the end; returns where that was."""
    job: TrainJob = ray.get(settings["job"])
    plan: RunPlan = ray.get(job.plan)
    with scratch_folder(plan.config.output_dir) as folder:
        try:
            return Worker(job, plan, folder).run()
        finally:
            # Of what lies in that folder, also after an error: Ray would take the upload that
            # finds nothing for the cause, and train again up to the error.
            _await_upload()


class Worker:
    """One rank of a run. All ranks do the same with other clips; rank 0 also tells about it."""

    def __init__(self, job: TrainJob, plan: RunPlan, scratch: Path) -> None:
        self.job, self.plan, self.scratch = job, plan, scratch
        self.config = plan.config
        require_reachable(self.config.output_dir)
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.name = run_name(self.config.output_dir)
        ids = {**job.log_ids, "run": self.name, "rank": str(self.rank)}
        configure_logging(ids=lambda: ids)
        self.device = ray.train.torch.get_device()
        torch.set_num_threads(job.threads)
        self.state = TrainState(world_size=self.world_size)
        self.saved_step = 0
        self.meter = Meter(self.device, self.config, self.world_size)

    def run(self) -> dict[str, Any]:
        resumed = self._fetch_checkpoint()
        if resumed is not None:
            self.state = TrainState.load(resumed)
        batches = load_batches(self.job.plan, self.rank, self.world_size, self.state.position)
        found = self._tell_environment()
        engine: Engine | None = None
        stage = -1
        if resumed is not None:
            # The stage that wrote it; where that is over, the next one begins as it always does.
            stage = self.plan.stage_before(self.state.position)
            engine = self._next_engine(self.plan.stages[stage], None, resumed)
            # All ranks have read it; with what it was converted to, it is twice a checkpoint.
            once_on_each_node(partial(shutil.rmtree, resumed))
        for segment, start in self.plan.segments_from(self.state.position):
            if self._is_over():
                break
            if segment.stage != stage:
                stage = segment.stage
                weights = None if engine is None else _last_weights(engine)
                engine = None  # or it would keep its memory while the next one is built
                engine = self._next_engine(self.plan.stages[stage], weights, None)
            assert engine is not None
            if segment.validation:
                self._validate(engine, segment, batches)
            else:
                self._train(engine, segment, start, batches)
        return {"steps": self.state.step, "world_size": self.world_size, "environment": found}

    def _tell_environment(self) -> dict[str, str]:
        found = environment()
        if self.rank == 0:
            self.job.board.runs_in.remote(found)
        return found

    def _is_over(self) -> bool:
        return self.state.step >= self.plan.steps and not self._validation_is_next()

    def _validation_is_next(self) -> bool:
        return any(
            segment.validation and segment.first == self.state.position
            for segment in self.plan.segments
        )

    def _checkpoint_if_due(self, engine: Engine) -> None:
        """At the end of each epoch, or every so many steps, and at the end of the run.

        What was validated is always kept: it may be the best, and the next step changes it.
        """
        state, every = self.state, self.config.checkpoint_every_steps
        if self._validation_is_next():
            return  # it is part of what the checkpoint says
        ends = {segment.first + segment.length for segment in self.plan.segments}
        due = state.step % every == 0 if every else state.position in ends
        due = due or state.validation_loss is not None
        if (due or self._is_over()) and state.step != self.saved_step:
            self._checkpoint(engine)
            self.saved_step = state.step

    def _train(
        self, engine: Engine, segment: Segment, start: int, batches: Iterator[Batch]
    ) -> None:
        """The steps of an epoch, from its micro-batch `start` on."""
        config = self.config
        for _ in range(start, segment.length, config.gradient_accumulation):
            if self.state.step >= self.plan.steps:
                break
            record = self._step(engine, segment, batches)
            self.state.position += config.gradient_accumulation
            self.state.step += 1
            self.state.validation_loss = None  # it was that of other weights
            self._tell(segment, record)
            self._checkpoint_if_due(engine)

    def _step(self, engine: Engine, segment: Segment, batches: Iterator[Batch]) -> StepRecord:
        """One optimizer step over `gradient_accumulation` micro-batches."""
        config = self.config
        self.meter.start()
        sums = torch.zeros(len(LOSSES), device=self.device)
        rows: list[int] = []
        bad_rows: list[int] = []
        with self.meter.waiting():
            micro_batches = [next(batches) for _ in range(config.gradient_accumulation)]
        label_counts = self._label_counts(micro_batches)
        for number, batch in enumerate(micro_batches, 1):
            inputs = {**self._inputs(batch, segment), "label_counts": label_counts}
            output = engine.accumulate(inputs, last=number == len(micro_batches))
            losses = batch_losses(output)
            seen = [row for row in batch.rows if row >= 0]
            rows += seen
            if not bool(losses.isfinite().all()):
                bad_rows += seen
            sums += losses / config.gradient_accumulation
            self.meter.saw(engine.module, inputs)
        stage, steps = self.plan.stages[segment.stage], self.plan.stage_steps[segment.stage]
        factor = rate_at(self.state.step, steps, config.warmup_ratio, config.schedule)
        rate = config.learning_rate * stage.learning_rate_scale * factor
        outcome = engine.step(rate)
        # Where every loss was finite and a gradient was not, any of the clips may be at fault.
        self._count_skips(outcome.applied, bad_rows or rows)
        means = self._mean_over_ranks(sums)
        return self.meter.stop(dict(zip(LOSSES, means, strict=True)), rate, outcome)

    def _label_counts(self, micro_batches: Sequence[Batch]) -> Tensor:
        """`[T]` tokens that all ranks learn in the step, shared out evenly to its micro-batches.

        Without them a token would weigh more in a micro-batch with few texts.
        """
        counts = [learned_tokens(batch.tensors["labels"]).sum(dim=0) for batch in micro_batches]
        total = torch.stack(counts).sum(dim=0).float().to(self.device)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.clamp(min=1) / len(micro_batches)

    def _inputs(self, batch: Batch, segment: Segment) -> dict[str, Any]:
        """The arguments of the model's `forward`."""
        tensors = {
            name: tensor.to(self.device, non_blocking=True)
            for name, tensor in batch.tensors.items()
        }
        normalised = self.plan.processor.normalise(tensors)
        return {**normalised, "tasks": self.plan.tasks(segment)}

    def _mean_over_ranks(self, values: Tensor) -> list[float]:
        if self.world_size > 1:
            dist.all_reduce(values)
        return (values / self.world_size).tolist()

    def _count_skips(self, applied: bool, bad_rows: list[int]) -> None:
        """
        Raises:
            NonFiniteError: too many steps in a row came to nothing.
        """
        state, config = self.state, self.config
        if applied:
            state.skipped_in_a_row = 0
            return
        log.warning("step skipped", step=state.step, clips=self._clip_ids(bad_rows))
        state.skipped += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row < config.max_skipped_steps:
            return
        rows = sorted({row for part in gather(bad_rows) for row in part})
        raise NonFiniteError(
            f"step {state.step}: loss or gradient was not finite in {state.skipped_in_a_row} "
            f"steps in a row (clips of the last: {', '.join(self._clip_ids(rows))}); look at "
            f"these, or lower learning_rate ({config.learning_rate:g}); "
            "the last checkpoint is sound"
        )

    def _clip_ids(self, rows: list[int]) -> list[str]:
        ids: list[str] = self.plan.train.table["id"].take(rows).to_pylist()
        return ids

    def _validate(self, engine: Engine, segment: Segment, batches: Iterator[Batch]) -> None:
        """The losses of the validation split; the state keeps that which ranks checkpoints."""
        engine.module.eval()
        inputs = (self._inputs(next(batches), segment) for _ in range(segment.length))
        losses = split_losses(engine.evaluate, inputs, self.job.model_config, self.device)
        engine.module.train()
        self.state.validation_loss = losses["loss"]
        self.state.position = segment.first + segment.length
        metrics = {f"validation_{name}": loss for name, loss in losses.items()}
        self.state.metrics |= metrics
        if self.rank == 0:
            self.job.board.validated.remote(self.state.step, metrics)
            report_validation(self.name, losses["loss"])
        self._checkpoint_if_due(engine)

    def _tell(self, segment: Segment, record: StepRecord) -> None:
        counts = {"epoch": segment.epoch, "stage": segment.stage, "skipped": self.state.skipped}
        metrics = {**record.metrics(), **counts}
        self.state.metrics |= metrics
        report_step(self.name, self.rank, self.device.type, record)
        if self.rank == 0:
            of_parts = self.plan.stages[segment.stage].part_rates
            rates = {f"learning_rate_{p}": record.learning_rate * of_parts[p] for p in of_parts}
            self.job.board.stepped.remote(self.state.step, {**metrics, **rates})

    def _next_engine(
        self, stage: Stage, weights: dict[str, Tensor] | None, resumed: Path | None
    ) -> Engine:
        """An engine for what the stage trains, with `weights`, which it takes, or a checkpoint.

        Every stage starts with a new optimizer: what learns, and how fast, has changed.
        """
        config = self.config
        gc.collect()  # the last engine and its hooks refer to each other
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        model = initial_model(config, self.job.model_config)
        add_adapters(model, config)
        if weights is not None:
            model.load_state_dict(weights)
            weights.clear()  # nobody else holds them now
        choose_trainable(model, stage, config)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        options = StepOptions(
            precision=config.mixed_precision,
            accumulation=config.gradient_accumulation,
            weight_decay=config.weight_decay,
            betas=(config.beta1, config.beta2),
            max_grad_norm=config.max_grad_norm,
            part_rates=stage.part_rates,
        )
        # Random numbers of the forward pass, of dropout, differ between ranks.
        torch.manual_seed(config.seed * 1000 + self.rank)
        model.train()
        if config.engine == "ddp":
            engine: Engine = TorchEngine(model, options, self.device)
        else:
            engine = self._deepspeed_engine(model, options, stage, resumed)
        if resumed is not None:
            engine.load(resumed)
            load_rng(resumed, self.rank)
            self.state.world_size = self.world_size
        return engine

    def _deepspeed_engine(
        self, model: Any, options: StepOptions, stage: Stage, resumed: Path | None
    ) -> Engine:
        # Imported here: runs on DDP need no DeepSpeed.
        from spark_ray.training import deepspeed_engine as deepspeed

        resized = resumed is not None and self.state.world_size != self.world_size
        if resized and resumed is not None:
            once_on_each_node(partial(deepspeed.convert_checkpoint, resumed))
        assert self.job.zero_config is not None
        return deepspeed.DeepSpeedEngine(
            model,
            options,
            self.device,
            self.job.zero_config,
            micro_batch=-(-self.plan.batch(stage) // self.world_size),
            universal=resized,
        )

    def _fetch_checkpoint(self) -> Path | None:
        """A copy of the last checkpoint for each node, since a conversion writes into it."""
        checkpoint = ray.train.get_checkpoint() or self.job.parent
        if checkpoint is None:
            return None
        to_here = partial(checkpoint.to_directory, str(self.scratch / "checkpoint"))
        return Path(once_on_each_node(to_here))

    def _checkpoint(self, engine: Engine) -> None:
        """Write this rank's part of the whole state; Ray uploads it while training goes on.

        The one before must be in storage by then, which slow storage makes it wait for.

        Raises:
            StorageError: the disk is full.
        """
        state, started = self.state, time.perf_counter()
        # One at a time: where storage is slower than training, those that wait would fill the disk,
        # and be lost with this process.
        _await_upload()
        with ExitStack() as on_failure:
            folder = self.scratch / f"{CHECKPOINT_PREFIX}{state.step:08d}"
            folder.mkdir()
            on_failure.callback(shutil.rmtree, folder, ignore_errors=True)
            try:
                require_space(folder, engine.state_bytes())
                engine.save(folder)
                save_rng(folder, self.rank)
                weights = engine.full_state(keep=self.rank == 0)
                if self.rank == 0:
                    state.save(folder)
                    save_model(
                        folder / MODEL, weights, engine.module, self.plan, self.job.model_config
                    )
                    # A step that a checkpoint spares the next run must be in MLflow before it.
                    ray.get(self.job.board.flush.remote())
            except (OSError, RuntimeError, SafetensorError) as error:
                raise disk_error(folder, error) or error from error
            on_failure.pop_all()
        metrics = {**state.metrics, "step": state.step, "score": state.score}
        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(str(folder)),
            # Where more ranks were cut off in uploading the same step, their files stay apart.
            checkpoint_dir_name=f"{folder.name}-ranks-{self.world_size}",
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )
        if self.rank == 0:
            report_checkpoint(self.name, time.perf_counter() - started)


def _await_upload() -> None:
    """Returns when storage has every checkpoint that was handed to Ray."""
    ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)


def _last_weights(engine: Engine) -> dict[str, Tensor]:
    weights = engine.full_state()
    engine.close()
    return weights
