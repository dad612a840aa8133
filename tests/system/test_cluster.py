"""On a cluster that others run: jobs are submitted with a token, and whole nodes may die."""

import secrets
import subprocess
from pathlib import Path
from typing import Any

import builds
import psutil
import pytest
from clusters import START_S, Node, StartNode, run_ray


def submit(
    head: dict[str, Any], environment: dict[str, str], *arguments: object
) -> subprocess.CompletedProcess[str]:
    """The line from the README."""
    return run_ray(
        environment,
        *("job", "submit", "--address", head["jobs"], "--working-dir", ".", "--"),
        *("python", "jobs/build_dataset.py", *map(str, arguments)),
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builds.write_numbers(tmp_path_factory.mktemp("cluster") / "in", range(1, 17))


def test_a_job_is_submitted(
    head: dict[str, Any], environment: dict[str, str], videos: Path, tmp_path: Path
) -> None:
    """The working folder is uploaded, what .gitignore names aside, and a dataset is published."""
    done = submit(head, environment, "--input", videos, "--output", tmp_path / "set", "--fps", 2)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    assert f"published {tmp_path / 'set' / 'v1'}: 16 clips" in done.stdout
    captions = sorted(line["meta"]["caption"] for line in builds.manifest(tmp_path / "set" / "v1"))
    assert captions == sorted(map(builds.caption_of_number, range(1, 17)))


def test_a_submitted_job_that_fails_says_so(
    head: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    done = submit(head, environment, "--input", missing, "--output", tmp_path / "set")

    assert done.returncode != 0
    assert f"error: input: '{missing}' does not exist" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout


def test_a_wrong_token_is_refused(
    head: dict[str, Any], environment: dict[str, str], videos: Path, tmp_path: Path
) -> None:
    wrong = {**environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = submit(head, wrong, "--input", videos, "--output", tmp_path / "set")

    assert done.returncode != 0
    assert "authentication" in (done.stdout + done.stderr).lower()
    assert not (tmp_path / "set").exists()


def test_a_whole_node_dies(
    head: dict[str, Any],
    start_node: StartNode,
    environment: dict[str, str],
    videos: Path,
    tmp_path: Path,
) -> None:
    """kill -9 of every process of a worker node, while it decodes: the same dataset comes out."""
    address = {"RAY_ADDRESS": head["address"]}
    command = builds.build_command(videos, tmp_path / "undisturbed" / "set", fps=2)
    undisturbed = subprocess.run(command, env={**environment, **address}, capture_output=True)
    assert undisturbed.returncode == 0, undisturbed.stderr

    node = start_node(f"--address={head['address']}", "--num-cpus=2")
    builds.wait_until(
        lambda: b"Ray runtime started" in node.log.read_bytes(), "a second node", seconds=START_S
    )
    version = tmp_path / "set" / "v1"
    driver = subprocess.Popen(
        builds.build_command(videos, tmp_path / "set", fps=2),
        env={**environment, **address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    builds.wait_until(lambda: decoding(node), "the node to decode", driver=driver)
    node.kill()
    killed_in_time = not (version / "metadata.json").exists()
    _, printed = driver.communicate(timeout=200)

    assert killed_in_time
    assert driver.returncode == 0, printed
    builds.assert_same(version, tmp_path / "undisturbed" / "set" / "v1")


def decoding(node: Node) -> bool:
    """Whether a worker of this node is at work on a block."""
    for process in node.processes():
        try:
            if "MapBatches" in " ".join(process.cmdline()):
                return True
        except psutil.Error:
            continue
    return False
