"""Our application, brought up for a benchmark in this process's own Ray."""

import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import ray
import torch
from ray import serve

from benchmarks.harness import ROOT
from spark_ray.apotheon import ApotheonConfig, ApotheonModel
from spark_ray.apotheon.sizes import processor_for, tiny
from spark_ray.apotheon.tokenization import train_tokenizer
from spark_ray.media.encode import write_video
from spark_ray.serving.app import build
from spark_ray.serving.database import Database
from spark_ray.serving.keys import KeyStore
from spark_ray.serving.proxy import PROXY_ENVIRONMENT
from spark_ray.serving.settings import ServeSettings

_TEXTS = ("a red circle moves left", "a blue square grows", "the train to london leaves at six")
_CPUS = 4
"""More than there may be: each part of the server takes its share of them by itself."""

_START_S = 60.0
_STOP_S = 10.0


@contextlib.contextmanager
def served(
    folder: Path, port: int, *, max_concurrent: int = 1000, jobs: bool = False, **settings: Any
) -> Iterator[str]:
    """The application with these settings at that port; the secret of a key that may do much.

    Where it shall run `jobs`, it is on a node that could do so, which takes longer to start.
    """
    settings = {"state": str(folder / "state"), **settings}
    database = Database(ServeSettings.from_values(**settings).located().database)
    limits: dict[str, Any] = {"requests_per_minute": 10_000_000, "lifetime_s": None}
    _, secret = KeyStore(database).create(
        "benchmark", ["infer", "jobs", "admin"], max_concurrent=max_concurrent, **limits
    )
    os.environ.update(PROXY_ENVIRONMENT)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # Serve would log every request of ours
    with _node() if jobs else contextlib.nullcontext() as address:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            ray.init("local", num_cpus=_CPUS, include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
        try:
            silent = {"enable_access_log": False, "log_level": "ERROR"}
            serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=silent)
            serve.run(build(settings), name="spark-ray", route_prefix="/")
            yield secret
        finally:
            serve.shutdown()
            ray.shutdown()


@contextlib.contextmanager
def _node() -> Iterator[str]:
    """A node with a folder and ports of its own; its address.

    In a common folder, drivers of jobs go to whichever cluster was started last, and at a common
    port only one cluster of a machine takes jobs at all.
    """
    sys.path.append(str(ROOT / "tests" / "system"))
    from clusters import RAY, START_S, Node, free_port

    # This process's Ray has read its mode when it was imported; the node must have the same.
    environment = {"RAY_AUTH_MODE": "disabled", **os.environ}
    port = free_port()
    ports = ("dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        command = [
            RAY, "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={folder}",
            "--node-ip-address=127.0.0.1",
            f"--num-cpus={_CPUS}", f"--port={port}", *(f"--{name}={free_port()}" for name in ports),
        ]  # fmt: skip
        log = Path(folder) / "start.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        node = Node(process, log)
        try:
            end = time.monotonic() + START_S
            while b"ray stop" not in log.read_bytes():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"Ray did not start: {log.read_text()[-2000:]}")
                time.sleep(0.5)
            yield f"127.0.0.1:{port}"
        finally:
            node.kill()


def write_noise(path: Path, seed: int = 0, *, sound: bool = False) -> None:
    """Two seconds of video, 96×96 at 8 frames a second, no frame like another; mute or hissing."""
    noise = np.random.default_rng(seed)
    pictures = (noise.integers(0, 255, (96, 96, 3), dtype=np.uint8) for _ in range(16))
    hiss = (noise.integers(-9000, 9000, 32_000, dtype=np.int16), 16_000) if sound else None
    write_video(path, pictures, Fraction(8), audio=hiss)


def untrained_apotheon(folder: Path, size: Callable[[Any], ApotheonConfig] = tiny) -> Path:
    """An untrained Apotheon: what it says means nothing and costs as much."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(_TEXTS, 400)
    config = size(tokenizer)
    ApotheonModel(config).save_pretrained(folder)
    processor_for(config, tokenizer, max_frames=6).save_pretrained(folder)
    return folder


def register_version(folder: Path, number: int) -> Path:
    """Register an untrained Apotheon as a version of `versioned`; the folder of its files.

    Each number makes another one. The registry is that of `MLFLOW_TRACKING_URI`.
    """
    sys.path.append(str(ROOT / "tests"))
    import apotheons
    import trained

    from spark_ray.models.model_card import write_model_card
    from spark_ray.training.registry import register_model

    place = folder / f"version-{number}"
    apotheons.model(number).save_pretrained(place)
    apotheons.processor().save_pretrained(place)
    trained.record().write(place)
    write_model_card(place)
    uri = os.environ["MLFLOW_TRACKING_URI"]
    register_model(place, tracking_uri=uri, name="versioned", alias=f"number-{number}")
    return place


def promote_version(number: int) -> None:
    """Make that version of `versioned` its champion."""
    from spark_ray.training.registry import promote

    promote("versioned", str(number), tracking_uri=os.environ["MLFLOW_TRACKING_URI"])


@contextlib.contextmanager
def litserve_served(port: int) -> Iterator[str | None]:
    """LitServe's no-op at that port: its address; None, once it said so, if it is missing."""
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
