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
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from benchmarks.harness import RESULTS, Result, _cpu_model
from spark_ray.apotheon import TASKS, ApotheonConfig, ApotheonModel
from spark_ray.apotheon.adaptation import Lora, add_lora, set_trainable
from spark_ray.apotheon.flops import batch_shape, part_flops
from spark_ray.apotheon.layers import Media
from spark_ray.apotheon.losses import token_cross_entropy
from spark_ray.apotheon.sizes import base, parameter_table, tiny
from spark_ray.training.engines import StepOptions, TorchEngine
from spark_ray.training.meter import known_peak_tflops, peak_memory_bytes

GOAL_MFU = 0.5
_FRAMES, _TEXT_TOKENS = 8, 128
_LLAMA3_VOCABULARY, _MEDIUM_VOCABULARY = 128_256, 32_000
_WARM_UP = 3
_LEARNING_RATE = 1e-5
_LARGEST_BATCH = 1024
_OPTIONS = StepOptions(
    precision="bf16",
    accumulation=1,
    weight_decay=0.01,
    betas=(0.9, 0.98),
    max_grad_norm=1.0,
    part_rates={},
)


class Vocabulary:
    """As much of a tokenizer as a model's size depends on."""

    pad_token_id, bos_token_id, eos_token_id = range(3)

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def medium(tokenizer: Any) -> ApotheonConfig:
    """CLIP ViT-L/14, Whisper base, 16 layers of text at width 2048, and the fusion of `base`."""
    sized = base(tokenizer)
    text = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return ApotheonConfig(
        vision_config=sized.vision_config, audio_config=sized.audio_config, text_config=text
    )


def toy(tokenizer: Any) -> ApotheonConfig:
    """`tiny` with one layer of everything: shows on a CPU that this program works."""
    config = tiny(tokenizer)
    config.vision_config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return config


@dataclass(frozen=True)
class Setting:
    """A model, what of it learns through adapters alone, and the words for the report."""

    name: str
    size: Callable[[Any], ApotheonConfig]
    vocabulary: int
    adapted: tuple[str, ...]
    learning: str


SETTINGS = {
    "base": Setting(
        "base",
        base,
        _LLAMA3_VOCABULARY,
        ("text",),
        "adapters of rank 16 in all linear layers of the frozen Llama; everything else whole",
    ),
    "medium": Setting("medium", medium, _MEDIUM_VOCABULARY, (), "all weights"),
}


def build(setting: Setting, given: argparse.Namespace) -> ApotheonModel:
    """The model on its device, made there: the 35 GB of `base` need not exist on the host."""
    torch.manual_seed(0)
    with torch.device(given.device):
        model = ApotheonModel(setting.size(Vocabulary(setting.vocabulary)))
    add_lora(model, {part: Lora() for part in setting.adapted})
    set_trainable(model, (), frames=True, audio=True)
    for part in setting.adapted:
        for parameter in getattr(model, part).parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    if given.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    return model


def compile_blocks(model: nn.Module) -> None:
    """Compile each block of encoders and fusion: equal blocks share one compilation."""
    # Blocks of four kinds, at each size of batch, go through one function of transformers.
    torch._dynamo.config.recompile_limit = 128
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=False)


def random_batch(
    config: ApotheonConfig, clips: int, device: torch.device, *, sound: float = 1.0, seed: int = 0
) -> dict[str, Tensor]:
    """What `ApotheonModel.forward` takes, of noise; the share `sound` of each window is audio."""
    generator = torch.Generator(device).manual_seed(seed)
    size, mel_frames = config.vision_config.image_size, config.mel_frames
    here: dict[str, Any] = {"generator": generator, "device": device}
    tokens = torch.randint(3, config.vocab_size, (clips, len(TASKS), _TEXT_TOKENS), **here)
    return {
        "pixel_values": torch.randn(clips, _FRAMES, 3, size, size, **here),
        "frame_times": torch.rand(clips, _FRAMES, **here).cumsum(1),
        "frame_mask": torch.ones(clips, _FRAMES, dtype=torch.bool, device=device),
        "input_features": torch.randn(
            clips, 1, config.audio_config.num_mel_bins, mel_frames, **here
        ),
        "audio_frames": torch.full((clips, 1), int(mel_frames * sound), device=device),
        "input_ids": tokens,
        "text_mask": torch.ones_like(tokens, dtype=torch.bool),
        "labels": tokens,
    }


# Which attention runs ----------------------------------------------------------------------------


class _AttentionProbe(TorchDispatchMode):
    """Counts the fused attention kernels that run in each part of a model.

    Plain attention is made of matrix products by the time that it gets here, and is not counted.
    """

    def __init__(self, model: ApotheonModel) -> None:
        super().__init__()
        self.found: dict[str, Counter[str]] = {}
        self._hooks = ExitStack()
        parts = {"vision": [model.vision], "audio": [model.audio], "text": [model.text]}
        for part, modules in {**parts, "fusion": list(model.fusion)}.items():
            self.found[part] = Counter()
            for module in modules:
                self._hooks.callback(module.register_forward_pre_hook(self._enter(part)).remove)

    def _enter(self, part: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._part = part

        return enter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::_scaled_dot_product_")
        if name != func._schema.name and not name.endswith(("backward", "math")):
            self.found[self._part][name] += 1
        return func(*args, **(kwargs or {}))

    def close(self) -> None:
        self._hooks.close()


def fused_attention(engine: TorchEngine, sound: float) -> dict[str, str]:
    """The attention kernel of each part, with all media real or with some of it masked.

    Raises:
        SystemExit: an attention runs PyTorch's plain kernel, which writes the whole matrix.
    """
    model = engine.module
    config = model.config
    expected = {
        "vision": config.vision_config.num_hidden_layers,
        "audio": config.audio_config.encoder_layers,
        "text": config.text_config.num_hidden_layers,
        "fusion": 2 * config.fusion_layers,
    }
    probe = _AttentionProbe(model)
    try:
        with torch.autocast(engine.device.type, torch.bfloat16), probe:
            model(**random_batch(config, 2, engine.device, sound=sound))
    finally:
        probe.close()
    for part, count in expected.items():
        fused = probe.found[part].total()
        if fused != count:
            raise SystemExit(
                f"{part}: {fused} of its {count} attentions run fused, the others PyTorch's plain "
                "kernel; look at attn_implementation, at masks, and at the widths of the heads"
            )
    return {part: " + ".join(sorted(kernels)) for part, kernels in probe.found.items()}


# Time --------------------------------------------------------------------------------------------


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
        engine.step(_LEARNING_RATE)

    times = timed(engine.device, step, steps)
    return Measured(clips, times, peak_memory_bytes(engine.device))


def timed(device: torch.device, work: Callable[[int], object], repetitions: int) -> list[float]:
    """Seconds of each repetition, after some to warm up, until the device is done with it."""
    times, warm_up = [], min(_WARM_UP, repetitions)
    for number in range(warm_up + repetitions):
        _synchronize(device)
        started = time.perf_counter()
        work(number)
        _synchronize(device)
        times.append(time.perf_counter() - started)
    return times[warm_up:]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_batch(engine: TorchEngine, given: argparse.Namespace) -> Measured:
    """The fastest of the given batch size, or of 1, 2, 4, … until memory is out."""
    if given.batch:
        return measure(engine, given.batch, given.steps)
    best: Measured | None = None
    clips = 1
    while clips <= given.largest_batch:
        found = _unless_out_of_memory(lambda: measure(engine, clips, given.steps))  # noqa: B023
        _forget(engine)
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


def _forget(engine: TorchEngine) -> None:
    engine.optimizer.zero_grad()
    gc.collect()
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()


def time_parts(engine: TorchEngine, clips: int, repetitions: int) -> dict[str, float]:
    """Seconds of each part alone, forward and backward, on the states that it gets in a step."""
    model, device = engine.module, engine.device
    inputs = random_batch(model.config, clips, device)
    states = _states(engine, inputs)
    found = {}
    for part, forward in _parts(model, inputs, states).items():
        _forget(engine)
        work = _both_ways(device, forward)
        found[part] = statistics.median(timed(device, work, repetitions))
    del states, work
    _forget(engine)
    return {**found, "optimizer": _time_optimizer(engine, inputs, repetitions)}


_Outputs = list[Tensor]


def _states(engine: TorchEngine, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What comes into each part, cut off from what came before it, in a forward pass."""
    found: dict[str, Any] = {}

    def catch(name: str) -> Callable[..., None]:
        def note(_: nn.Module, given: tuple[Any, ...]) -> None:
            found[name] = [_leaf(value) for value in given]

        return note

    with ExitStack() as hooks:
        for name in _ENTRANCES:
            module = engine.module.get_submodule(name)
            hooks.callback(module.register_forward_pre_hook(catch(name)).remove)
        with torch.autocast(engine.device.type, torch.bfloat16):
            engine.module(**inputs)
    return found


_ENTRANCES = (
    "vision_projection",
    "audio_projection",
    "text_projection",
    "fusion.0",
    "caption_head",
    "transcription_head",
)


def _leaf(value: Tensor | Media) -> Any:
    """The same numbers; a gradient flows back to them where it did before, and no further."""
    if isinstance(value, Media):
        return Media(_leaf(value.tokens), value.mask)
    return value.detach().requires_grad_(value.requires_grad)


def _parts(
    model: ApotheonModel, inputs: dict[str, Tensor], states: dict[str, Any]
) -> dict[str, Callable[[], _Outputs]]:
    """What runs each part alone."""
    pixels, mel = inputs["pixel_values"].flatten(0, 1), inputs["input_features"].flatten(0, 1)
    ids = inputs["input_ids"].flatten(0, 1)

    def projections() -> _Outputs:
        modules = (model.get_submodule(name) for name in _ENTRANCES[:3])
        return [module(*states[name]) for name, module in zip(_ENTRANCES, modules, strict=False)]

    def fusion() -> _Outputs:
        texts, media = states["fusion.0"]
        for block in model.fusion:
            texts = block(texts, media)
        return [model.fusion_norm(texts)]

    def heads() -> _Outputs:
        names = ("caption_head", "transcription_head")
        logits = (model.get_submodule(name)(*states[name]) for name in names)
        labels = inputs["labels"].unbind(1)
        return [token_cross_entropy(*pair) for pair in zip(logits, labels, strict=True)]

    return {
        "vision": lambda: [model.vision(pixels.to(model.vision.dtype)).last_hidden_state],
        "audio": lambda: [model.audio(mel.to(model.audio.dtype)).last_hidden_state],
        "text": lambda: [model.text(ids, use_cache=False).last_hidden_state],
        "projections": projections,
        "fusion": fusion,
        "heads": heads,
    }


def _both_ways(device: torch.device, forward: Callable[[], _Outputs]) -> Callable[[int], object]:
    """Forward, and backward where anything learns, from random gradients."""
    with torch.autocast(device.type, torch.bfloat16):
        gradients = [torch.randn_like(out) for out in forward()]

    def work(_: int) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            outs = forward()
        learning = [number for number, out in enumerate(outs) if out.requires_grad]
        if learning:
            torch.autograd.backward(
                [outs[number] for number in learning], [gradients[number] for number in learning]
            )

    return work


def _time_optimizer(engine: TorchEngine, inputs: dict[str, Tensor], repetitions: int) -> float:
    """Clipping and AdamW."""
    times = []
    for _ in range(1 + repetitions):
        engine.accumulate(inputs, last=True)
        _synchronize(engine.device)
        started = time.perf_counter()
        engine.step(_LEARNING_RATE)
        _synchronize(engine.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def busiest_kernels(engine: TorchEngine, clips: int, count: int = 12) -> dict[str, Any]:
    """What the GPU does in a step: the kernels that take most of it, and how long it idles."""
    batch = random_batch(engine.module.config, clips, engine.device)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    _synchronize(engine.device)
    with torch.profiler.profile(activities=activities) as profiler:
        started = time.perf_counter()
        engine.accumulate(batch, last=True)
        engine.step(_LEARNING_RATE)
        _synchronize(engine.device)
        wall_s = time.perf_counter() - started
    kernels: Counter[str] = Counter()
    for event in profiler.events():
        annotation = getattr(event, "is_user_annotation", False)
        if event.device_type == DeviceType.CUDA and not annotation:
            kernels[event.name] += event.self_device_time_total / 1e6
    top = {name[:100]: round(seconds * 1e3, 2) for name, seconds in kernels.most_common(count)}
    return {"kernels_ms": top, "busy": round(kernels.total() / wall_s, 3)}


def reached_tflops(device: torch.device) -> float:
    """Of the plainest large product in bf16: what MFU could be at best, on this very GPU."""
    side = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / statistics.median(timed(device, lambda _: left @ right, 5)) / 1e12


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
        "batch": {**asdict(shape), "frames_of_a_clip": _FRAMES},
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
    given.peak_tflops = given.peak_tflops or known_peak_tflops(device)
    if given.peak_tflops is None:
        if not given.quick:
            parser.error("--peak-tflops: the peak of this GPU is not known; give it")
        given.peak_tflops = reached_tflops(device)


if __name__ == "__main__":
    main()
