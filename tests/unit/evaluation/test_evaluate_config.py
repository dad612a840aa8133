"""The evaluation's settings."""

from pathlib import Path

import pytest

from spark_ray.core.errors import ConfigError
from spark_ray.evaluation.config import EvaluateConfig

ROOT = Path(__file__).parents[3]


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    config = EvaluateConfig.from_values(
        model="checkpoint", dataset="sets/street@v2", compare=["before", "s3://runs/first"]
    ).located()
    assert config.model == str(tmp_path / "checkpoint")
    assert config.dataset == str(tmp_path / "sets/street@v2")
    assert config.output_dir == str(tmp_path / "evaluations/checkpoint-street@v2-test")
    assert config.compare == [str(tmp_path / "before"), "s3://runs/first"]


def test_names_that_are_no_paths_stay() -> None:
    config = EvaluateConfig.from_values(
        model="models:/apotheon@champion", dataset="s3://sets/street/", output_dir="s3://runs/x"
    ).located()
    assert config.model == "models:/apotheon@champion"
    assert config.dataset == "s3://sets/street/"
    assert config.output_dir == "s3://runs/x"


def test_results_would_go_with_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runtime_resources/working_dir_files/x"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    config = EvaluateConfig.from_values(model="models:/a@b", dataset="s3://sets/x")
    with pytest.raises(ConfigError, match=r"output_dir: 'evaluations/a@b-x-test' is relative"):
        config.located()


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("split", "tests", "split: should be 'train', 'validation', 'test' or 'all', not 'tests'"),
        ("limit", 0, "limit: should be greater than or equal to 1, not 0"),
        ("num_beams", "two", "num_beams: should be a valid integer"),
    ],
)
def test_wrong_values_are_named(setting: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        EvaluateConfig.from_values(model="m", dataset="d", **{setting: value})


def test_the_example_is_valid() -> None:
    file = str(ROOT / "jobs/evaluate.yaml")
    config = EvaluateConfig.from_command_line(["--config", file, "--limit", "5"], "evaluate")
    assert (config.split, config.limit, config.compare) == ("test", 5, [])
