"""What can be known of a run before it takes a GPU: whether its dataset can teach its model."""

import pyarrow.compute as pc
import torch

from spark_ray.apotheon import ApotheonConfig, ApotheonModel
from spark_ray.core.anatomy import TASKS
from spark_ray.core.errors import ConfigError, DatasetError, unknown_choice
from spark_ray.datasets.samples import SampleIndex, read_clip
from spark_ray.training.config import TrainConfig
from spark_ray.training.plan import RunPlan
from spark_ray.training.sampling import has_texts
from spark_ray.training.start import add_adapters, learns, starting_point

_LOOKED_AT = 16
# Of the dataset's index, what a clip has to have to be shown so.
_COLUMNS = {"audio": "has_audio", "image": "frame_times", "video": "frame_times"}


def prepare(config: TrainConfig, index: SampleIndex) -> tuple[RunPlan, ApotheonConfig]:
    """All that can be known before a GPU is taken.

    Raises:
        SparkRayError: something is wrong with the dataset, the curriculum or a checkpoint.
    """
    train = index.split("train")
    validation = index.split("validation") if _can_validate(index, config) else None
    _check_dataset(train, config)
    model_config, processor = starting_point(config, train)
    plan = RunPlan(config, processor, train, validation)
    assert plan.segments  # raises where the split is smaller than one step
    model = shapes_alone(model_config, config)
    for stage in plan.stages:
        if not learns(model, stage, config):
            raise ConfigError(
                f"frozen: nothing is left to learn in stage {stage.name!r}; freeze less"
            )
    return plan, model_config


def shapes_alone(model_config: ApotheonConfig, config: TrainConfig) -> ApotheonModel:
    """The model on the meta device: the weights of `base` would take 36 GB here."""
    with torch.device("meta"):
        model = ApotheonModel(model_config)
        add_adapters(model, config)
    return model


def _can_validate(index: SampleIndex, config: TrainConfig) -> bool:
    """Whether there is a text to judge by; the loss of none would be 0, and always the best."""
    table = index.table.filter(pc.equal(index.table["split"], "validation"))
    return bool(has_texts(table, config.stages[-1].tasks(config.tasks)).any())


def _check_dataset(train: SampleIndex, config: TrainConfig) -> None:
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
        for modality in stage.modalities:
            if modality in _COLUMNS and not train.count(_COLUMNS[modality]):
                raise DatasetError(
                    f"{train.location}: stage {stage.name!r} of the curriculum needs {modality}, "
                    "but no clip of the train split has any; give a curriculum without it"
                )
        labels = set(train.table["label"].to_pylist())
        for label in stage.mixture:
            if label not in labels:
                raise unknown_choice(
                    f"mixture of stage {stage.name!r}", label, [text for text in labels if text]
                )
    step = max(1, train.table.num_rows // _LOOKED_AT)
    for row in range(0, train.table.num_rows, step):
        read_clip(train.version, train.table.slice(row, 1).to_pylist()[0])
