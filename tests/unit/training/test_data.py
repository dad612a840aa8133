"""What a rank is given: the plan's clips, as the stage shows them, wherever one starts in it."""

import sys
from pathlib import Path
from typing import Any

import apotheons
import numpy as np
import pytest

from spark_ray.core.errors import DatasetError
from spark_ray.core.schema import Transcript
from spark_ray.core.storage import Folder
from spark_ray.datasets.layout import frame_name
from spark_ray.datasets.samples import SampleIndex, load_index, read_clip
from spark_ray.media.audio_codec import encode_audio
from spark_ray.training import data
from spark_ray.training.augment import AugmentOptions, augment, swap_sides
from spark_ray.training.config import TrainConfig
from spark_ray.training.data import BatchMaker
from spark_ray.training.plan import RunPlan

sys.path.append(str(Path(__file__).parents[1] / "datasets"))
from fake_version import jpeg, make_clip, write_version

CLIPS = 30
STAGES = [
    {"name": "pictures", "epochs": 2, "modalities": ["text", "image"]},
    {"name": "films", "epochs": 1, "modalities": ["text", "audio", "video"]},
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = []
    for number in range(CLIPS):
        clip = make_clip(number, source=f"/films/{number}.mp4", caption=f"number {number} left")
        frames = 1 + number % 4
        clip.frames = [jpeg(8 * number + i, size=64) for i in range(frames)]
        sample = clip.samples[0]
        clip.samples = [sample.model_copy(update={"time": 0.5 * i}) for i in range(frames)]
        clip.transcript = Transcript(text=f"we count to {number}") if number % 5 else None
        if number % 6:
            clip.audio = encode_audio(np.full(8000, 100 * number, np.int16), "flac")
        clips.append(clip)
    root = tmp_path_factory.mktemp("sets") / "films"
    version, _ = write_version(root, clips)
    for clip in clips:
        if clip.audio is not None:
            version.write(f"data/{clip.clip_id[:2]}/{clip.clip_id}/audio.flac", clip.audio)
    return root


@pytest.fixture(scope="module")
def index(dataset: Path) -> SampleIndex:
    return load_index(str(dataset))


def run_plan(
    index: SampleIndex, curriculum: list[dict[str, Any]] = STAGES, **values: Any
) -> RunPlan:
    config = TrainConfig.from_values(
        dataset="x", output_dir="y", epochs=3, batch_size=4, gradient_accumulation=1,
        curriculum=curriculum, augment_mirror=0.5, **values,
    )  # fmt: skip
    train, validation = index.split("train"), index.split("validation")
    return RunPlan(config, apotheons.processor(), train, validation)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_a_batch_follows_from_its_position_alone(index: SampleIndex):
    plan = run_plan(index)
    straight = BatchMaker(plan, 0, 1)
    batches = [straight.make(position) for position in range(plan.total)]
    for position in (plan.total - 1, 3, 0):
        assert same(BatchMaker(plan, 0, 1).make(position), batches[position])
    assert same(BatchMaker(run_plan(index, data_cache_bytes=0), 0, 1).make(5), batches[5])


def test_without_a_cache_only_what_a_stage_shows_is_read(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch
):
    plan, uncached = run_plan(index), run_plan(index, data_cache_bytes=0)
    seen: list[tuple[int, bool]] = []

    def watched(version: Folder, row: dict[str, Any], *, frames: list[int], audio: bool):
        seen.append((len(frames), audio))
        return read_clip(version, row, frames=frames, audio=audio)

    monkeypatch.setattr(data, "read_clip", watched)
    for segment in plan.segments:
        seen.clear()
        batch = BatchMaker(uncached, 0, 1).make(segment.first)
        if segment.validation or plan.stages[segment.stage].shows_audio:
            shown = batch["frame_mask"].sum(axis=1)[batch["rows"] >= 0]
            assert [frames for frames, _ in seen] == shown.tolist()
            assert all(audio for _, audio in seen)
        else:
            assert seen == [(1, False)] * 4
        assert same(BatchMaker(plan, 0, 1).make(segment.first), batch)


def test_ranks_together_see_what_one_would(index: SampleIndex):
    plan = run_plan(index)
    whole = BatchMaker(plan, 0, 1).make(plan.total - 2)
    parts = [BatchMaker(plan, rank, 2).make(plan.total - 2) for rank in range(2)]
    assert np.concatenate([part["rows"] for part in parts]).tolist() == whole["rows"].tolist()


def test_a_stage_shows_its_modalities_and_no_others(index: SampleIndex):
    plan = run_plan(index)
    maker = BatchMaker(plan, 0, 1)
    for segment in plan.segments:
        batch = maker.make(segment.first)
        # A validation is that of the last stage, or losses could not be compared.
        if plan.stages[segment.stage].name == "pictures" and not segment.validation:
            assert batch["pixel_values"].shape[1] == 1
            assert "input_features" not in batch
            assert plan.tasks(segment) == ("caption",), "a transcript of what is not heard"
            assert batch["text_mask"].shape[1] == 1
            assert batch["text_mask"].any()
        else:
            assert plan.tasks(segment) == ("caption", "transcript")
            assert batch["text_mask"].shape[1] == 2
            assert "input_features" in batch
            times = index.split("validation" if segment.validation else "train").table[
                "frame_times"
            ]
            rows = batch["rows"]
            expected = [len(times[int(row)]) if row >= 0 else 0 for row in rows]
            assert batch["frame_mask"].sum(axis=1).tolist() == expected


def test_a_stage_may_have_larger_batches(index: SampleIndex):
    plan = run_plan(index, [{**STAGES[0], "batch_scale": 3}, STAGES[1]])
    sizes = {
        segment.stage: len(BatchMaker(plan, 0, 1).make(segment.first)["rows"])
        for segment in plan.segments
        if not segment.validation
    }
    assert sizes == {0: 12, 1: 4}
    clips = index.split("train").table.num_rows
    pictures, films = (len(steps) for steps in plan.stage_steps)
    assert (pictures, films) == (2 * (clips // 12), clips // 4)
    assert plan.stage_steps[0].stop == plan.stage_steps[1].start
    assert plan.steps == pictures + films


def test_the_stage_before_a_position_is_that_of_the_last_micro_batch(index: SampleIndex):
    plan = run_plan(index)
    for segment in plan.segments:
        assert plan.stage_before(segment.first + 1) == segment.stage
        assert plan.stage_before(segment.first + segment.length) == segment.stage


def test_every_epoch_ends_in_a_validation_over_the_whole_split(index: SampleIndex):
    plan = run_plan(index)
    maker = BatchMaker(plan, 0, 1)
    validations = [segment for segment in plan.segments if segment.validation]
    assert len(validations) == 3
    for segment in validations:
        positions = range(segment.first, segment.first + segment.length)
        rows = np.concatenate([maker.make(position)["rows"] for position in positions])
        assert sorted(rows[rows >= 0]) == list(range(index.split("validation").table.num_rows))


def test_texts_that_are_not_learned_are_not_shown(index: SampleIndex):
    plan = run_plan(index, [{**STAGES[1], "epochs": 3}], tasks=["transcript"])
    segment = plan.segments[0]
    batch = BatchMaker(plan, 0, 1).make(segment.first)
    assert plan.tasks(segment) == ("transcript",)
    assert batch["text_mask"].shape[1] == 1
    assert batch["text_mask"].any()


def test_a_clip_whose_file_is_gone_is_named(dataset: Path, index: SampleIndex):
    plan = run_plan(index)
    row = int(BatchMaker(plan, 0, 1).make(0)["rows"][0])
    clip_id = plan.train.table["id"][row].as_py()
    file = dataset / "v1" / frame_name(clip_id, 1)
    content = file.read_bytes()
    file.unlink()
    try:
        with pytest.raises(DatasetError, match=clip_id):
            BatchMaker(plan, 0, 1).make(0)
    finally:
        file.write_bytes(content)


def test_a_mirrored_clip_has_a_mirrored_caption():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    mirrored, caption = augment(
        pixels, "Left, then right", AugmentOptions(augment_mirror=1.0), np.random.default_rng(0)
    )
    assert np.array_equal(mirrored, pixels[:, :, ::-1])
    assert caption == "Right, then left"
    assert swap_sides("bright lefthanded") == "bright lefthanded"


def test_without_options_nothing_changes():
    pixels = np.random.default_rng(1).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    same_pixels, caption = augment(pixels, "left", AugmentOptions(), np.random.default_rng(0))
    assert np.array_equal(same_pixels, pixels)
    assert caption == "left"


def test_shifts_and_light_stay_in_bounds():
    pixels = np.random.default_rng(1).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    options = AugmentOptions(augment_shift=0.5, augment_light=0.5)
    changed = [augment(pixels, None, options, np.random.default_rng(s))[0] for s in range(20)]
    assert all(one.shape == pixels.shape and one.dtype == np.uint8 for one in changed)
    assert len({one.tobytes() for one in changed}) == 20
