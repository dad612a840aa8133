"""What Apotheon does and consists of, by name.

Apart from the model itself, and without torch: a job's configuration is checked in half a second
where importing the model takes five.
"""

from collections.abc import Mapping
from typing import Literal

Task = Literal["caption", "transcript"]

TASKS: tuple[Task, ...] = ("caption", "transcript")
"""What the two language heads write, in the order of the task axis of every batch."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "vision": ("vision",),
    "audio": ("audio",),
    "text": ("text",),
    "projections": ("vision_projection", "audio_projection", "text_projection"),
    "fusion": ("fusion", "fusion_norm", "task_embedding"),
    "heads": ("caption_head", "transcription_head"),
    "contrastive": ("media_embedding", "text_embedding", "log_scale"),
}
"""Parts that can be frozen, or given a rate of their own, and the modules that each consists of."""

VISION_STEM = "vision_stem"
FREEZABLE = (*PARTS, VISION_STEM)
"""What can be frozen: a part, or CLIP's first layer alone.

From random weights a vision transformer learns faster and more steadily where its first layer stays
as it was made (MoCo v3, arXiv:2104.02057); see also `apotheon.initialization.start_vision`.
"""

LORA_TARGETS: Mapping[str, tuple[str, ...]] = {
    "vision": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "audio": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "text": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
"""Parts that can learn through low-rank adapters alone, and the layers that get them."""
