"""What an evaluation found, as it is stored: `results.json`, and a line of `predictions.jsonl`.

Exact match, ROUGE-L, METEOR, WER, CER and recall are shares, 0 to 1 (WER and CER may be more).
BLEU is 0 to 100 as sacrebleu gives it, CIDEr 0 to 10 as its authors' code does.
"""

from typing import Any

from pydantic import ValidationError

from spark_ray.core.errors import DatasetError, StorageError
from spark_ray.core.schema import ModelInfo, Record
from spark_ray.core.storage import Folder

RESULTS = "results.json"
PREDICTIONS = "predictions.jsonl"
REPORT = "report.html"
PDF = "report.pdf"


class CaptionScores(Record):
    """Over the clips that have a reference caption."""

    clips: int
    exact: float
    bleu: float
    rouge_l: float
    meteor: float
    cider: float


class TranscriptScores(Record):
    """Over the clips that have a reference transcript; errors of all in words or letters of all."""

    clips: int
    words: int
    wer: float
    cer: float


class RetrievalScores(Record):
    """Over the clips that have a reference caption. `candidates` is how many could be found."""

    clips: int
    candidates: int
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float


class Scores(Record):
    """All metrics of some clips; None where none of them has the reference that it takes."""

    clips: int
    captions: CaptionScores | None
    transcripts: TranscriptScores | None
    clip_to_text: RetrievalScores | None
    text_to_clip: RetrievalScores | None


class CaptionResult(Record):
    """One clip's caption. CIDEr depends on the other clips' references too."""

    reference: str
    predicted: str
    exact: bool
    rouge_l: float
    meteor: float
    cider: float


class TranscriptResult(Record):
    """One clip's transcript, with its errors and what they are out of."""

    reference: str
    predicted: str
    word_errors: int
    words: int
    character_errors: int
    characters: int

    @property
    def wer(self) -> float:
        return self.word_errors / self.words

    @property
    def cer(self) -> float:
        return self.character_errors / self.characters


class Retrieved(Record):
    """At which rank, from 1, the clip found its caption, and the caption one of its clips."""

    clip_to_text_rank: int
    text_to_clip_rank: int


class Prediction(Record):
    """One clip. `seconds` is its part of the time that its batch took."""

    id: str
    source_path: str
    label: str | None
    duration: float
    source: str
    caption: CaptionResult | None
    transcript: TranscriptResult | None
    retrieval: Retrieved | None
    seconds: float


class Failure(Record):
    """A clip that could not be read or decoded."""

    id: str
    source_path: str
    error: str
    message: str


class ClipCounts(Record):
    """What became of the clips that were asked for; nothing is written about those without any
    reference, since it could not be judged."""

    asked: int
    evaluated: int
    failed: int
    without_reference: int


class DatasetInfo(Record):
    """Which clips: a manifest, by its content."""

    reference: str
    location: str
    name: str
    version: str | None
    manifest_sha256: str
    split: str


class Results(Record):
    """`results.json`. `name` is the run's in comparisons: the last part of its output folder.

    `clips_hash` is of the evaluated clips and their references: runs in which it is the same
    answered the same questions. `slices` is by what is sliced (label, duration, source), then by
    its value.
    """

    name: str
    created: str
    code_version: str
    git_commit: str | None
    settings: dict[str, Any]
    model: ModelInfo
    dataset: DatasetInfo
    clips: ClipCounts
    clips_hash: str
    seconds: float
    bleu_signature: str | None
    overall: Scores
    slices: dict[str, dict[str, Scores]]
    failures: list[Failure]


def load_results(location: str) -> Results:
    """Results from their file, or from the folder that they are in.

    Raises:
        DatasetError: there are none, or they are damaged or of another version of SparkRay.
    """
    if not location.endswith(".json"):
        location = f"{location.rstrip('/')}/{RESULTS}"
    parent, _, name = location.rpartition("/")
    try:
        data = Folder(parent or ".").read(name)
    except StorageError as error:
        raise DatasetError(
            f"compare: {error}; give the {RESULTS} of an evaluation, or its folder"
        ) from error
    try:
        return Results.model_validate_json(data)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        place = ".".join(map(str, detail["loc"]))
        raise DatasetError(
            f"compare: {location} holds no results of this version of SparkRay "
            f"({place + ': ' if place else ''}{detail['msg']}); evaluate that model again"
        ) from error
