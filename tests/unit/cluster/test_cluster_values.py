"""The command that renders, the examples that it made, and what it says to wrong values."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from spark_ray.cli import main
from spark_ray.cluster.render import render
from spark_ray.cluster.values import ClusterValues
from spark_ray.core.errors import ConfigError

ROOT = Path(__file__).parents[3]
PROVIDERS = ("aws", "gcp", "on_premise", "kuberay")


def given(**changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load((ROOT / "cluster" / "values.yaml").read_text()), **changes}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_examples_are_what_the_command_writes(
    provider: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    values = ("--config", "cluster/values.yaml", "--provider", provider)
    assert main(["cluster", "render", *values, "--output", str(tmp_path / "files")]) == 0

    examples = ROOT / "cluster" / "examples" / provider
    written = {path.name: path.read_text() for path in (tmp_path / "files").iterdir()}
    assert written == {path.name: path.read_text() for path in examples.iterdir()}
    said = capsys.readouterr().out
    count = "1 file" if len(written) == 1 else f"{len(written)} files"
    assert f"rendered {count} for {provider}" in said
    assert ("left out     workload" in said) == (provider != "kuberay")


def test_rendering_again_spares_what_somebody_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    command = ["cluster", "render", "--config", "cluster/values.yaml", "--provider", "aws"]
    assert main([*command, "--output", str(tmp_path)]) == 0
    assert main([*command, "--output", str(tmp_path)]) == 0
    (tmp_path / "aws.yaml").write_text("cluster_name: mine\n")
    assert main([*command, "--output", str(tmp_path)]) == 2
    assert "aws.yaml was not rendered from values, and is left as it is" in capsys.readouterr().err
    assert (tmp_path / "aws.yaml").read_text() == "cluster_name: mine\n"


def test_files_of_a_former_rendering_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever applies the folder would start them."""
    monkeypatch.chdir(ROOT)
    command = ["cluster", "render", "--provider", "kuberay", "--output", str(tmp_path / "files")]
    assert main([*command, "--config", "cluster/values.yaml"]) == 0
    assert "of before" not in capsys.readouterr().out
    fewer = {name: value for name, value in given().items() if name != "workload"}
    (tmp_path / "fewer.yaml").write_text(yaml.safe_dump(fewer))
    assert main([*command, "--config", str(tmp_path / "fewer.yaml")]) == 0
    said = capsys.readouterr().out
    assert "of before    " in said
    assert [line for line in said.splitlines() if "rayjob" in line][-1].endswith("still wanted")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"provider": "azure"}, "provider: should be 'aws', 'gcp', 'on_premise' or 'kuberay'"),
        ({"provider": "gcp", "gcp": None}, "gcp: describe it, since provider is gcp"),
        ({"provider": "aws", "head": {}}, "head: provider aws needs a aws_machine"),
        ({"provider": "aws", "aws": {}}, "aws: provider aws needs a machine_image"),
        (
            {"cpu_workers": {"cpus": 4, "memory_gib": 8, "min_nodes": 3, "max_nodes": 2}},
            "min_nodes=3 is more than max_nodes=2",
        ),
        ({"cpu_workers": {"cpus": 4}}, "cpu_workers.memory_gib is required"),
        (
            {"cpu_workers": {"cpus": 4, "memory_gib": 8, "max_nodes": 2, "gpus": 1}},
            "cpu_workers: gpus belong into gpu_workers",
        ),
        (
            {"gpu_workers": {"cpus": 4, "memory_gib": 8, "max_nodes": 2}},
            "gpu_workers: gpus must be at least 1",
        ),
        ({"kubernetes": {}}, "cpu_workers: spot needs kubernetes.spot_label"),
        (
            {"kubernetes": {"spot_lable": "a=b"}},
            "kubernetes: unknown setting 'spot_lable'; did you mean 'spot_label'?",
        ),
        ({"name": "Spark Ray"}, "name: must be 1 to 40 small letters, digits or hyphens"),
        ({"images": {"cpu": "x; rm -rf /"}}, "images.cpu: must be one word of letters"),
        ({"env": {"A-B": "1"}}, "env.A-B: must be the name of a variable"),
        ({"aws": {"machine_image": "ubuntu"}}, "aws.machine_image: must be the id of an AMI"),
        (
            {"gcp": {"project": "p", "zone": "us-east1-b", "disk_image": "i"}},
            "zone=us-east1-b is none of region=europe-west4",
        ),
        (
            {"on_premise": {"head_host": "a", "worker_hosts": ["b", "a"]}},
            "worker_hosts: a is named twice",
        ),
        (
            {"kubernetes": {"redis_address": "redis"}},
            "kubernetes.redis_address: must be written as host:port",
        ),
        ({"model_cache_nfs": "nfs"}, "model_cache_nfs: must be written as host:/folder, not 'nfs'"),
        ({"kubernetes": {"spot_label": "spot"}}, "spot_label: must be written as label=value"),
        (
            {"workload": {"job": "data bild"}},
            "data build, evaluate, train apotheon, tune",
        ),
        (
            {"workload": {"job": "data build", "settings": {"input": ["s3://x"], "output": "y"}}},
            "output: 'y' would lie with the job's files",
        ),
        (
            {"workload": {"job": "evaluate", "settings": {"model": "m", "dataset": "s3://d"}}},
            "output_dir: None would lie with the job's files",
        ),
    ],
)
def test_wrong_values_are_one_sentence(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        ClusterValues.from_values(**given(**changes))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_who_submits_as_a_file_says_sends_the_token(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's client sends none without RAY_AUTH_MODE=token, and the cluster refuses it then."""
    monkeypatch.chdir(ROOT)
    files = render(ClusterValues.from_values(**given(provider=provider)))
    texts = [text for text in files.values() if "spark-ray submit" in text]
    assert texts
    for text in texts:
        before, _, _ = text.partition("spark-ray submit")
        assert "RAY_AUTH_MODE=token" in before


def test_what_goes_into_shell_lines_is_quoted() -> None:
    values = ClusterValues.from_values(**given(provider="aws", env={"NOTE": "a b; $(reboot)"}))
    (file,) = render(values).values()
    options = yaml.safe_load(file)["docker"]["run_options"]
    (option,) = [option for option in options if "NOTE" in option]
    printed = subprocess.run(
        f"printf '%s|' {option}", shell=True, capture_output=True, text=True, check=True
    )
    assert printed.stdout == "--env|NOTE=a b; $(reboot)|"


def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["cluster", "render", "--provider", "kuberay", "--output", f"{tmp_path}/file"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/file: this folder can't be made")
