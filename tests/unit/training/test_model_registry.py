import base64
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from trained import record, save_tiny

from spark_ray.core.errors import ConfigError, ModelError, StorageError
from spark_ray.models.apotheon import Apotheon
from spark_ray.models.held_out import record_held_out
from spark_ray.models.model_card import write_model_card
from spark_ray.models.registered import of_version
from spark_ray.models.registered_versions import model_card, model_versions
from spark_ray.models.training_record import HeldOut, TrainingRecord
from spark_ray.models.weights import SAFETENSORS, resolve_weights
from spark_ray.training import run
from spark_ray.training.cluster import RunContext
from spark_ray.training.config import TrainConfig
from spark_ray.training.plan import RunPlan
from spark_ray.training.registry import RegisteredModel, promote, register_model
from spark_ray.training.search import study
from spark_ray.training.search.config import StudyConfig
from spark_ray.training.tracking import Tracker

sys.path.append(str(Path(__file__).parents[1] / "datasets"))
from fake_version import make_clip, write_version

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="module")
def trained(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its card, of a run that is tracked."""
    tracker = Tracker.start(uri, "training", "run")
    tracker.finish("FINISHED")
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder)
    record(tracker.run_id).write(folder)
    write_model_card(folder)
    return folder


@pytest.fixture(scope="module")
def registered(uri: str, trained: Path) -> RegisteredModel:
    return register_model(trained, tracking_uri=uri, tags={"note": "first"})


@pytest.fixture(autouse=True)
def _registry_in_use(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)


@pytest.fixture(scope="module")
def picture() -> bytes:
    image = np.full((64, 64, 3), 255, np.uint8)
    cv2.circle(image, (20, 30), 12, (0, 0, 255), -1)
    return cv2.imencode(".jpg", image)[1].tobytes()


def test_a_version_says_where_it_comes_from(
    uri: str, trained: Path, registered: RegisteredModel
) -> None:
    assert registered.uri == "models:/apotheon/1"
    client = mlflow.MlflowClient(uri)
    version = client.get_model_version("apotheon", "1")
    run_id = TrainingRecord.read(trained).run_id
    assert version.run_id == run_id
    expected = {
        "dataset": "/data/datasets/street/v3",
        "dataset_version": "v3",
        "dataset_manifest_sha256": "ab" * 32,
        "training_run": run_id,
        "code_version": "0.1.0+0123456789ab",
        "git_commit": "none",
        "note": "first",
    }
    assert expected.items() <= version.tags.items()
    assert version.description.startswith("12000 steps on datasets/street@v3")
    (output,) = client.get_run(run_id).outputs.model_outputs
    assert client.get_logged_model(output.model_id).status == "READY"
    assert output.step == 12_000


def test_the_artifact_holds_the_whole_folder_and_no_pickle(
    trained: Path, registered: RegisteredModel
) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(registered.uri))
    for file in trained.iterdir():
        stored = folder / "checkpoint" / file.name
        assert not stored.is_symlink()
        assert stored.read_bytes() == file.read_bytes()
    assert not list(folder.rglob("*.pkl"))
    requirements = (folder / "requirements.txt").read_text().split()
    assert {"torch==2.13.0", "transformers==5.23.0"} <= set(requirements)
    assert any(line.startswith("spark-ray[models]==") for line in requirements)
    signature = mlflow.models.get_model_info(registered.uri).signature
    assert signature.inputs.input_names() == ["frames", "frame_times", "audio"]
    assert [param.name for param in signature.params] == ["task", "max_new_tokens", "num_beams"]


@pytest.mark.parametrize("reference", ["models:/apotheon@candidate", "models:/apotheon/1"])
def test_a_reference_is_loaded_where_it_lies(
    reference: str, registered: RegisteredModel, trained: Path, picture: bytes
) -> None:
    weights = resolve_weights(
        reference, setting="model", revision=None, kind=SAFETENSORS, instead="train one"
    )
    assert (weights.name, weights.revision) == (reference, registered.version)
    found, original = (Apotheon.load(name, setting="model") for name in (reference, str(trained)))
    assert found.weights == weights
    clip = found.prepare([picture], [0.0], None)
    assert found.write([clip], "caption", 8) == original.write([clip], "caption", 8)
    assert found.weights.info().weights_hash == original.weights.info().weights_hash


def test_mlflow_alone_loads_it_and_writes(
    registered: RegisteredModel, trained: Path, picture: bytes
) -> None:
    import pandas as pd
    from mlflow.pyfunc.scoring_server import infer_and_parse_data

    model = mlflow.pyfunc.load_model("models:/apotheon@candidate")
    own = Apotheon.load(str(trained), setting="model")
    clip = own.prepare([picture, picture], [0.0, 1.0], None)
    (caption,), (transcript,) = (own.write([clip], t, 8) for t in ("caption", "transcript"))

    clips = pd.DataFrame({"frames": [[picture] * 2, None], "frame_times": [[0.0, 1.0], None]})
    written = model.predict(clips, params={"max_new_tokens": 8})["text"]
    assert written[0] == caption
    assert pd.isna(written[1])
    options = {"task": "transcript", "max_new_tokens": 8}
    assert model.predict(clips[:1], params=options)["text"][0] == transcript

    text = base64.b64encode(picture).decode()
    request = {"dataframe_records": [{"frames": [text, text], "frame_times": [0.0, 1.0]}]}
    parsed = infer_and_parse_data(request, schema=model.metadata.get_input_schema())
    assert model.predict(parsed, params={"max_new_tokens": 8})["text"][0] == caption


def test_the_same_files_are_one_version_and_others_the_next(
    uri: str, trained: Path, registered: RegisteredModel, tmp_path: Path
) -> None:
    assert register_model(trained, tracking_uri=uri) == registered
    other = tmp_path / "other"
    other.mkdir()
    for file in trained.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    # Trained elsewhere: the run is in another store.
    record("f" * 32).write(other)
    second = register_model(other, tracking_uri=uri)
    assert second.uri == "models:/apotheon/2"

    promote("apotheon", "1", tracking_uri=uri)
    client = mlflow.MlflowClient(uri)
    aliases = client.get_registered_model("apotheon").aliases
    assert {alias: str(number) for alias, number in aliases.items()} == {
        "candidate": "2",
        "champion": "1",
    }
    assert Apotheon.load("models:/apotheon@champion", setting="model").weights.revision == "1"


class Begun(Exception):
    """A run has written its record, and would now hand its plan to the workers."""


def test_a_run_goes_on_from_the_version_that_an_alias_stood_for(
    uri: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may move before the workers have looked, or before the run is resumed."""
    first = register_model(trained, tracking_uri=uri, name="base")
    captioned = [
        make_clip(number, source=f"/films/{number}.mp4", caption="a red circle", dropped=())
        for number in range(16)
    ]
    write_version(tmp_path / "films", captioned)

    def begun(plan: RunPlan) -> None:
        raise Begun(plan.config.init_from)

    monkeypatch.setattr(run, "ray_session", lambda _: nullcontext())
    monkeypatch.setattr(run, "living_nodes", list)
    monkeypatch.setattr(run, "_start_board", lambda *_: (None, None))
    monkeypatch.setattr("ray.put", begun)

    def begin(output: str) -> str:
        config = TrainConfig.from_values(
            dataset=str(tmp_path / "films"),
            output_dir=str(tmp_path / output),
            init_from="models:/base@candidate",
            tracking_uri=uri,
            tasks=["caption"],
            gradient_accumulation=1,
            epochs=1,
            curriculum=[{"name": "films", "epochs": 1, "modalities": ["text", "video"]}],
        )
        with pytest.raises(Begun) as found:
            run.train(config, RunContext(resources={"CPU": 2.0}))
        return str(found.value)

    assert begin("run") == first.uri
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    record("e" * 32).write(other)
    second = register_model(other, tracking_uri=uri, name="base")
    assert begin("run") == first.uri, "a run that is resumed is the same run"
    assert begin("another") == second.uri


def test_what_can_not_be_registered_or_promoted(
    uri: str, registered: RegisteredModel, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"versions 1.*@candidate is"):
        promote("apotheon", "77", tracking_uri=uri)
    record().write(tmp_path)
    with pytest.raises(ModelError, match=r"has no README\.md"):
        register_model(tmp_path, tracking_uri=uri)
    (tmp_path / "README.md").write_text("")
    with pytest.raises(ConfigError, match="can't be a model's name"):
        register_model(tmp_path, tracking_uri=uri, name="a/b'")


def test_a_registration_that_fails_leaves_no_version(
    uri: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mlflow.MlflowClient, "log_model_artifacts", no_space)
    with pytest.raises(StorageError, match="the disk is full"):
        register_model(trained, tracking_uri=uri, name="unlucky")
    client = mlflow.MlflowClient(uri)
    assert not client.search_model_versions("name='unlucky'")
    experiment = client.get_experiment_by_name("training").experiment_id
    states = {
        str(m.status) for m in client.search_logged_models([experiment]) if m.name == "unlucky"
    }
    assert states == {"FAILED"}


def test_a_registered_models_card_takes_what_an_evaluation_measured(
    uri: str, trained: Path
) -> None:
    measured = HeldOut(split="test", clips=7, metrics={"transcript": {"wer": 0.125}})
    version = register_model(trained, tracking_uri=uri, name="measured", alias="candidate")
    manifest = record().dataset.manifest_sha256
    answered = of_version("models:/measured@candidate", version.version)
    assert answered == version.uri
    assert record_held_out(answered, measured, manifest)
    (known,) = model_versions("models:/measured", 1)
    assert known.record == TrainingRecord.read(trained).model_copy(update={"held_out": measured})
    card = model_card("models:/measured", version.version)
    assert card is not None
    assert "| transcript | wer | 0.125 |" in card
    # The files that were registered stay what they were: so does the version that they stand for.
    assert register_model(trained, tracking_uri=uri, name="measured") == version


def test_all_trials_of_a_study_go_on_from_one_version(
    uri: str, trained: Path, tmp_path: Path
) -> None:
    first = register_model(trained, tracking_uri=uri, name="shared")
    dataset = tmp_path / "films"
    write_version(dataset, [make_clip(0, source="/films/0.mp4", caption="a boat", dropped=())])
    given = {"dataset": str(dataset), "init_from": "models:/shared@candidate"}
    config = StudyConfig.from_values(
        study_dir=str(tmp_path / "study"),
        space={"learning_rate": {"type": "float", "min": 1e-5, "max": 1e-3}},
        train=given,
    )
    begun = study._open(config)
    begun.save_record()
    register_model(trained, tracking_uri=uri, name="shared")
    resumed = study._open(config).record
    assert study._pinned(config, resumed).train == {
        "dataset": str(dataset / "v1"), "init_from": first.uri,
    }  # fmt: skip
    assert config.train == given, "what the user gave is what is compared when it is resumed"
