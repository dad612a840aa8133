"""A build that is killed, at any instant and however often, ends with the same bytes."""

import json
import os
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import builds
import psutil
import pytest

from spark_ray.datasets.build import build_dataset
from spark_ray.datasets.config import BuildConfig


@pytest.fixture(scope="module")
def videos(numbers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short videos, one that fans out into many clips, one that is broken, and a copy."""
    folder = tmp_path_factory.mktemp("resume") / "videos"
    folder.mkdir()
    for path in sorted(numbers.iterdir()):
        os.link(path, folder / path.name)
    changing = [number if number % 2 else 255 - number for number in range(100, 108)]
    builds.write_counting(folder / "counting.mp4", changing, seconds_each=2.5)
    (folder / "counting.txt").write_text("numbers that count up")
    (folder / "broken.mp4").write_bytes((folder / "clip_001.mp4").read_bytes()[:300])
    (folder / "copy_of_2.mp4").write_bytes((folder / "clip_002.mp4").read_bytes())
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    cluster: str, videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The version that a build makes when nobody disturbs it, by the settings that it is given."""
    folder = tmp_path_factory.mktemp("undisturbed")
    made = {}
    for name, settings in SETTINGS.items():
        output = folder / name / "set"
        made[name] = builds.build(videos, output, **settings)
    return made


FAN_OUT = {"split": "fixed", "clip_max_s": 2, "fps": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "files": FAN_OUT,
    "parquet": {**FAN_OUT, "format": "parquet", "shard_bytes": 65536},
    "scenes": {"split": "scenes", "fps": 2},
}


def test_the_undisturbed_build_is_whole(undisturbed: dict[str, Path], videos: Path) -> None:
    """What the killed builds are held against: every video, every span of the long one, once."""
    for name in ("files", "scenes"):
        lines = builds.manifest(undisturbed[name])
        sources = [Path(line["meta"]["source_path"]).name for line in lines]
        spans = [
            (line["meta"]["start"], line["meta"]["end"])
            for line in lines
            if line["meta"]["source_path"].endswith("counting.mp4")
        ]
        shown = [*(f"clip_{number:03d}.mp4" for number in range(1, 17)), "counting.mp4"]
        assert sorted(set(sources)) == shown
        assert len(sources) - len(spans) == 16
        assert len(spans) > 6
        assert spans[0][0] == 0
        assert spans[-1][1] == pytest.approx(20, abs=0.01)
        assert all(a[1] == pytest.approx(b[0]) for a, b in pairwise(spans))
        rejects = builds.rejects(undisturbed[name])
        assert [Path(line["source_path"]).name for line in rejects] == ["broken.mp4"]


@pytest.mark.parametrize(("settings", "parts"), [("files", 1), ("files", 12), ("scenes", 5)])
def test_killed_after_some_parts(
    undisturbed: dict[str, Path], videos: Path, tmp_path: Path, parts: int, settings: str
) -> None:
    command = builds.build_command(videos, tmp_path / "set", **SETTINGS[settings])
    version = tmp_path / "set" / "v1"
    driver = builds.start(command)
    builds.wait_until(lambda: len(builds.parts(version)) >= parts, f"{parts} parts", driver=driver)
    builds.kill(driver)
    assert not (version / "metadata.json").exists(), "killed too late to mean anything"

    resumed = builds.run(command)

    builds.assert_published(resumed)
    assert "Resuming" in resumed.stderr
    assert "units are done" in resumed.stderr
    builds.assert_same(version, undisturbed[settings])


@pytest.mark.nightly
def test_killed_at_every_change_of_the_dataset_in_turn(
    undisturbed: dict[str, Path], videos: Path, tmp_path: Path
) -> None:
    """Each run of the driver dies one change later than the one before, until one comes through.

    So the build is killed before, between and after plan, recipe, manifest, rejects, shards, report
    and metadata, and each run must go on from what the one before it left behind.
    """
    version = tmp_path / "set" / "v1"
    command = builds.build_command(videos, tmp_path / "set", **SETTINGS["parquet"])
    metadata = version / "metadata.json"

    done = builds.run(builds.killed_command(1, metadata, *command[3:]), timeout=500)

    assert metadata.exists(), done.stderr
    kills = int(re.findall(r"killed (\d+) times", done.stdout)[0])
    assert kills > 6, "the driver changes more than that"
    # The last died when it had published, before or after it swept up. The same command does that.
    if (version / "parts").exists():
        builds.assert_published(builds.run(command))
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["v1"]
    builds.assert_same(version, undisturbed["parquet"])


def test_a_version_that_is_published_but_not_swept_is_the_answer(
    undisturbed: dict[str, Path], videos: Path, tmp_path: Path
) -> None:
    version = tmp_path / "set" / "v1"
    shutil.copytree(undisturbed["files"], version)
    (version / "parts" / "committed").mkdir(parents=True)
    (version / "parts" / "recipe.json").write_text("{}")

    config = BuildConfig.from_values(
        input=[str(videos)], output=str(tmp_path / "set"), **SETTINGS["files"]
    )
    metadata = json.loads((version / "metadata.json").read_text())
    metadata["fingerprint"] = config.located().fingerprint()
    (version / "metadata.json").write_text(json.dumps(metadata))
    result = build_dataset(config)

    assert result.publication is not None
    assert result.publication.clips == len(builds.manifest(version))
    assert Path(result.version.location) == version
    assert not (version / "parts").exists()


def test_a_decoding_actor_is_killed(
    undisturbed: dict[str, Path], videos: Path, tmp_path: Path, workers: psutil.Process
) -> None:
    """kill -9 of a worker needs no resuming: Ray starts another, and nothing is lost or doubled."""
    version = tmp_path / "set" / "v1"
    driver = builds.start(builds.build_command(videos, tmp_path / "set", **SETTINGS["files"]))
    for parts in (1, 6):
        builds.wait_until(lambda count=parts: len(builds.parts(version)) >= count, f"{parts} parts")
        builds.wait_until(lambda: builds.decode_workers(workers), "decoding actors")[0].kill()
    _, printed = driver.communicate(timeout=400)

    assert driver.returncode == 0, printed
    builds.assert_same(version, undisturbed["files"])


@pytest.mark.nightly
def test_a_captioning_actor_and_then_the_driver_are_killed(
    cluster: str,
    videos: Path,
    tmp_path: Path,
    workers: psutil.Process,
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    """With a real model in an actor of its own, rows travel between three pools of workers."""
    settings = {**FAN_OUT, "caption_backend": "blip", "caption_model": str(tiny_checkpoint("blip"))}
    expected = builds.build(videos, tmp_path / "undisturbed" / "set", **settings)
    assert all(line["meta"]["caption"] for line in builds.manifest(expected))

    ended = "the end of the first build's captioner"
    builds.wait_until(lambda: not builds.processes(workers, "MapWorker"), ended)

    version = tmp_path / "set" / "v1"
    command = builds.build_command(videos, tmp_path / "set", **settings)
    driver = builds.start(command)
    builds.wait_until(lambda: builds.parts(version), "a part", driver=driver)
    captioners = builds.processes(workers, "MapWorker")
    assert len(captioners) == 1
    title = " ".join(captioners[0].cmdline())
    assert "StagePool.run" not in title, "decoding should not wait for the model"
    captioners[0].kill()
    before = len(builds.parts(version))
    builds.wait_until(lambda: len(builds.parts(version)) > before, "another part", driver=driver)
    driver.kill()
    driver.communicate()
    assert not (version / "metadata.json").exists(), "killed too late to mean anything"

    builds.assert_published(builds.run(command))
    builds.assert_same(version, expected)
