"""What turns gradients into a step: plain PyTorch (DDP where there are several ranks).

The DeepSpeed engine, `deepspeed_engine`, has the same verbs. Neither knows Ray: they run under
torchrun, in a notebook, or in a single process.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spark_ray.apotheon import ApotheonModel, ApotheonOutput
from spark_ray.apotheon.adaptation import part_of
from spark_ray.apotheon.losses import world_size
from spark_ray.core.errors import ConfigError

Precision = Literal["bf16", "fp16", "fp32"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_NO_DECAY_SUFFIXES = ("bias", "norm.weight", "log_scale")


@dataclass(frozen=True)
class StepOptions:
    """The arithmetic of a step, the same for both engines.

    `part_rates` are factors of the learning rate by part; `accumulation` is micro-batches a step,
    which learns from the mean of their losses.
    """

    precision: Precision
    accumulation: int
    weight_decay: float
    betas: tuple[float, float]
    max_grad_norm: float
    part_rates: Mapping[str, float]


@dataclass(frozen=True)
class StepOutcome:
    """Whether the weights were changed, and the norm of the gradient before it was clipped."""

    applied: bool
    grad_norm: float


class Engine(Protocol):
    """Owns the optimizer, the precision and the averaging over ranks; the loop owns all else."""

    module: ApotheonModel

    def evaluate(self, inputs: Mapping[str, Any]) -> ApotheonOutput:
        """The losses of one batch, without gradients; every rank must call it."""
        ...

    def accumulate(self, inputs: Mapping[str, Any], last: bool) -> ApotheonOutput:
        """Add the gradient of one micro-batch, the `last` of its step or not; its losses."""
        ...

    def step(self, learning_rate: float) -> StepOutcome:
        """Clip, update the weights, forget the gradients.

        A gradient that is not finite on any rank changes nothing on all of them.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write this rank's part of the state; every rank must call it."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; every rank must call it."""
        ...

    def full_state(self, keep: bool = True) -> dict[str, Tensor]:
        """All weights in float32 on the CPU; every rank must call it.

        A rank that does not `keep` them helps to gather them, and gets nothing.
        """
        ...

    def state_bytes(self) -> int:
        """About how much `save` writes on one rank, and the exported model."""
        ...

    def close(self) -> None:
        """Let go of the memory; the engine can't be used any more."""
        ...


class TorchEngine:
    """AdamW over DDP, with autocast and, for fp16, loss scaling."""

    def __init__(self, module: ApotheonModel, options: StepOptions, device: torch.device) -> None:
        check_precision(options.precision, device)
        self.module = module.to(device)
        self.device, self.options = device, options
        self.optimizer = torch.optim.AdamW(
            parameter_groups(module, options), lr=0.0, betas=options.betas, fused=True
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
        self.model: nn.Module = module
        if world_size() > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.model = DistributedDataParallel(
                module, device_ids=ids, gradient_as_bucket_view=True
            )

    def evaluate(self, inputs: Mapping[str, Any]) -> ApotheonOutput:
        with torch.no_grad(), self._autocast():
            return self.module(**inputs)

    def accumulate(self, inputs: Mapping[str, Any], last: bool) -> ApotheonOutput:
        with self._sync_only_if(last):
            with self._autocast():
                output: ApotheonOutput = self.model(**inputs)
            assert output.loss is not None
            self.scaler.scale(output.loss / self.options.accumulation).backward()
        return output

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = _DTYPES[self.options.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32)

    def _sync_only_if(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return contextlib.nullcontext()

    def step(self, learning_rate: float) -> StepOutcome:
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.options.max_grad_norm))
        finite = norm == norm and norm != float("inf")
        if finite:
            set_rates(self.optimizer.param_groups, learning_rate)
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return StepOutcome(applied=finite, grad_norm=norm)

    def save(self, folder: Path) -> None:
        if _rank() == 0:
            save_file(_contiguous(self.module.state_dict()), folder / "model.safetensors")
            state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
            torch.save(state, folder / "optimizer.pt")

    def load(self, folder: Path) -> None:
        self.module.load_state_dict(load_file(folder / "model.safetensors"))
        state = torch.load(folder / "optimizer.pt", map_location=self.device, weights_only=True)
        groups = self.optimizer.param_groups
        ours = [{name: group[name] for name in group if name != "params"} for group in groups]
        self.optimizer.load_state_dict(state["optimizer"])
        # What this run was told, where a checkpoint of another run is what it begins with.
        for group, settings in zip(self.optimizer.param_groups, ours, strict=True):
            group.update(settings)
        self.scaler.load_state_dict(state["scaler"])

    def full_state(self, keep: bool = True) -> dict[str, Tensor]:
        if not keep:
            return {}
        state = self.module.state_dict()
        return {k: v.detach().to("cpu", torch.float32, copy=True) for k, v in state.items()}

    def state_bytes(self) -> int:
        learning = sum(p.numel() for p in self.module.parameters() if p.requires_grad)
        return 8 * sum(p.numel() for p in self.module.parameters()) + 8 * learning

    def close(self) -> None:
        self.optimizer.state.clear()


def parameter_groups(module: nn.Module, options: StepOptions) -> list[dict[str, Any]]:
    """Trainable parameters by the factor of their rate, and by whether they decay.

    Biases, norms and the temperature do not decay.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = options.part_rates.get(part_of(name), 1.0)
            decays = parameter.dim() > 1 and not name.endswith(_NO_DECAY_SUFFIXES)
            groups.setdefault((rate, decays), []).append(parameter)
    if not groups:
        raise ConfigError("frozen: nothing is left to learn in this stage; freeze less")
    return [
        {
            "params": parameters,
            "weight_decay": options.weight_decay if decays else 0.0,
            "rate": rate,
            "lr": 0.0,
        }
        for (rate, decays), parameters in sorted(groups.items())
    ]


def set_rates(groups: Iterable[dict[str, Any]], learning_rate: float) -> None:
    for group in groups:
        group["lr"] = learning_rate * group["rate"]


def check_precision(precision: Precision, device: torch.device) -> None:
    """
    Raises:
        ConfigError: the device can't compute in this precision.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "mixed_precision: fp16 needs a GPU; choose bf16 or fp32 for training on CPUs"
        )


def _contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
