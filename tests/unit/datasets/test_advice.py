"""A build with a trained model says where its clips differ from those that the model knows."""

import shutil
from pathlib import Path

import pytest

from spark_ray.core.errors import ModelError
from spark_ray.datasets.advice import captions_advice, sampling_advice
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.ingest import InputFile
from spark_ray.models.training_record import DatasetUse, TrainingRecord

LEARNED = {"fps": 4.0, "resolution": [64, 64], "smart_sampling": False, "fit": "pad"}


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text("{}")
    dataset = DatasetUse(
        reference="sets/a", location="/sets/a/v1", version="v1", manifest_sha256="ab" * 32,
        clips={}, decoding=LEARNED,
    )  # fmt: skip
    TrainingRecord(
        date="2026-11-21", dataset=dataset, config={}, curriculum=[], steps=1, world_size=1,
        code_version="0", git_commit=None, environment={}, run_id=None,
    ).write(tmp_path)  # fmt: skip
    return str(tmp_path)


def advice(**settings: object) -> list[str]:
    return list(sampling_advice(BuildConfig.from_values(input=["in"], output="out", **settings)))


def test_the_flags_that_mend_it_are_named(model: str) -> None:
    (sentence,) = advice(caption_backend="apotheon", caption_model=model)
    assert sentence.startswith(f"caption_model: {model} ")
    assert sentence.endswith("give --fps 4.0 --resolution 64x64 --no-smart-sampling")

    flags = sentence.partition("give ")[2].split()
    mended = BuildConfig.from_command_line(["--input", "in", "--output", "out", *flags], "build")
    assert {name: mended.model_dump(mode="json")[name] for name in LEARNED} == LEARNED


def test_both_models_are_looked_at(model: str, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    both = advice(
        caption_backend="apotheon", caption_model=model, fps=4.0, resolution=(64, 64),
        transcription_backend="apotheon", transcription_model=str(other),
    )  # fmt: skip
    assert [sentence.partition(":")[0] for sentence in both] == [
        "caption_model",
        "transcription_model",
    ]


def test_one_model_for_both_is_advised_about_once(model: str) -> None:
    (sentence,) = advice(
        caption_backend="apotheon", caption_model=model,
        transcription_backend="apotheon", transcription_model=model,
    )  # fmt: skip
    assert sentence.startswith(f"caption_model and transcription_model: {model} learned from ")


def test_nothing_is_said_where_nothing_differs_or_is_known(model: str, tmp_path: Path) -> None:
    alike = {"fps": 4.0, "resolution": (64, 64), "smart_sampling": False}
    assert advice(caption_backend="apotheon", caption_model=model, **alike) == []
    assert advice(caption_backend="blip", caption_model=model) == []
    Path(model, "training.json").unlink()
    assert advice(caption_backend="apotheon", caption_model=model) == []


def test_a_folder_without_a_model_is_an_error_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"caption_model: .* holds no config\.json"):
        advice(caption_backend="apotheon", caption_model=str(tmp_path))


VIDEOS = [InputFile(f"s3://raw/films/{name}.mp4") for name in "abcd"]


def test_a_captions_file_that_names_other_videos_is_counted_with_an_example() -> None:
    named = {"a.mp4", "films/b.mp4", "c", "s3://raw/films/d.mp4", "other/a.mp4", "x.mp4"}
    (sentence,) = captions_advice(named, VIDEOS)
    assert sentence.startswith("captions_file: 2 of the 6 videos that it names are not among")
    assert "e.g. 'other/a.mp4'" in sentence


def test_nothing_is_said_of_captions_whose_videos_are_there_or_told_by_id() -> None:
    ids = {"0123456789abcdef", "0123456789abcdef-00000000-00004000"}
    assert list(captions_advice({"a", "b.mp4", *ids}, VIDEOS)) == []
    assert list(captions_advice(set(), VIDEOS)) == []
