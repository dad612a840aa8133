"""Everything a run will see, in order: training micro-batches, and validations between them.

A rank finds its way in it by one number, the position, counted in micro-batches over the whole run,
validations included.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from spark_ray.apotheon import ApotheonProcessor
from spark_ray.core.anatomy import Task
from spark_ray.core.errors import DatasetError
from spark_ray.datasets.samples import SampleIndex
from spark_ray.training.config import TrainConfig
from spark_ray.training.curriculum import Stage
from spark_ray.training.sampling import Lengths, draw_weights, has_texts, micro_batches, plan_epoch


class Segment(NamedTuple):
    """Consecutive micro-batches of one kind: an epoch of training, or a validation.

    `first` is the position of the first of them, `epoch` counts over the whole run.
    """

    first: int
    length: int
    stage: int
    epoch: int
    validation: bool


@dataclass(frozen=True)
class RunPlan:
    """What decides every batch of a run, whoever computes it."""

    config: TrainConfig
    processor: ApotheonProcessor
    train: SampleIndex
    validation: SampleIndex | None

    @property
    def stages(self) -> list[Stage]:
        return self.config.stages

    @cached_property
    def segments(self) -> list[Segment]:
        segments, position, epoch = [], 0, 0
        for number, stage in enumerate(self.stages):
            for _ in range(stage.epochs):
                count = self.per_epoch(number)
                segments.append(Segment(position, count, number, epoch, validation=False))
                position, epoch = position + count, epoch + 1
                last = epoch == self.config.epochs
                if self.validation and (last or epoch % self.config.validate_every_epochs == 0):
                    count = self.per_validation
                    segments.append(Segment(position, count, number, epoch - 1, validation=True))
                    position += count
        return segments

    @property
    def total(self) -> int:
        """Positions of the whole run."""
        last = self.segments[-1]
        return last.first + last.length

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps = self.stage_steps[-1].stop
        return min(steps, self.config.max_steps or steps)

    @cached_property
    def stage_steps(self) -> list[range]:
        """The optimizer steps of each stage, were the run not cut short by `max_steps`."""
        ranges, first = [], 0
        for number, stage in enumerate(self.stages):
            per_epoch = self.per_epoch(number) // self.config.gradient_accumulation
            ranges.append(range(first, first + per_epoch * stage.epochs))
            first = ranges[-1].stop
        return ranges

    def steps_of(self, epochs: int) -> int:
        """Optimizer steps of the first so many epochs, were the run not cut short."""
        counts = (s.length for s in self.segments if s.epoch < epochs and not s.validation)
        return sum(counts) // self.config.gradient_accumulation

    def per_epoch(self, stage: int) -> int:
        """Micro-batches in each epoch of a stage.

        Raises:
            DatasetError: the training split is smaller than one step.
        """
        config, weights = self.config, self._weights[stage]
        batch = self.batch(self.stages[stage])
        count = micro_batches(weights, batch, config.gradient_accumulation)
        if not count:
            raise DatasetError(
                f"{self.train.location}: its train split gives {weights.sum():.0f} clips an epoch, "
                f"but one step of stage {self.stages[stage].name!r} takes "
                f"{batch * config.gradient_accumulation} (batch_size {config.batch_size} x "
                f"{config.num_workers[-1]} workers x gradient_accumulation "
                f"{config.gradient_accumulation} x batch_scale {self.stages[stage].batch_scale}); "
                "lower one of them"
            )
        return count

    @property
    def per_validation(self) -> int:
        """Micro-batches of a validation."""
        assert self.validation is not None
        return -(-self.validation.table.num_rows // self.batch(self.stages[-1]))

    def shown(self, segment: Segment) -> Stage:
        """The stage whose modalities and texts a segment shows.

        A validation is always that of the last one, or its loss would be about other texts in every
        stage, and the best of them that of an early stage.
        """
        return self.stages[-1 if segment.validation else segment.stage]

    def tasks(self, segment: Segment) -> tuple[Task, ...]:
        """What the texts of a segment's clips are."""
        return self.shown(segment).tasks(self.config.tasks)

    def batch(self, stage: Stage) -> int:
        """Clips in a micro-batch of all workers."""
        return self.config.global_batch * stage.batch_scale

    def stage_before(self, position: int) -> int:
        """The number of the stage that the micro-batch before a position belongs to."""
        ends = (segment.first + segment.length for segment in self.segments)
        return next(s.stage for s, end in zip(self.segments, ends, strict=True) if position <= end)

    def segments_from(self, position: int) -> Iterator[tuple[Segment, int]]:
        """The segments from a position on, with the micro-batch of each at which to start."""
        for segment in self.segments:
            if position < segment.first + segment.length:
                yield segment, max(0, position - segment.first)

    def rows(self, segment: Segment) -> np.ndarray:
        """`[micro-batches, batch]` rows of the segment's table; -1 fills a validation up."""
        batch = self.batch(self.shown(segment))
        if segment.validation:
            assert self.validation is not None
            count = self.validation.table.num_rows
            rows = np.full(segment.length * batch, -1)
            rows[:count] = self._lengths(segment).order(np.arange(count))
            return rows.reshape(-1, batch)
        return plan_epoch(
            self._lengths(segment),
            self._weights[segment.stage],
            batch=batch,
            accumulation=self.config.gradient_accumulation,
            seed=self.config.seed,
            epoch=segment.epoch,
        )

    @cached_property
    def _weights(self) -> list[np.ndarray]:
        """How often each clip is drawn in an epoch of each stage; one that teaches nothing, never.

        In a stage that shows sound alone, that is a clip that has captions only.
        """
        table = self.train.table
        return [
            draw_weights(table, stage.mixture) * has_texts(table, stage.tasks(self.config.tasks))
            for stage in self.stages
        ]

    def _lengths(self, segment: Segment) -> Lengths:
        index = self.validation if segment.validation else self.train
        assert index is not None
        processor = self.processor
        shows_video = "video" in self.shown(segment).modalities
        return Lengths.of(
            index.table,
            self.tasks(segment),
            max_frames=processor.max_frames if shows_video else 1,
            window_s=processor.feature_extractor.chunk_length,
            max_windows=processor.max_windows,
        )
