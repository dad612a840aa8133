"""What a dataset build loses when a node dies or comes, a link is cut, the head is restarted."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import netns
from benchmarks.harness import Result
from benchmarks.material import TINY, clip_folder
from benchmarks.ray_nodes import Cluster, cluster, wait_until

_CUT_S = 30.0
_BUILD_S = 400.0


@dataclass(frozen=True)
class Work:
    """What is built: one wait for each clip."""

    videos: Path
    clips: int
    wait_s: float


@dataclass
class Build:
    """A build that runs on a cluster, and how far it is."""

    driver: "subprocess.Popen[bytes]"
    version: Path
    started: float

    def clips(self) -> int:
        files = (self.version / "parts" / "committed").glob("*.jsonl")
        return sum(file.read_bytes().count(b"\n") for file in files)

    def reach(self, clips: int) -> None:
        wait_until(lambda: self.clips() >= clips, f"{clips} clips", self.driver, _BUILD_S)

    def finish(self) -> float:
        """Seconds from the start to the published dataset."""
        status = self.driver.wait(_BUILD_S)
        if status:
            raise RuntimeError(f"the build ended with status {status}")
        return time.monotonic() - self.started


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Each accident happens to a build on two one-CPU nodes, a fifth of which is done.

    What it costs is the time from the accident to the end, less what the nodes that are left (or
    have come) would need for the clips that are left. Every dataset must be that of the
    undisturbed build.
    """
    if not netns.available():
        print("nodes: needs root and iproute2, for hosts in network namespaces", file=sys.stderr)
        return
    count, wait_s = (32, 0.3) if quick else (120, 0.4)
    work = Work(clip_folder("nodes", count, TINY), count, wait_s)
    with cluster(redis=True) as (network, nodes, folder):
        first, second = nodes.add_worker(), nodes.add_worker()
        undisturbed = start(nodes, first, work, folder / "undisturbed")
        undisturbed_s = undisturbed.finish()
        expected = contents(undisturbed.version)

        def measured(name: str, allowed_s: float, accident: Callable[[], int]) -> Result:
            build = start(nodes, first, work, folder / name)
            build.reach(work.clips // 5)
            left, before = work.clips - build.clips(), time.monotonic()
            nodes_after = accident()
            build.finish()
            lost_s = time.monotonic() - before - left * work.wait_s / nodes_after
            if contents(build.version) != expected:
                raise RuntimeError(f"{name}: another dataset came out")
            return Result(
                f"nodes-{name}", f"{allowed_s:g} s that it may cost", lost_s / allowed_s, 1.0,
                (lost_s / allowed_s, lost_s / allowed_s),
                {"lost_s": round(lost_s, 1), "undisturbed_s": round(undisturbed_s, 1),
                 "clips": work.clips, "nodes_after": nodes_after, "dataset_identical": True},
            )  # fmt: skip

        def link_cut() -> int:
            network.cut(second)
            time.sleep(2.0 if quick else _CUT_S)
            network.mend(second)
            return 2

        def head_restarted() -> int:
            nodes.kill(nodes.head)
            nodes.start_head()
            return 2

        def node_killed() -> int:
            nodes.kill(second)
            return 1

        def node_added() -> int:
            nodes.add_worker()
            return 2

        yield measured("link-cut", _CUT_S + 20.0, link_cut)
        yield measured("head-restarted", 40.0, head_restarted)
        yield measured("node-killed", 30.0, node_killed)
        yield measured("node-added", 30.0, node_added)


def start(nodes: Cluster, host: int, work: Work, output: Path) -> Build:
    """A build whose driver is on a host."""
    program = ["-m", "benchmarks.waiting_build", str(work.videos), str(output), str(work.wait_s)]
    started = time.monotonic()
    driver = nodes.run(host, [sys.executable, *program], output.with_suffix(".log"))
    return Build(driver, output / "v1", started)


def contents(version: Path) -> dict[str, str]:
    """What was published: each clip's assets by the hash of their bytes, times aside."""
    found = {}
    for line in (version / "manifest.jsonl").read_bytes().splitlines():
        clip = json.loads(line)
        clip["meta"].pop("provenance")
        found[clip["id"]] = json.dumps(clip, sort_keys=True)
    for file in sorted((version / "data").rglob("*")):
        if file.is_file():
            name = str(file.relative_to(version))
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found
