"""Where a result comes from: hashes of content, of code and of settings."""

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from spark_ray import __version__

_CHUNK_BYTES = 1 << 20
VIDEO_ID_CHARS = 16


def content_hash(file: BinaryIO) -> str:
    """SHA-256 of a file from its current position, as 64 hex characters."""
    *_, digest = running_hash(file)
    return digest


def running_hash(file: BinaryIO) -> Iterator[str]:
    """The hash of what was read so far, again after every MiB; the last is `content_hash`."""
    digest = hashlib.sha256()
    yield digest.hexdigest()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        yield digest.hexdigest()


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hash of settings that doesn't depend on their order."""
    return text_hash(json.dumps(settings, sort_keys=True, ensure_ascii=True, default=str))


@cache
def code_version() -> str:
    """Package version, with the hash of its source, so that an edited checkout shows."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:12]}"


@cache
def git_commit() -> str | None:
    """Commit of the checkout that runs, where it is one and git is there."""
    # Installed into an environment inside a user's repository, git would give that one's commit.
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    return _git("rev-parse", "HEAD") if tracked else None


def _git(*arguments: str) -> str | None:
    """What git says about our folder; None where it fails, is missing or says nothing."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def now_iso() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
