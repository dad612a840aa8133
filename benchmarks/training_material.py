"""The dataset, the model and the settings that `benchmarks.training` compares two programs on."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from benchmarks.harness import CACHE, WORKERS
from spark_ray.apotheon import ApotheonConfig, ApotheonModel
from spark_ray.apotheon.sizes import processor_for, tiny
from spark_ray.datasets.build import build_dataset
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.samples import load_index
from spark_ray.media.synthetic import write_world
from spark_ray.training.config import TrainConfig
from spark_ray.training.curriculum import Stage
from spark_ray.training.plan import RunPlan
from spark_ray.training.start import starting_point

_MAX_FRAMES = 16


class Size(NamedTuple):
    """How much is measured: clips that are drawn, steps, and the first ones that don't count."""

    clips: int
    steps: int
    skipped: int
    repetitions: int
    width: int
    batch: int
    """Of one process."""


FULL = Size(clips=200, steps=60, skipped=20, repetitions=3, width=256, batch=2)
QUICK = Size(clips=24, steps=6, skipped=2, repetitions=1, width=64, batch=1)


def make_material(size: Size) -> Path:
    """The folder of the dataset, once, and of the model's first weights as the code now has it."""
    folder = _folder(size)
    done = folder / "dataset.done"
    if not done.exists():
        write_world(folder / "world", size.clips, workers=WORKERS)
        _build(folder)
        done.touch()
    _save_model(size, folder / "model")
    return folder


def _build(folder: Path) -> None:
    build_dataset(
        BuildConfig.from_values(
            input=[str(folder / "world" / "clips")],
            output=str(folder / "dataset"),
            fps=4.0,
            motion_threshold=0.02,
            perceptual_hashing=False,
            label_from_folder=True,
            caption_backend="sidecar",
            transcription_backend="subtitles",
        )
    )


def _folder(size: Size) -> Path:
    return CACHE / f"training-{size.clips}-{size.width}"


def _save_model(size: Size, folder: Path) -> None:
    """An Apotheon between `tiny` and `small`, which a job starts from with `init_from`."""
    config = job_config(size, "ddp", 1, Path("unused")).model_copy(update={"init_from": None})
    plan, _ = job_plan(config)
    tokenizer = plan.processor.tokenizer
    model_config = _model_config(size.width, tokenizer)
    torch.manual_seed(0)
    ApotheonModel(model_config).save_pretrained(folder)
    processor_for(model_config, tokenizer, _MAX_FRAMES).save_pretrained(folder)


def job_plan(config: TrainConfig) -> tuple[RunPlan, ApotheonConfig]:
    """As the job makes it, but for the validation at its end."""
    split = load_index(config.reference).split("train")
    model_config, processor = starting_point(config, split)
    return RunPlan(config, processor, split, None), model_config


def _model_config(width: int, tokenizer: Any) -> ApotheonConfig:
    config = tiny(tokenizer)
    audio, text = config.audio_config, config.text_config
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 4}
    audio.d_model, audio.encoder_ffn_dim, audio.encoder_layers = width, 4 * width, 4
    special = {name: getattr(text, name) for name in ("bos_token_id", "eos_token_id")}
    return ApotheonConfig(
        vision_config=CLIPVisionConfig(image_size=64, patch_size=8, num_hidden_layers=6, **sizes),
        audio_config=audio,
        text_config=LlamaConfig(
            vocab_size=text.vocab_size,
            pad_token_id=text.pad_token_id,
            num_hidden_layers=4,
            **special,
            **sizes,
        ),
        fusion_hidden_size=width,
        fusion_layers=4,
        fusion_heads=4,
        fusion_mlp_size=4 * width,
        contrastive_size=width,
        mel_rate_hz=config.mel_rate_hz,
    )


def job_config(size: Size, engine: str, ranks: int, folder: Path) -> TrainConfig:
    """One stage with everything in it, which the data actors don't come to the end of."""
    material = _folder(size)
    epochs = 4 * -(-size.steps * size.batch * ranks // size.clips)
    return TrainConfig.from_values(
        dataset=str(material / "dataset"),
        output_dir=str(folder / "run"),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        init_from=str(material / "model"),
        engine=engine,
        num_workers=[ranks],
        threads_per_worker=1,
        batch_size=size.batch,
        gradient_accumulation=1,
        max_steps=size.steps,
        epochs=epochs,
        curriculum=[Stage(name="all", epochs=epochs, modalities=["text", "audio", "video"])],
        max_frames=_MAX_FRAMES,
        data_cache_bytes=0,
        mixed_precision="fp32",
        checkpoint_every_steps=size.steps,
        validate_every_epochs=epochs,
    )
