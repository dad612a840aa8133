"""What a model must be able to do for the house to use it.

A backend is constructed from its options (cheap: no weights), validated, shipped to an actor, and
loaded there once. Answers are keyed by clip id, never by position in the batch: batches are cut,
merged and reordered between stages, and a caption on the wrong clip is worse than none.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from spark_ray.core.schema import Caption, Clip, ModelInfo, Transcript


class Captioner(Protocol):
    """Sees the frames of a clip and describes them."""

    uses_accelerator: bool
    """Whether `load()` puts weights on a device; a reader of text files does not."""

    def load(self) -> ModelInfo | None:
        """Load the weights once, onto a GPU when there is one. None where there is no model."""
        ...

    def caption(self, clips: Sequence[Clip]) -> dict[str, Caption]:
        """Captions by `clip_id`. A clip that has nothing to caption may be left out."""
        ...


@runtime_checkable
class ChecksWeights(Protocol):
    """A backend that can tell early that its weights are not to be had."""

    def check_weights(self) -> None:
        """See, without loading or fetching anything, whether `load()` can find them here.

        Raises:
            ModelError: it can't.
        """
        ...


class Transcriber(Protocol):
    """Hears the audio of a clip and writes down what is said."""

    uses_accelerator: bool

    def load(self) -> ModelInfo | None: ...

    def transcribe(self, clips: Sequence[Clip]) -> dict[str, Transcript]:
        """Transcripts by `clip_id`. A silent or audio-less clip may be left out."""
        ...
