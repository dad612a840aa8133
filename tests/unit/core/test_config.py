"""Where settings come from, and what a user is told about a wrong one."""

from pathlib import Path

import pytest

from spark_ray.core.errors import ConfigError
from spark_ray.datasets.config import BuildConfig
from spark_ray.training.config import TrainConfig

NEEDED = ["--input", "in", "--output", "out"]


def parse(*arguments: str) -> BuildConfig:
    return BuildConfig.from_command_line([*NEEDED, *arguments], "spark-ray data build")


def complaint(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*arguments)
    return str(caught.value)


def test_flags_win_over_environment_over_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("fps: 2\njpeg_quality: 50\nclip_max_s: 30\n")
    monkeypatch.setenv("SPARK_RAY_FPS", "3")
    monkeypatch.setenv("SPARK_RAY_JPEG_QUALITY", "60")
    config = parse("--config", str(file), "--fps", "4")
    assert (config.fps, config.jpeg_quality, config.clip_max_s) == (4, 60, 30)
    assert config.hash_distance == BuildConfig.model_fields["hash_distance"].default


def test_a_configuration_written_as_yaml_reads_back_the_same(tmp_path: Path) -> None:
    config = parse("--resolution", "320x180", "--no-smart-sampling", "--input", "a,b.mp4", "é.mp4")
    (tmp_path / "job.yaml").write_text(config.as_yaml(), encoding="utf-8")
    again = BuildConfig.from_command_line(["--config", str(tmp_path / "job.yaml")], "build")
    assert again == config


def test_file_names_are_taken_as_they_are() -> None:
    names = ["a,b.mp4", "[1].mp4", '{"x": 1}.mp4', "with space.mp4", "s3://bucket/key"]
    assert parse("--input", *names).input == names


def test_a_list_in_the_environment_keeps_addresses_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_RAY_INPUT", "s3://bucket/a.mp4")
    monkeypatch.setenv("SPARK_RAY_OUTPUT", "out")
    assert BuildConfig.from_command_line([], "build").input == ["s3://bucket/a.mp4"]


def test_settings_with_parts_are_told_apart_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        TrainConfig.from_command_line(["--help"], "spark-ray train apotheon")
    shown = capsys.readouterr().out
    assert "--curriculum" not in shown
    assert "only the file of --config can give\n  curriculum: " in shown
    assert (
        "; each with name, epochs, modalities, frozen, batch_scale, learning_rate_scale, "
        "part_rates, mixture"
    ) in " ".join(shown.split())
    assert "--num-workers VALUE" in shown


def test_a_misspelt_name_in_the_environment_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SPARK_RAY_CAPTION_BACKENT", "SPARK_RAY_LOG_LEVEL", "SPARK_RAY_LEARNING_RATE"):
        monkeypatch.setenv(name, "none")
    assert parse().caption_backend == BuildConfig.model_fields["caption_backend"].default
    assert capsys.readouterr().err == (
        "warning: SPARK_RAY_CAPTION_BACKENT in the environment is no setting; "
        "did you mean SPARK_RAY_CAPTION_BACKEND?\n"
    )


@pytest.mark.parametrize(
    ("text", "size"), [("640x480", (640, 480)), ("640X480", (640, 480)), ("224", (224, 224))]
)
def test_a_resolution_is_width_by_height_or_one_side(text: str, size: tuple[int, int]) -> None:
    assert parse("--resolution", text).resolution == size


@pytest.mark.parametrize("text", ["640", "[640, 640]", "640x640"])
def test_a_resolution_in_yaml_may_be_written_in_any_of_these_ways(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "job.yaml").write_text(f"resolution: {text}\n")
    assert parse("--config", str(tmp_path / "job.yaml")).resolution == (640, 640)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fsp", "2"], ["--fsp", "did you mean --fps?"]),
        (["--smart-samplin"], ["did you mean --smart-sampling?"]),
        (["--fps", "fast"], ["fps", "'fast'"]),
        (["--fps", "0"], ["fps", "greater than 0"]),
        (["--fps", "nan"], ["fps"]),
        (["--clip-max-s", "inf"], ["clip_max_s"]),
        (["--resolution", "640*480"], ["resolution", "WIDTHxHEIGHT", "'640*480'"]),
        (["--resolution", "1x2x3"], ["resolution", "WIDTHxHEIGHT"]),
        (["--resolution", "4x4"], ["resolution: both numbers of WIDTHxHEIGHT", "not 4x4"]),
        (["--resolution", "0x10"], ["resolution: both numbers of WIDTHxHEIGHT", "not 0x10"]),
        (["--resolution", "9000"], ["from 8 to 8192 pixels, not 9000x9000"]),
        (["--split", "chapters"], ["split", "'none', 'fixed' or 'scenes'", "'chapters'"]),
        (["--version", "../v1"], ["version"]),
        (["--min-duration-s", "9", "--max-duration-s", "3"], ["max_duration_s", "min_duration_s"]),
        (["--min-clip-s", "90"], ["min_clip_s", "clip_max_s"]),
        (["--split", "scenes", "--no-scene-detection"], ["split=scenes", "scene_detection"]),
        (["--config", "/nowhere.yaml"], ["/nowhere.yaml", "does not exist"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_mistake_is_told_in_one_line_that_names_the_setting(
    arguments: list[str], words: list[str]
) -> None:
    message = complaint(*arguments)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fsp: 2", ["'fsp'", "did you mean 'fps'?"]),
        ("clip-max-s: 2", ["did you mean 'clip_max_s'?"]),
        ("wholly_unknown_setting: 2", ["'wholly_unknown_setting'", "--help"]),
        ("- fps", ["name: value"]),
        ("fps: [", ["is not valid YAML"]),
        ("fps: .nan", ["fps"]),
        ("resolution: [1, 2, 3]", ["resolution: write it as WIDTHxHEIGHT", "[1, 2, 3]"]),
        ("resolution: true", ["resolution: write it as WIDTHxHEIGHT"]),
        ("resolution: [0, 9]", ["resolution: both numbers of WIDTHxHEIGHT", "0x9"]),
        ("fps: 1\nsplit: none\n'fps': 2", ["'fps' is given twice, in line 1 and in line 3"]),
        ("input: [{a: 1,\n  a: 1}]", ["'a' is given twice, in line 1 and in line 2"]),
        ("jpeg_quality: high", ["jpeg_quality", "'high'"]),
    ],
)
def test_a_mistake_in_the_file_is_told_in_one_line(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    (tmp_path / "job.yaml").write_text(text)
    message = complaint("--config", str(tmp_path / "job.yaml"))
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_file_that_is_no_text_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in complaint("--config", str(tmp_path / "job.yaml"))


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("# nothing\n")
    assert parse("--config", str(tmp_path / "job.yaml")) == parse()


def test_what_is_required_is_asked_for_by_its_flag() -> None:
    with pytest.raises(ConfigError, match="output is required: give --output"):
        BuildConfig.from_command_line(["--input", "x"], "build")


def test_a_flag_without_its_value_is_no_misspelt_flag() -> None:
    with pytest.raises(ConfigError) as caught:
        BuildConfig.from_command_line(["--input"], "build")
    assert str(caught.value) == (
        "argument --input: expected at least one argument; see build --help"
    )


def test_what_a_merged_mapping_brings_may_be_overridden(tmp_path: Path) -> None:
    stage = "{name: a, epochs: 1, modalities: [video]}"
    (tmp_path / "job.yaml").write_text(
        f"dataset: x\noutput_dir: y\nepochs: 2\ncurriculum:\n- &a {stage}\n- <<: *a\n  name: b\n"
    )
    config = TrainConfig.from_command_line(["--config", str(tmp_path / "job.yaml")], "train")
    assert [stage.name for stage in config.stages] == ["a", "b"]


def test_all_mistakes_are_told_at_once() -> None:
    message = complaint("--fps", "0", "--jpeg-quality", "200")
    assert "fps" in message
    assert "jpeg_quality" in message


def test_help_says_what_one_number_of_a_resolution_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    assert "WIDTHxHEIGHT in pixels; one number is a square" in " ".join(
        capsys.readouterr().out.split()
    )


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse("--help")
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    missing = [n for n in BuildConfig.model_fields if f"--{n.replace('_', '-')}" not in text]
    assert not missing


def test_the_recipe_is_what_decides_the_content(tmp_path: Path) -> None:
    base = parse()
    assert parse("--decode-workers", "9", "--version", "v7").fingerprint() == base.fingerprint()
    assert parse("--fps", "2").fingerprint() != base.fingerprint()
