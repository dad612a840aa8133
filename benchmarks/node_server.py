"""A server on a cluster, and clients that ask it without a pause: each is a program of its own.

python -m benchmarks.node_server deploy SETTINGS
python -m benchmarks.node_server ask SETTINGS
"""

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import ray
from ray import serve

from spark_ray.serving.app import build

_PORT = 8000
_CLIENTS = 3
_PAUSE_S = 0.2
_GIVES_UP_S = 180.0
_TIMEOUT = httpx.Timeout(15.0, connect=2.0)
_TRY_AGAIN = {429, 500, 502, 503, 504}

_lock = threading.Lock()


def deploy(settings: dict[str, Any]) -> None:
    """The application on every node of the cluster; it stays when this program ends."""
    ray.init(namespace="serve", log_to_driver=False)
    http = {"host": "0.0.0.0", "port": _PORT}
    serve.start(proxy_location="EveryNode", http_options=http)
    serve.run(build(settings["server"]), name="spark-ray", route_prefix="/")
    print("deployed")


def ask(settings: dict[str, Any]) -> None:
    """Clients that go to the next node when one does not answer, as a load balancer does.

    Prints a line for each request once it is answered; ends when there is the file `stop`.
    """
    stop = Path(settings["stop"])
    with ThreadPoolExecutor(_CLIENTS) as clients:
        for outcome in [
            clients.submit(_client, number, settings, stop) for number in range(_CLIENTS)
        ]:
            outcome.result()


def _client(number: int, settings: dict[str, Any], stop: Path) -> None:
    places = settings["nodes"]
    nodes = itertools.cycle(places[number % len(places) :] + places[: number % len(places)])
    files = [Path(file) for file in settings["files"]]
    headers = {"Authorization": f"Bearer {settings['key']}"}
    node = next(nodes)
    with httpx.Client(headers=headers, timeout=_TIMEOUT) as client:
        for file in itertools.cycle(files[number:] + files[:number]):
            if stop.exists():
                return
            asked, tries_again = time.monotonic(), 0
            while (caption := _caption(client, node, file)) is None:
                if time.monotonic() - asked > _GIVES_UP_S:
                    raise RuntimeError(f"no answer in {_GIVES_UP_S:g} s")
                node, tries_again = next(nodes), tries_again + 1
                time.sleep(_PAUSE_S)
            answered = time.monotonic()
            answer = {
                "file": file.name,
                "caption": caption,
                "answered": answered,
                "waited_s": answered - asked,
                "tries_again": tries_again,
            }
            with _lock:
                print(json.dumps(answer), flush=True)
            time.sleep(_PAUSE_S)


def _caption(client: httpx.Client, node: str, file: Path) -> str | None:
    """None where there is nobody to answer, or not now."""
    with file.open("rb") as video:
        try:
            answer = client.post(
                f"http://{node}:{_PORT}/v1/captions",
                files={"file": video},
                data={"max_new_tokens": "8"},
            )
        except httpx.TransportError as error:
            print(f"{node}: {type(error).__name__}", flush=True)
            return None
    if answer.status_code in _TRY_AGAIN:
        print(f"{node}: {answer.status_code} {answer.text}", flush=True)
        return None
    if answer.status_code != 200:
        raise RuntimeError(f"status {answer.status_code}: {answer.text}")
    return str(answer.json()["caption"])


def answers(log: Path) -> Iterator[dict[str, Any]]:
    """What `ask` printed by now."""
    for line in log.read_text().splitlines():
        if line.startswith("{") and line.endswith("}"):
            yield json.loads(line)


if __name__ == "__main__":
    {"deploy": deploy, "ask": ask}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
