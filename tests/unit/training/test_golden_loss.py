"""Twenty steps whose losses are written down: they change when the mathematics does.

A refactor leaves them alone. A change that is meant writes the new ones here and says why in its
commit; `python tests/unit/training/test_golden_loss.py` prints them.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import apotheons

from spark_ray.apotheon.adaptation import set_trainable
from spark_ray.apotheon.initialization import start_vision
from spark_ray.training.engines import StepOptions, TorchEngine
from spark_ray.training.schedule import rate_at

STEPS = 20
LOSSES = ("loss", "caption_loss", "transcription_loss", "contrastive_loss")
# Processors add in different orders: after twenty steps losses agree to about 1e-5 of themselves.
TOLERANCE = 1e-3


def twenty_steps() -> list[tuple[float, ...]]:
    """Loss, and those of captions, transcripts and contrast, before each step."""
    model = apotheons.model()
    start_vision(model.vision)
    set_trainable(model, set(), frames=True, audio=True)
    options = StepOptions("fp32", 1, 0.05, (0.9, 0.98), 1.0, {"vision": 0.5})
    engine = TorchEngine(model, options, torch.device("cpu"))
    model.train()
    clips = apotheons.batch()
    losses = []
    for step in range(STEPS):
        output = engine.accumulate(clips, last=True)
        engine.step(2e-3 * rate_at(step, range(STEPS), STEPS, 0.2, "cosine"))
        losses.append(tuple(output[name].item() for name in LOSSES))
    return losses


GOLDEN = [
    (12.154416, 5.712814, 5.886913, 1.109376),
    (10.043353, 4.750307, 4.823259, 0.939574),
    (7.907429, 3.798721, 3.685781, 0.845853),
    (6.101514, 3.002236, 2.819696, 0.559163),
    (4.465794, 2.316493, 1.904882, 0.488838),
    (3.211798, 1.657577, 1.316391, 0.475660),
    (2.344893, 1.209016, 0.900554, 0.470646),
    (1.736983, 0.848112, 0.653510, 0.470723),
    (1.335575, 0.628603, 0.470756, 0.472431),
    (1.090548, 0.501378, 0.355543, 0.467254),
    (0.887835, 0.371470, 0.283895, 0.464939),
    (0.747143, 0.290786, 0.224501, 0.463710),
    (0.645747, 0.229878, 0.184330, 0.463077),
    (0.575326, 0.187402, 0.156495, 0.462858),
    (0.524568, 0.161334, 0.131844, 0.462778),
    (0.492877, 0.144521, 0.117005, 0.462703),
    (0.472100, 0.131478, 0.109326, 0.462592),
    (0.458650, 0.122683, 0.104705, 0.462523),
    (0.451229, 0.118119, 0.101860, 0.462499),
    (0.447905, 0.116258, 0.100401, 0.462493),
]


def test_the_losses_of_twenty_steps_are_what_they_were() -> None:
    for step, (found, expected) in enumerate(zip(twenty_steps(), GOLDEN, strict=True)):
        assert found == pytest.approx(expected, rel=TOLERANCE), f"step {step}"


if __name__ == "__main__":
    for losses in twenty_steps():
        print(f"    ({', '.join(f'{loss:.6f}' for loss in losses)}),")
