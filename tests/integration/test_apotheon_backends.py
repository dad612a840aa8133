"""An Apotheon that was trained here writes captions and transcripts of the next dataset."""

import shutil
from pathlib import Path

import apotheons
import builds
import pytest
import torch

from spark_ray.datasets.samples import load_index, read_clip
from spark_ray.media.synthetic import Truth
from spark_ray.models.apotheon import Apotheon

CLIPS = 3
TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, so large that what they write is nonsense, but of each clip another."""
    folder = tmp_path_factory.mktemp("models") / "apotheon"
    model = apotheons.model(seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)
    apotheons.processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def version(
    cluster: str,
    folder: Path,
    world: tuple[Path, list[Truth]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    root = tmp_path_factory.mktemp("written")
    videos = root / "videos"
    videos.mkdir()
    for truth in world[1][:CLIPS]:
        source = world[0] / truth.path
        shutil.copy(source, videos / f"{truth.label}-{source.name}")
    return builds.build(
        videos,
        root / "set",
        fps=2,
        caption_backend="apotheon",
        caption_model=str(folder),
        caption_max_new_tokens=TOKENS,
        transcription_backend="apotheon",
        transcription_model=str(folder),
    )


def test_texts_are_those_of_the_model_itself(version: Path, folder: Path) -> None:
    apotheon = Apotheon.load(str(folder), setting="model")
    index = load_index(str(version.parent))
    assert index.table.num_rows == CLIPS
    for row in index.table.to_pylist():
        found = read_clip(index.version, row)
        clip = apotheon.prepare(found.frames, row["frame_times"], found.audio)
        assert [row["caption"]] == apotheon.write([clip], "caption", TOKENS)
        assert [row["transcript"]] == apotheon.write([clip], "transcript", 256)
    for column in ("caption", "transcript"):
        assert len(set(index.table[column].to_pylist())) == CLIPS, "each clip has its own"


def test_provenance_names_the_weights(version: Path, folder: Path) -> None:
    weights = Apotheon.load(str(folder), setting="model").weights.info()
    assert weights.weights_hash
    for line in builds.manifest(version):
        steps = line["meta"]["provenance"]["lineage"]["processing_steps"]
        models = {step["name"]: step["model"] for step in steps if step.get("model")}
        assert set(models) == {"caption", "transcribe"}
        for model in models.values():
            assert model["name"] == str(folder)
            assert model["weights_hash"] == weights.weights_hash
