"""The clip: the one data contract of the house.

A *video* is a source file; a *clip* is a span of it and the unit of all work. A clip travels as
one row of `CLIP_SCHEMA`: every stage fills further columns and none removes one. Pixels and samples
stay compressed (JPEG, FLAC/WAV) all the way, so a row is small and any worker can take the next
stage.

Times are seconds from the clip's start unless a name says otherwise.
"""

from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

ClipStatus = Literal["ok", "filtered", "rejected", "aborted"]
"""`aborted` is no clip: a stage could not go on at all, and its reason ends the build."""


class Record(BaseModel):
    """Base of everything that is stored: unknown fields are an error, in code and on disk."""

    model_config = ConfigDict(extra="forbid")


class Scene(Record):
    """A run of frames between two hard cuts, `[start_time, end_time)`."""

    start_time: float
    end_time: float


class Word(Record):
    """A word of a transcript with the recogniser's own confidence in it, 0 to 1."""

    start: float
    end: float
    text: str
    probability: float | None = None


class Segment(Record):
    """A stretch of speech, or a subtitle cue. `words` is empty where the backend gives none."""

    start: float
    end: float
    text: str
    words: list[Word] = []


class Transcript(Record):
    """What is said in a clip. `language` is ISO 639-1 where the backend knows it."""

    text: str
    language: str | None = None
    segments: list[Segment] = []


class Caption(Record):
    """What is seen in a clip: one text for the whole, and those of its frames in frame order.

    `all_captions` has one entry for each kept frame from a model, or one for each text that a
    sidecar file offers.
    """

    text: str
    all_captions: list[str] = []


class ModelInfo(Record):
    """Which weights answered, precisely enough to load them again."""

    name: str
    revision: str | None = None
    weights_hash: str | None = None
    prompt: str | None = None


class Step(Record):
    """One processing step of a clip, for its lineage."""

    name: str
    duration_s: float
    model: ModelInfo | None = None


class FrameSample(Record):
    """A frame that the sampling rate selected, and what smart sampling decided about it.

    `motion` is the share of the picture, 0 to 1, that changed since the last kept frame, and
    `hash_distance` the number of differing bits of the 64-bit average hash; both are None for the
    first frame of a clip, which is always kept. `dropped_by` names the rule, or is None if kept.
    """

    time: float
    motion: float | None = None
    hash_distance: int | None = None
    dropped_by: Literal["motion", "duplicate"] | None = None


class VideoInfo(Record):
    """The source stream. `width` and `height` are as displayed: rotated, with square pixels."""

    duration: float
    width: int
    height: int
    fps: float
    codec: str
    container: str | None = None
    pixel_format: str | None = None
    rotation: int = 0
    hdr: bool = False
    audio_codec: str | None = None
    audio_language: str | None = None
    decode_errors: int = 0


class Reject(Record):
    """Why a clip, or a whole file, could not be used."""

    stage: str
    error: str
    message: str
    attempt: int = 1


class FilterDecision(Record):
    """The filter that turned a sound clip away, with the value that it saw."""

    name: str
    value: float
    limit: float


class Clip(Record):
    """One row of the pipeline.

    A row that was rejected or filtered keeps whatever is known about it, so that it can be counted,
    read and tried again. `unit_size` stands on the last row of a decode unit: how many rows the
    unit has in all, by which a resumed build knows whether it has them.
    """

    clip_id: str
    video_id: str | None
    unit_id: str
    source_path: str
    source_hash: str | None = None
    status: ClipStatus = "ok"
    attempt: int = 1
    start_s: float = 0.0
    end_s: float | None = None
    label: str | None = None
    video: VideoInfo | None = None
    samples: list[FrameSample] = []
    frames: list[bytes] = []
    audio: bytes | None = None
    scenes: list[Scene] = []
    subtitles: list[Segment] = []
    subtitle_language: str | None = None
    sidecars: list[str] = []
    caption: Caption | None = None
    transcript: Transcript | None = None
    steps: list[Step] = []
    reject: Reject | None = None
    filtered: FilterDecision | None = None
    unit_size: int | None = None

    @property
    def frame_times(self) -> list[float]:
        """Seconds of the kept frames, parallel to `frames`."""
        return [sample.time for sample in self.samples if sample.dropped_by is None]

    @property
    def duration_s(self) -> float:
        return 0.0 if self.end_s is None else self.end_s - self.start_s


def clip_id(video_id: str, start_s: float, end_s: float) -> str:
    """Identity of a span of a video; sorts by video, then by time."""
    return f"{video_id}-{round(start_s * 1000):08d}-{round(end_s * 1000):08d}"


_SEGMENT = pa.struct(
    {
        "start": pa.float64(),
        "end": pa.float64(),
        "text": pa.string(),
        "words": pa.list_(
            pa.struct(
                {
                    "start": pa.float64(),
                    "end": pa.float64(),
                    "text": pa.string(),
                    "probability": pa.float64(),
                }
            )
        ),
    }
)
_MODEL = pa.struct(dict.fromkeys(ModelInfo.model_fields, pa.string()))

CLIP_SCHEMA = pa.schema(
    {
        "clip_id": pa.string(),
        "video_id": pa.string(),
        "unit_id": pa.string(),
        "source_path": pa.string(),
        "source_hash": pa.string(),
        "status": pa.string(),
        "attempt": pa.int32(),
        "start_s": pa.float64(),
        "end_s": pa.float64(),
        "label": pa.string(),
        "video": pa.struct(
            {
                "duration": pa.float64(),
                "width": pa.int32(),
                "height": pa.int32(),
                "fps": pa.float64(),
                "codec": pa.string(),
                "container": pa.string(),
                "pixel_format": pa.string(),
                "rotation": pa.int32(),
                "hdr": pa.bool_(),
                "audio_codec": pa.string(),
                "audio_language": pa.string(),
                "decode_errors": pa.int32(),
            }
        ),
        "samples": pa.list_(
            pa.struct(
                {
                    "time": pa.float64(),
                    "motion": pa.float64(),
                    "hash_distance": pa.int32(),
                    "dropped_by": pa.string(),
                }
            )
        ),
        "frames": pa.list_(pa.binary()),
        "audio": pa.binary(),
        "scenes": pa.list_(pa.struct({"start_time": pa.float64(), "end_time": pa.float64()})),
        "subtitles": pa.list_(_SEGMENT),
        "subtitle_language": pa.string(),
        "sidecars": pa.list_(pa.string()),
        "caption": pa.struct({"text": pa.string(), "all_captions": pa.list_(pa.string())}),
        "transcript": pa.struct(
            {"text": pa.string(), "language": pa.string(), "segments": pa.list_(_SEGMENT)}
        ),
        "steps": pa.list_(
            pa.struct({"name": pa.string(), "duration_s": pa.float64(), "model": _MODEL})
        ),
        "reject": pa.struct(
            {
                "stage": pa.string(),
                "error": pa.string(),
                "message": pa.string(),
                "attempt": pa.int32(),
            }
        ),
        "filtered": pa.struct({"name": pa.string(), "value": pa.float64(), "limit": pa.float64()}),
        "unit_size": pa.int32(),
    }
)


def clips_to_table(clips: list[Clip]) -> pa.Table:
    """Rows of `CLIP_SCHEMA`, in the order given."""
    return pa.Table.from_pylist([clip.model_dump() for clip in clips], schema=CLIP_SCHEMA)


def check_storable(clip: Clip) -> None:
    """Raise what storing this row would raise, while its stage can still make it a reject.

    A sidecar may hold half a surrogate pair, a container a width of 37 digits.
    """
    clips_to_table([clip.model_copy(update={"frames": [], "audio": None})])


def table_to_clips(table: pa.Table) -> list[Clip]:
    return [Clip.model_validate(row) for row in table.to_pylist()]
