"""A clip row survives Arrow, and the Arrow schema says what the models say."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pyarrow as pa
import pytest
from pydantic import BaseModel, ValidationError

from spark_ray.core.schema import (
    CLIP_SCHEMA,
    Caption,
    Clip,
    FilterDecision,
    FrameSample,
    ModelInfo,
    Reject,
    Scene,
    Segment,
    Step,
    Transcript,
    VideoInfo,
    Word,
    clip_id,
    clips_to_table,
    table_to_clips,
)

FULL = Clip(
    clip_id="a" * 16 + "-00000000-00001000",
    video_id="a" * 16,
    unit_id="u",
    source_path="/videos/ü 'x'\n.mp4",
    source_hash="a" * 64,
    attempt=2,
    end_s=1.0,
    label="cats",
    video=VideoInfo(
        duration=1.5, width=640, height=480, fps=29.97, codec="h264", pixel_format="yuv420p",
        rotation=90, hdr=True, audio_codec="aac", audio_language="eng", decode_errors=3,
    ),
    samples=[
        FrameSample(time=0.0),
        FrameSample(time=0.5, motion=0.25, hash_distance=4, dropped_by="motion"),
    ],
    frames=[b"\xff\xd8\x00"],
    audio=b"fLaC\x00",
    scenes=[Scene(start_time=0.0, end_time=1.0)],
    subtitles=[Segment(start=0.1, end=0.4, text="héllo")],
    subtitle_language="eng",
    sidecars=["/videos/x.txt"],
    caption=Caption(text="a cat", all_captions=["a cat", "the cat"]),
    transcript=Transcript(
        text="hi",
        language="en",
        segments=[
            Segment(
                start=0, end=1, text="hi", words=[Word(start=0, end=1, text="hi", probability=0.5)]
            )
        ],
    ),
    steps=[Step(name="decode", duration_s=0.1), Step(
        name="caption", duration_s=0.2,
        model=ModelInfo(name="m", revision="r", weights_hash="w", prompt="p"),
    )],
    reject=Reject(stage="s", error="E", message="m", attempt=2),
    filtered=FilterDecision(name="min_clip_s", value=0.1, limit=0.2),
    unit_size=3,
)  # fmt: skip
BARE = Clip(clip_id="b", video_id=None, unit_id="u", source_path="x")


def test_rows_survive_arrow_in_their_order() -> None:
    rows = [FULL, BARE, FULL.model_copy(update={"clip_id": "c"})]
    table = clips_to_table(rows)
    assert table.schema == CLIP_SCHEMA
    assert table_to_clips(table) == rows


def test_the_full_example_fills_every_field() -> None:
    def empty(value: Any) -> bool:
        return value is None or value == [] or value == ""

    assert not [name for name, value in FULL if empty(value)]


def test_no_rows_make_an_empty_table() -> None:
    assert table_to_clips(clips_to_table([])) == []


def inner(annotation: Any) -> Any:
    """The type behind Annotated, Optional and Literal."""
    if get_origin(annotation) is Annotated:
        return inner(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return inner(next(a for a in get_args(annotation) if a is not types.NoneType))
    return str if get_origin(annotation) is Literal else annotation


SCALARS = {
    str: pa.types.is_string,
    bytes: pa.types.is_binary,
    float: pa.types.is_float64,
    int: pa.types.is_integer,
    bool: pa.types.is_boolean,
}


def assert_same_shape(annotation: Any, arrow: pa.DataType, place: str) -> None:
    kind = inner(annotation)
    if get_origin(kind) is list:
        assert pa.types.is_list(arrow), place
        assert_same_shape(get_args(kind)[0], arrow.value_type, f"{place}[]")
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        assert pa.types.is_struct(arrow), place
        assert {field.name for field in arrow} == set(kind.model_fields), place
        for name, field in kind.model_fields.items():
            assert_same_shape(field.annotation, arrow.field(name).type, f"{place}.{name}")
    else:
        assert SCALARS[kind](arrow), f"{place}: {kind} is {arrow}"


def test_the_arrow_schema_has_every_field_of_the_models() -> None:
    assert_same_shape(Clip, pa.struct(list(CLIP_SCHEMA)), "clip")


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError):
        Scene.model_validate({"start_time": 0, "end_time": 1, "kind": "cut"})


def test_frame_times_are_those_of_the_kept_frames() -> None:
    assert FULL.frame_times == [0.0]
    assert len(FULL.frame_times) == len(FULL.frames)


def test_clip_ids_sort_by_video_and_time() -> None:
    spans = [(0.0, 9.5), (9.5, 120.25), (120.25, 3600.0), (36_000.0, 36_001.0)]
    ids = [clip_id("a" * 16, start, end) for start, end in spans]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert ids[1] == "a" * 16 + "-00009500-00120250"
