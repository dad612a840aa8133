"""What a stranger does first: clone, `make demo`, `make test`. Takes the package index and minutes.

SPARK_RAY_SKIP_CLONE=1 leaves it out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import builds
import pytest

ROOT = Path(__file__).parents[2]
DEMO_CLIPS = 1200
NEW_CLIPS = 24


def in_clone(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a stranger would: with nothing of this environment but the index."""
    ours = ("RAY_", "AWS_", "PYTHON", "PYTEST_", "VIRTUAL_ENV", "MAKE", "MFLAGS", "SPARK_RAY_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow_clone
@pytest.mark.timeout(2700)
@pytest.mark.skipif("SPARK_RAY_SKIP_CLONE" in os.environ, reason="SPARK_RAY_SKIP_CLONE is set")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout")
def test_a_bare_clone_runs_the_demo_and_its_tests(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    python = f"PYTHON={Path(sys.base_prefix) / 'bin' / 'python3'}"

    demo = in_clone(clone, "make", "demo", python)

    assert demo.returncode == 0, demo.stdout[-4000:] + demo.stderr[-4000:]
    assert f"{DEMO_CLIPS} of {DEMO_CLIPS}" in demo.stdout
    assert "6 of 6 answers are those of the dataset job" in demo.stdout
    version = clone / "demo" / "datasets" / "shapes" / "v1"
    assert len(builds.manifest(version)) == DEMO_CLIPS
    assert (version / "report.html").stat().st_size > 10_000

    # From nothing, and on clips that training never saw. The goal for captions is 0.95, which runs
    # miss by a few points where another CPU takes another path.
    found = json.loads((clone / "demo" / "evaluation" / "results.json").read_text())["overall"]
    assert found["captions"]["exact"] >= 0.8
    assert found["transcripts"]["wer"] <= 0.05
    new = builds.manifest(clone / "demo" / "datasets" / "new" / "v1")
    assert len(new) == NEW_CLIPS
    assert all(line["meta"]["caption"] for line in new)
    assert sum(bool(line["meta"]["transcript"]) for line in new) > NEW_CLIPS / 2

    # A few tests only, and none of this folder: it would clone itself for ever.
    tests = in_clone(clone, "make", "test", python, "PYTEST_ARGS=tests/unit/core -q")

    assert tests.returncode == 0, tests.stdout[-4000:] + tests.stderr[-4000:]
    assert " passed" in tests.stdout
    status = in_clone(clone, "git", "status", "--porcelain")
    assert status.stdout == "", "what these commands write is in .gitignore"
