"""What a build publishes: the contract of the manifest, and the same clips in every format."""

import hashlib
import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import builds
import cv2
import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.util.annotations import RayDeprecationWarning

from spark_ray.core.storage import Folder
from spark_ray.datasets.assets import published_clips
from spark_ray.datasets.build import _pipeline
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.model_stages import ModelStage
from spark_ray.media.synthetic import Truth

FORMATS = ("files", "parquet", "both")
SHARD_BYTES = 1 << 18

CONTRACT = {
    "id": str,
    "frames_dir": str,
    "audio": (str, type(None)),
    "meta.source_path": str,
    "meta.duration": float,
    "meta.num_frames": int,
    "meta.has_audio": bool,
    "meta.caption": str,
    "meta.all_captions": list,
    "meta.transcript": (str, type(None)),
    "meta.scenes": list,
    "meta.video_info.duration": float,
    "meta.video_info.width": int,
    "meta.video_info.height": int,
    "meta.video_info.fps": float,
    "meta.video_info.codec": str,
    "meta.provenance.source_hash": str,
    "meta.provenance.processing_timestamp": str,
    "meta.provenance.pipeline_version": str,
    "meta.provenance.config": dict,
    "meta.provenance.lineage.parent_hash": str,
    "meta.provenance.lineage.processing_steps": list,
}


@pytest.fixture(scope="module")
def versions(
    cluster: str, world: tuple[Path, list[Truth]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The world, built in each format."""
    output = tmp_path_factory.mktemp("formats")
    settings = {"fps": 2, "label_from_folder": True, "transcription_backend": "subtitles"}
    return {
        form: builds.build(
            world[0] / "clips", output / form, format=form, shard_bytes=SHARD_BYTES, **settings
        )
        for form in FORMATS
    }


@pytest.fixture(scope="module")
def truths(world: tuple[Path, list[Truth]]) -> dict[str, Truth]:
    """What was drawn, by the path of the file."""
    folder, known = world
    return {str(folder / truth.path): truth for truth in known}


def field(line: dict[str, Any], path: str) -> Any:
    value: Any = line
    for name in path.split("."):
        value = value[name]
    return value


def test_every_line_keeps_the_contract(versions: dict[str, Path]) -> None:
    for line in builds.manifest(versions["files"]):
        for path, kind in CONTRACT.items():
            assert isinstance(field(line, path), kind), path
        for scene in line["meta"]["scenes"]:
            assert set(scene) == {"start_time", "end_time"}


def test_each_clip_is_what_was_drawn(versions: dict[str, Path], truths: dict[str, Truth]) -> None:
    lines = builds.manifest(versions["files"])
    assert sorted(line["meta"]["source_path"] for line in lines) == sorted(truths)
    for line in lines:
        meta, truth = line["meta"], truths[line["meta"]["source_path"]]
        assert meta["caption"] == truth.caption
        assert meta["label"] == truth.label
        assert meta["duration"] == pytest.approx(truth.duration_s, abs=0.05)
        cuts = [scene["start_time"] for scene in meta["scenes"][1:]]
        assert cuts == pytest.approx(truth.cuts_s, abs=0.05)
        if truth.embedded_subtitles:
            assert meta["transcript"] == truth.narration
        assert (meta["video_info"]["width"], meta["video_info"]["height"]) == (
            truth.width,
            truth.height,
        )


def test_files_are_there_and_identity_is_content(versions: dict[str, Path]) -> None:
    version = versions["files"]
    for line in builds.manifest(version):
        meta = line["meta"]
        source_hash = hashlib.sha256(Path(meta["source_path"]).read_bytes()).hexdigest()
        assert meta["provenance"]["source_hash"] == source_hash
        assert meta["provenance"]["lineage"]["parent_hash"] == source_hash
        assert line["id"].startswith(source_hash[:16])

        frames = sorted((version / line["frames_dir"]).iterdir())
        assert [f.name for f in frames] == [
            f"frame_{number:06d}.jpg" for number in range(1, meta["num_frames"] + 1)
        ]
        assert len(meta["frame_times"]) == meta["num_frames"] > 0
        for frame in frames:
            picture = cv2.imdecode(np.frombuffer(frame.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
            assert picture.shape == (224, 224, 3)
        sound = (version / line["audio"]).read_bytes() if line["audio"] else b""
        assert meta["num_bytes"] == sum(f.stat().st_size for f in frames) + len(sound)
        assert bool(sound) == (meta["video_info"]["audio_codec"] is not None)
        assert meta["has_audio"] == bool(sound)


def test_the_manifest_is_sorted_and_nothing_lies_about(versions: dict[str, Path]) -> None:
    version = versions["files"]
    ids = [line["id"] for line in builds.manifest(version)]
    assert ids == sorted(set(ids))
    assert {path.name for path in version.iterdir()} == {
        "manifest.jsonl", "metadata.json", "rejects.jsonl", "filtered.jsonl", "sources.jsonl",
        "report.html", "data",
    }  # fmt: skip
    folders = {path.name for path in version.glob("data/*/*")}
    assert folders == set(ids)


def test_metadata_comes_last_and_vouches_for_the_manifest(versions: dict[str, Path]) -> None:
    for version in versions.values():
        metadata = json.loads((version / "metadata.json").read_text())
        digest = hashlib.sha256((version / "manifest.jsonl").read_bytes()).hexdigest()
        assert metadata["manifest_sha256"] == digest
        written = {f: f.stat().st_mtime_ns for f in version.rglob("*") if f.is_file()}
        assert max(written, key=lambda f: written[f]).name == "metadata.json"


def test_the_funnel_adds_up(versions: dict[str, Path], truths: dict[str, Truth]) -> None:
    lines = builds.manifest(versions["files"])
    metadata = json.loads((versions["files"] / "metadata.json").read_text())
    funnel = metadata["funnel"]
    for level in ("files", "clips", "frames"):
        counts = dict(funnel[level])
        assert counts.pop("found") == sum(counts.values()), level
    assert funnel["files"]["kept"] == len(truths)
    assert funnel["files"]["no_video"] == len(truths), "a caption lies beside each"
    assert funnel["clips"]["kept"] == len(lines) == metadata["statistics"]["clips"]
    assert funnel["frames"]["kept"] == sum(line["meta"]["num_frames"] for line in lines)
    dropped = [frame for line in lines for frame in line["meta"]["dropped_frames"]]
    assert dropped, "the world holds still at times, and smart sampling sees it"
    for rule in ("motion", "duplicate"):
        assert funnel["frames"][rule] == sum(frame["dropped_by"] == rule for frame in dropped)


def test_filters_are_counted_and_their_videos_named(
    cluster: str, numbers: Path, tmp_path: Path
) -> None:
    builds.write_number(tmp_path / "in" / "short.mp4", 1, seconds=0.5)
    builds.write_number(tmp_path / "in" / "right.mp4", 2, seconds=1)
    builds.write_number(tmp_path / "in" / "long.mp4", 3, seconds=3)
    limits = {"min_duration_s": 0.75, "max_duration_s": 2}

    version = builds.build(tmp_path / "in", tmp_path / "set", caption_backend="none", **limits)

    funnel = json.loads((version / "metadata.json").read_text())["funnel"]
    assert funnel["files"] == {
        "found": 3, "no_video": 0, "rejected": 0, "duplicate": 0, "filtered": 2, "kept": 1,
    }  # fmt: skip
    named = {
        name: [Path(example["source_path"]).name for example in entry["examples"]]
        for name, entry in funnel["filters"].items()
    }
    assert named == {"min_duration_s": ["short.mp4"], "max_duration_s": ["long.mp4"]}


@pytest.mark.parametrize("form", ["parquet", "both"])
def test_shards_hold_the_bytes_of_the_files(versions: dict[str, Path], form: str) -> None:
    """Whatever the format, the clips are the same clips."""
    rows = pd.concat(
        [pd.read_parquet(shard) for shard in sorted((versions[form] / "shards").iterdir())]
    )
    clips = list(published_clips(Folder(str(versions["files"]))))
    assert list(rows["id"]) == [clip.line["id"] for clip in clips]
    for row, clip in zip(rows.to_dict("records"), clips, strict=True):
        assert list(row["frames"]) == clip.frames
        assert (row["audio"] or None) == clip.audio
        assert row["caption"] == clip.line["meta"]["caption"]
        assert json.loads(row["meta"])["caption"] == row["caption"]
        assert row["num_frames"] == len(clip.frames)


def test_parquet_alone_keeps_no_files(versions: dict[str, Path]) -> None:
    assert not (versions["parquet"] / "data").exists()
    for line in builds.manifest(versions["parquet"]):
        assert line["frames_dir"] is None
        assert line["audio"] is None
        ids = pq.read_table(versions["parquet"] / line["meta"]["shard"], columns=["id"])["id"]
        assert line["id"] in ids.to_pylist()


def test_shards_are_cut_by_bytes(versions: dict[str, Path]) -> None:
    """A shard is closed before the clip that would overfill it."""
    sizes: dict[str, list[int]] = {}
    for line in builds.manifest(versions["parquet"]):
        sizes.setdefault(line["meta"]["shard"], []).append(line["meta"]["num_bytes"])
    assert len(sizes) > 2
    held = list(sizes.values())
    assert all(sum(clips) <= SHARD_BYTES or len(clips) == 1 for clips in held)
    following = pairwise(held)
    assert all(sum(clips) + after[0] > SHARD_BYTES for clips, after in following)


def test_a_build_with_a_model_has_no_warning_for_its_user(cluster: str, tmp_path: Path) -> None:
    model = ModelStage("caption", "caption", dict, lambda *_: {}, holds_weights=True)
    config = BuildConfig.from_values(input=["in"], output=str(tmp_path / "set"))
    places = pa.table({"place": [0], "number": [0]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", RayDeprecationWarning)
        _pipeline(config, Folder(str(tmp_path / "set" / "v1")), [places], [model], {})


def test_shards_open_in_other_peoples_tools(versions: dict[str, Path], tmp_path: Path) -> None:
    shards = [str(shard) for shard in sorted((versions["both"] / "shards").iterdir())]
    captions = {line["id"]: line["meta"]["caption"] for line in builds.manifest(versions["both"])}

    huggingface = datasets.load_dataset(
        "parquet", data_files=shards, split="train", cache_dir=str(tmp_path)
    )
    assert dict(zip(huggingface["id"], huggingface["caption"], strict=True)) == captions
    assert huggingface[0]["frames"][0].startswith(b"\xff\xd8")

    in_ray = ray.data.read_parquet(shards, columns=["id", "caption", "frames"]).take_all()
    assert {row["id"]: row["caption"] for row in in_ray} == captions
    assert all(row["frames"][0].startswith(b"\xff\xd8") for row in in_ray)
