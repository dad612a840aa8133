"""Inside a training step on a GPU: which attention runs, what each part takes, and the kernels."""

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.mfu_models import random_batch
from spark_ray.apotheon import ApotheonModel
from spark_ray.apotheon.layers import Media
from spark_ray.apotheon.losses import token_cross_entropy
from spark_ray.training.engines import TorchEngine

LEARNING_RATE = 1e-5
_WARM_UP = 3


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


def timed(device: torch.device, work: Callable[[int], object], repetitions: int) -> list[float]:
    """Seconds of each repetition, after some to warm up, until the device is done with it."""
    times, warm_up = [], min(_WARM_UP, repetitions)
    for number in range(warm_up + repetitions):
        synchronize(device)
        started = time.perf_counter()
        work(number)
        synchronize(device)
        times.append(time.perf_counter() - started)
    return times[warm_up:]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget(engine: TorchEngine) -> None:
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
        forget(engine)
        work = _both_ways(device, forward)
        found[part] = statistics.median(timed(device, work, repetitions))
    del states, work
    forget(engine)
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
        synchronize(engine.device)
        started = time.perf_counter()
        engine.step(LEARNING_RATE)
        synchronize(engine.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def busiest_kernels(engine: TorchEngine, clips: int, count: int = 12) -> dict[str, Any]:
    """What the GPU does in a step: the kernels that take most of it, and how long it idles."""
    batch = random_batch(engine.module.config, clips, engine.device)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    synchronize(engine.device)
    with torch.profiler.profile(activities=activities) as profiler:
        started = time.perf_counter()
        engine.accumulate(batch, last=True)
        engine.step(LEARNING_RATE)
        synchronize(engine.device)
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
