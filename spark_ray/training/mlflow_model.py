"""What MLflow runs for a registered Apotheon.

`registry` puts a copy of this file into the model ("models from code"), so nothing is pickled. It
needs SparkRay installed where the model is loaded, and no other file of this folder.
"""

import base64
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from spark_ray.models.apotheon import Apotheon

_BATCH_SIZE = 8
_JPEG = b"\xff\xd8"


class RegisteredApotheon(PythonModel):
    """Clips in rows, and for each a caption or a transcript; none without frames and sound."""

    def load_context(self, context: PythonModelContext) -> None:
        self.model = Apotheon.load(context.artifacts["checkpoint"], setting="model")

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Columns `frames` (JPEG), `frame_times` (seconds; one apart if missing) and `audio`.

        `params` are `task` (caption or transcript), `max_new_tokens` and `num_beams`.
        """
        options = params or {}
        rows = [_media(row) for row in model_input.to_dict("records")]
        texts: list[str | None] = [None] * len(rows)
        seen = [number for number, (frames, _, audio) in enumerate(rows) if frames or audio]
        for start in range(0, len(seen), _BATCH_SIZE):
            numbers = seen[start : start + _BATCH_SIZE]
            written = self.model.write(
                [self.model.prepare(*rows[number]) for number in numbers],
                options.get("task", "caption"),
                options.get("max_new_tokens", 64),
                options.get("num_beams", 1),
            )
            for number, text in zip(numbers, written, strict=True):
                texts[number] = text
        return pd.DataFrame({"text": texts})


def _media(row: dict[Any, Any]) -> tuple[list[bytes], list[float], bytes | None]:
    # MLflow decodes the base64 of JSON requests in a column, but not in lists of a column.
    given = row.get("frames")
    frames = [
        frame if frame.startswith(_JPEG) else base64.b64decode(frame)
        for frame in (given if given is not None else [])
    ]
    times = row.get("frame_times")
    audio = row.get("audio")
    return (
        frames,
        list(times) if times is not None else [float(n) for n in range(len(frames))],
        audio if isinstance(audio, bytes) else None,
    )


mlflow.models.set_model(RegisteredApotheon())
