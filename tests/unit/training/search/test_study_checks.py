"""What is wrong with a study is said before Ray starts, and before its folder is begun."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from ray.tune import TuneError
from studies import trial, write_study

from spark_ray.core import claim
from spark_ray.core.claim import alone
from spark_ray.core.errors import ConfigError, DatasetError, FolderInUse, MissingDependency
from spark_ray.core.storage import Folder
from spark_ray.datasets.samples import SPLITS, split_of
from spark_ray.training.search import study as study_module
from spark_ray.training.search.config import StudyConfig
from spark_ray.training.search.records import Study
from spark_ray.training.search.study import StudyFailed, _check, _conclude, tune_training
from spark_ray.training.search.trial import FAILURES, MetricNeverReported

sys.path.append(str(Path(__file__).parents[2] / "datasets"))
from fake_version import jpeg, make_clip, write_version

BOTH = ["caption", "transcript"]
FILMS = {"name": "films", "epochs": 2, "modalities": ["text", "video"]}
SPACE = {"learning_rate": {"type": "float", "min": 1e-5, "max": 1e-3}}


def make_dataset(folder: Path, clips: int, splits: tuple[str, ...] = SPLITS) -> Path:
    """Clips with a picture and a caption, of these splits alone."""
    made = []
    for number in range(clips):
        clip = make_clip(number, source=f"/films/{number}.mp4", caption="a red circle")
        clip.frames = [jpeg(number, size=64)]
        clip.samples, clip.transcript = clip.samples[:1], None
        if split_of(clip.video_id) in splits:
            made.append(clip)
    write_version(folder, made)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("sets") / "silent", clips=40)


def config(dataset: Path, folder: Path, **values: Any) -> StudyConfig:
    train = {
        "dataset": str(dataset),
        "epochs": 2,
        "tasks": ["caption"],
        "gradient_accumulation": 1,
        "curriculum": [FILMS],
        **values.pop("train", {}),
    }
    given = {"study_dir": str(folder / "study"), "space": SPACE, "train": train}
    return StudyConfig.from_values(**{**given, **values})


def test_the_longest_trial_is_known(dataset: Path, tmp_path: Path):
    space = {"batch_size": {"type": "choice", "values": [4, 8]}}
    runs, steps = _check(config(dataset, tmp_path, space=space))
    assert {run.batch_size for run in runs} == {4, 8}
    shorter = _check(config(dataset, tmp_path, train={"batch_size": 8}))[1]
    assert steps > shorter > 0


@pytest.mark.parametrize(
    ("values", "error", "sentence"),
    [
        (
            {"space": {"batch_size": {"type": "choice", "values": [4, 400]}}},
            DatasetError,
            "one step of stage 'films' takes 400",
        ),
        ({"train": {"tasks": BOTH}}, DatasetError, "has a transcript"),
        (
            {"space": {"tasks": {"type": "choice", "values": [["caption"], BOTH]}}},
            DatasetError,
            "has a transcript",
        ),
        (
            {
                "space": {"dataset": {"type": "choice", "values": ["SET", "/nowhere"]}},
                "train": {"dataset": "SET"},
            },
            DatasetError,
            "/nowhere: no such published dataset",
        ),
        ({"train": {"max_steps": 1}}, ConfigError, r"validation_loss comes after \d+ steps"),
    ],
)
def test_a_trial_that_can_not_be_trained_is_named(
    dataset: Path, tmp_path: Path, values: dict[str, Any], error: type[Exception], sentence: str
):
    given = json.loads(json.dumps(values).replace("SET", str(dataset)))
    with pytest.raises(error, match=sentence):
        tune_training(config(dataset, tmp_path, **given))
    assert not (tmp_path / "study").exists()


def test_a_metric_that_no_split_can_give_is_named_before_the_first_trial(tmp_path: Path):
    partial = make_dataset(tmp_path / "partial", clips=40, splits=("train", "test"))
    given = config(partial, tmp_path)
    with pytest.raises(ConfigError, match="no validation split, so no trial would report"):
        tune_training(given)


def test_what_the_report_needs_is_asked_for_before_the_first_trial(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingDependency, match=r"a study's report needs .*spark-ray\[tune\]"):
        tune_training(config(dataset, tmp_path))
    assert not (tmp_path / "study").exists()


def test_a_folder_with_something_else_is_left_alone(dataset: Path, tmp_path: Path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "holiday.txt").write_text("photos")
    with pytest.raises(ConfigError, match="holds something else than a study"):
        tune_training(config(dataset, tmp_path))


def test_a_study_that_somebody_goes_on_with_is_left_alone(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(claim, "_ENDING_S", 0.0)
    study = Folder(str(tmp_path / "study"))
    study.create()
    with (
        alone(study, "tuning", "--study-dir"),
        pytest.raises(FolderInUse, match="study: another tuning of it is running"),
    ):
        tune_training(config(dataset, tmp_path))
    assert study.names() == []


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_samples": 3}, "num_samples: .* holds a study with 16, and now it is 3"),
        ({"train": {"epochs": 2, "seed": 1}}, "train: seed: .* and now it is 1"),
        (
            {"space": {"learning_rate": {"type": "float", "min": 1e-5, "max": 1e-2}}},
            "space: learning_rate: max: .* with 0.001, and now it is 0.01",
        ),
    ],
)
def test_a_study_is_resumed_under_its_own_settings_alone(
    dataset: Path, tmp_path: Path, values: dict[str, Any], sentence: str
):
    begun = config(dataset, tmp_path)
    kept = begun.located().model_dump(mode="json", exclude={"study_dir"})
    write_study(tmp_path / "study", [trial(0)], **kept)
    with pytest.raises(ConfigError, match=sentence):
        tune_training(config(dataset, tmp_path, **values))


def test_a_finished_study_is_not_done_again(dataset: Path, tmp_path: Path):
    begun = config(dataset, tmp_path)
    kept = begun.located().model_dump(mode="json", exclude={"study_dir"})
    write_study(tmp_path / "study", [trial(0)], **kept)
    assert [one.number for one in tune_training(begun).trials] == [0]


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """All of a study but its trials; who uses it says what becomes of these."""
    for name in ("ray_session", "progress_elsewhere"):
        monkeypatch.setattr(study_module, name, lambda *given: nullcontext())
    monkeypatch.setattr(study_module, "_tracked", lambda given: nullcontext(Mock()))
    for name in ("await_nodes", "free_leaked_placement_groups"):
        monkeypatch.setattr(study_module, name, lambda *given: None)
    monkeypatch.setattr(study_module, "living_nodes", lambda: [{"CPU": 2.0}])
    return monkeypatch


def test_a_retry_that_is_killed_is_no_finished_study(
    dataset: Path, tmp_path: Path, no_cluster: pytest.MonkeyPatch
):
    begun = config(dataset, tmp_path, retry_failed=True)
    kept = begun.located().model_dump(mode="json", exclude={"study_dir"})
    written = write_study(tmp_path / "study", [trial(0), trial(1, state="failed")], **kept)
    written.record.dataset = str(dataset)
    written.save_record()

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    no_cluster.setattr(study_module, "_search", killed)
    with pytest.raises(KeyboardInterrupt):
        tune_training(begun)
    assert Study.load(str(tmp_path / "study")).record.state == "running"


def test_a_study_that_ended_for_want_of_its_metric_has_failed(
    dataset: Path, tmp_path: Path, no_cluster: pytest.MonkeyPatch
):
    def never(given: StudyConfig, *others: Any) -> None:
        failure = {"kind": MetricNeverReported.__name__, "reason": "never reported 'bleu'"}
        Folder(given.study_dir).write(f"{FAILURES}/a.json", json.dumps(failure).encode())
        raise TuneError

    no_cluster.setattr(study_module, "_search", never)
    with pytest.raises(MetricNeverReported, match="never reported 'bleu'"):
        tune_training(config(dataset, tmp_path, metric="bleu"))
    assert Study.load(str(tmp_path / "study")).record.state == "failed"


def test_a_study_in_which_every_trial_failed_has_failed(tmp_path: Path):
    dead = trial(0, state="failed").model_copy(update={"reason": "out of memory"})
    study = write_study(tmp_path / "study", [dead, trial(1, state="running")])
    unused: Any = None
    with pytest.raises(StudyFailed, match="all 2 trials failed; the first: out of memory"):
        _conclude(study, unused)
    again = Study.load(str(tmp_path / "study"))
    assert again.record.state == "failed"
    assert [one.state for one in again.trials] == ["failed", "failed"]
    assert again.trials[1].reason == "it was lost when the study was killed"
