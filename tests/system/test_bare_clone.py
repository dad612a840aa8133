"""What a stranger does first: clone, `make demo`, `make test`.

Takes the package index and minutes; SPARK_RAY_SKIP_CLONE=1 leaves it out.
"""

import os
import subprocess
import sys
from pathlib import Path

import builds
import pytest

ROOT = Path(__file__).parents[2]
# Fewer clips, and no training: what the whole demo learns, and whether its server agrees with the
# dataset job, is measured by `python -m benchmarks demo`.
DEMO_CLIPS = 60

pytestmark = [
    pytest.mark.slow_clone,
    pytest.mark.skipif("SPARK_RAY_SKIP_CLONE" in os.environ, reason="SPARK_RAY_SKIP_CLONE is set"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout"),
    pytest.mark.timeout(2700),
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clone = tmp_path_factory.mktemp("stranger") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    return clone


def in_clone(clone: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a stranger would: with nothing of this environment but the index."""
    ours = ("RAY_", "AWS_", "PYTHON", "PYTEST_", "VIRTUAL_ENV", "MAKE", "MFLAGS", "SPARK_RAY_")
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(command, cwd=clone, env=theirs, capture_output=True, text=True)


def test_a_bare_clone_runs_the_demo_and_its_tests(clone: Path) -> None:
    python = f"PYTHON={Path(sys.base_prefix) / 'bin' / 'python3'}"

    fewer = f"--clips {DEMO_CLIPS} --no-train"
    demo = in_clone(clone, "make", "demo", python, f"DEMO_ARGS={fewer}")

    assert demo.returncode == 0, demo.stdout[-4000:] + demo.stderr[-4000:]
    assert f"{DEMO_CLIPS} of {DEMO_CLIPS}" in demo.stdout
    version = clone / "demo" / "datasets" / "shapes" / "v1"
    assert len(builds.manifest(version)) == DEMO_CLIPS
    assert (version / "report.html").stat().st_size > 10_000

    # A few tests only, and none of this folder: it would clone itself for ever.
    tests = in_clone(clone, "make", "test", python, "PYTEST_ARGS=tests/unit/core -q")

    assert tests.returncode == 0, tests.stdout[-4000:] + tests.stderr[-4000:]
    assert " passed" in tests.stdout
    status = in_clone(clone, "git", "status", "--porcelain")
    assert status.stdout == "", "what these commands write is in .gitignore"
