"""What the demo draws, the dataset built from it, and whether the two agree."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spark_ray.core.errors import ConfigError, SparkRayError
from spark_ray.core.progress import ProgressReport
from spark_ray.core.storage import Folder
from spark_ray.datasets.assets import manifest_lines
from spark_ray.datasets.build import build_dataset
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.layout import is_published
from spark_ray.demo.config import DemoConfig
from spark_ray.media.synthetic import Truth, write_world

_VERSION = "v1"
_FRAME_TOLERANCE_S = 0.05
# How the clips are looked at, whether people or the trained model describe them.
SAMPLING = {
    "fps": 4.0,
    # The shapes that move are small: a fiftieth of the picture is much here.
    "motion_threshold": 0.02,
    "perceptual_hashing": False,
}


@dataclass
class Agreement:
    """How the dataset agrees with what was drawn: counts of clips."""

    drawn: int
    published: int = 0
    captions: int = 0
    cuts: int = 0
    durations: int = 0
    transcripts: int = 0

    @property
    def whole(self) -> bool:
        counts = (self.published, self.captions, self.transcripts, self.cuts, self.durations)
        return set(counts) == {self.drawn}


def draw_clips(folder: Path, count: int, config: DemoConfig, seed: int) -> list[Truth]:
    """Write the clips, or find them already written: the same seed gives the same files."""
    with ProgressReport("Drawing", count, "clips") as progress:
        done = 0

        def advance(now: int, total: int) -> None:
            nonlocal done
            progress.advance(now - done)
            done = now

        return write_world(folder, count, seed, workers=config.workers, progress=advance)


def build_shapes(folder: Path, count: int) -> Folder:
    """The dataset of the drawn clips: resumed where it was left, found where it is published.

    Raises:
        ConfigError: another number of clips was published in this folder.
        SparkRayError: no clip survived.
    """
    output = f"{folder}/datasets/shapes"
    version = Folder(f"{output}/{_VERSION}")
    if is_published(version):
        published = sum(1 for _ in manifest_lines(version))
        if published != count:
            raise ConfigError(
                f"clips: {version.location} was built from {published} clips, not {count}; give "
                f"--clips {published}, or another --folder"
            )
        return version
    result = build_dataset(
        BuildConfig.from_values(
            input=[f"{folder}/clips"],
            output=output,
            version=_VERSION,
            label_from_folder=True,
            caption_backend="sidecar",
            transcription_backend="subtitles",
            **SAMPLING,
        )
    )
    if result.publication is None:
        raise SparkRayError(f"the demo built no clip; see the rejects in {result.version.location}")
    return result.version


def compare(folder: Path, version: Folder, truths: list[Truth]) -> Agreement:
    """Hold each published clip against what was drawn."""
    by_path = {str(folder.absolute() / truth.path): truth for truth in truths}
    found = Agreement(drawn=len(truths))
    for line in manifest_lines(version):
        meta = line["meta"]
        truth = by_path[meta["source_path"]]
        cuts = [scene["start_time"] for scene in meta["scenes"][1:]]
        found.published += 1
        found.captions += meta["caption"] == truth.caption
        found.cuts += _close(cuts, truth.cuts_s)
        found.durations += _close([meta["duration"]], [truth.duration_s])
        written = truth.narration if truth.embedded_subtitles else None
        found.transcripts += meta["transcript"] == written
    return found


def _close(values: list[float], expected: list[float]) -> bool:
    return len(values) == len(expected) and all(
        abs(value - other) <= _FRAME_TOLERANCE_S
        for value, other in zip(values, expected, strict=True)
    )


def print_agreement(found: Agreement, console: Console) -> None:
    table = Table(title="The dataset against what was drawn", title_justify="left")
    table.add_column("what")
    table.add_column("agrees", justify="right")
    rows = [
        ("clips published", found.published, found.drawn),
        ("captions equal", found.captions, found.published),
        ("scene cuts at the drawn times", found.cuts, found.published),
        ("durations within 50 ms", found.durations, found.published),
        (
            "transcripts equal the narration, where it is written",
            found.transcripts,
            found.published,
        ),
    ]
    for what, count, total in rows:
        table.add_row(what, f"{count} of {total}")
    console.print(table)
