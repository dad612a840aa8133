"""On a cluster that others run: jobs are submitted with a token, and whole nodes may die."""

import re
import secrets
import subprocess
from pathlib import Path
from typing import Any

import builds
import pytest
from clusters import Node, run_ray

VIDEOS = 64


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
    """So many that a build isn't done before somebody can kill it."""
    return builds.write_numbers(tmp_path_factory.mktemp("cluster") / "in", range(1, VIDEOS + 1))


def test_a_job_is_submitted(
    head: dict[str, Any], environment: dict[str, str], videos: Path, tmp_path: Path
) -> None:
    """The working folder is uploaded, what .gitignore names aside, and a dataset is published."""
    done = submit(head, environment, "--input", videos, "--output", tmp_path / "set", "--fps", 2)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    assert f"published {tmp_path / 'set' / 'v1'}: {VIDEOS} clips" in done.stdout
    captions = sorted(line["meta"]["caption"] for line in builds.manifest(tmp_path / "set" / "v1"))
    assert captions == sorted(map(builds.caption_of_number, range(1, VIDEOS + 1)))


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


@pytest.fixture(scope="module")
def undisturbed(
    head: dict[str, Any],
    environment: dict[str, str],
    videos: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "set"
    _, printed, status = finish(start_build(head, environment, videos, output))
    assert status == 0, printed
    return output / "v1"


def start_build(
    head: dict[str, Any], environment: dict[str, str], videos: Path, output: Path
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        builds.build_command(videos, output, fps=2),
        env={**environment, "RAY_ADDRESS": head["address"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(driver: subprocess.Popen[str]) -> tuple[str, str, int]:
    """What it wrote to standard output and to standard error, and its exit status."""
    written, printed = driver.communicate(timeout=400)
    return written, printed, driver.returncode


def test_a_whole_node_dies(
    head: dict[str, Any],
    second_node: Node,
    environment: dict[str, str],
    videos: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    """kill -9 of every process of a worker node, while it decodes: the same dataset comes out."""
    version = tmp_path / "set" / "v1"
    driver = start_build(head, environment, videos, tmp_path / "set")
    builds.wait_until(
        lambda: second_node.works_on("MapBatches"), "the node to decode", driver=driver
    )
    second_node.kill()
    killed_in_time = not (version / "metadata.json").exists()
    _, printed, status = finish(driver)

    assert killed_in_time
    assert status == 0, printed
    builds.assert_same(version, undisturbed)


@pytest.mark.nightly
def test_the_driver_dies_on_two_nodes_and_then_one_of_them(
    head: dict[str, Any],
    second_node: Node,
    environment: dict[str, str],
    videos: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    """The driver after the first clips are committed; then, as the rest is, the node."""
    version = tmp_path / "set" / "v1"
    driver = start_build(head, environment, videos, tmp_path / "set")
    builds.wait_until(lambda: builds.parts(version), "a first part", driver=driver)
    driver.kill()
    driver.communicate()
    assert not (version / "metadata.json").exists(), "to be killed before it published"
    nodes = (head["node"], second_node)
    builds.wait_until(
        lambda: not any(node.works_on("MapBatches") for node in nodes), "the end of its workers"
    )
    committed = len(builds.parts(version))

    driver = start_build(head, environment, videos, tmp_path / "set")
    builds.wait_until(lambda: len(builds.parts(version)) > committed, "another part", driver=driver)
    second_node.kill()
    killed_in_time = not (version / "metadata.json").exists()
    _, printed, status = finish(driver)

    assert killed_in_time
    assert status == 0, printed
    done = re.search(r"resumed +(\d+) of (\d+) units are done", printed)
    assert done is not None, printed
    assert 0 < int(done[1]) < int(done[2])
    builds.assert_same(version, undisturbed)
