"""What training and evaluation learn of a clip from its manifest line."""

import json
from pathlib import Path

import pytest
from fake_version import make_clip, write_version

from spark_ray.core.schema import Clip
from spark_ray.datasets.layout import MANIFEST
from spark_ray.datasets.samples import load_index
from spark_ray.datasets.views import dataset_stats


@pytest.fixture
def clips() -> list[Clip]:
    """Three of a source with sound: one lies behind the end of its sound track."""
    clips = [make_clip(number) for number in range(3)]
    for clip in clips[:2]:
        clip.audio = b"fLaC"
    return clips


@pytest.mark.parametrize("form", ["files", "parquet", "both"])
def test_sound_is_what_a_clip_has_and_not_what_its_source_has(
    tmp_path: Path, clips: list[Clip], form: str
) -> None:
    _, metadata = write_version(tmp_path / "films", clips, format=form)
    assert load_index(str(tmp_path / "films")).count("has_audio") == 2
    assert metadata["statistics"]["with_audio"] == 2
    counted = json.loads(dataset_stats(str(tmp_path / "films"), as_json=True))
    assert counted["statistics"]["with_audio"] == 2


@pytest.mark.parametrize(("form", "with_sound"), [("files", 2), ("parquet", 3)])
def test_lines_of_older_versions_tell_it_by_their_files_or_their_source(
    tmp_path: Path, clips: list[Clip], form: str, with_sound: int
) -> None:
    version, _ = write_version(tmp_path / "films", clips, format=form)
    lines = [json.loads(line) for line in version.lines(MANIFEST)]
    for line in lines:
        del line["meta"]["has_audio"]
    version.write(MANIFEST, "".join(json.dumps(line) + "\n" for line in lines).encode())
    assert load_index(str(tmp_path / "films")).count("has_audio") == with_sound
