"""What stands behind `spark-ray train …`."""

import time
from collections.abc import Sequence

from spark_ray.core.wording import counted
from spark_ray.training.config import TrainConfig


def train_apotheon(arguments: Sequence[str]) -> int:
    """`spark-ray train apotheon`: see `TrainConfig`."""
    started = time.monotonic()
    config = TrainConfig.from_command_line(arguments, "spark-ray train apotheon")
    from spark_ray.training.run import train

    result = train(config)
    loss = result.metrics.get("validation_loss")
    measured = f", validation loss {loss:.3f}" if loss is not None else ""
    print(f"  evaluate     spark-ray evaluate --model {result.model} --dataset {config.reference}")
    print(
        f"trained {result.model}: {counted(result.steps, 'step')}{measured} in "
        f"{time.monotonic() - started:.0f} s"
    )
    return 0
