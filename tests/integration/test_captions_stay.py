"""A caption belongs to its clip, however rows are shuffled, split, merged and interleaved.

Every clip here shows a number, so its pictures themselves say which caption is theirs.
"""

import os
import random
import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import builds
import pyarrow as pa
import pytest

from spark_ray.core.schema import Caption, Clip, clips_to_table, table_to_clips
from spark_ray.core.storage import Folder
from spark_ray.datasets.build import begin, finish, run_units
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.ingest import list_inputs
from spark_ray.datasets.model_stages import ModelStage, transcribe_stage
from spark_ray.datasets.plan import make_plan
from spark_ray.datasets.stages import DecodeStage, StagePool
from spark_ray.datasets.units import units_of

SPANS = range(50, 62)


class ReadsNumbers:
    """A captioner that looks at the pictures; it answers in an order of its own."""

    def load(self) -> None:
        return None

    def caption(self, clips: Sequence[Clip]) -> dict[str, Caption]:
        answers = {}
        for clip in sorted(clips, key=lambda clip: clip.clip_id[::-1]):
            (number,) = {builds.number_seen(jpeg) for jpeg in clip.frames}
            if number == 13:
                raise ValueError("will not read thirteen")
            if number != 7:  # about some clips there is nothing to say
                answers[clip.clip_id] = Caption(text=builds.caption_of_number(number))
        return answers


class KillsItsProcess(ReadsNumbers):
    """Five kills the actor once, nine every time."""

    def __init__(self, folder: Path) -> None:
        self.mark = folder / "five-has-killed"

    def caption(self, clips: Sequence[Clip]) -> dict[str, Caption]:
        numbers = {builds.number_seen(jpeg) for clip in clips for jpeg in clip.frames}
        if 9 in numbers or (5 in numbers and not self.mark.exists()):
            if 5 in numbers:
                self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().caption(clips)


def reading_stage(*, holds_weights: bool = False) -> ModelStage:
    return ModelStage(
        "caption",
        "caption",
        ReadsNumbers,
        lambda backend, clips: backend.caption(clips),
        holds_weights=holds_weights,
    )


def config_for(videos: Path, output: Path) -> BuildConfig:
    return BuildConfig.from_values(
        input=[str(videos)], output=str(output), split="fixed", clip_max_s=1, fps=2
    )


@pytest.fixture(scope="module")
def videos(numbers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen short videos, and a long one that fans out into twelve clips of other numbers."""
    folder = tmp_path_factory.mktemp("captions") / "videos"
    folder.mkdir()
    for path in numbers.glob("*.mp4"):
        os.link(path, folder / path.name)
    builds.write_counting(folder / "counting.mp4", SPANS)
    return folder


@pytest.fixture(scope="module")
def rows(cluster: str, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Decoded rows of all those videos."""
    config = config_for(videos, tmp_path_factory.mktemp("rows") / "set")
    records = make_plan(list_inputs(config.input), config, lambda _: None)
    version = Folder(config.output).sub("v1")
    stage = DecodeStage(config, version, "run", {})
    units = [unit for record in records for unit in units_of(record, config)]
    return list(stage.process(units))


def cut_somehow(rows: Sequence[Clip], chance: random.Random) -> Iterator[pa.Table]:
    """The rows in random order, in tables of random size, some of them merged again."""
    shuffled = list(rows)
    chance.shuffle(shuffled)
    while shuffled:
        size = chance.randint(1, 24)
        taken, shuffled = shuffled[:size], shuffled[size:]
        at = chance.randint(0, len(taken))
        yield pa.concat_tables([clips_to_table(taken[:at]), clips_to_table(taken[at:])])


def assert_each_has_its_own(rows: Iterable[Clip], count: int) -> None:
    seen = []
    for clip in rows:
        if clip.status == "rejected":
            assert clip.reject is not None
            assert clip.reject.message == "will not read thirteen"
            seen.append(13)
            continue
        (number,) = {builds.number_seen(jpeg) for jpeg in clip.frames}
        assert (clip.caption.text if clip.caption else None) == expected_caption(number)
        seen.append(number)
    assert len(seen) == count
    assert sorted(seen) == sorted([*range(1, 17), *SPANS])


def expected_caption(number: int) -> str | None:
    return None if number == 7 else builds.caption_of_number(number)


@pytest.mark.parametrize("seed", range(20))
def test_rows_in_any_order_and_any_batches(rows: list[Clip], seed: int) -> None:
    """One actor's pool of stages sees tables cut at random, and rejects among the rows."""
    chance = random.Random(seed)
    pool = StagePool([reading_stage()])
    done = [
        clip
        for table in cut_somehow(rows, chance)
        for answer in pool(table)
        for clip in table_to_clips(answer)
    ]
    assert_each_has_its_own(done, len(rows))


def test_two_pools_that_interleave(rows: list[Clip]) -> None:
    """Rows that come out of several actors are mixed and captioned again: nothing changes."""
    chance = random.Random(1)
    actors = [StagePool([reading_stage()]) for _ in range(3)]
    once = [
        clip
        for table in cut_somehow(rows, chance)
        for answer in chance.choice(actors)(table)
        for clip in table_to_clips(answer)
    ]
    twice = [
        clip
        for table in cut_somehow(once, chance)
        for answer in chance.choice(actors)(table)
        for clip in table_to_clips(answer)
    ]
    assert_each_has_its_own(twice, len(rows))


def test_an_answer_about_a_strange_clip_is_a_defect(rows: list[Clip]) -> None:
    stage = ModelStage(
        "caption",
        "caption",
        ReadsNumbers,
        lambda _backend, _clips: {"some-other-clip": Caption(text="x")},
        holds_weights=False,
    )
    with pytest.raises(AssertionError, match="some-other-clip"):
        list(StagePool([stage])(clips_to_table(rows[:3])))


def test_a_captioning_actor_dies_and_only_what_kills_it_is_given_up(
    cluster: str, videos: Path, tmp_path: Path
) -> None:
    config = config_for(videos, tmp_path / "set")
    version = Folder(config.output).sub("v1")
    begin(version, config, make_plan(list_inputs(config.input), config, lambda _: None))
    deadly = ModelStage(
        "caption",
        "caption",
        partial(KillsItsProcess, tmp_path),
        lambda backend, clips: backend.caption(clips),
        holds_weights=True,
    )
    run_units(config, version, [deadly, transcribe_stage(config)])

    result = finish(config, version)

    reasons = {line["error"]: line["message"] for line in builds.rejects(Path(version.location))}
    assert reasons["WorkerCrashed"] == "the caption model's process died on it twice"
    assert result.rejects == 2
    found = [line["meta"]["caption"] for line in builds.manifest(Path(version.location))]
    sound = {*range(1, 17), *SPANS} - {9, 13}
    assert sorted(map(str, found)) == sorted(str(expected_caption(number)) for number in sound)


@pytest.mark.parametrize("own_actor", [False, True])
def test_a_whole_build_whose_captions_come_from_the_pictures(
    cluster: str, videos: Path, tmp_path: Path, own_actor: bool
) -> None:
    """With a model in actors of its own, rows travel between three pools; they still agree."""
    config = config_for(videos, tmp_path / "set")
    version = Folder(config.output).sub("v1")
    records = make_plan(list_inputs(config.input), config, lambda _: None)
    begin(version, config, records)
    stages = [reading_stage(holds_weights=own_actor), transcribe_stage(config)]
    run_units(config, version, stages)

    result = finish(config, version)

    assert result.rejects == 1
    seen = {}
    for line in builds.manifest(Path(version.location)):
        frames = sorted((Path(version.location) / line["frames_dir"]).iterdir())
        (number,) = {builds.number_seen(frame.read_bytes()) for frame in frames}
        seen[number] = line["meta"]["caption"]
    assert seen == {n: expected_caption(n) for n in [*range(1, 17), *SPANS] if n != 13}


def test_subtitles_that_were_asked_for_are_no_captions(cluster: str, tmp_path: Path) -> None:
    """`film.srt` is what is said as soon as somebody asks for that, and a caption only before."""
    builds.write_number(tmp_path / "in" / "film.mp4", 7)
    cue = "1\n00:00:00,000 --> 00:00:01,000\nwhat is said\n"
    (tmp_path / "in" / "film.srt").write_text(cue)
    for backend, expected in (
        ("subtitles", (None, "what is said")),
        ("none", ("what is said", None)),
    ):
        version = builds.build(tmp_path / "in", tmp_path / backend, transcription_backend=backend)
        (line,) = builds.manifest(version)
        assert (line["meta"]["caption"], line["meta"]["transcript"]) == expected


def test_a_whole_build_with_captions_beside_the_videos(
    cluster: str, numbers: Path, tmp_path: Path
) -> None:
    version = builds.build(numbers, tmp_path / "set", fps=2)
    lines = builds.manifest(version)
    assert len(lines) == 16
    for line in lines:
        frames = sorted((version / line["frames_dir"]).iterdir())
        (number,) = {builds.number_seen(frame.read_bytes()) for frame in frames}
        assert line["meta"]["caption"] == builds.caption_of_number(number)
