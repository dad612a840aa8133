"""What is sent with a job, and what is refused before anything is sent."""

import os
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package

from spark_ray.cluster.config import SubmitConfig
from spark_ray.cluster.submit import SETTINGS, packed
from spark_ray.cluster.workload import CONFIGS, config_class, entrypoint
from spark_ray.core.config import JobConfig
from spark_ray.core.errors import ConfigError

BUILD = {"input": ["s3://raw/videos"], "output": "s3://sets/street"}
EXAMPLE = Path(__file__).parents[3] / "jobs" / "on_cluster.yaml"


def submit(job: str = "data build", **settings: Any) -> SubmitConfig:
    return SubmitConfig.from_values(job=job, **settings)


def refused(config: SubmitConfig, base: Path, *flags: str) -> str:
    with pytest.raises(ConfigError) as error, packed(config, base, flags):
        raise AssertionError("it was packed")
    assert "\n" not in str(error.value)
    assert "/tmp/spark-ray-submit" not in str(error.value)
    return str(error.value)


def test_the_job_gets_what_was_set_and_nothing_else(tmp_path: Path) -> None:
    config = submit(settings={**BUILD, "fps": 4, "scene_threshold": 30})
    with packed(config, tmp_path, ["--fps", "2"]) as package:
        written = yaml.safe_load((package.folder / SETTINGS).read_text())
        assert [path.name for path in package.folder.iterdir()] == [SETTINGS]
        assert entrypoint(package.job, SETTINGS) == (
            "python -m spark_ray.cli data build --config settings.yaml"
        )
    assert written == {**BUILD, "fps": 2.0, "scene_threshold": 30.0}
    assert not package.folder.exists()


def test_a_configuration_file_of_the_job_may_come_after_the_dashes(tmp_path: Path) -> None:
    (tmp_path / "build.yaml").write_text(yaml.safe_dump({**BUILD, "fps": 3}))
    flags = ["--config", str(tmp_path / "build.yaml"), "--output", "s3://sets/other"]
    with packed(submit(), tmp_path, flags) as package:
        written = yaml.safe_load((package.folder / SETTINGS).read_text())
    assert written == {**BUILD, "fps": 3.0, "output": "s3://sets/other"}
    twice = refused(submit(settings=BUILD), tmp_path, *flags)
    assert "settings: are given twice" in twice


@pytest.mark.parametrize("job", CONFIGS)
def test_every_job_reads_back_what_it_is_sent(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, dict[str, Any]] = {
        "data build": {**BUILD, "resolution": "64x48"},
        "train apotheon": {
            "dataset": "s3://sets/street@v3",
            "output_dir": "s3://runs/street",
            "num_workers": [2, 4],
            "curriculum": [{"name": "all", "epochs": 2, "modalities": ["text", "image"]}],
            "epochs": 2,
        },
        "tune": {
            "study_dir": "s3://studies/rates",
            "space": {"learning_rate": {"type": "float", "min": 1e-5, "max": 1e-3, "log": True}},
            "train": {"dataset": "s3://sets/street@v3"},
        },
        "evaluate": {"model": "m/x", "dataset": "s3://d", "output_dir": "/mnt/evaluations"},
    }
    given: JobConfig = config_class(job).from_values(**settings[job])
    with packed(submit(job, settings=settings[job]), tmp_path, []) as package:
        monkeypatch.chdir(package.folder)
        read = config_class(job).from_command_line(["--config", SETTINGS], job)
    assert read == given


def test_files_go_along_by_their_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "texts" / "old").mkdir(parents=True)
    (tmp_path / "texts" / "old" / "a.json").write_text("{}")
    (tmp_path / "texts" / "captions.json").write_text("{}")
    config = submit(settings={**BUILD, "captions_file": "texts/captions.json"}, files=["texts"])
    with packed(config, tmp_path, []) as package:
        found = {str(p.relative_to(package.folder)) for p in package.folder.rglob("*.json")}
    assert found == {"texts/captions.json", "texts/old/a.json"}


def test_what_git_ignores_goes_along_all_the_same(tmp_path: Path) -> None:
    """Ray leaves out what such a file names, also of the folder that we lay out for it."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "captions.json").write_text("{}")
    for name in (".gitignore", ".rayignore"):
        (tmp_path / "texts" / name).write_text("*\n")
    with packed(submit(settings=BUILD, files=["texts"]), tmp_path, []) as package:
        sent = tmp_path / "sent.zip"
        create_package(str(package.folder), sent, include_gitignore=True)
    with ZipFile(sent) as archive:
        assert "texts/captions.json" in archive.namelist()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["/etc/passwd"], "files: '/etc/passwd' leads out of"),
        (["../secret"], "files: '../secret' leads out of"),
        (["link"], "files: 'link' does not exist in"),
        (["missing.json"], "files: 'missing.json' does not exist in"),
    ],
)
def test_nothing_from_outside_goes_along(files: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert expected in refused(submit(settings=BUILD, files=files), tmp_path)


def test_inputs_that_would_not_be_there_are_refused(tmp_path: Path) -> None:
    """Wherever they are: a job sees its own files and absolute paths."""
    for given in ("in", "in/*.mp4", "./in"):
        told = refused(submit(settings={**BUILD, "input": [given]}), tmp_path)
        assert f"input: {given!r} does not go along; list it under files" in told
    (tmp_path / "in").mkdir()
    for given in ("in", "in/*.mp4", "/mnt/videos"):
        config = submit(settings={**BUILD, "input": [given]}, files=["in"])
        with packed(config, tmp_path, []) as package:
            assert package.settings["input"] == [given]


def test_a_text_that_no_path_could_be_is_none(tmp_path: Path) -> None:
    """A look for a file of that name raises; what is meant is no file."""
    prompt = "Say what happens in this clip. " * 10
    settings = {**BUILD, "caption_backend": "qwen2_vl", "caption_prompt": prompt}
    with packed(submit(settings=settings), tmp_path, []) as package:
        assert package.settings["caption_prompt"] == prompt


@pytest.mark.parametrize("job", CONFIGS)
def test_who_trains_must_be_told_where_it_is_tracked(job: str, tmp_path: Path) -> None:
    train = {"dataset": "s3://sets/street", "output_dir": "s3://runs/street"}
    settings: dict[str, dict[str, Any]] = {
        "data build": BUILD,
        "train apotheon": train,
        "tune": {
            "study_dir": "s3://studies/rates",
            "space": {"learning_rate": {"type": "float", "min": 1e-5, "max": 1e-3}},
            "train": {"dataset": "s3://sets/street"},
        },
        "evaluate": {"model": "s3://m", "dataset": "s3://sets/street", "output_dir": "s3://e"},
    }
    uri = "http://mlflow:5000"
    tracked = job in ("train apotheon", "tune")
    with packed(submit(job, settings=settings[job]), tmp_path, []) as package:
        assert package.needs_tracking() == tracked
    env = {"MLFLOW_TRACKING_URI": uri}
    with packed(submit(job, settings=settings[job], env=env), tmp_path, []) as package:
        assert not package.needs_tracking()
    if tracked:
        with packed(
            submit(job, settings={**settings[job], "tracking_uri": uri}), tmp_path, []
        ) as package:
            assert not package.needs_tracking()


def test_links_inside_a_folder_are_not_followed_out(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "link").symlink_to("/etc/passwd")
    text = refused(submit(settings=BUILD, files=["texts"]), tmp_path)
    assert "files: 'texts/link' leads out of" in text


@pytest.mark.parametrize("to", ["missing", ".", "link"])
def test_links_that_can_not_be_copied_are_named(to: str, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "link").symlink_to(to)
    text = refused(submit(settings=BUILD, files=["texts"]), tmp_path)
    assert "files: 'texts/link' is a link to a folder, or to nothing" in text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"output": "s3://x"}, "settings of data build: input is required"),
        ({**BUILD, "fps": 0}, "settings of data build: fps: should be greater than 0"),
        ({**BUILD, "fsp": 1}, "settings of data build: unknown setting 'fsp'; did you mean 'fps'?"),
        ({**BUILD, "output": "datasets/x"}, "output: 'datasets/x' would lie with the job's files"),
        ({**BUILD, "input": ["~/videos"]}, "input: '~/videos' is in somebody's home folder"),
        ({**BUILD, "captions_file": "c.json"}, "captions_file: 'c.json' does not go along"),
        ({**BUILD, "input": ["videos/"]}, "input: 'videos/' does not go along"),
    ],
)
def test_wrong_settings_are_refused_here(
    settings: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "c.json").write_text("{}")
    (tmp_path / "videos").mkdir()
    assert expected in refused(submit(settings=settings), tmp_path)


def test_an_unknown_job_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="data build, evaluate, train apotheon, tune"):
        submit("data bild")


def test_secrets_come_from_the_shell_and_are_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "hush-hush")
    config = submit(settings=BUILD, env={"REGION": "eu"}, env_from=["MY_SECRET"])
    with packed(config, tmp_path, []) as package:
        assert package.environment == {"REGION": "eu", "MY_SECRET": "hush-hush"}
        assert "hush-hush" not in repr(package) + repr(config)
        assert "hush-hush" not in (package.folder / SETTINGS).read_text()
    assert "MY_OTHER is not set in this shell" in refused(
        submit(settings=BUILD, env_from=["MY_OTHER"]), tmp_path
    )


def test_paths_that_the_nodes_must_know_are_told(tmp_path: Path) -> None:
    config = submit(settings={"input": ["/mnt/videos", "s3://raw"], "output": "/mnt/sets/street"})
    with packed(config, tmp_path, []) as package:
        assert package.cluster_paths() == ["/mnt/sets/street", "/mnt/videos"]


def test_the_example_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    config = SubmitConfig.from_command_line(["--config", str(EXAMPLE)], "submit")
    with packed(config, EXAMPLE.parent, []) as package:
        assert package.settings["output"] == "s3://sets/street"
        assert set(package.environment) == {*config.env, *config.env_from}
    assert "AWS_SECRET_ACCESS_KEY" in os.environ
