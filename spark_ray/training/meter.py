"""What a step costs: time, data wait, tokens, utilisation, memory."""

import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from spark_ray.apotheon.flops import batch_flops, batch_shape
from spark_ray.apotheon.modeling import ApotheonModel
from spark_ray.training.engines import Precision, StepOutcome

if TYPE_CHECKING:
    from spark_ray.training.config import TrainConfig

# Dense bf16 and fp16, from the makers' data sheets, in 10^12 operations a second, by words of the
# device's name; the first that fits counts.
_PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10G": 70.0,
}


@dataclass(frozen=True)
class StepRecord:
    """One step, measured on one rank; rates are of all ranks together."""

    losses: dict[str, float]
    learning_rate: float
    outcome: StepOutcome
    step_s: float
    data_wait_s: float
    samples_per_s: float
    tokens_per_s: float
    padding: float
    mfu: float | None
    memory_bytes: int

    def metrics(self) -> dict[str, float]:
        values = {
            **self.losses,
            "learning_rate": self.learning_rate,
            "grad_norm": self.outcome.grad_norm,
            "step_s": self.step_s,
            "data_wait": self.data_wait_s / self.step_s,
            "samples_per_s": self.samples_per_s,
            "tokens_per_s": self.tokens_per_s,
            "padding": self.padding,
            "memory_gb": self.memory_bytes / 1e9,
        }
        return values if self.mfu is None else {**values, "mfu": self.mfu}


class Meter:
    """Measures one step at a time: `start`, then `waiting` and `saw` for its parts, then `stop`."""

    def __init__(self, device: torch.device, config: "TrainConfig", world_size: int) -> None:
        self.device, self.world_size = device, world_size
        known = known_peak_tflops(device, config.mixed_precision)
        self.peak_flops = (config.peak_tflops or known or 0.0) * 1e12

    def start(self) -> None:
        self._started = time.perf_counter()
        self._wait_s = self._flops = 0.0
        self._samples = self._tokens = self._places = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        started = time.perf_counter()
        yield
        self._wait_s += time.perf_counter() - started

    def saw(self, model: ApotheonModel, inputs: dict[str, Any]) -> None:
        """Count a micro-batch of this rank."""
        shape = batch_shape(model, inputs)
        self._flops += batch_flops(model, shape)
        self._samples += shape.clips
        self._places += shape.clips * shape.media_tokens + shape.texts * shape.text_tokens
        self._tokens += _real_tokens(model, inputs)

    def stop(self, losses: dict[str, float], rate: float, outcome: StepOutcome) -> StepRecord:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        step_s = time.perf_counter() - self._started
        return StepRecord(
            losses=losses,
            learning_rate=rate,
            outcome=outcome,
            step_s=step_s,
            data_wait_s=self._wait_s,
            samples_per_s=self._samples * self.world_size / step_s,
            tokens_per_s=self._tokens * self.world_size / step_s,
            padding=1.0 - self._tokens / max(self._places, 1),
            mfu=self._flops / step_s / self.peak_flops if self.peak_flops else None,
            memory_bytes=peak_memory_bytes(self.device),
        )


def _real_tokens(model: ApotheonModel, inputs: dict[str, Any]) -> int:
    """Tokens of media and texts that are no padding."""
    config = model.config
    count = int(inputs["text_mask"].sum())
    if "frame_mask" in inputs:
        count += int(inputs["frame_mask"].sum()) * config.tokens_per_frame
    if "audio_frames" in inputs:
        count += int(((inputs["audio_frames"] + 1) // 2).sum())
    return count


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process held so far: of the GPU's memory, or else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def known_peak_tflops(device: torch.device, precision: Precision) -> float | None:
    """Of a GPU's dense products; None for what the table does not know, which fp32 is always.

    A GPU does fewer of these, and how many depends on whether somebody has allowed TF32.
    """
    if device.type != "cuda" or precision == "fp32":
        return None
    words = set(re.split(r"[\s-]+", torch.cuda.get_device_name(device)))
    if "MIG" in words:  # a slice of the GPU, under the name of the whole
        return None
    return next((peak for key, peak in _PEAK_TFLOPS.items() if words.issuperset(key.split())), None)
