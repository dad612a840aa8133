"""Values as people read them."""

import pytest

from spark_ray.datasets.display import seconds_text


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0, "0 s"), (0.000521, "0.52 ms"), (0.0099, "9.9 ms"), (0.21, "0.21 s"),
        (59.9, "59.9 s"), (250.0, "4 min 10 s"), (12_000.0, "3 h 20 min"), (45_000.0, "12.5 h"),
    ],
)  # fmt: skip
def test_a_time_is_told_in_the_unit_that_suits_it(seconds: float, told: str) -> None:
    assert seconds_text(seconds) == told
