"""What is known before any worker starts: each mistake is one sentence that says what to do."""

import itertools
import json
import shutil
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apotheons
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaModel

from spark_ray.apotheon import ApotheonModel
from spark_ray.apotheon.sizes import tiny
from spark_ray.core import claim
from spark_ray.core.anatomy import PARTS
from spark_ray.core.claim import alone
from spark_ray.core.errors import ConfigError, DatasetError, FolderInUse, ModelError
from spark_ray.core.storage import Folder
from spark_ray.datasets.layout import frame_name
from spark_ray.datasets.samples import load_index
from spark_ray.media.audio_codec import encode_audio
from spark_ray.training import run
from spark_ray.training.checks import prepare
from spark_ray.training.cluster import share_resources
from spark_ray.training.config import TrainConfig
from spark_ray.training.engines import TorchEngine
from spark_ray.training.run import RUN, print_plan, run_settings, train
from spark_ray.training.start import initial_model
from spark_ray.training.state import TrainState
from spark_ray.training.worker import NonFiniteError, Worker

sys.path.append(str(Path(__file__).parents[1] / "datasets"))
from fake_version import jpeg, make_clip, write_version

FILMS = {"name": "films", "epochs": 1, "modalities": ["text", "video"]}


def make_dataset(folder: Path, caption: str | None, clips: int = 40) -> Path:
    made = []
    for number in range(clips):
        clip = make_clip(number, source=f"/films/{number}.mp4", caption=caption)
        clip.frames = [jpeg(number, size=64)]
        clip.samples = clip.samples[:1]
        clip.transcript = None
        made.append(clip)
    write_version(folder, made)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with a picture and a caption, but neither sound nor transcripts."""
    return make_dataset(tmp_path_factory.mktemp("sets") / "silent", "a red circle")


def config(dataset: Path, **values: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "dataset": str(dataset),
        "output_dir": "runs/x",
        "epochs": 1,
        "tasks": ["caption"],
        "gradient_accumulation": 1,
        "curriculum": [FILMS],
    }
    return TrainConfig.from_values(**{**defaults, **values})


def check(dataset: Path, **values: Any) -> None:
    prepare(config(dataset, **values), load_index(str(dataset)))


def test_a_sound_configuration_passes(dataset: Path):
    check(dataset)


@pytest.mark.parametrize(
    ("values", "error", "sentence"),
    [
        ({"tasks": ["caption", "transcript"]}, DatasetError, "--tasks caption"),
        (
            {"curriculum": [{"name": "ears", "epochs": 1, "modalities": ["image", "audio"]}]},
            DatasetError,
            "stage 'ears' of the curriculum needs audio",
        ),
        ({"gradient_accumulation": 100}, DatasetError, "gradient_accumulation 100"),
        (
            {"curriculum": [{**FILMS, "mixture": {"cats": 2.0}}]},
            ConfigError,
            "mixture of stage 'films': 'cats' is unknown; choose one of: films",
        ),
        ({"vision_checkpoint": "no/such folder"}, ModelError, "vision_checkpoint"),
    ],
)
def test_what_the_dataset_or_a_checkpoint_lacks_is_said(
    dataset: Path, values: dict[str, Any], error: type[Exception], sentence: str
):
    with pytest.raises(error, match=sentence):
        check(dataset, **values)


def test_a_checkpoint_of_another_width_is_refused(dataset: Path, tmp_path: Path, tiny_checkpoint):
    checkpoint = tiny_checkpoint("blip")
    (tmp_path / "clip").mkdir()
    for file in checkpoint.iterdir():
        (tmp_path / "clip" / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "clip/config.json").read_text())
    settings["vision_config"]["hidden_size"] = 96
    (tmp_path / "clip/config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="has hidden_size 96, but size tiny has 128"):
        check(dataset, vision_checkpoint=str(tmp_path / "clip"))


@pytest.mark.parametrize("modality", ["image", "video"])
def test_frames_that_no_clip_has_are_missed(tmp_path: Path, modality: str):
    """As of films whose every frame a filter took away."""
    clips = []
    for number in range(40):
        clip = make_clip(number, source=f"/films/{number}.mp4", frames=0)
        clip.audio = encode_audio(np.zeros(16_000, np.int16), "flac")
        clips.append(clip)
    version, _ = write_version(tmp_path / "dark", clips)
    for clip in clips:
        version.write(f"data/{clip.clip_id[:2]}/{clip.clip_id}/audio.flac", clip.audio)
    stage = {"name": "eyes", "epochs": 1, "modalities": [modality, "audio"]}
    with pytest.raises(DatasetError, match=f"stage 'eyes' of the curriculum needs {modality}"):
        check(tmp_path / "dark", curriculum=[stage])


def test_captions_that_no_clip_has_are_asked_for(tmp_path: Path):
    with pytest.raises(DatasetError, match="no clip of its train split has a caption"):
        check(make_dataset(tmp_path / "mute", None))


def test_files_that_are_gone_are_noticed_before_training(tmp_path: Path):
    folder = make_dataset(tmp_path / "gone", "a circle")
    for row in load_index(str(folder)).table.to_pylist():
        (folder / "v1" / frame_name(row["id"], 1)).unlink()
    with pytest.raises(DatasetError, match="is gone or unreadable"):
        check(folder)


def test_an_empty_split_is_named(tmp_path: Path):
    folder = make_dataset(tmp_path / "small", "a circle", clips=1)
    index = load_index(str(folder))
    empty = next(name for name in ("train", "test") if name not in index.table["split"].to_pylist())
    with pytest.raises(DatasetError, match=f"its {empty} split is empty"):
        index.split(empty)


def test_a_validation_split_without_a_text_ranks_no_checkpoint(dataset: Path):
    """Its loss would be 0 at the first validation, which no later one could beat."""
    index = load_index(str(dataset))
    judged, _ = prepare(config(dataset), index)
    assert judged.validation is not None
    captions = [
        None if split == "validation" else "a red circle"
        for split in index.table["split"].to_pylist()
    ]
    column = index.table.schema.get_field_index("caption")
    table = index.table.set_column(column, "caption", pa.array(captions))
    plan, _ = prepare(config(dataset), replace(index, table=table))
    assert plan.validation is None


def test_a_folder_with_something_else_is_left_alone(dataset: Path, tmp_path: Path):
    (tmp_path / "holiday.txt").write_text("photos")
    with pytest.raises(ConfigError, match="something else than a training run"):
        train(config(dataset, output_dir=str(tmp_path)))


def test_a_run_that_somebody_trains_is_left_alone(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As by a laptop's command beside a RayJob."""
    monkeypatch.setattr(claim, "_ENDING_S", 0.0)
    output = Folder(str(tmp_path / "run"))
    output.create()
    with (
        alone(output, "training", "--output-dir"),
        pytest.raises(FolderInUse, match="run: another training of it is running"),
    ):
        train(config(dataset, output_dir=output.location))
    assert output.names() == []


def test_a_run_that_somebody_ended_a_moment_ago_is_looked_at_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    @contextmanager
    def after_another(output: Folder) -> Iterator[None]:
        output.write(RUN, b'{"settings": {}}')
        yield

    monkeypatch.setattr(run, "_claim", after_another)
    monkeypatch.setattr(run, "ray_session", lambda _: nullcontext())
    with pytest.raises(FolderInUse, match="another training of it ended just now"):
        train(config(dataset, output_dir=str(tmp_path / "run")))


def test_an_edited_manifest_is_another_run(dataset: Path, tmp_path: Path):
    manifest = tmp_path / "manifest.jsonl"
    shutil.copy(dataset / "v1" / "manifest.jsonl", manifest)
    given = {"manifest_path": str(manifest), "output_dir": str(tmp_path / "run")}
    made = TrainConfig.from_values(**given).located()
    Folder(made.output_dir).write(RUN, json.dumps({"settings": run_settings(made)}).encode())
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[1:]))
    with pytest.raises(ConfigError, match=r"manifest_sha256: .* holds a run with"):
        train(made)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"mixed_precision": "fp16"}, "fp16 needs GPUs"),
        ({"num_workers": [8], "cpus_per_worker": 1.0}, "the run has 2"),
        ({"num_workers": [1], "gpus_per_worker": 1.0}, "lower num_workers or gpus_per_worker"),
    ],
)
def test_what_the_cluster_lacks_is_said(dataset: Path, values: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        share_resources(config(dataset, **values), {"CPU": 2.0})


@pytest.mark.parametrize(
    ("cpus", "workers"), [(2, [1]), (2, [2]), (16, [4]), (64, [8]), (2, [1, 2]), (16, [2, 8])]
)
def test_workers_and_their_data_actors_fit_into_the_cluster(
    dataset: Path, cpus: int, workers: list[int]
):
    """Ray Train starts as many workers of a range as find room; their data needs room as well."""
    there = {"CPU": float(cpus)}
    settings, scaling, threads = share_resources(config(dataset, num_workers=workers), there)
    assert settings.data_cpus is not None
    worker = scaling.resources_per_worker["CPU"]
    started = min(workers[-1], int(cpus / worker))
    assert 0 < started * (worker + settings.data_cpus) <= cpus
    assert threads == max(1, cpus // workers[-1])


def test_a_stage_in_which_nothing_learns_is_refused(dataset: Path):
    settings = config(dataset, frozen=list(PARTS))
    with pytest.raises(ConfigError, match="nothing is left to learn in stage 'films'"):
        prepare(settings, load_index(str(dataset)))


def test_a_run_of_one_task_leaves_a_model_that_may_learn_the_other(dataset: Path):
    _, model_config = prepare(config(dataset), load_index(str(dataset)))
    assert model_config.transcription_weight == 1.0


def test_a_step_that_is_no_number_names_its_clips(dataset: Path):
    plan, _ = prepare(config(dataset, max_skipped_steps=2), load_index(str(dataset)))
    worker = object.__new__(Worker)
    worker.plan, worker.config, worker.world_size = plan, plan.config, 1
    worker.state = TrainState(world_size=1, step=7)
    ids = plan.train.table["id"].to_pylist()
    worker._count_skips(False, [0])
    with pytest.raises(NonFiniteError, match=f"in 2 steps in a row .*{ids[3]}, {ids[5]}"):
        worker._count_skips(False, [5, 3])
    worker._count_skips(True, [])
    assert (worker.state.skipped, worker.state.skipped_in_a_row) == (2, 0)


def test_what_was_validated_is_kept_with_its_own_loss_alone(dataset: Path, monkeypatch):
    plan, _ = prepare(
        config(dataset, epochs=2, curriculum=[{**FILMS, "epochs": 2}], checkpoint_every_steps=4),
        load_index(str(dataset)),
    )
    worker = object.__new__(Worker)
    worker.plan, worker.config, worker.state = plan, plan.config, TrainState(world_size=1)
    worker.rank, worker.world_size, worker.device, worker.saved_step = 1, 1, torch.device("cpu"), 0
    saved = {}
    worker.job = SimpleNamespace(model_config=None)
    engine = SimpleNamespace(module=torch.nn.Identity(), evaluate=None)
    monkeypatch.setattr("spark_ray.training.worker.split_losses", lambda *_: {"loss": 1.0})
    monkeypatch.setattr(worker, "_inputs", lambda batch, segment: {})
    monkeypatch.setattr(worker, "_step", lambda *args: None)
    monkeypatch.setattr(worker, "_tell", lambda *args: None)
    monkeypatch.setattr(
        worker, "_checkpoint", lambda _: saved.update({worker.state.step: worker.state.score})
    )
    for segment in plan.segments:
        if segment.validation:
            worker._validate(engine, segment, itertools.repeat(None))
        else:
            worker._train(engine, segment, 0, itertools.repeat(None))

    validated = {plan.steps // 2, plan.steps}
    assert set(saved) == {*range(4, plan.steps + 1, 4)} | validated
    assert {step for step, score in saved.items() if score == 1.0} == validated


def test_a_stages_engine_is_gone_before_the_next_one_is_built(dataset: Path, monkeypatch):
    """Both at once would take twice the memory of a GPU."""
    stages = [{**FILMS, "name": name} for name in ("first", "second")]
    settings = config(dataset, epochs=2, curriculum=stages, engine="ddp", mixed_precision="fp32")
    plan, model_config = prepare(settings, load_index(str(dataset)))
    engines: list[weakref.ref[TorchEngine]] = []

    class CircularEngine(TorchEngine):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.itself = self  # as DeepSpeed's hooks hold it
            engines.append(weakref.ref(self))

    def first_model(*args: Any) -> ApotheonModel:
        assert not any(engine() for engine in engines)
        return initial_model(*args)

    worker = object.__new__(Worker)
    worker.job = SimpleNamespace(plan=None, model_config=model_config)
    worker.plan, worker.config, worker.state = plan, plan.config, TrainState(world_size=1)
    worker.rank, worker.world_size, worker.device = 0, 1, torch.device("cpu")
    monkeypatch.setattr("spark_ray.training.worker.TorchEngine", CircularEngine)
    monkeypatch.setattr("spark_ray.training.worker.initial_model", first_model)
    monkeypatch.setattr("spark_ray.training.worker.load_batches", lambda *args: iter(()))
    for name in ("_fetch_checkpoint", "_tell_environment", "_train", "_validate"):
        monkeypatch.setattr(worker, name, lambda *args: None)
    worker.run()
    assert len(engines) == 2


def test_a_checkpoint_brings_its_own_arithmetic(dataset: Path, tmp_path: Path):
    """Other heads, rotations and norms than the size's, and the weights that belong to them."""
    tokenizer = apotheons.processor().tokenizer
    tokenizer.save_pretrained(tmp_path)
    own = tiny(tokenizer).text_config
    own.update({"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 16})
    own.update({"rms_norm_eps": 0.1, "rope_parameters": {"rope_type": "default", "rope_theta": 77}})
    llama = LlamaModel(own)
    llama.save_pretrained(tmp_path)
    settings = config(dataset, text_checkpoint=str(tmp_path))

    _, model_config = prepare(settings, load_index(str(dataset)))
    model = initial_model(settings, model_config)

    assert model_config.text_config.num_attention_heads == 8
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad():
        expected = llama(tokens).last_hidden_state
        torch.testing.assert_close(model.text(tokens).last_hidden_state, expected)


@pytest.fixture
def apotheon(tmp_path: Path) -> Path:
    """A small random Apotheon, as training leaves it."""
    folder = tmp_path / "apotheon"
    apotheons.model(seed=5).save_pretrained(folder)
    apotheons.processor().save_pretrained(folder)
    return folder


def test_a_run_goes_on_from_another_model(
    dataset: Path, apotheon: Path, capsys: pytest.CaptureFixture[str]
):
    settings = config(dataset, init_from=str(apotheon), max_frames=3, seed=1)
    plan, model_config = prepare(settings, load_index(str(dataset)))
    weights = initial_model(settings, model_config).state_dict()
    expected = apotheons.model(seed=5).state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert plan.processor.max_frames == 3
    text = "a red circle moves"
    assert plan.processor.tokenize(text) == apotheons.processor().tokenize(text)
    print_plan(plan, model_config)
    assert f"model        apotheon from {apotheon}, " in capsys.readouterr().err


def test_a_model_to_go_on_from_that_lacks_weights_is_refused(dataset: Path, apotheon: Path):
    """`transformers` would fill them up at random."""
    tensors = load_file(apotheon / "model.safetensors")
    del tensors["fusion_norm.weight"]
    save_file(tensors, apotheon / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"init_from: .* lacks 1 weights .* fusion_norm\.weight"):
        check(dataset, init_from=str(apotheon))


def test_a_model_to_go_on_from_whose_weights_have_other_shapes_is_refused(
    dataset: Path, apotheon: Path
):
    settings = json.loads((apotheon / "config.json").read_text())
    settings["contrastive_size"] += 1
    (apotheon / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"init_from: .* is of shape .*; it is damaged"):
        check(dataset, init_from=str(apotheon))


def test_only_an_apotheon_can_go_on(dataset: Path, tiny_checkpoint):
    with pytest.raises(ModelError, match=r"init_from: .* a model of type 'blip', but 'apotheon'"):
        check(dataset, init_from=str(tiny_checkpoint("blip")))
