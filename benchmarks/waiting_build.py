"""The dataset job, but each clip also waits as long as a larger one would be decoded.

A wait takes no CPU, so two cores suffice for many nodes, and what the nodes can do is known.

    python -m benchmarks.waiting_build VIDEOS OUTPUT SECONDS
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import spark_ray.datasets.build as job
from spark_ray.core.schema import Clip
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.stages import DecodeStage

WAIT_S = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0


class WaitingDecode(DecodeStage):
    """Decodes, and waits for each clip that came out."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._wait_s = WAIT_S

    def process(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        for clip in super().process(clips):
            time.sleep(self._wait_s)
            yield clip


if __name__ == "__main__":
    job.DecodeStage = WaitingDecode  # type: ignore[misc]
    result = job.build_dataset(
        BuildConfig(
            input=[sys.argv[1]],
            output=sys.argv[2],
            caption_backend="none",
            transcription_backend="none",
        )
    )
    assert result.publication is not None
    print(f"published {result.publication.clips} clips")
