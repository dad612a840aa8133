"""MFU of the training step on one GPU, and where it is lost: `python -m benchmarks.mfu --help`.

Two models, on random data of the shapes that clips have (8 frames, 30 s of sound, two texts of 128
tokens), through `TorchEngine`, the step that the training job makes:

- `base` (8.8 B parameters): Llama's own weights stay, and learn through LoRA of rank 16; CLIP,
  Whisper, projections, fusion, heads and the contrastive part learn whole. Llama's frozen weights
  are kept in bf16: no step changes them, so nothing is lost, and they take half the memory.
- `medium` (1.9 B parameters): all of it learns.

Weights that learn are float32 under bf16 autocast. The clock stops when the GPU is done with the
whole step: forward, backward, clipping, AdamW. It starts with the batch on the GPU: reading clips
is measured by `benchmarks.training`.

Needs torch, transformers and peft; no Ray, no DeepSpeed, no dataset.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import RESULTS, Result, _cpu_model
from benchmarks.mfu_models import (
    FRAMES,
    SETTINGS,
    Setting,
    build,
    compile_blocks,
    random_batch,
    toy,
)
from benchmarks.mfu_profile import (
    LEARNING_RATE,
    busiest_kernels,
    forget,
    fused_attention,
    reached_tflops,
    time_parts,
    timed,
)
from spark_ray.apotheon.flops import batch_shape, part_flops
from spark_ray.apotheon.sizes import parameter_table
from spark_ray.training.engines import StepOptions, TorchEngine
from spark_ray.training.meter import known_peak_tflops, peak_memory_bytes

GOAL_MFU = 0.5
_LARGEST_BATCH = 1024
_OPTIONS = StepOptions(
    precision="bf16",
    accumulation=1,
    weight_decay=0.01,
    betas=(0.9, 0.98),
    max_grad_norm=1.0,
    part_rates={},
)


@dataclass(frozen=True)
class Measured:
    """Steps at one size of batch."""

    clips: int
    steps_s: list[float]
    peak_bytes: int

    @property
    def step_s(self) -> float:
        return statistics.median(self.steps_s)

    @property
    def clips_per_s(self) -> float:
        return self.clips / self.step_s


def measure(engine: TorchEngine, clips: int, steps: int) -> Measured:
    """Whole steps, over two batches in turn."""
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    config = engine.module.config
    batches = [random_batch(config, clips, engine.device, seed=seed) for seed in range(2)]

    def step(number: int) -> None:
        engine.accumulate(batches[number % 2], last=True)
        engine.step(LEARNING_RATE)

    times = timed(engine.device, step, steps)
    return Measured(clips, times, peak_memory_bytes(engine.device))


def best_batch(engine: TorchEngine, given: argparse.Namespace) -> Measured:
    """The fastest of the given batch size, or of 1, 2, 4, … until memory is out."""
    if given.batch:
        return measure(engine, given.batch, given.steps)
    best: Measured | None = None
    clips = 1
    while clips <= given.largest_batch:
        found = _unless_out_of_memory(lambda: measure(engine, clips, given.steps))  # noqa: B023
        forget(engine)
        if found is None:
            print(f"  {clips:4} clips: out of memory", file=sys.stderr)
            break
        print(
            f"  {clips:4} clips: {found.step_s * 1e3:8.1f} ms, {found.clips_per_s:7.1f} clips/s, "
            f"{found.peak_bytes / 1e9:.1f} GB",
            file=sys.stderr,
        )
        best = found if best is None or found.clips_per_s > best.clips_per_s else best
        clips *= 2
    if best is None:
        raise SystemExit("one clip does not fit into the memory; try --checkpointing")
    return best


def _unless_out_of_memory(work: Callable[[], Measured]) -> Measured | None:
    try:
        return work()
    except torch.OutOfMemoryError:
        return None  # outside of this block the failed step's tensors are free
    except RuntimeError as error:
        if "ALLOC_FAILED" not in str(error):  # cuBLAS found no room for its workspace
            raise
        return None


# Report ------------------------------------------------------------------------------------------


def run(setting: Setting, given: argparse.Namespace) -> dict[str, Any]:
    """Measure one model; the details of its result."""
    model = build(setting, given)
    engine = TorchEngine(model, _OPTIONS, torch.device(given.device))
    attention = {
        "all media real": fused_attention(engine, sound=1.0),
        "some media masked": fused_attention(engine, sound=0.5),
    }
    if given.compile:
        compile_blocks(model)
    best = best_batch(engine, given)
    inputs = random_batch(model.config, best.clips, engine.device)
    shape = batch_shape(model, inputs)
    parts = part_flops(model, shape)
    del inputs
    flops, peak = sum(parts.values()), given.peak_tflops * 1e12
    seconds = time_parts(engine, best.clips, given.steps)
    tokens = shape.clips * shape.media_tokens + shape.texts * shape.text_tokens
    details = {
        "mfu": flops / best.step_s / peak,
        "peak_tflops": given.peak_tflops,
        "reached_by_a_plain_product_tflops": reached_tflops(engine.device),
        "learns": setting.learning,
        "parameters": {name: [count, learn] for name, count, learn in parameter_table(model)},
        "batch": {**asdict(shape), "frames_of_a_clip": FRAMES},
        "arithmetic": "bf16 autocast, weights that learn in float32, the frozen Llama in bf16",
        "gradient_checkpointing": given.checkpointing,
        "compiled": given.compile,
        "attention": attention,
        "step_ms": [round(s * 1e3, 2) for s in best.steps_s],
        "clips_per_s": best.clips_per_s,
        "tokens_per_s": tokens / best.step_s,
        "step_tflop": flops / 1e12,
        "peak_memory_gb": best.peak_bytes / 1e9,
        "parts": {
            part: {
                "ms": round(s * 1e3, 2),
                "share": round(s / best.step_s, 4),
                "tflop": round(parts.get(part, 0.0) / 1e12, 3),
                "mfu": round(parts.get(part, 0.0) / s / peak, 4),
            }
            for part, s in seconds.items()
        },
    }
    if engine.device.type == "cuda":
        details |= busiest_kernels(engine, best.clips)
    engine.close()
    return details


def show(setting: Setting, details: dict[str, Any]) -> None:
    whole, learning = map(sum, zip(*details["parameters"].values(), strict=True))
    step_ms = statistics.median(details["step_ms"])
    print(f"\n{setting.name}: {whole / 1e9:.2f} B parameters, {learning / 1e9:.3f} B learn")
    print(f"  learns       {details['learns']}")
    print(f"  attention    {_kernels(details['attention'])}")
    print(f"  batch        {details['batch']['clips']} clips, {details['peak_memory_gb']:.1f} GB")
    print(
        f"  step         {step_ms:.1f} ms: {details['clips_per_s']:.2f} clips/s, "
        f"{details['tokens_per_s']:,.0f} tokens/s, {details['step_tflop']:.3f} TFLOP"
    )
    print(
        f"  MFU          {details['mfu']:.1%} of {details['peak_tflops']:.4g} TFLOP/s; a plain "
        f"product reaches {details['reached_by_a_plain_product_tflops']:.4g}"
    )
    print(f"\n  {'part alone':12}{'ms':>10}{'of step':>9}{'TFLOP':>10}{'MFU':>8}")
    rest_ms = step_ms
    for part, row in details["parts"].items():
        rest_ms -= row["ms"]
        print(
            f"  {part:12}{row['ms']:10.1f}{row['share']:9.1%}{row['tflop']:10.3f}{row['mfu']:8.1%}"
        )
    print(f"  {'the rest':12}{rest_ms:10.1f}{rest_ms / step_ms:9.1%}")
    for name, milliseconds in details.get("kernels_ms", {}).items():
        print(f"  {milliseconds:10.1f} ms  {name}")


def _kernels(attention: dict[str, dict[str, str]]) -> str:
    kernels = sorted({kernel for parts in attention.values() for kernel in parts.values()})
    return f"fused everywhere ({', '.join(kernels)})"


def result_of(setting: Setting, details: dict[str, Any], suffix: str) -> Result:
    """As a ratio, for the README's table: time over that at the peak, where 2 is an MFU of 50 %."""
    ideal_ms = details["step_tflop"] / details["peak_tflops"] * 1e3
    ratios = [milliseconds / ideal_ms for milliseconds in details["step_ms"]]
    return Result(
        f"mfu-{setting.name}{suffix}",
        f"the same operations at the GPU's peak of {details['peak_tflops']:g} TFLOP/s",
        1 / details["mfu"],
        1 / GOAL_MFU,
        (min(ratios), max(ratios)),
        details,
    )


def write(result: Result, device: torch.device, folder: Path = RESULTS) -> Path:
    # `Result.write` tells the versions of Ray and others, which need not be installed here.
    record = asdict(result) | {"machine": _machine(device)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.json"
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return path


def _machine(device: torch.device) -> dict[str, Any]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": f"{_cpu_model()} with one {torch.cuda.get_device_name(device)}",
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def main() -> None:
    # Sizes of batches that grow leave holes in the memory, which this allocator can fill.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    given = _parse()
    device = torch.device(given.device)
    for name in given.models:
        setting = _toy(SETTINGS[name]) if given.quick else SETTINGS[name]
        print(f"{name} …", file=sys.stderr, flush=True)
        with _freed_afterwards():
            details = run(setting, given)
        show(setting, details)
        if device.type == "cuda" and not given.quick:
            suffix = "-compiled" * given.compile + "-checkpointed" * given.checkpointing
            result = result_of(setting, details, suffix)
            print(f"\n{result}\n  {write(result, device)}", flush=True)


def _toy(setting: Setting) -> Setting:
    return replace(setting, size=toy, vocabulary=500)


@contextmanager
def _freed_afterwards() -> Iterator[None]:
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mfu",
        description="Measure the MFU of the training step on one GPU, check that fused attention "
        "is in use, and tell where the time goes. Results go to benchmarks/results/mfu-*.json.",
    )
    names = ", ".join(SETTINGS)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{names}; default: both")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1 or cpu")
    parser.add_argument("--steps", type=int, default=10, help="measured steps at each size (10)")
    parser.add_argument("--batch", type=int, help="clips; default: doubled until memory is out")
    blocks = "torch.compile each block, anew for each size; give a --batch to save that time"
    parser.add_argument("--compile", action="store_true", help=blocks)
    again = "compute activations again in the backward pass (not counted as useful work)"
    parser.add_argument("--checkpointing", action="store_true", help=again)
    peak = "10^12 operations a second at the GPU's peak; default: known for common GPUs"
    parser.add_argument("--peak-tflops", type=float, help=peak)
    quick = "toy sizes, to see that it runs, also on a CPU; nothing is written"
    parser.add_argument("--quick", action="store_true", help=quick)
    given = parser.parse_args()
    _check(parser, given)
    return given


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    for name in given.models:
        if name not in SETTINGS:
            parser.error(f"no model {name!r}; there are {', '.join(SETTINGS)}")
    given.models = given.models or list(SETTINGS)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: PyTorch sees no GPU here; --device cpu --quick shows that it runs")
    if device.type == "cpu" and not given.quick:
        parser.error("--device: these models take hours on a CPU; add --quick for toy sizes")
    given.largest_batch = 2 if given.quick else _LARGEST_BATCH
    if given.quick:
        given.steps = 1
    given.peak_tflops = given.peak_tflops or known_peak_tflops(device, "bf16")
    if given.peak_tflops is None:
        if not given.quick:
            parser.error("--peak-tflops: the peak of this GPU is not known; give it")
        given.peak_tflops = reached_tflops(device)


if __name__ == "__main__":
    main()
