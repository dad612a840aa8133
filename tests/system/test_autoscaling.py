"""A cluster that scales itself, by Ray's own autoscaler: jobs ask for nodes that are not there."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builds
import pytest
from clusters import StartNode, free_port, run_ray, started
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
)
from trained import save_tiny

sys.path.append(str(Path(__file__).parents[1] / "unit" / "datasets"))
from fake_version import make_clip, write_version

CLIPS = 24


@pytest.fixture(scope="module")
def address(
    start_node: StartNode, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A head of one CPU, and two kinds of nodes of which there is none yet.

    A GPU is a number to Ray, and so it is here. Whether a job says that it waits depends on how
    long a node takes to come, which may be less than a second.
    """
    port = free_port()
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"127.0.0.1:{port}",
        "head_node_id": FAKE_HEAD_NODE_ID,
        "launch_multiple": True,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    none_yet = {"min_workers": 0, "max_workers": 1, "node_config": {}}
    commands = ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    config = {
        "cluster_name": "scales-itself",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "provider": provider,
        **{f"{name}_commands": [] for name in commands},
        "cluster_synced_files": [],
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "large": {**none_yet, "resources": {"CPU": 2}},
            "gpus": {**none_yet, "resources": {"CPU": 1, "GPU": 1}},
        },
    }
    file = tmp_path_factory.mktemp("autoscaling") / "config.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    arguments = [
        "--head",
        "--num-cpus=1",
        "--include-dashboard=false",
        f"--port={port}",
        f"--autoscaling-config={file}",
    ]
    variables = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        # As `ray up` and KubeRay set them.
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
    }
    found = f"127.0.0.1:{port}"
    node = started(
        lambda: start_node(*arguments, **variables),
        lambda _: "/1.0 CPU" in run_ray(environment, "status", "--address", found).stdout,
    )
    yield found
    node.kill()  # with those that it started: idle nodes take a tenth of a CPU


def run(
    command: list[str], address: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**environment, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=400,
    )


def write_clips(root: Path) -> None:
    clips = [
        make_clip(number, source=f"/films/{number}.mp4", caption=f"number {number}", dropped=())
        for number in range(CLIPS)
    ]
    write_version(root, clips)


def training(folder: Path, **values: Any) -> list[str]:
    """The command, on clips of its own."""
    write_clips(folder / "sets" / "films")
    settings = {
        "dataset": str(folder / "sets" / "films"),
        "output_dir": str(folder / "run"),
        "epochs": 1,
        "batch_size": 2,
        "gradient_accumulation": 1,
        "mixed_precision": "fp32",
        "engine": "ddp",
        "max_frames": 2,
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "curriculum": [{"name": "pictures", "epochs": 1, "modalities": ["text", "image"]}],
        **values,
    }
    file = folder / "train.yaml"
    file.write_text(json.dumps(settings))
    return builds.command("train", "apotheon", "--config", file)


@pytest.mark.nightly
def test_a_training_waits_for_a_node_that_is_large_enough(
    address: str, environment: dict[str, str], tmp_path: Path
):
    """Until its worker has the node; what it does there is no matter of the autoscaler's."""
    driver = subprocess.Popen(
        training(tmp_path, cpus_per_worker=1.5, data_cpus=0.5, gpus_per_worker=0),
        env={**environment, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    builds.wait_until(
        lambda: re.search(
            r"(1\.5|2\.0)/3\.0 CPU", run_ray(environment, "status", "--address", address).stdout
        ),
        "a worker on the node that came",
        driver=driver,
    )
    driver.terminate()
    printed, _ = driver.communicate(timeout=400)
    assert driver.returncode == 143, printed
    assert "starting     1 worker on Ray" in printed


def test_models_of_a_build_wait_for_a_gpu(
    address: str, environment: dict[str, str], tmp_path: Path, tiny_checkpoint: Any
):
    videos = builds.write_numbers(tmp_path / "in", range(1, 3))
    done = run(
        builds.build_command(
            videos, tmp_path / "set", caption_backend="blip", caption_model=tiny_checkpoint("blip")
        ),
        address,
        environment,
    )
    assert done.returncode == 0, done.stderr
    assert all(line["meta"]["caption"] for line in builds.manifest(tmp_path / "set" / "v1"))


@pytest.mark.nightly
def test_actors_of_an_evaluation_share_a_gpu(
    address: str, environment: dict[str, str], tmp_path: Path
):
    save_tiny(tmp_path / "model")
    write_clips(tmp_path / "films")
    output = tmp_path / "evaluation"
    settings = {"model": tmp_path / "model", "dataset": tmp_path / "films", "split": "all"}
    settings |= {"workers": 2, "batch_size": 8, "max_new_tokens": 4, "output_dir": output}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    driver = subprocess.Popen(
        builds.command("evaluate", *flags),
        env={**environment, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    builds.wait_until(
        lambda: "1.0/1.0 GPU" in run_ray(environment, "status", "--address", address).stdout,
        "a GPU in use",
        driver=driver,
    )
    printed, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, printed
    assert json.loads((output / "results.json").read_text())["clips"]["evaluated"] == CLIPS


def test_what_no_node_will_have_is_refused(
    address: str, environment: dict[str, str], tmp_path: Path
):
    done = run(training(tmp_path, gpus_per_worker=8), address, environment)
    assert done.returncode == 2, done.stderr
    assert "error: gpus_per_worker: 8 GPUs are more than any node has" in done.stderr
    assert "waiting" not in done.stderr
