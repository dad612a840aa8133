"""Pools must fit a cluster all at once: what never gets its resources waits for ever."""

from pathlib import Path

import pytest

from spark_ray.core.errors import ConfigError, StorageUnavailable
from spark_ray.core.schema import Caption, Clip, check_storable
from spark_ray.core.storage import Folder
from spark_ray.datasets.build import _placement, _pools
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.ingest import list_inputs
from spark_ray.datasets.model_stages import ModelStage
from spark_ray.datasets.stages import CommitStage, DecodeStage

CLUSTERS = [
    {"CPU": 1},
    {"CPU": 2},
    {"CPU": 8},
    {"CPU": 8, "GPU": 1},
    {"CPU": 16, "GPU": 2},
    {"CPU": 64, "GPU": 8},
]


def config(**settings: object) -> BuildConfig:
    return BuildConfig.from_values(input=["x"], output="sets/x", **settings)


def model(name: str, *, holds_weights: bool = True) -> ModelStage:
    return ModelStage(name, name, lambda: None, lambda *_: {}, holds_weights=holds_weights)


@pytest.mark.parametrize("cluster", CLUSTERS, ids=str)
@pytest.mark.parametrize("weights", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("model_gpus", [0.25, 1, 2])
def test_one_task_of_every_pool_and_all_actors_fit_at_once(
    cluster: dict[str, float], weights: tuple[bool, bool], workers: int, model_gpus: float
) -> None:
    settings = config(caption_workers=workers, transcription_workers=workers, model_gpus=model_gpus)
    version = Folder("sets/x/v1")
    models = [
        model("caption", holds_weights=weights[0]),
        model("transcribe", holds_weights=weights[1]),
    ]
    pools = _pools(
        [DecodeStage(settings, version, "run", {}), *models, CommitStage(settings, version)]
    )
    placement = _placement(settings, pools, cluster)

    def needed(resource: str) -> float:
        sizes = [workers if pool.holds_weights else 1 for pool in pools]
        return sum(
            size * (options.get(resource) or 0.0)
            for size, options in zip(sizes, placement, strict=True)
        )

    assert needed("num_cpus") <= cluster["CPU"] + 1e-9
    assert needed("num_gpus") <= cluster.get("GPU", 0) + 1e-9
    for options in placement:
        gpus = options.get("num_gpus", 0)
        assert gpus < 1 or gpus == int(gpus), "Ray divides no GPU above one"


def test_stages_without_weights_share_a_process() -> None:
    settings, version = config(), Folder("sets/x/v1")
    stages = [
        DecodeStage(settings, version, "run", {}),
        model("caption", holds_weights=False),
        CommitStage(settings, version),
    ]
    assert [len(pool.stages) for pool in _pools(stages)] == [3]


def test_local_paths_mean_the_same_for_every_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.csv").touch()
    located = config(captions_file="captions.csv", caption_model="hub/name").located()
    assert located.output == str(tmp_path / "sets/x")
    assert located.captions_file == str(tmp_path / "captions.csv")
    assert located.caption_model == "hub/name"


@pytest.mark.parametrize("backend", ["none", "whisper", "faster_whisper"])
def test_a_size_of_whisper_is_not_taken_for_a_folder_of_that_name(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = config(transcription_backend=backend)
    before = chosen.located().fingerprint()
    (tmp_path / "base").mkdir()
    assert chosen.located().transcription_model == "base"
    assert chosen.located().fingerprint() == before


def test_a_folder_of_a_model_may_be_given_by_its_bare_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, backend in (("ours", "faster_whisper"), ("small", "apotheon")):
        (tmp_path / name).mkdir()
        chosen = config(
            caption_model=name, transcription_backend=backend, transcription_model=name
        ).located()
        assert chosen.caption_model == chosen.transcription_model == str(tmp_path / name)


def test_a_path_may_begin_with_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "captions.csv").touch()
    given = config(captions_file="~/captions.csv", caption_model="~")
    located = given.model_copy(update={"output": "~/sets/x"}).located()
    assert located.output == str(tmp_path / "sets/x")
    assert located.captions_file == str(tmp_path / "captions.csv")
    assert located.caption_model == str(tmp_path)


def test_the_home_of_nobody_is_a_name_as_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nobody = config().model_copy(update={"input": ["~nobody-here/x"], "output": "~nobody-here/y"})
    assert nobody.located().output == str(tmp_path / "~nobody-here/y")
    with pytest.raises(ConfigError, match="input: '~nobody-here/x' does not exist"):
        list_inputs(nobody.input)


def test_a_relative_output_inside_a_ray_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = tmp_path / "runtime_resources" / "working_dir_files" / "abc"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    with pytest.raises(ConfigError, match="give an absolute path or s3://"):
        config().located()


@pytest.mark.parametrize(
    "address",
    [
        "s3://key:secret@bucket/x",
        "https://host/x?X-Amz-Signature=abc",
        "https://secret@host/x",
        "https://host/x?token=abc",
        "abfs://box/x?sv=1&sig=abc",
    ],
)
def test_an_address_that_holds_a_secret_is_refused_without_repeating_it(address: str) -> None:
    for setting in ("input", "output", "captions_file", "caption_model", "transcription_model"):
        value = [address] if setting == "input" else address
        with pytest.raises(ConfigError, match="holds a secret") as caught:
            config().model_copy(update={setting: value}).located()
        assert "secret@" not in str(caught.value)
        assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["s3://raw/clip_?.mp4", "abfs://box@account/x", "s3://raw/me@home/x"]
)
def test_an_address_without_a_secret_is_taken(address: str) -> None:
    config().model_copy(update={"input": [address]}).located()


def test_half_a_surrogate_pair_is_found_before_it_is_stored() -> None:
    clip = Clip(clip_id="a", video_id=None, unit_id="a", source_path="x")
    check_storable(clip)
    with pytest.raises(UnicodeEncodeError):
        check_storable(clip.model_copy(update={"caption": Caption(text="half \ud83d")}))


def test_a_model_that_fails_on_every_clip_ends_the_build_not_the_clips() -> None:
    def fail(*_: object) -> dict[str, Caption]:
        raise RuntimeError("CUDA error: device-side assert triggered")

    stage = ModelStage("caption", "caption", lambda: None, fail, holds_weights=True)
    clips = [
        Clip(clip_id=str(n), video_id=None, unit_id=str(n), source_path="x") for n in range(40)
    ]
    with pytest.raises(Exception, match=r"failed on 16 clips in a row.*device-side assert"):
        list(stage.process(clips))


def test_text_files_that_are_all_broken_are_rejects() -> None:
    def fail(*_: object) -> dict[str, Caption]:
        raise ValueError("no caption")

    stage = ModelStage("caption", "caption", lambda: None, fail, holds_weights=False)
    clips = [
        Clip(clip_id=str(n), video_id=None, unit_id=str(n), source_path="x") for n in range(40)
    ]
    assert {clip.status for clip in stage.process(clips)} == {"rejected"}


def test_an_outage_ends_the_build_and_makes_no_rejects() -> None:
    def fail(*_: object) -> dict[str, Caption]:
        raise StorageUnavailable("s3://raw/a.txt: the endpoint can't be reached")

    stage = ModelStage("caption", "caption", lambda: None, fail, holds_weights=False)
    clip = Clip(clip_id="a", video_id=None, unit_id="a", source_path="x")
    with pytest.raises(StorageUnavailable):
        list(stage.process([clip]))
