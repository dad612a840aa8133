import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spark_ray.core.errors import ConfigError, CorruptMedia, ModelError
from spark_ray.core.schema import Clip, Segment, Word
from spark_ray.media.audio_codec import encode_audio
from spark_ray.models.protocols import Transcriber
from spark_ray.models.transcription import (
    WHISPER_SIZES,
    SpokenClip,
    TranscriptionOptions,
    build_transcriber,
    transcript_of,
)

Checkpoints = Callable[[str], Path]
BACKENDS = {"whisper": "openai_whisper", "faster_whisper": "ctranslate2_whisper"}


def sound(seed: int, seconds: float) -> bytes:
    """A chirp that comes and goes, in noise."""
    time = np.arange(int(16_000 * seconds)) / 16_000
    tone = np.sin(2 * np.pi * (150 + 90 * seed + 40 * time) * time) * (np.sin(9 * time + seed) > 0)
    noise = np.random.default_rng(seed).normal(0, 500, time.size)
    return encode_audio((8000 * tone + noise).astype(np.int16), "flac")


def make_clip(number: int, audio: bytes | None) -> Clip:
    return Clip(
        clip_id=f"clip-{number}",
        video_id="video",
        unit_id="unit",
        source_path="a.mp4",
        audio=audio,
    )


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Short clips, one of two windows, and one without sound."""
    lengths = [2, 31, 0.4, 3]
    sounds = [make_clip(number, sound(number, s)) for number, s in enumerate(lengths)]
    return [*sounds, make_clip(9, None)]


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(backend: str, model: Path, **settings: object) -> Transcriber:
    # These networks have never heard speech, so nothing would pass the detector of it.
    values = {"transcription_vad": False, **settings}
    values |= {"transcription_backend": backend, "transcription_model": str(model)}
    transcriber = build_transcriber(TranscriptionOptions.model_validate(values))
    transcriber.load()
    return transcriber


def test_a_transcript_does_not_depend_on_the_clips_before(
    backend: str, tiny_checkpoint: Checkpoints, clips: list[Clip]
) -> None:
    transcriber = load(backend, tiny_checkpoint(BACKENDS[backend]), transcription_language="en")
    together = transcriber.transcribe(clips)
    assert "clip-9" not in together
    assert "clip-1" in together
    assert len({t.model_dump_json() for t in together.values()}) == len(together) >= 2
    assert all(transcript.language == "en" for transcript in together.values())

    shuffled = random.Random(1).sample(clips, len(clips))
    alone = {
        key: value for clip in shuffled for key, value in transcriber.transcribe([clip]).items()
    }
    assert alone == together


def test_segments_lie_within_the_clip_and_words_are_timed(
    backend: str, tiny_checkpoint: Checkpoints, clips: list[Clip]
) -> None:
    model = tiny_checkpoint(BACKENDS[backend])
    transcriber = load(
        backend,
        model,
        word_timestamps=True,
        transcription_language="en",
        transcription_batch_size=1,
    )
    transcript = transcriber.transcribe([clips[3]])["clip-3"]
    assert transcript.text == " ".join(segment.text for segment in transcript.segments)
    for span in [*transcript.segments, *(w for s in transcript.segments for w in s.words)]:
        assert 0 <= span.start <= span.end <= 3
        assert span.text == span.text.strip()
    words = [word for segment in transcript.segments for word in segment.words]
    assert words
    assert all(0 <= (word.probability or 0) <= 1 for word in words)


def test_the_language_is_guessed_where_none_is_set(
    backend: str, tiny_checkpoint: Checkpoints, clips: list[Clip]
) -> None:
    transcripts = load(backend, tiny_checkpoint(BACKENDS[backend])).transcribe(clips[:1])
    assert len(transcripts["clip-0"].language or "") in {2, 3}


def test_whoever_asks_may_say_what_is_spoken(
    backend: str, tiny_checkpoint: Checkpoints, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    transcriber = load(backend, tiny_checkpoint(BACKENDS[backend]))
    module = pytest.importorskip(backend)
    owner = module if backend == "whisper" else module.BatchedInferencePipeline
    transcribe, told = owner.transcribe, []

    def listen(*given: Any, **settings: Any) -> Any:
        told.append(settings["language"])
        return transcribe(*given, **settings)

    monkeypatch.setattr(owner, "transcribe", listen)
    english = SpokenClip(**dict(clips[0]), spoken_language="en")
    assert transcriber.transcribe([english])["clip-0"].language == "en"
    transcriber.transcribe(clips[:1])
    assert told == ["en", None]
    klingon = english.model_copy(update={"spoken_language": "tlh"})
    with pytest.raises(ConfigError, match=r"language: 'tlh' .*\ben\b"):
        transcriber.transcribe([klingon])


def test_load_says_which_weights(backend: str, tiny_checkpoint: Checkpoints) -> None:
    model = tiny_checkpoint(BACKENDS[backend])
    options = TranscriptionOptions(transcription_backend=backend, transcription_model=str(model))
    info = build_transcriber(options).load()
    assert info is not None
    assert info.name == str(model)
    assert len(info.weights_hash or "") == 64


def test_unreadable_sound_is_corrupt_media(backend: str, tiny_checkpoint: Checkpoints) -> None:
    transcriber = load(backend, tiny_checkpoint(BACKENDS[backend]))
    with pytest.raises(CorruptMedia):
        transcriber.transcribe([make_clip(0, b"no sound")])


def test_an_unknown_language_lists_the_known_ones(
    backend: str, tiny_checkpoint: Checkpoints
) -> None:
    with pytest.raises(ConfigError, match=r"transcription_language: 'tlh' .*\ben\b"):
        load(backend, tiny_checkpoint(BACKENDS[backend]), transcription_language="tlh")


def test_silence_is_left_out_by_the_detector_of_speech(tiny_checkpoint: Checkpoints) -> None:
    transcriber = load(
        "faster_whisper", tiny_checkpoint("ctranslate2_whisper"), transcription_vad=True
    )
    silence = encode_audio(np.zeros(5 * 16_000, dtype=np.int16), "wav")
    assert transcriber.transcribe([make_clip(0, silence)]) == {}


@pytest.mark.parametrize("asked", ["load", "check_weights"])
@pytest.mark.parametrize("backend", ["whisper", "faster_whisper"])
def test_a_size_that_must_be_fetched_is_not_fetched_offline(
    backend: str, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    options = TranscriptionOptions(transcription_backend=backend, transcription_model="tiny")
    with pytest.raises(
        ModelError, match=r"HF_HUB_OFFLINE=1 forbids .* unset HF_HUB_OFFLINE, or set"
    ):
        getattr(build_transcriber(options), asked)()


def test_an_unknown_size_lists_the_known_ones() -> None:
    options = TranscriptionOptions(transcription_backend="whisper", transcription_model="huge")
    with pytest.raises(ModelError, match=r"neither a \.pt file .* tiny, "):
        build_transcriber(options).load()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.pt"
    text.write_text("not a checkpoint")
    with pytest.raises(ModelError, match=r"text\.pt can't be loaded as a checkpoint of Whisper"):
        load("whisper", text)
    other = tmp_path / "other.pt"
    torch.save({"weights": torch.zeros(2)}, other)
    with pytest.raises(ModelError, match=r"other\.pt can't be loaded"):
        load("whisper", other)


def test_a_pickle_that_runs_code_is_not_opened(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"dims": Payload(), "model_state_dict": {}}, tmp_path / "evil.pt")
    with pytest.raises(ModelError):
        load("whisper", tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_tokenizer_is_refused(
    tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("ctranslate2_whisper"), tmp_path / "copy"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"--copy_files tokenizer\.json"):
        load("faster_whisper", folder)


def test_a_transformers_folder_is_not_for_ctranslate2(tiny_checkpoint: Checkpoints) -> None:
    with pytest.raises(ModelError, match=r"holds no model\.bin"):
        load("faster_whisper", tiny_checkpoint("hf_whisper"))


def test_what_starts_after_the_end_is_dropped() -> None:
    segments = [
        Segment(start=0.5004, end=1.0, text="  "),
        Segment(start=1.0004, end=2.5, text=" said ", words=[Word(start=1, end=2.5, text=" said")]),
        Segment(start=2.2, end=2.4, text="invented"),
    ]
    transcript = transcript_of(segments, "en", 2.0)
    assert transcript is not None
    word = Word(start=1, end=2, text="said")
    assert transcript.segments == [Segment(start=1.0, end=2.0, text="said", words=[word])]
    assert transcript_of(segments[:1], "en", 2.0) is None


def test_the_sizes_that_either_package_knows_are_known() -> None:
    faster_whisper = pytest.importorskip("faster_whisper")
    whisper = pytest.importorskip("whisper")
    assert {*whisper.available_models(), *faster_whisper.available_models()} <= WHISPER_SIZES
