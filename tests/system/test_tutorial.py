"""What a stranger does first: `make demo`, and the tutorial, to the letter, in a fresh clone.

The clone is lent this environment. That the two commands install all they need is shown by whoever
runs them where there is none, as `.ci/run` does.
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
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout"),
    pytest.mark.timeout(1800),
]


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
    """Run a command as a stranger would: with nothing of this environment but its packages."""
    ours = ("RAY_", "AWS_", "PYTHON", "PYTEST_", "VIRTUAL_ENV", "MAKE", "MFLAGS", "SPARK_RAY_")
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    theirs["PYTHONPATH"] = str(clone)  # the environment knows the checkout that it was made for
    return subprocess.run(command, cwd=clone, env=theirs | more, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `make demo` has been run."""
    clone = tmp_path_factory.mktemp("stranger") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / ".venv").symlink_to(sys.prefix)
    (clone / ".git" / "info" / "exclude").write_text("/.venv\n")  # .gitignore means the folder
    fewer = f"--clips {DEMO_CLIPS} --no-train"
    # -o: the environment is older than the clone, and is not to be installed again.
    demo = in_clone(clone, "make", "demo", "-o", ".venv/.installed", f"DEMO_ARGS={fewer}")
    assert demo.returncode == 0, demo.stdout[-4000:] + demo.stderr[-4000:]
    assert "Installing" not in demo.stdout
    assert f"{DEMO_CLIPS} of {DEMO_CLIPS}" in demo.stdout
    return clone


def test_make_demo_needs_nothing_but_what_is_committed(clone: Path) -> None:
    version = clone / "demo" / "datasets" / "shapes" / "v1"
    assert len(builds.manifest(version)) == DEMO_CLIPS
    assert (version / "report.html").stat().st_size > 10_000
    status = in_clone(clone, "git", "status", "--porcelain")
    assert status.stdout == "", "what this command writes is in .gitignore"


@pytest.mark.nightly
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
