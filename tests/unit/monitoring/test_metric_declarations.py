"""Metrics have the names that operators expect, and cost nothing where nobody collects them."""

import re
import subprocess
import sys

import pytest

from spark_ray.monitoring.metrics import Counter, Gauge, Histogram, Metric, batch_label, declared

# In a process of their own: the one that runs all tests may belong to a cluster.
ALONE = """
import sys, timeit
from spark_ray.core.schema import Clip, Step
from spark_ray.datasets.telemetry import count_committed
from spark_ray.monitoring.metrics import STAGE_SECONDS

def nothing(value, **labels):
    pass

def best(function):
    return min(timeit.repeat(lambda: function(0.1, stage="decode"), number=2000, repeat=20))

clip = Clip(clip_id="a", video_id="a", unit_id="a", source_path="a", end_s=1.0,
            steps=[Step(name="decode", duration_s=0.1)])
count_committed([clip], 0.1)
print("ray.util.metrics" in sys.modules, best(STAGE_SECONDS.observe) / best(nothing))
"""


@pytest.mark.parametrize("metric", declared(), ids=lambda metric: metric.name)
def test_a_metric_is_named_as_prometheus_has_it(metric: Metric) -> None:
    assert re.fullmatch(r"spark_ray_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.description
    assert isinstance(metric, Counter) == metric.name.endswith("_total")
    assert isinstance(metric, Histogram) <= metric.name.endswith("_seconds")
    assert {"le", "quantile", "id", "clip", "path"}.isdisjoint(metric.labels)


def test_names_are_unique_and_each_kind_is_there() -> None:
    names = [metric.name for metric in declared()]
    assert len(names) == len(set(names))
    assert {type(metric) for metric in declared()} == {Counter, Gauge, Histogram}


def test_batch_sizes_are_few() -> None:
    assert [batch_label(size) for size in (1, 2, 3, 4, 5, 16, 17, 128)] == [
        "1", "2", "4", "4", "8", "16", "32", "128",
    ]  # fmt: skip
    assert len({batch_label(size) for size in range(1, 129)}) == 8


def test_without_ray_nothing_is_recorded_nor_loaded_nor_lost() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    loaded, times_an_empty_call = done.stdout.split()
    assert loaded == "False"
    assert float(times_an_empty_call) < 50
