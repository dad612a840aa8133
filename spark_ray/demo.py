"""`make demo`: the whole loop, offline, on clips that the program draws and speaks itself."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from rich.console import Console
from rich.table import Table

from spark_ray.core.config import JobConfig
from spark_ray.core.errors import SparkRayError
from spark_ray.core.progress import ProgressReport
from spark_ray.core.storage import Folder
from spark_ray.datasets.assets import manifest_lines
from spark_ray.datasets.build import build_dataset
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.layout import REPORT
from spark_ray.media.synthetic import Truth, write_world

_FRAME_TOLERANCE_S = 0.05


class DemoConfig(JobConfig):
    """Draw clips whose truth is known, build a dataset from them, and compare the two."""

    folder: str = Field("demo", description="where clips and dataset go")
    clips: int = Field(200, ge=1, description="clips to draw")
    seed: int = Field(0, ge=0, description="another seed draws other clips")
    workers: int = Field(2, ge=1, description="processes that draw")


@dataclass
class Comparison:
    """How the dataset agrees with what was drawn: counts of clips."""

    drawn: int
    published: int = 0
    captions: int = 0
    cuts: int = 0
    durations: int = 0
    subtitled: int = 0
    subtitles: int = 0

    @property
    def all_agree(self) -> bool:
        counts = (self.published, self.captions, self.cuts, self.durations)
        return set(counts) == {self.drawn} and self.subtitles == self.subtitled


def main(arguments: Sequence[str]) -> int:
    """`spark-ray demo`: see `DemoConfig`."""
    config = DemoConfig.from_command_line(arguments, "spark-ray demo")
    started = time.monotonic()
    truths = draw_clips(config)
    result = build_dataset(
        BuildConfig.from_values(
            input=[f"{config.folder}/clips"],
            output=f"{config.folder}/datasets/shapes",
            fps=4.0,
            # The shapes that move are small: a fiftieth of the picture is much here.
            motion_threshold=0.02,
            perceptual_hashing=False,
            label_from_folder=True,
            caption_backend="sidecar",
            transcription_backend="subtitles",
        )
    )
    if result.publication is None:
        raise SparkRayError(f"the demo built no clip; see the rejects in {result.version.location}")
    found = compare(Path(config.folder), result.version, truths)
    print_comparison(found, result.version, time.monotonic() - started)
    return 0 if found.all_agree else 1


def draw_clips(config: DemoConfig) -> list[Truth]:
    """Write the clips, or find them already written: the same seed gives the same files."""
    with ProgressReport("Drawing", config.clips, "clips") as progress:
        done = 0

        def advance(now: int, total: int) -> None:
            nonlocal done
            progress.advance(now - done)
            done = now

        return write_world(
            config.folder, config.clips, config.seed, workers=config.workers, progress=advance
        )


def compare(folder: Path, version: Folder, truths: list[Truth]) -> Comparison:
    """Hold each published clip against what was drawn."""
    by_path = {str(folder.absolute() / truth.path): truth for truth in truths}
    found = Comparison(drawn=len(truths))
    for line in manifest_lines(version):
        meta = line["meta"]
        truth = by_path[meta["source_path"]]
        cuts = [scene["start_time"] for scene in meta["scenes"][1:]]
        found.published += 1
        found.captions += meta["caption"] == truth.caption
        found.cuts += _close(cuts, truth.cuts_s)
        found.durations += _close([meta["duration"]], [truth.duration_s])
        found.subtitled += truth.embedded_subtitles
        found.subtitles += truth.embedded_subtitles and meta["transcript"] == truth.narration
    return found


def _close(values: list[float], expected: list[float]) -> bool:
    return len(values) == len(expected) and all(
        abs(value - other) <= _FRAME_TOLERANCE_S
        for value, other in zip(values, expected, strict=True)
    )


def print_comparison(found: Comparison, version: Folder, elapsed_s: float) -> None:
    table = Table(title="The dataset against what was drawn", title_justify="left")
    table.add_column("what")
    table.add_column("agrees", justify="right")
    rows = [
        ("clips published", found.published, found.drawn),
        ("captions equal", found.captions, found.published),
        ("scene cuts at the drawn times", found.cuts, found.published),
        ("durations within 50 ms", found.durations, found.published),
        ("embedded subtitles equal the narration", found.subtitles, found.subtitled),
    ]
    for what, count, total in rows:
        table.add_row(what, f"{count} of {total}")
    console = Console()
    console.print(table)
    console.print(f"  open         {version.location}/{REPORT}", soft_wrap=True)
    console.print(f"  look inside  spark-ray data inspect {version.location}", soft_wrap=True)
    console.print(f"done in {elapsed_s:.0f} s")
