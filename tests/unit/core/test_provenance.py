"""Which code a result is said to come from."""

import shutil
import subprocess
from pathlib import Path

import pytest

from spark_ray.core import provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our module in an environment inside somebody's repository, which ignores it."""
    module = tmp_path / ".venv" / "provenance.py"
    module.parent.mkdir()
    shutil.copy(provenance.__file__, module)
    (tmp_path / ".gitignore").write_text(".venv\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "-m", "theirs")
    monkeypatch.setattr(provenance, "__file__", str(module))
    return tmp_path


def test_the_commit_of_a_repository_around_the_environment_is_not_ours(installed: Path) -> None:
    assert provenance.git_commit.__wrapped__() is None


def test_the_commit_is_that_of_the_checkout_that_runs(installed: Path) -> None:
    git(installed, "add", "--force", ".venv/provenance.py")
    git(installed, "commit", "-m", "ours")
    assert provenance.git_commit.__wrapped__() == git(installed, "rev-parse", "HEAD")
