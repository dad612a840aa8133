"""The end of the demo: the trained model behind HTTP, asked as any client would ask it."""

import logging
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
from ray import serve
from rich.console import Console
from rich.table import Table

from spark_ray.core.storage import Folder
from spark_ray.datasets.assets import manifest_lines
from spark_ray.datasets.session import ray_session
from spark_ray.demo.config import DemoConfig
from spark_ray.serving.app import build
from spark_ray.serving.database import Database
from spark_ray.serving.keys import KeyStore
from spark_ray.serving.settings import ServeSettings

_NAME = "spark-ray-demo"
_SHOWN = 6
_HITS = 3
_TIMEOUT_S = 60.0
_QUESTION = "a red circle grows"


@dataclass
class _Local:
    ray_address: str | None = None
    dashboard: bool = False


def ask_over_http(config: DemoConfig, model: str, described: Folder, console: Console) -> bool:
    """Serve the model and ask it about the new clips; whether it says what the dataset job said."""
    settings: dict[str, Any] = {
        "state": f"{config.folder}/serving",
        "models": {"apotheon": {"reference": model}},
        "datasets": [described.location],
    }
    secret = _make_key(ServeSettings.from_values(**settings).located())
    port = _free_port()
    with ray_session(_Local()):
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(
            http_options={"host": "127.0.0.1", "port": port},
            logging_config={"enable_access_log": False, "log_level": "ERROR"},
        )
        serve.run(build(settings), name=_NAME, route_prefix="/")
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}",
                headers={"Authorization": f"Bearer {secret}"},
                timeout=_TIMEOUT_S,
            ) as client:
                return _ask(client, described, console)
        finally:
            serve.delete(_NAME)


def _make_key(settings: ServeSettings) -> str:
    _, secret = KeyStore(Database(settings.database)).create(
        "demo", ["infer"], requests_per_minute=6000, max_concurrent=16, lifetime_s=3600.0
    )
    return secret


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _ask(client: httpx.Client, described: Folder, console: Console) -> bool:
    table = Table(title="The same model, asked over HTTP", title_justify="left")
    table.add_column("POST /v1/analyze", ratio=1)
    table.add_column("seen", ratio=2)
    table.add_column("heard", ratio=2)
    table.add_column("ms", justify="right")
    same = 0
    lines = [line["meta"] for line in manifest_lines(described)][:_SHOWN]
    for meta in lines:
        clip = Path(meta["source_path"])
        started = time.perf_counter()
        answer = client.post("/v1/analyze", files={"file": clip.read_bytes()})
        seconds = time.perf_counter() - started
        answer.raise_for_status()
        said = answer.json()
        same += (said["caption"], said["transcript"] or None) == (
            meta["caption"],
            meta["transcript"] or None,
        )
        table.add_row(
            clip.name, said["caption"], said["transcript"] or "–", f"{1000 * seconds:.0f}"
        )
    console.print(table)
    console.print(f"{same} of {len(lines)} answers are those of the dataset job")
    console.print(f"POST /v1/search {_QUESTION!r}")
    for hit in _search(client):
        console.print(f"  {hit['score']:5.2f}  {hit['caption']}")
    return same == len(lines)


def _search(client: httpx.Client) -> list[dict[str, Any]]:
    """The nearest of the new clips; their embeddings are made when they are first asked for."""
    end = time.monotonic() + _TIMEOUT_S
    while True:
        answer = client.post("/v1/search", json={"text": _QUESTION, "limit": _HITS})
        if answer.status_code != 503 or time.monotonic() > end:
            answer.raise_for_status()
            hits: list[dict[str, Any]] = answer.json()["hits"]
            return hits
        time.sleep(1)
