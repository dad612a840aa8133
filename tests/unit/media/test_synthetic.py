import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pysubs2
import pytest

from spark_ray.core.errors import ConfigError, StorageError
from spark_ray.media.drawing import COLOURS, MOTIONS, SHAPES, SceneSpec, draw_scene
from spark_ray.media.synthetic import (
    ClipSpec,
    Truth,
    draw_clip,
    frame_times,
    sample_spec,
    write_clip,
    write_world,
)

pytest.importorskip("espeakng_loader")

COUNT, SEED = 33, 5
HUES = {"red": 0, "yellow": 47, "green": 133, "cyan": 184, "blue": 226, "purple": 278}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Truth]]:
    """A world with every encoding in it, written by two processes."""
    folder = tmp_path_factory.mktemp("world")
    return folder, write_world(folder, COUNT, SEED, workers=2)


def decode(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Seconds since the first frame, and RGB pixels."""
    with av.open(str(path)) as container:
        frames = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    return [time - frames[0][0] for time, _ in frames], [pixels for _, pixels in frames]


def main_body(frame: np.ndarray) -> tuple[float, float, float]:
    """Centre (as a share of the width), area (of the picture) and hue of what is saturated."""
    hue, saturation, value = cv2.split(cv2.cvtColor(frame, cv2.COLOR_RGB2HSV))
    mask = ((saturation > 128) & (value > 150)).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    columns = np.nonzero(mask)[1]
    return columns.mean() / frame.shape[1], mask.mean(), float(np.median(hue[mask > 0]) * 2)


def test_files_hold_what_the_truth_says(world: tuple[Path, list[Truth]]) -> None:
    folder, truths = world
    assert {(t.codec, t.container) for t in truths} >= {
        ("libx264", "mp4"),
        ("libx264", "ts"),
        ("libx264", "mov"),
        ("libx265", "mp4"),
        ("libx265", "mkv"),
        ("libvpx-vp9", "webm"),
        ("libsvtav1", "mkv"),
        ("mpeg4", "avi"),
    }
    for number, truth in enumerate(truths):
        path = folder / truth.path
        spec = sample_spec(SEED, number)
        times, frames = decode(path)
        assert len(frames) == truth.frames, truth.path
        assert {frame.shape for frame in frames} == {(truth.height, truth.width, 3)}
        assert times == pytest.approx(frame_times(spec), abs=0.002), truth.path
        with av.open(str(path)) as container:
            assert container.duration / av.time_base == pytest.approx(truth.duration_s, abs=0.1)
            assert bool(container.streams.audio) == (truth.narration is not None)
            assert bool(container.streams.subtitles) == truth.embedded_subtitles


def test_hard_cuts_stand_where_the_truth_says_and_nowhere_else(
    world: tuple[Path, list[Truth]],
) -> None:
    folder, truths = world
    assert sum(bool(truth.cuts_s) for truth in truths) >= 5
    for truth in truths:
        times, frames = decode(folder / truth.path)
        hsv = [cv2.cvtColor(frame, cv2.COLOR_RGB2HSV) for frame in frames]
        change = [cv2.norm(a, b, cv2.NORM_L1) / a.size for a, b in pairwise(hsv)]
        cuts = [time for time, value in zip(times[1:], change, strict=True) if value > 27]
        assert cuts == pytest.approx(truth.cuts_s, abs=0.002), truth.path


def test_the_caption_can_be_read_off_the_pixels(world: tuple[Path, list[Truth]]) -> None:
    folder, truths = world
    for number, truth in enumerate(truths):
        times, frames = decode(folder / truth.path)
        spec = sample_spec(SEED, number)
        for scene in spec.scenes:
            seen = [
                main_body(frame)
                for time, frame in zip(times, frames, strict=True)
                if scene.start_s + 0.1 < time < scene.end_s - 0.1
            ]
            (x0, area0, hue), (x1, area1, _) = seen[0], seen[-1]
            distance = {c: abs((hue - h + 180) % 360 - 180) for c, h in HUES.items()}
            assert min(distance, key=distance.__getitem__) == scene.colour, truth.path
            shift, growth = x1 - x0, area1 / area0
            motion = {
                shift < -0.3: "moves left",
                shift > 0.3: "moves right",
                growth > 2: "grows",
                growth < 0.5: "shrinks",
            }
            assert motion[True] == scene.motion, truth.path


def test_the_narration_is_heard_and_is_not_the_caption(world: tuple[Path, list[Truth]]) -> None:
    folder, truths = world
    for truth in truths:
        if truth.narration is None:
            continue
        assert not {*COLOURS, *SHAPES} & set(truth.narration.split())
        with av.open(str(folder / truth.path)) as container:
            resampler = av.AudioResampler("s16", "mono", 16_000)
            blocks = [
                block.to_ndarray()[0].astype(float)
                for frame in container.decode(audio=0)
                for block in resampler.resample(frame)
            ]
        assert np.abs(np.concatenate(blocks)).mean() > 300, truth.path


def test_sidecars_and_the_truth_file_agree(world: tuple[Path, list[Truth]]) -> None:
    folder, truths = world
    lines = (folder / "truth.jsonl").read_text().splitlines()
    assert [Truth.model_validate_json(line) for line in lines] == truths
    for truth in truths:
        sidecar = folder / truth.sidecar
        stem = sidecar.with_suffix("")
        if sidecar.suffix in (".srt", ".vtt"):
            assert stem.suffix == ".caption", "or it would be taken for what is said"
            stem = stem.with_suffix("")
        assert stem == (folder / truth.path).with_suffix("")
        assert sidecar.parent.name == truth.label
        if sidecar.suffix == ".txt":
            caption = sidecar.read_text().strip()
        elif sidecar.suffix == ".json":
            caption = json.loads(sidecar.read_text())["caption"]
        else:
            cues = pysubs2.load(str(sidecar))
            caption = " ".join(cue.plaintext for cue in cues)
            assert [cue.start / 1000 for cue in cues][1:] == pytest.approx(truth.cuts_s, abs=0.001)
        assert caption == truth.caption
    files = [path for path in (folder / "clips").rglob("*") if path.is_file()]
    assert len(files) == 2 * COUNT


def test_a_world_repeats_itself_byte_for_byte(
    world: tuple[Path, list[Truth]], tmp_path: Path
) -> None:
    folder, truths = world
    progress: list[tuple[int, int]] = []
    count = 17
    again = write_world(tmp_path, count, SEED, progress=lambda *at: progress.append(at))
    assert again == truths[:count]
    assert progress == [(done, count) for done in range(1, count + 1)]
    for truth in again:
        assert (tmp_path / truth.path).read_bytes() == (folder / truth.path).read_bytes()
    assert write_world(tmp_path, count, SEED) == again


def test_another_seed_is_another_world() -> None:
    assert [sample_spec(1, i) for i in range(4)] != [sample_spec(2, i) for i in range(4)]


def test_a_spec_survives_json() -> None:
    for index in range(8):
        spec = sample_spec(SEED, index)
        assert ClipSpec.model_validate_json(spec.model_dump_json()) == spec


def test_all_the_vocabulary_is_used_and_most_clips_are_common() -> None:
    specs = [sample_spec(SEED, index) for index in range(400)]
    scenes = [scene for spec in specs for scene in spec.scenes]
    assert {scene.colour for scene in scenes} == set(COLOURS)
    assert {scene.shape for scene in scenes} == set(SHAPES)
    assert {scene.motion for scene in scenes} == set(MOTIONS)
    assert sum(spec.codec == "libx264" and spec.container == "mp4" for spec in specs) == 300
    assert 20 <= sum(spec.narration is None for spec in specs) <= 60
    assert any(spec.variable_rate for spec in specs)
    assert {spec.sidecar for spec in specs} == {"txt", "json", "caption.srt", "caption.vtt"}


def test_two_scenes_are_told_in_order() -> None:
    spec = ClipSpec(
        seed=1,
        width=64,
        height=64,
        rate=Fraction(10),
        scenes=[
            SceneSpec(colour="red", shape="circle", motion="moves left", start_s=0, end_s=1.5),
            SceneSpec(colour="blue", shape="square", motion="grows", start_s=1.5, end_s=3),
        ],
    )
    assert spec.caption == "a red circle moves left, then a blue square grows"
    assert (spec.cuts_s, spec.duration_s, spec.label) == ([1.5], 3.0, "red")
    assert len(list(draw_clip(spec))) == len(frame_times(spec)) == 30


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_drawn_whole_with_smooth_edges(shape: str) -> None:
    scene = SceneSpec(colour="yellow", shape=shape, motion="grows", start_s=0, end_s=1)
    times = [0.0, 0.999]
    drawn = draw_scene(
        scene, times, width=256, height=256, seed=3, backdrop_hue=220, backdrop_level=80
    )
    for frame in drawn:
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        solid = (hsv[..., 1] > 128) & (hsv[..., 2] > 200)
        assert not (solid[0] | solid[-1]).any()
        assert not (solid[:, 0] | solid[:, -1]).any()
        assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 100


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for bad in (0, -3):
        with pytest.raises(ConfigError, match=f"count: {bad} is too few"):
            write_world(tmp_path, bad)
    with pytest.raises(ConfigError, match="workers: 0"):
        write_world(tmp_path, 1, workers=0)
    stranger = tmp_path / "clips" / "holiday.mp4"
    stranger.parent.mkdir()
    stranger.touch()
    with pytest.raises(StorageError, match=r"holiday\.mp4"):
        write_world(tmp_path, 1)


def test_a_narration_longer_than_its_clip_is_refused(tmp_path: Path) -> None:
    spec = sample_spec(SEED, 0).model_copy(update={"narration": "one two three " * 10})
    with pytest.raises(ConfigError, match="does not fit into a clip"):
        write_clip(spec, tmp_path / "long.mp4")
