"""The stages of a build that ask a model: captions and transcripts."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import ray

from spark_ray.core.errors import ModelError, ModelFailed, StorageUnavailable, WorkerCrashed
from spark_ray.core.schema import Clip, ModelInfo, Step, check_storable
from spark_ray.core.storage import Folder
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.ledger import MAX_CRASHES, CrashGuard, check_model
from spark_ray.datasets.session import starts_ray
from spark_ray.datasets.stages import rejected
from spark_ray.models.captioning import build_captioner
from spark_ray.models.protocols import Captioner, ChecksWeights
from spark_ray.models.sidecar_files import is_named_subtitles
from spark_ray.models.transcription import build_transcriber
from spark_ray.monitoring.metrics import observe_call

_CLIPS_PER_CALL = 16
_MAX_FAILURES_IN_A_ROW = 16


class ModelStage:
    """Asks a model about clips, a few at a time, and puts each answer on its own clip.

    Args:
        name: of the stage, and of the column that it fills.
        make: builds the backend; called in the actor.
        call: asks a loaded backend about clips; answers by clip id.
        holds_weights: whether the backend does.
        backend_name: of the backend, for metrics; unset means that of the stage.
    """

    def __init__(
        self,
        name: str,
        column: str,
        make: Callable[[], Any],
        call: Callable[[Any, list[Clip]], Mapping[str, Any]],
        *,
        holds_weights: bool,
        backend_name: str | None = None,
    ) -> None:
        self.name = name
        self._backend_name = backend_name or name
        self.holds_weights = holds_weights
        self.guard: CrashGuard | None = None
        self.version: Folder | None = None
        self._failures_in_a_row = 0
        self._column = column
        self._make = make
        self._call = call
        self._backend: Any = None
        self._model: ModelInfo | None = None

    def setup(self) -> None:
        if self.guard is not None and not self.guard.begin_loading(_actor()):
            raise ModelError(
                f"{self.name}: the process died {MAX_CRASHES} times while it loaded the model; it "
                "may need more memory than there is, or its files may be damaged"
            )
        self._backend = self._make()
        self._model = self._backend.load()
        if self.guard is not None:
            self.guard.end_loading(_actor())
        if self.version is not None and self._model is not None:
            check_model(self.version, self.name, self._model)

    def check_weights(self) -> None:
        """See whether a process of this machine can have the model's weights.

        Raises:
            ModelError: it can't.
        """
        backend = self._make()
        if isinstance(backend, ChecksWeights):
            backend.check_weights()

    def process(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        stream = iter(clips)
        while batch := list(islice(stream, _CLIPS_PER_CALL)):
            sound = [clip for clip in batch if clip.status == "ok"]
            done = {clip.clip_id: clip for clip in self._ask_guarded(sound)}
            for clip in batch:
                yield done.get(clip.clip_id, clip)

    def _ask_guarded(self, clips: list[Clip]) -> list[Clip]:
        if not clips:
            return []
        if self.guard is None or not self.guard.begin_block(clips):
            return self._ask(clips)
        done: list[Clip] = []
        for clip in clips:
            if self.guard.begin_unit(clip):
                done += self._ask([clip])
                self.guard.end_unit(clip)
            else:
                crash = WorkerCrashed(f"the {self.name} model's process died on it twice")
                done.append(rejected(clip, self.name, crash))
        return done

    def _ask(self, clips: list[Clip]) -> list[Clip]:
        started = time.perf_counter()
        try:
            answers = self._call(self._backend, clips)
            call_s = time.perf_counter() - started
            seconds = round(call_s / len(clips), 6)
            done = [self._answered(clip, answers.get(clip.clip_id), seconds) for clip in clips]
        except StorageUnavailable:
            raise  # it would make a reject of every clip that is left
        except Exception as error:  # noqa: BLE001 - any clip may break a model; the others go on
            if len(clips) > 1:
                return [done for clip in clips for done in self._ask([clip])]
            self._count_failure(error)
            return [rejected(clips[0], self.name, error)]
        unknown = set(answers) - {clip.clip_id for clip in clips}
        assert not unknown, f"{self.name} answered about clips that it was not given: {unknown}"
        self._failures_in_a_row = 0
        if self._model is not None:
            observe_call(self._backend_name, self.name, len(clips), call_s)
        return done

    def _answered(self, clip: Clip, answer: Any, seconds: float) -> Clip:
        step = Step(name=self.name, duration_s=seconds, model=self._model)
        done = clip.model_copy(update={self._column: answer, "steps": [*clip.steps, step]})
        check_storable(done)
        return done

    def _count_failure(self, error: Exception) -> None:
        """A clip may break a model; a model that fails on clip after clip is broken itself.

        After a CUDA error, say, every further call fails; those clips would all become rejects.
        """
        self._failures_in_a_row += 1
        if self.holds_weights and self._failures_in_a_row >= _MAX_FAILURES_IN_A_ROW:
            raise ModelFailed(
                f"{self.name}: the model failed on {_MAX_FAILURES_IN_A_ROW} clips in a row, last "
                f"with {type(error).__name__}: {error}; mend that and run the same command again"
            ) from error


def _actor() -> str:
    """Which actor this is, also after Ray has started it again."""
    return str(ray.get_runtime_context().get_actor_id())


def model_stages(config: BuildConfig) -> list[ModelStage]:
    """The stages of a build that ask a model, made before Ray starts: bad settings show here.

    Raises:
        ConfigError: a backend's settings are wrong.
        MissingDependency: a backend needs a package that is not installed.
        ModelError: a model can't be had on this machine, where all of the work will be done.
    """
    stages = [caption_stage(config), transcribe_stage(config)]
    if starts_ray(config):
        for stage in stages:
            stage.check_weights()
    return stages


def caption_stage(config: BuildConfig) -> ModelStage:
    subtitles_are_speech = config.transcription_backend == "subtitles"

    def call(backend: Captioner, clips: list[Clip]) -> Mapping[str, Any]:
        # Where somebody asks for subtitles, film.srt is what is said, and no caption too.
        return backend.caption(
            [_without_speech(c) for c in clips] if subtitles_are_speech else clips
        )

    return ModelStage(
        "caption",
        "caption",
        lambda: build_captioner(config),
        call,
        holds_weights=build_captioner(config).uses_accelerator,
        backend_name=config.caption_backend,
    )


def _without_speech(clip: Clip) -> Clip:
    others = [uri for uri in clip.sidecars if not is_named_subtitles(uri)]
    return clip.model_copy(update={"sidecars": others})


def transcribe_stage(config: BuildConfig) -> ModelStage:
    return ModelStage(
        "transcribe",
        "transcript",
        lambda: build_transcriber(config),
        lambda backend, clips: backend.transcribe(clips),
        holds_weights=build_transcriber(config).uses_accelerator,
        backend_name=config.transcription_backend,
    )
