"""What a run leaves behind: the best model with record and card, and its place in the registry."""

import json
import shutil
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from ray.train import Checkpoint, Result

from spark_ray.core.errors import StorageError
from spark_ray.core.provenance import code_version, git_commit, now_iso
from spark_ray.core.storage import Folder
from spark_ray.datasets.layout import METADATA
from spark_ray.datasets.samples import SPLITS, SampleIndex
from spark_ray.media.geometry import PictureOptions
from spark_ray.media.sampling import SamplingOptions
from spark_ray.models.model_card import write_model_card
from spark_ray.models.training_record import DatasetUse, TrainingRecord
from spark_ray.training.plan import RunPlan
from spark_ray.training.registry import register_model
from spark_ray.training.state import MODEL, TrainState

_PIECE_BYTES = 16 << 20


def leave_behind(
    folder: Path,
    plan: RunPlan,
    index: SampleIndex,
    result: Result,
    run_id: str | None,
) -> tuple[dict[str, float], str | None]:
    """Put the best model into the run's `model/`, and into the registry where that was asked for.

    Args:
        folder: of this machine, empty: the model is completed there.
        index: all clips of the dataset.

    Returns:
        The metrics that were known when that model was stored, and its reference in the registry.

    Raises:
        StorageError: the run has no checkpoint, or the model can't be stored.
        ModelError: the registry did not take it.
    """
    config = plan.config
    output = Folder(config.output_dir)
    stored = output.sub(PurePosixPath(best_checkpoint(result, output).path).name)
    stored.sub(MODEL).download(folder)  # and not the optimizer's state, which is many times larger
    metrics = TrainState.read(stored).metrics
    _training_record(plan, index, result, metrics, run_id).write(folder)
    write_model_card(folder)
    target = output.sub(MODEL)
    for file in sorted(folder.iterdir()):
        with file.open("rb") as source, target.writer(file.name) as written:
            shutil.copyfileobj(source, written, _PIECE_BYTES)
    if config.register_as is None:
        return metrics, None
    assert config.tracking_uri is not None
    model = register_model(folder, tracking_uri=config.tracking_uri, name=config.register_as)
    return metrics, model.uri


def best_checkpoint(result: Result, output: Folder) -> Checkpoint:
    """The checkpoint of the lowest validation loss; without validation, the newest.

    Raises:
        StorageError: the run has none.
    """
    ranked = result.best_checkpoints or []
    if not ranked:
        raise StorageError(f"{output.location}: the run has no checkpoint to take a model from")
    best, _ = min(ranked, key=lambda pair: pair[1]["score"])
    return best


def _training_record(
    plan: RunPlan,
    index: SampleIndex,
    result: Any,
    metrics: dict[str, float],
    run_id: str | None,
) -> TrainingRecord:
    config = plan.config
    splits = Counter(index.table["split"].to_pylist())
    return TrainingRecord(
        name=config.register_as or config.model_name,
        date=now_iso(),
        dataset=DatasetUse(
            reference=config.reference,
            location=index.version.location,
            version=index.version.location.rpartition("/")[2],
            manifest_sha256=index.manifest_sha256(),
            clips={split: splits[split] for split in SPLITS},
            texts={
                name: plan.train.count(column)
                for name, column in (
                    ("caption", "caption"),
                    ("transcript", "transcript"),
                    ("sound", "has_audio"),
                )
            },
            decoding=_decoding(index.version),
        ),
        config=config.model_dump(mode="json"),
        curriculum=[stage.model_dump(mode="json") for stage in plan.stages],
        steps=result.return_value["steps"],
        world_size=result.return_value["world_size"],
        training_metrics=metrics,
        code_version=code_version(),
        git_commit=git_commit(),
        environment=result.return_value["environment"],
        run_id=run_id,
    )


def _decoding(version: Folder) -> dict[str, Any]:
    """How the dataset's clips were sampled; nothing where a manifest came without its dataset."""
    if not version.exists(METADATA):
        return {}
    names = [*PictureOptions.model_fields, *SamplingOptions.model_fields]
    recipe = json.loads(version.read(METADATA)).get("config", {})
    return {name: recipe[name] for name in names if name in recipe}
