"""Which checkpoint is the best."""

import math

from spark_ray.training.state import TrainState


def test_a_validated_checkpoint_is_better_than_any_other_and_the_newest_of_those() -> None:
    early = TrainState(world_size=1, step=150)
    later = TrainState(world_size=1, step=300)
    poor = TrainState(world_size=1, step=400, validation_loss=7.5)
    good = TrainState(world_size=1, step=500, validation_loss=0.1)
    broken = TrainState(world_size=1, step=600, validation_loss=math.nan)
    ranked = sorted((broken, early, poor, later, good), key=lambda state: state.score)
    assert ranked == [good, poor, broken, later, early]
