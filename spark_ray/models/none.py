"""The backends that say nothing: clips pass without captions, or without transcripts."""

from collections.abc import Sequence

from spark_ray.core.schema import Caption, Clip, Transcript
from spark_ray.models.captioning import CaptionOptions, captioners
from spark_ray.models.transcription import TranscriptionOptions, transcribers


@captioners.register("none")
class NoCaptioner:
    uses_accelerator = False

    def __init__(self, options: CaptionOptions) -> None:
        del options

    def load(self) -> None:
        return None

    def caption(self, clips: Sequence[Clip]) -> dict[str, Caption]:
        return {}


@transcribers.register("none")
class NoTranscriber:
    uses_accelerator = False

    def __init__(self, options: TranscriptionOptions) -> None:
        del options

    def load(self) -> None:
        return None

    def transcribe(self, clips: Sequence[Clip]) -> dict[str, Transcript]:
        return {}
