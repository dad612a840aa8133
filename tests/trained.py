"""A tiny Apotheon in a folder, as the training leaves it."""

from pathlib import Path

import torch

from spark_ray.apotheon import ApotheonModel
from spark_ray.apotheon.sizes import processor_for, tiny
from spark_ray.apotheon.tokenization import train_tokenizer
from spark_ray.models.training_record import DatasetUse, HeldOut, TrainingRecord

TEXTS = ["a red circle moves to the left", "a blue square stands still"]


def save_tiny(folder: Path) -> None:
    """Random weights with their processor; a vocabulary of 300 tokens."""
    torch.manual_seed(0)  # some random models write nothing
    tokenizer = train_tokenizer(TEXTS, 300)
    config = tiny(tokenizer)
    ApotheonModel(config).save_pretrained(folder)
    processor_for(config, tokenizer, 8).save_pretrained(folder)


def record(run_id: str | None = None, held_out: HeldOut | None = None) -> TrainingRecord:
    return TrainingRecord(
        date="2026-11-21T12:00:00+00:00",
        dataset=DatasetUse(
            reference="datasets/street@v3",
            location="/data/datasets/street/v3",
            version="v3",
            manifest_sha256="ab" * 32,
            clips={"train": 1700, "validation": 100, "test": 200},
            texts={"caption": 1700, "transcript": 1200},
            text_sources={"caption": "sidecar"},
        ),
        config={"size": "tiny", "learning_rate": 3e-4},
        curriculum=[
            {"name": "pictures", "epochs": 2, "modalities": ["text", "image"]},
            {"name": "all | <b>", "epochs": 8, "frozen": ["vision"], "part_rates": {"text": 0.1}},
        ],
        steps=12_000,
        world_size=2,
        training_metrics={"loss/caption": 0.25, "loss/transcript": float("nan")},
        held_out=held_out,
        code_version="0.1.0+0123456789ab",
        git_commit=None,
        environment={"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
        run_id=run_id,
    )
