"""DeepSpeed ZeRO 1 to 3 behind the interface of `engines.Engine`.

Its configuration is made from ours, so that batch sizes and precision are said once; a file of the
user's may override the rest of it.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from spark_ray.apotheon import ApotheonModel, ApotheonOutput
from spark_ray.apotheon.losses import world_size
from spark_ray.core.errors import ConfigError, unknown_choice
from spark_ray.training.engines import (
    StepOptions,
    StepOutcome,
    check_precision,
    parameter_groups,
    set_rates,
)

_TAG = "deepspeed"
_UNIVERSAL = "universal"
_OURS = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "gradient_clipping": "max_grad_norm",
    "bf16": "mixed_precision",
    "fp16": "mixed_precision",
    "torch_autocast": "mixed_precision",
    "optimizer": "learning_rate, weight_decay and betas",
    "scheduler": "learning_rate, warmup_ratio and schedule",
}


class DeepSpeedEngine:
    """A ZeRO engine over `torch.distributed`, which must be running.

    Args:
        config: of DeepSpeed, from `deepspeed_config`.
        micro_batch: clips of one rank in a micro-batch.
        universal: whether the checkpoint to be loaded was converted for this number of ranks.
    """

    def __init__(
        self,
        module: ApotheonModel,
        options: StepOptions,
        device: torch.device,
        config: Mapping[str, Any],
        micro_batch: int,
        universal: bool = False,
    ) -> None:
        check_precision(options.precision, device)
        deepspeed = _import_deepspeed(device)
        self.options = options
        optimizer = torch.optim.AdamW(
            parameter_groups(module, options), lr=0.0, betas=options.betas
        )
        settings = {
            **config,
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": options.accumulation,
            "train_batch_size": micro_batch * options.accumulation * world_size(),
            "gradient_clipping": options.max_grad_norm,
            "bf16": {"enabled": options.precision == "bf16"},
            "fp16": {"enabled": options.precision == "fp16"},
        }
        if options.precision == "bf16" and config["zero_optimization"]["stage"] > 1:
            # Small gradients would vanish in a sum of 8 bits. With ZeRO-1 DeepSpeed would take
            # another optimizer for this, with a gate and checkpoints of its own.
            settings["data_types"] = {"grad_accum_dtype": "fp32", **config.get("data_types", {})}
        if universal:
            settings["checkpoint"] = {"load_universal": True}
        self.engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self.module: ApotheonModel = self.engine.module
        self.universal = universal
        _check_every_gradient(self.engine.optimizer)

    def evaluate(self, inputs: Mapping[str, Any]) -> ApotheonOutput:
        with torch.no_grad():
            output: ApotheonOutput = self.engine(**inputs)
        return output

    def accumulate(self, inputs: Mapping[str, Any], last: bool) -> ApotheonOutput:
        output: ApotheonOutput = self.engine(**inputs)
        self.engine.backward(output.loss)
        assert self.engine.is_gradient_accumulation_boundary() == last
        if not last:
            self.engine.step()
        return output

    def step(self, learning_rate: float) -> StepOutcome:
        set_rates(self.engine.optimizer.param_groups, learning_rate)
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return StepOutcome(
            applied=self.engine.was_step_applied(),
            grad_norm=float("nan") if norm is None else float(norm),
        )

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        tag = _UNIVERSAL if self.universal else _TAG
        groups = self.engine.optimizer.param_groups
        ours = [
            {name: value for name, value in group.items() if name != "params"} for group in groups
        ]
        path, _ = self.engine.load_checkpoint(str(folder), tag=tag)
        assert path is not None, f"DeepSpeed found no checkpoint in {folder}"
        # From a converted checkpoint ZeRO-3 gives every group the settings of the first one, and
        # all the same step counter, which each of them would then advance.
        for group, settings in zip(self.engine.optimizer.param_groups, ours, strict=True):
            group.update(settings)
        for state in self.engine.optimizer.optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()
        if self.universal:
            self._load_frozen(folder / _TAG)

    def _load_frozen(self, folder: Path) -> None:
        """What does not learn now: the conversion takes along what has an optimizer alone."""
        from deepspeed import zero

        frozen = {n: p for n, p in self.module.named_parameters() if not p.requires_grad}
        for name, full in _weights_in(folder, frozen):
            with torch.no_grad(), zero.GatheredParameters([frozen[name]], modifier_rank=0):
                frozen[name].copy_(full)

    def state_bytes(self) -> int:
        # Weights in their precision, float32 copies and two moments of what learns, shared out.
        learning = sum(_numel(p) for p in self.module.parameters() if p.requires_grad)
        weights = sum(_numel(p) for p in self.module.parameters())
        return 4 * weights + 12 * learning // world_size()

    def close(self) -> None:
        self.engine.destroy()

    def full_state(self, keep: bool = True) -> dict[str, Tensor]:
        from deepspeed import zero
        from deepspeed.utils import safe_get_full_fp32_param

        state = {}
        for name, parameter in self.module.named_parameters():
            full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            if full is None:
                with zero.GatheredParameters([parameter]):
                    full = parameter.detach().clone() if keep else parameter
            if keep:
                full = full.to("cpu", torch.float32, copy=True)
                state[name] = full.view(_shape(parameter))
        if not keep:
            return {}
        for name, buffer in self.module.named_buffers():
            state[name] = buffer.detach().cpu()
        wanted = self.module.state_dict()
        return {name: tensor for name, tensor in state.items() if name in wanted}


def _weights_in(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Weights that did not learn, from what any number of ranks wrote; one at a time."""
    from deepspeed.utils.zero_to_fp32 import get_model_state_files

    ranks = [
        torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        for file in get_model_state_files(str(folder))
    ]
    shapes = ranks[0]["frozen_param_shapes"]
    for name in names:
        full = ranks[0]["module"][name]
        if full.numel() == 0:  # ZeRO-3: each rank has a piece, the last one with a filling
            pieces = [rank["frozen_param_fragments"][name] for rank in ranks]
            full = torch.cat(pieces)[: shapes[name].numel()].view(shapes[name])
        yield name, full


def _shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter, also while ZeRO-3 holds it in pieces."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _numel(parameter: nn.Parameter) -> int:
    return _shape(parameter).numel()


def deepspeed_config(stage: int, overrides: str | None, offload: Sequence[str]) -> dict[str, Any]:
    """The shipped configuration of a ZeRO stage, with a JSON file of the user's laid over it.

    Args:
        offload: "optimizer" and "parameters" move to the memory of the host.

    Raises:
        ConfigError: the file can't be read, or it sets what a setting of ours decides.
    """
    shipped = resources.files("spark_ray.training") / "zero" / f"zero{stage}.json"
    config: dict[str, Any] = json.loads(shipped.read_text())
    # DeepSpeed's own AdamW on the CPU would have to be compiled; PyTorch's is fused too.
    config["zero_force_ds_cpu_optimizer"] = False
    for what in offload:
        key = {"optimizer": "offload_optimizer", "parameters": "offload_param"}[what]
        config["zero_optimization"][key] = {"device": "cpu", "pin_memory": True}
    if overrides is not None:
        try:
            laid_over = json.loads(Path(overrides).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"deepspeed_config: {overrides} can't be read: {error}") from error
        _check_shape(laid_over, overrides)
        for key in laid_over:
            if key in _OURS:
                raise ConfigError(
                    f"deepspeed_config: {overrides} sets {key!r}, which {_OURS[key]} decides; "
                    "remove it from the file"
                )
        config = _merge(config, laid_over)
    found = config["zero_optimization"].get("stage")
    if found != stage:
        raise ConfigError(
            f"deepspeed_config: {overrides} has ZeRO stage {found}, but engine is zero{stage}"
        )
    if overrides is not None and laid_over.get("zero_optimization"):
        _check_values(config["zero_optimization"], overrides)
    return config


def _check_shape(laid_over: Any, file: str) -> None:
    """
    Raises:
        ConfigError: it is no object, or names an option of ZeRO that DeepSpeed does not have.
    """
    zero = laid_over.get("zero_optimization", {}) if isinstance(laid_over, dict) else None
    if not isinstance(zero, dict):
        raise ConfigError(
            f"deepspeed_config: {file} must be a JSON object, and zero_optimization in it another"
        )
    if zero:
        fields = _zero_model().model_fields
        known = {*fields, *(field.alias for field in fields.values() if field.alias)}
        for key in zero:
            if key not in known:
                raise unknown_choice(f"deepspeed_config: zero_optimization of {file}", key, known)


def _check_values(zero: dict[str, Any], file: str) -> None:
    """
    Raises:
        ConfigError: DeepSpeed would refuse it, in every worker.
    """
    try:
        _zero_model()(**zero)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        place = ".".join(("zero_optimization", *map(str, detail["loc"])))
        raise ConfigError(f"deepspeed_config: {place} of {file}: {detail['msg']}") from error


def _zero_model() -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if not torch.cuda.is_available() else "cuda")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return DeepSpeedZeroConfig


def convert_checkpoint(folder: Path) -> None:
    """Make what `DeepSpeedEngine.save` wrote loadable by any number of ranks, with `universal`."""
    from argparse import Namespace

    from deepspeed.checkpoint.ds_to_universal import main

    main(
        Namespace(
            input_folder=str(folder / _TAG),
            output_folder=str(folder / _UNIVERSAL),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {**base, **over}
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            both[key] = _merge(base[key], value)
    return both


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    # Its shared-memory collectives would be compiled first, for half a minute; gloo does as well.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()
    return deepspeed


def _check_every_gradient(optimizer: Any) -> None:
    """DeepSpeed looks for infinities in fp16, and in bf16 below ZeRO-3; here always."""
    if hasattr(optimizer, "check_grad_overflow"):
        optimizer.check_grad_overflow = True
        return

    def check(update_scale: bool = True) -> bool:
        optimizer.overflow = False
        optimizer.check_overflow()
        if not update_scale:
            return bool(optimizer.overflow)
        return bool(optimizer._loss_scale_update_and_overflow_cleanup())

    optimizer._overflow_check_and_loss_scale_update = check
