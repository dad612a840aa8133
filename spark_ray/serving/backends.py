"""The deployment that holds a captioner or transcriber of the dataset job."""

import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from ray import serve

from spark_ray.core.anatomy import Task
from spark_ray.core.errors import NothingSaid
from spark_ray.core.logging import configure_logging
from spark_ray.core.schema import Caption, Clip, FrameSample, Transcript
from spark_ray.media.audio_codec import SAMPLE_RATE, encode_audio
from spark_ray.media.geometry import encode_jpeg
from spark_ray.models.captioning import CaptionOptions, build_captioner, captioners
from spark_ray.models.transcription import TranscriptionOptions, build_transcriber
from spark_ray.monitoring.logs import serve_ids
from spark_ray.monitoring.metrics import observe_call
from spark_ray.serving.inference import SILENT_S, Worker, size_batches
from spark_ray.serving.messages import Decoded, ModelFacts, ServedModel, Timing, Written
from spark_ray.serving.settings import ModelSettings

_Answer = tuple[Caption | Transcript | Exception | None, float, float]
"""With the time at which its batch began, and the seconds that it took."""


class BackendServer:
    """A captioner or transcriber of the dataset job, loaded once."""

    def __init__(self, name: str, settings: ModelSettings) -> None:
        configure_logging(ids=serve_ids)
        self._worker = Worker(settings.backend)
        self._is_captioner = settings.backend in captioners.names
        self._backend = _build_backend(settings)
        info = self._backend.load()
        assert info is not None, "every backend that may be served holds a model"
        self._served = ServedModel(name=name, version=info.revision, weights_hash=info.weights_hash)
        self._answered = float("-inf")
        size_batches(self._answer, settings)

    async def check_health(self) -> None:
        """Ask for a real answer, unless one was given lately: these models take their time."""
        if time.monotonic() - self._answered > SILENT_S:
            with suppress(NothingSaid):  # it found no words for nothing, which is an answer
                await self._worker.run(partial(self._ask, [_test_clip()]))

    async def write(self, decoded: Decoded, task: Task, max_new_tokens: int) -> Written:
        """A caption or a transcript of a clip; `max_new_tokens` is the backend's own setting."""
        received = time.perf_counter()
        await self._worker.free()
        answer, started, model = await self._answer(decoded.clip)
        if isinstance(answer, Exception):
            raise answer
        timing = Timing(preprocess=decoded.seconds, queue=started - received, model=model)
        if answer is None:
            return Written(text="", model=self._served, timing=timing)
        if isinstance(answer, Caption):
            return Written(
                text=answer.text,
                all_captions=answer.all_captions,
                model=self._served,
                timing=timing,
            )
        return Written(
            text=answer.text,
            segments=answer.segments,
            language=answer.language,
            model=self._served,
            timing=timing,
        )

    async def stream(
        self, decoded: Decoded, task: Task, max_new_tokens: int
    ) -> AsyncIterator[str | Written]:
        """These backends write a text at once: it is the only piece."""
        written = await self.write(decoded, task, max_new_tokens)
        yield written.text
        yield written

    @serve.batch()
    async def _answer(self, clips: list[Clip]) -> list[_Answer]:
        return await self._worker.run_batch(partial(self._answers, clips))

    def _answers(self, clips: list[Clip]) -> list[_Answer]:
        """What breaks one does not break the others."""
        started = time.perf_counter()
        try:
            answers = self._ask(clips)
        except Exception as error:  # noqa: BLE001 - raised in the request that it belongs to
            if len(clips) == 1:
                return [(error, started, time.perf_counter() - started)]
            return [self._answers([clip])[0] for clip in clips]
        seconds = time.perf_counter() - started
        task = "caption" if self._is_captioner else "transcript"
        observe_call(self._served.name, task, len(clips), seconds)
        return [(answer, started, seconds) for answer in answers]

    def _ask(self, clips: list[Clip]) -> list[Caption | Transcript | None]:
        # Answers go by id, and the same clip may be asked about twice at once.
        unique = [
            clip.model_copy(update={"clip_id": str(number)}) for number, clip in enumerate(clips)
        ]
        answers = (
            self._backend.caption(unique)
            if self._is_captioner
            else self._backend.transcribe(unique)
        )
        self._answered = time.monotonic()
        return [answers.get(clip.clip_id) for clip in unique]

    async def facts(self) -> ModelFacts:
        return ModelFacts(served=self._served)


def _test_clip() -> Clip:
    """A second of grey and silence."""
    return Clip(
        clip_id="test",
        video_id=None,
        unit_id="test",
        source_path="test",
        end_s=1.0,
        samples=[FrameSample(time=0.0)],
        frames=[encode_jpeg(np.full((64, 64, 3), 128, np.uint8), 90)],
        audio=encode_audio(np.zeros(SAMPLE_RATE, np.int16), "flac"),
    )


def _build_backend(settings: ModelSettings) -> Any:
    if settings.backend in captioners.names:
        return build_captioner(
            CaptionOptions.model_validate(
                {
                    "caption_backend": settings.backend,
                    "caption_model": settings.reference,
                    "caption_batch_size": settings.max_batch_size,
                }
            )
        )
    model = {"transcription_model": settings.reference} if settings.reference else {}
    return build_transcriber(
        TranscriptionOptions.model_validate({"transcription_backend": settings.backend, **model})
    )
