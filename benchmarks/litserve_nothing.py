"""LitServe with the no-op of `benchmarks.serving`, at `/v1/embeddings` of the port that is given.

`served()` runs this file as a program of its own, and where LitServe is not installed says so.
"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx

from benchmarks.harness import ROOT

_START_S = 60.0
_STOP_S = 10.0


@contextlib.contextmanager
def served(port: int) -> Iterator[str | None]:
    """The address of the no-op; None where there is no LitServe."""
    if importlib.util.find_spec("litserve") is None:
        print(
            "serving: LitServe is not installed, so nothing is compared with it; "
            "pip install --constraint requirements/constraints.txt -e '.[bench]'",
            file=sys.stderr,
        )
        yield None
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.litserve_nothing", str(port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1/embeddings"
    finally:
        # The whole group: LitServe leaves its workers behind when only its first process goes.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"LitServe exited {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"LitServe was not ready within {_START_S:g} s")


def main() -> None:
    import litserve

    class Nothing(litserve.LitAPI):  # type: ignore[misc]
        """A model whose answer is known before it is asked."""

        def setup(self, device: str) -> None:
            pass

        def predict(self, x: dict[str, Any]) -> dict[str, Any]:
            return {"data": [{"embedding": [1.0]}], "model": x["model"]}

    server = litserve.LitServer(Nothing(api_path="/v1/embeddings"), accelerator="cpu")
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False
    )


if __name__ == "__main__":
    main()
