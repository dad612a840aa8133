"""A step over several micro-batches learns what one over all their clips at once would."""

from types import SimpleNamespace

import apotheons
import pytest
import torch

from spark_ray.core.anatomy import TASKS
from spark_ray.training.config import TrainConfig
from spark_ray.training.data import Batch
from spark_ray.training.engines import StepOptions, TorchEngine
from spark_ray.training.meter import Meter, StepRecord
from spark_ray.training.plan import Segment
from spark_ray.training.state import TrainState
from spark_ray.training.validation import split_losses
from spark_ray.training.worker import Worker

CPU = torch.device("cpu")
FILMS = {"name": "films", "epochs": 1, "modalities": ["text", "audio", "video"]}


def take_step(*micro_batches: slice) -> StepRecord:
    """The first step of a run of one rank, over such parts of four clips, without contrast."""
    count = len(micro_batches)
    model = apotheons.model()
    model.config.contrastive_weight = 0.0  # it is among the clips of a micro-batch
    options = StepOptions("fp32", count, 0.01, (0.9, 0.98), 1.0, {})
    worker = object.__new__(Worker)
    worker.config = TrainConfig.from_values(
        dataset="x", output_dir="y", epochs=1, gradient_accumulation=count, curriculum=[FILMS]
    )
    worker.plan = SimpleNamespace(
        stages=worker.config.stages,
        stage_steps=[range(1)],
        processor=SimpleNamespace(normalise=dict),
        tasks=lambda segment: TASKS,
    )
    worker.device, worker.world_size = CPU, 1
    worker.state, worker.meter = TrainState(world_size=1), Meter(CPU, worker.config, 1)
    clips = apotheons.batch()
    batches = iter(
        [Batch({name: clips[name][part] for name in clips}, [0]) for part in micro_batches]
    )
    return worker._step(
        TorchEngine(model, options, CPU), Segment(0, count, 0, 0, validation=False), batches
    )


def test_a_token_weighs_the_same_in_whichever_micro_batch_it_is():
    """One short caption and a transcript, then two captions, of which one is long, and two more."""
    at_once = take_step(slice(4))
    accumulated = take_step(slice(1), slice(1, 4))
    assert accumulated.outcome.grad_norm == pytest.approx(at_once.outcome.grad_norm, rel=1e-4)
    for name in ("loss", "caption_loss", "transcription_loss"):
        assert accumulated.losses[name] == pytest.approx(at_once.losses[name], rel=1e-5)


def test_a_task_that_one_micro_batch_has_no_text_of_counts_for_what_the_other_has():
    at_once = take_step(slice(1, 3))
    accumulated = take_step(slice(1, 2), slice(2, 3))  # a caption alone, and a transcript alone
    assert accumulated.outcome.grad_norm == pytest.approx(at_once.outcome.grad_norm, rel=1e-4)
    assert accumulated.losses["loss"] == pytest.approx(at_once.losses["loss"], rel=1e-5)


def validate(*parts: slice) -> dict[str, float]:
    model = apotheons.model().eval()
    model.config.contrastive_weight = 0.0
    clips = apotheons.batch()
    batches = ({**{name: clips[name][part] for name in clips}, "tasks": TASKS} for part in parts)
    with torch.no_grad():
        return split_losses(lambda inputs: model(**inputs), batches, model.config, CPU)


def test_a_validation_weighs_every_token_alike():
    at_once = validate(slice(4))
    assert at_once["loss"] == pytest.approx(take_step(slice(4)).losses["loss"], rel=1e-5)
    for name in ("loss", "caption_loss", "transcription_loss"):
        assert validate(slice(1), slice(1, 4))[name] == pytest.approx(at_once[name], rel=1e-5)
