"""The demo's clips: drawn once, and never mixed with those of another demo."""

from pathlib import Path

import pytest

from spark_ray.core.errors import ConfigError, StorageError
from spark_ray.datasets.layout import METADATA
from spark_ray.demo.config import DemoConfig
from spark_ray.demo.world import build_shapes, draw_clips

CONFIG = DemoConfig.from_values(clips=2, workers=1)


def drawn_at(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("clip_*")}


def test_what_is_drawn_is_not_drawn_again(tmp_path: Path) -> None:
    truths = draw_clips(tmp_path, 2, CONFIG, seed=0)
    before = drawn_at(tmp_path)
    assert len(before) == 4, "two clips and their captions"
    assert draw_clips(tmp_path, 2, CONFIG, seed=0) == truths
    assert drawn_at(tmp_path) == before

    (tmp_path / truths[0].path).unlink()
    assert draw_clips(tmp_path, 2, CONFIG, seed=0) == truths
    assert drawn_at(tmp_path).keys() == before.keys()


def test_another_seed_needs_another_folder(tmp_path: Path) -> None:
    draw_clips(tmp_path, 2, CONFIG, seed=0)
    with pytest.raises(StorageError, match="clips"):
        draw_clips(tmp_path, 2, CONFIG, seed=1)


def test_a_dataset_of_other_clips_is_refused(tmp_path: Path) -> None:
    version = tmp_path / "datasets" / "shapes" / "v1"
    version.mkdir(parents=True)
    (version / METADATA).write_text("{}")
    (version / "manifest.jsonl").write_text("")
    with pytest.raises(ConfigError, match="built from 0 clips, not 2; give --clips 0"):
        build_shapes(tmp_path, 2)
