"""Every metric of the house, declared once: rooms record them, alerts and dashboards read them.

Recorded through Ray, whose agent on each node hands them to Prometheus under the name `exported`.
Where a process belongs to no cluster nobody collects them, and recording costs a look-up of 0.2 µs;
elsewhere 2 µs. Ray sends a process's values to its agent every ten seconds.

Ray rebuilds a histogram from its buckets, so quantiles are right and its sum is not. Where a share
of time is wanted, a counter of seconds stands beside it.
"""

import sys
from typing import Any

PREFIX = "spark_ray_"

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metric:
    """A family of time series, one for each set of label values.

    Args:
        name: with the unit in it, as Prometheus has it: `_seconds`, `_bytes`, `_ratio`, `_total`.
        description: what is counted or measured.
        labels: names of what tells the series apart; few values each, never a path or an id.
    """

    kind: str

    def __init__(self, name: str, description: str, labels: tuple[str, ...] = ()) -> None:
        self.name = PREFIX + name
        self.description = description
        self.labels = labels
        self._made: Any = None

    @property
    def exported(self) -> str:
        """The name under which Prometheus scrapes it."""
        return f"ray_{self.name}"

    def _collected(self) -> Any:
        """Ray's own metric, or None in a process that belongs to no cluster."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return None
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> Any:
        raise NotImplementedError


class Counter(Metric):
    """Only grows; its name ends in `_total`."""

    kind = "counter"

    def inc(self, amount: float = 1.0, **labels: str) -> None:
        metric = self._collected()
        if metric is not None and amount > 0:
            metric.inc(amount, labels)

    def _make(self) -> Any:
        from ray.util.metrics import Counter as RayCounter

        return RayCounter(self.name, self.description, self.labels)


class Gauge(Metric):
    """Goes up and down; gone 20 s after its process."""

    kind = "gauge"

    def set(self, value: float, **labels: str) -> None:
        metric = self._collected()
        if metric is not None:
            metric.set(value, labels)

    def _make(self) -> Any:
        from ray.util.metrics import Gauge as RayGauge

        return RayGauge(self.name, self.description, self.labels)


class Histogram(Metric):
    """How values are spread, in seconds."""

    kind = "histogram"

    def observe(self, value: float, **labels: str) -> None:
        metric = self._collected()
        if metric is not None:
            metric.observe(value, labels)

    def _make(self) -> Any:
        from ray.util.metrics import Histogram as RayHistogram

        return RayHistogram(self.name, self.description, list(_SECONDS), self.labels)


# ---- datasets ----------------------------------------------------------------------------------

CLIPS = Counter("clips_total", "clips by what became of them: ok, filtered, rejected", ("status",))
VIDEO_SECONDS = Counter("video_seconds_total", "seconds of video in the clips that are ok")
FRAMES = Counter("frames_total", "sampled frames: kept, or dropped by a rule", ("decision",))
REJECTS = Counter("rejects_total", "clips and files that could not be used", ("stage", "reason"))
STAGE_SECONDS = Histogram("stage_seconds", "seconds that a stage took for one clip", ("stage",))
STAGE_BUSY = Counter(
    "stage_busy_seconds_total", "seconds that stages worked, in all processes", ("stage",)
)
UNITS_WAITING = Gauge(
    "build_units_waiting", "units of decoding that a running build has not finished", ("dataset",)
)

# ---- models, in datasets and behind HTTP -------------------------------------------------------

MODEL_SECONDS = Histogram(
    "model_seconds",
    "seconds of one call of a model; batch_size is rounded up to a power of two",
    ("model", "task", "batch_size"),
)
MODEL_CLIPS = Counter("model_clips_total", "clips that a model answered about", ("model", "task"))

# ---- training ----------------------------------------------------------------------------------

TRAIN_STEPS = Counter("train_steps_total", "optimizer steps, those done again included", ("run",))
TRAIN_SKIPPED = Counter(
    "train_skipped_steps_total", "steps whose loss or gradient was no number", ("run",)
)
TRAIN_SAMPLES = Counter("train_samples_total", "clips that steps learned from", ("run",))
TRAIN_TOKENS = Counter("train_tokens_total", "tokens of media and texts, no padding", ("run",))
TRAIN_LOSS = Gauge(
    "train_loss",
    "loss of the last step, by head; 'validation' is that of the last validation",
    ("run", "head"),
)
TRAIN_STEP_SECONDS = Histogram("train_step_seconds", "seconds of one optimizer step", ("run",))
TRAIN_DATA_WAIT = Gauge(
    "train_data_wait_ratio", "part of the last step in which a rank waited for data",
    ("run", "rank"),
)  # fmt: skip
TRAIN_MFU = Gauge(
    "train_mfu_ratio", "model FLOPs of the last step over the device's peak", ("run", "rank")
)
TRAIN_MEMORY = Gauge(
    "train_memory_bytes",
    "the most that a rank held so far, of its GPU's memory or else of the machine's",
    ("run", "rank", "device"),
)
CHECKPOINT_SECONDS = Histogram(
    "train_checkpoint_seconds", "seconds that training stood still for a checkpoint", ("run",)
)

# ---- serving -----------------------------------------------------------------------------------

HTTP_REQUESTS = Counter(
    "http_requests_total", "requests by route and status", ("method", "route", "status")
)
HTTP_REQUEST_SECONDS = Histogram(
    "http_request_seconds", "seconds until the last byte", ("method", "route", "status")
)
PHASE_SECONDS = Histogram(
    "request_phase_seconds",
    "seconds that an answered request spent in queue, preprocess, model and postprocess",
    ("model", "phase"),
)
JOBS = Gauge("jobs", "dataset jobs that were asked for over HTTP and have not ended", ("state",))


def declared() -> list[Metric]:
    """All of them, in the order of this file."""
    return [value for value in globals().values() if isinstance(value, Metric)]


def observe_call(model: str, task: str, clips: int, seconds: float) -> None:
    """Record one call of a model about so many clips."""
    MODEL_SECONDS.observe(seconds, model=model, task=task, batch_size=batch_label(clips))
    MODEL_CLIPS.inc(clips, model=model, task=task)


def batch_label(clips: int) -> str:
    """A batch size as a label: eight series up to 128 clips, whatever sizes come."""
    return str(1 << max(0, clips - 1).bit_length())


def series(metric: Metric) -> list[str]:
    """The names that a metric has in Prometheus."""
    if isinstance(metric, Histogram):
        return [f"{metric.exported}_{part}" for part in ("bucket", "count", "sum")]
    return [metric.exported]
