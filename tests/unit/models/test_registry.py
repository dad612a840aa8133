import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spark_ray.core.errors import ConfigError, MissingDependency
from spark_ray.models.captioning import CaptionOptions, build_captioner, captioners
from spark_ray.models.registry import BackendModule, Registry
from spark_ray.models.transcription import (
    TranscriptionOptions,
    build_transcriber,
    transcribers,
)


def test_importing_the_options_imports_no_backend() -> None:
    code = (
        "import sys, spark_ray.models.captioning, spark_ray.models.transcription\n"
        "heavy = {'torch', 'transformers', 'whisper', 'faster_whisper', 'ray', 'av'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_text_backends_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from spark_ray.models.captioning import CaptionOptions, build_captioner\n"
        "from spark_ray.models.transcription import TranscriptionOptions, build_transcriber\n"
        "build_captioner(CaptionOptions())\n"
        "build_transcriber(TranscriptionOptions(transcription_backend='subtitles'))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_unknown_captioner_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        build_captioner(CaptionOptions(caption_backend="blipp"))
    assert str(caught.value) == (
        "caption_backend: 'blipp' is unknown; choose one of: "
        "apotheon, blip, blip2, florence2, none, qwen2_vl, sidecar, vllm"
    )


def test_unknown_transcriber_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="faster_whisper, none, subtitles, whisper"):
        build_transcriber(TranscriptionOptions(transcription_backend="wisper"))


def test_vllm_says_how_it_is_installed() -> None:
    # make test-vllm has it; here it would be a CUDA build.
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    with pytest.raises(MissingDependency, match=r"'vllm': pip install 'spark-ray\[vllm\]'"):
        build_captioner(CaptionOptions(caption_backend="vllm"))


@pytest.mark.parametrize("name", sorted({*captioners.names} - {"vllm"}))
def test_every_captioner_registers_and_builds_without_weights(name: str) -> None:
    # Only Apotheon has no usual weights: it is trained by whoever uses it.
    model = "runs/mine/model" if name == "apotheon" else None
    captioner = build_captioner(CaptionOptions(caption_backend=name, caption_model=model))
    assert captioner.uses_accelerator == (name not in {"sidecar", "none"})


@pytest.mark.parametrize("name", transcribers.names)
def test_every_transcriber_registers_and_builds_without_weights(name: str) -> None:
    given = {"transcription_model": "runs/mine/model"} if name == "apotheon" else {}
    transcriber = build_transcriber(TranscriptionOptions(transcription_backend=name, **given))
    assert transcriber.uses_accelerator == (name not in {"subtitles", "none"})


@pytest.mark.parametrize(
    ("build", "setting"),
    [
        (lambda: build_captioner(CaptionOptions(caption_backend="apotheon")), "caption_model"),
        (
            lambda: build_transcriber(TranscriptionOptions(transcription_backend="apotheon")),
            "transcription_model",
        ),
    ],
)
def test_apotheon_asks_for_the_model_that_was_trained(
    build: Callable[[], object], setting: str
) -> None:
    with pytest.raises(ConfigError, match=f"needs {setting}; train one"):
        build()


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_a_package.py").write_text("import no_such_package.part\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[None, object] = Registry(
        "caption_backend", {"far": BackendModule("needs_a_package", "models")}
    )
    with pytest.raises(MissingDependency) as caught:
        registry.get("far")
    assert str(caught.value) == (
        "caption_backend=far needs the package 'no_such_package': pip install 'spark-ray[models]'"
    )


def test_a_backend_from_elsewhere_registers_by_being_imported() -> None:
    registry: Registry[int, object] = Registry("setting", {})

    @registry.register("mine")
    class Mine:
        def __init__(self, options: int) -> None:
            self.options = options

    assert registry.get("mine") is Mine
    assert registry.names == ["mine"]


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        (CaptionOptions(caption_backend="blip", captions_file="a.csv"), "captions_file"),
        (CaptionOptions(caption_backend="sidecar", caption_model="a"), "caption_model"),
        (CaptionOptions(caption_backend="none", caption_prompt="a"), "caption_prompt"),
        (CaptionOptions(caption_backend="florence2", caption_prompt="hello"), "caption_prompt"),
        (CaptionOptions(caption_backend="blip", caption_cache_bytes=1 << 20), "caption_cache"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    options: CaptionOptions, setting: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{setting}"):
        build_captioner(options)


def test_words_of_subtitles_have_no_times() -> None:
    options = TranscriptionOptions(transcription_backend="subtitles", word_timestamps=True)
    with pytest.raises(ConfigError, match=r"^word_timestamps"):
        build_transcriber(options)


def test_only_our_own_settings_travel_with_a_captioner() -> None:
    class JobConfig(CaptionOptions, TranscriptionOptions):
        secret: str = "s3 key"

    captioner = build_captioner(JobConfig(caption_backend="blip", caption_batch_size=3))
    assert "secret" not in vars(captioner)["options"].model_dump()
    assert vars(captioner)["options"].caption_batch_size == 3


def test_every_setting_explains_itself() -> None:
    for options in (CaptionOptions, TranscriptionOptions):
        assert all(field.description for field in options.model_fields.values())
