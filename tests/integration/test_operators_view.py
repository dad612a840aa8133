"""A build as operators see it: through Ray's agent, and through a Prometheus where there is one."""

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import builds
import pytest
import yaml
from scraping import metrics_address, scrape, total

from spark_ray.core.schema import Caption, Clip, ModelInfo
from spark_ray.datasets.model_stages import ModelStage
from spark_ray.monitoring.dashboards import boards
from spark_ray.monitoring.files import monitoring_files

PROMETHEUS = shutil.which("prometheus")
PREFIX = "ray_spark_ray_"
NUMBERS = range(101, 105)
# What the build of these and one broken file adds at least; other tests build on this cluster too.
ADDED = {
    ("clips_total", ("status", "ok")): 4,
    ("clips_total", ("status", "rejected")): 1,
    ("rejects_total", ("reason", "CorruptMedia")): 1,
    ("video_seconds_total", ()): 4,
    ("frames_total", ("decision", "kept")): 4,
    ("stage_seconds_count", ("stage", "decode")): 4,
    ("stage_seconds_count", ("stage", "commit")): 1,
    ("stage_busy_seconds_total", ("stage", "decode")): 1e-6,
}


def counted() -> dict[tuple[str, tuple[str, ...]], float]:
    samples = scrape()
    return {
        (name, label): total(samples, PREFIX + name, **dict([label] if label else []))
        for name, label in ADDED
    }


@pytest.fixture(scope="module")
def watched(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a dataset that was built while somebody watched."""
    folder = tmp_path_factory.mktemp("watched")
    builds.write_numbers(folder / "in", NUMBERS)
    broken = builds.write_number(folder / "in" / "cut_off.mkv", 200, seconds=8)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size * 2 // 3])
    before = counted()
    builds.build(folder / "in", folder / "watched", min_clip_s=0.5)

    def added() -> bool:
        now = counted()
        return all(now[key] - before[key] >= least for key, least in ADDED.items())

    builds.wait_until(added, "a build that Prometheus can scrape")
    return "watched"


def test_a_build_is_counted_by_status_stage_and_reason(watched: str) -> None:
    """And nothing waits any more."""
    builds.wait_until(
        lambda: (
            [
                sample.value
                for sample in scrape()
                if sample.name == f"{PREFIX}build_units_waiting"
                and sample.labels["dataset"] == watched
            ]
            == [0.0]
        ),
        "a queue that is empty",
    )


class Parrot:
    """A captioner that says the same of everything."""

    def load(self) -> ModelInfo:
        return ModelInfo(name="parrot")

    def caption(self, clips: Sequence[Clip]) -> dict[str, Caption]:
        return {clip.clip_id: Caption(text="a bird") for clip in clips}


def test_calls_of_a_model_are_timed_by_size(cluster: str) -> None:
    stage = ModelStage(
        "caption",
        "caption",
        Parrot,
        lambda parrot, clips: parrot.caption(clips),
        holds_weights=True,
        backend_name="parrot",
    )
    stage.setup()
    ids = [f"a-{number}" for number in range(5)]
    clips = [Clip(clip_id=i, video_id="a", unit_id="a", source_path="a") for i in ids]
    assert {clip.caption.text for clip in stage.process(clips) if clip.caption} == {"a bird"}

    def seen() -> tuple[float, float]:
        samples, which = scrape(), {"model": "parrot", "task": "caption"}
        calls = total(samples, f"{PREFIX}model_seconds_count", **which, batch_size="8")
        return calls, total(samples, f"{PREFIX}model_clips_total", **which)

    builds.wait_until(lambda: seen() == (1.0, 5.0), "one call about five clips")


@pytest.fixture
def prometheus(watched: str, tmp_path: Path) -> Iterator[str]:
    """The address of a real Prometheus with our configuration, which scrapes the cluster."""
    targets = tmp_path / "targets.json"
    targets.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": [metrics_address()]}]))
    for name, text in monitoring_files(str(targets), "http://unused").items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    file = tmp_path / "prometheus" / "prometheus.yml"
    config = yaml.safe_load(file.read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    file.write_text(yaml.safe_dump(config))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(PROMETHEUS),
                f"--config.file={file}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
            ],
            stderr=log,
        )
    try:
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus (Debian: prometheus) is not installed")
def test_a_real_prometheus_scrapes_it_and_answers_every_panel(prometheus: str) -> None:
    def ask(path: str, **query: str) -> dict:
        url = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def clips() -> list:
        try:
            return ask("query", query=f'sum({PREFIX}clips_total{{status="ok"}}) >= 4')["result"]
        except urllib.error.URLError:
            return []  # it starts

    builds.wait_until(clips, "clips that Prometheus has scraped")
    for board in boards():
        for panel in board.panels:
            for query in panel.queries:
                ask("query", query=query.expr.replace("$__rate_interval", "5m"))  # 400 raises
    groups = ask("rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
