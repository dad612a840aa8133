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
from spark_ray.apotheon.initialization import start_audio, start_vision
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
    start_audio(model.audio)
    set_trainable(model, set(), frames=True, audio=True)
    options = StepOptions("fp32", 1, 0.05, (0.9, 0.98), 1.0, {"vision": 0.5})
    engine = TorchEngine(model, options, torch.device("cpu"))
    model.train()
    clips = apotheons.batch()
    losses = []
    for step in range(STEPS):
        output = engine.accumulate(clips, last=True)
        engine.step(2e-3 * rate_at(step, range(STEPS), 0.2, "cosine"))
        losses.append(tuple(output[name].item() for name in LOSSES))
    return losses


GOLDEN = [
    (12.820148, 6.426144, 5.794098, 1.199813),
    (9.953256, 5.105585, 4.448315, 0.798711),
    (7.733592, 3.785089, 3.361407, 1.174192),
    (5.630917, 2.783710, 2.595390, 0.503633),
    (4.127104, 2.083271, 1.704405, 0.678857),
    (3.008288, 1.533878, 1.222589, 0.503643),
    (2.221641, 1.085769, 0.871408, 0.528927),
    (1.650340, 0.772527, 0.642728, 0.470170),
    (1.245121, 0.537871, 0.472370, 0.469761),
    (0.975782, 0.401017, 0.341854, 0.465822),
    (0.795218, 0.301880, 0.261154, 0.464367),
    (0.673446, 0.231038, 0.209642, 0.465532),
    (0.590629, 0.189123, 0.169384, 0.464245),
    (0.534006, 0.159825, 0.142650, 0.463063),
    (0.496862, 0.138697, 0.126604, 0.463123),
    (0.472334, 0.125042, 0.115807, 0.462969),
    (0.456135, 0.116991, 0.107832, 0.462623),
    (0.445885, 0.112417, 0.102261, 0.462414),
    (0.440112, 0.109966, 0.098976, 0.462341),
    (0.437509, 0.108856, 0.097492, 0.462322),
]


def test_the_losses_of_twenty_steps_are_what_they_were() -> None:
    for step, (found, expected) in enumerate(zip(twenty_steps(), GOLDEN, strict=True)):
        assert found == pytest.approx(expected, rel=TOLERANCE), f"step {step}"


if __name__ == "__main__":
    for losses in twenty_steps():
        print(f"    ({', '.join(f'{loss:.6f}' for loss in losses)}),")
