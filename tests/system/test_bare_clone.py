"""What a stranger does first: clone, `make demo`, `make test`, and the tutorial, to the letter.

Takes the package index and minutes; SPARK_RAY_SKIP_CLONE=1 leaves it out.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import builds
import psutil
import pytest

ROOT = Path(__file__).parents[2]
# Fewer clips, and no training: what the whole demo learns, and whether its server agrees with the
# dataset job, is measured by `python -m benchmarks demo`.
DEMO_CLIPS = 60
OWN_CLIPS = 40

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


@pytest.fixture
def home() -> Iterator[Path]:
    """A home for whoever runs a server; what still runs from there in the end is killed.

    Ray's files are there, too, or other tests would join its cluster; so its path must be short.
    """
    with tempfile.TemporaryDirectory(prefix="srh", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("HOME") == name:
                    process.kill()


def in_clone(clone: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a stranger would: with nothing of this environment but the index."""
    ours = ("RAY_", "AWS_", "PYTHON", "PYTEST_", "VIRTUAL_ENV", "MAKE", "MFLAGS", "SPARK_RAY_")
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(command, cwd=clone, env=theirs | more, capture_output=True, text=True)


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


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_command_of_the_tutorial_does_what_it_says(clone: Path, home: Path) -> None:
    """After `make demo`, on own videos; only how long it trains is set otherwise."""
    text = (clone / "docs" / "tutorial.md").read_text()
    demo, *blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert demo == "make demo\n"
    drawn = sorted((clone / "demo" / "clips").rglob("*.mp4"))[:OWN_CLIPS]
    for folder, clips in (("videos", drawn), ("new", drawn[:2])):
        (clone / folder).mkdir()
        for file in (beside for clip in clips for beside in clip.parent.glob(f"{clip.stem}.*")):
            shutil.copy(file, clone / folder)
    broken = clone / "videos" / drawn[0].name
    broken.write_bytes(broken.read_bytes()[:1000])
    shutil.copy(drawn[1], clone / "clip.mp4")
    mend = f"cp {drawn[0]} {broken}"
    config = clone / "serve_configs" / "local.yaml"
    served = config.read_text()
    assert "reference: demo/runs/tiny/model" in served
    config.write_text(served.replace("demo/runs/tiny/model", "runs/street/model"))
    script = "\n".join(blocks).replace("spark-ray data replay", f"{mend}\nspark-ray data replay")
    page = "http://127.0.0.1:5000"
    asked = f"curl -fsS -o page.html --retry 60 --retry-delay 1 --retry-all-errors {page}"
    script = re.sub(r"^(mlflow ui .*)$", rf"\1 > mlflow.log 2>&1 &\n{asked}", script, flags=re.M)

    short = {"SPARK_RAY_GRADIENT_ACCUMULATION": "1", "SPARK_RAY_MAX_STEPS": "2"}
    command = ["bash", "-euxo", "pipefail", "-c", script]
    theirs = {"HOME": str(home), "RAY_TMPDIR": str(home), "RAY_USAGE_STATS_ENABLED": "0"}
    done = in_clone(clone, *command, **theirs, **short)

    said = done.stdout[-4000:] + done.stderr[-8000:]
    assert done.returncode == 0, said
    street = clone / "datasets" / "street"
    assert [len(builds.manifest(street / name)) for name in ("v1", "v2")] == [
        OWN_CLIPS - 1, OWN_CLIPS,
    ]  # fmt: skip
    assert (clone / "evaluations").is_dir(), said
    assert '"caption":' in done.stdout
    assert len(builds.manifest(clone / "datasets" / "new" / "v1")) == 2
