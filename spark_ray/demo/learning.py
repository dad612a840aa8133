"""What the demo does with its dataset: train, evaluate, and describe new clips."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from spark_ray.core.errors import SparkRayError
from spark_ray.core.storage import Folder
from spark_ray.datasets.assets import manifest_lines
from spark_ray.datasets.build import BuildResult, build_dataset
from spark_ray.datasets.config import BuildConfig
from spark_ray.demo.config import DemoConfig
from spark_ray.demo.world import SAMPLING
from spark_ray.evaluation.config import EvaluateConfig
from spark_ray.evaluation.evaluate import Evaluation, evaluate
from spark_ray.media.synthetic import Truth
from spark_ray.training.config import TrainConfig
from spark_ray.training.curriculum import Stage
from spark_ray.training.run import TrainResult, train

_MAX_TOKENS = 48
"""The longest narration and the longest caption have fewer."""


def train_tiny(config: DemoConfig, dataset: Folder) -> TrainResult:
    """Apotheon-tiny, from nothing, on DeepSpeed; the same command resumes it."""
    curriculum = [
        Stage(name="sound", epochs=5, modalities=["text", "audio"]),
        # Shapes: a picture costs a tenth of a whole clip, so that a step can see many. Then
        # motions, which are learned in half the steps while there is nothing to hear.
        Stage(
            name="pictures",
            epochs=40,
            modalities=["text", "image"],
            batch_scale=4,
            part_rates={"vision": 0.5},
        ),
        Stage(name="films", epochs=12, modalities=["text", "video"], part_rates={"vision": 0.5}),
        Stage(
            name="clips",
            epochs=13,
            modalities=["text", "audio", "video"],
            part_rates={"vision": 0.2},
        ),
    ]
    return train(
        TrainConfig.from_values(
            dataset=dataset.location,
            output_dir=f"{config.folder}/runs/tiny",
            size="tiny",
            frozen=["vision_stem"],
            curriculum=curriculum,
            epochs=sum(stage.epochs for stage in curriculum),
            num_workers=[config.workers],
            batch_size=32 // config.workers,
            gradient_accumulation=1,
            max_frames=4,
            learning_rate=1.2e-3,
            mixed_precision="fp32",
            engine="zero1",
            # Left and right change places in the captions too.
            augment_mirror=0.5,
            augment_shift=0.06,
            augment_light=0.1,
            validate_every_epochs=20,
            checkpoint_every_steps=150,
            tracking_uri=f"sqlite:///{Path(config.folder).absolute()}/mlflow.db",
            register_as="apotheon",
        )
    )


def evaluate_tiny(config: DemoConfig, dataset: Folder, model: str) -> Evaluation:
    """Captions, transcripts and retrieval on the test split, which training never saw."""
    return evaluate(
        EvaluateConfig.from_values(
            model=model,
            dataset=dataset.location,
            split="test",
            output_dir=f"{config.folder}/evaluation",
            batch_size=32,
            max_new_tokens=_MAX_TOKENS,
        )
    )


def describe_new(config: DemoConfig, model: str) -> BuildResult:
    """The next dataset: new clips, described by the trained model.

    Raises:
        SparkRayError: no clip survived.
    """
    result = build_dataset(
        BuildConfig.from_values(
            input=[f"{config.folder}/new/clips"],
            output=f"{config.folder}/datasets/new",
            caption_backend="apotheon",
            caption_model=model,
            transcription_backend="apotheon",
            transcription_model=model,
            **SAMPLING,
        )
    )
    if result.publication is None:
        raise SparkRayError(
            f"no new clip was described; see the rejects in {result.version.location}"
        )
    return result


def print_described(version: Folder, truths: list[Truth], console: Console) -> None:
    """What the model wrote about some new clips, beside what is true."""
    by_path = {truth.path.rpartition("/")[2]: truth for truth in truths}
    table = Table(title="New clips, as the trained model describes them", title_justify="left")
    table.add_column("seen", ratio=1)
    table.add_column("heard", ratio=1)
    captions = transcripts = spoken = 0
    for number, line in enumerate(manifest_lines(version)):
        meta = line["meta"]
        truth = by_path[meta["source_path"].rpartition("/")[2]]
        captions += meta["caption"] == truth.caption
        if truth.narration is not None:
            spoken += 1
            transcripts += meta["transcript"] == truth.narration
        if number < 6:
            table.add_row(meta["caption"], meta["transcript"] or "–")
    console.print(table)
    console.print(
        f"{captions} of {len(truths)} captions and {transcripts} of {spoken} transcripts "
        "of the new clips are exactly right"
    )
