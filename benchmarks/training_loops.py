"""Bare loops over batches in memory: PyTorch DDP and DeepSpeed, without Ray and our own loop."""

import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.training_material import Size, job_config, job_plan
from spark_ray.apotheon import ApotheonModel
from spark_ray.apotheon.adaptation import set_trainable
from spark_ray.training.config import TrainConfig
from spark_ray.training.data import BatchMaker
from spark_ray.training.engines import StepOptions, parameter_groups
from spark_ray.training.start import initial_model


def bare(size: Size, engine: str, ranks: int) -> dict[str, Any]:
    """The same steps in processes that do nothing else."""
    with tempfile.TemporaryDirectory(prefix="spark-ray-benchmark-") as folder:
        answer = Path(folder) / "answer.json"
        torch.multiprocessing.spawn(
            _rank, (size, engine, ranks, _free_port(), answer), nprocs=ranks
        )
        found: dict[str, Any] = json.loads(answer.read_text())
        return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _rank(rank: int, size: Size, engine: str, ranks: int, port: int, answer: Path) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "DS_ACCELERATOR": "cpu",
    }
    torch.set_num_threads(1)
    config = job_config(size, engine, ranks, Path("unused"))
    model, batches, clip_s = _in_memory(config, size, rank, ranks)
    step = {"ddp": _ddp_step, "zero2": _deepspeed_step}[engine](model, config)
    for batch in batches[: size.skipped]:
        step(batch)
    dist.barrier()
    started, cpu_before_s = time.perf_counter(), time.process_time()
    for batch in batches[size.skipped :]:
        step(batch)
    dist.barrier()
    counted = size.steps - size.skipped
    step_s = (time.perf_counter() - started) / counted
    rank_cpu_s = (time.process_time() - cpu_before_s) / counted
    if rank == 0:
        facts = {
            "step_s": step_s,
            "rank_cpu_s": rank_cpu_s,
            "clip_s": clip_s,
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        answer.write_text(json.dumps(facts))
    dist.destroy_process_group()


def _in_memory(
    config: TrainConfig, size: Size, rank: int, ranks: int
) -> tuple[ApotheonModel, list[dict[str, Tensor]], float]:
    """Model and batches as the job's worker of this rank has them, and the time of a clip."""
    plan, model_config = job_plan(config)
    maker = BatchMaker(plan, rank, ranks)
    started = time.perf_counter()
    arrays = [maker.make(position) for position in range(size.steps)]
    clip_s = (time.perf_counter() - started) / (size.steps * size.batch)
    batches = []
    for batch in arrays:
        tensors = {k: torch.from_numpy(v) for k, v in batch.items() if k != "rows"}
        batches.append(dict(plan.processor.normalise(tensors)))
    model = initial_model(config, model_config)
    set_trainable(model, (), frames=True, audio=True)
    return model.train(), batches, clip_s


_Step = Callable[[dict[str, Tensor]], None]


def _optimizer(model: nn.Module, config: TrainConfig, **options: Any) -> torch.optim.AdamW:
    settings = StepOptions(
        precision=config.mixed_precision,
        accumulation=1,
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
        max_grad_norm=config.max_grad_norm,
        part_rates={},
    )
    groups = parameter_groups(model, settings)
    for group in groups:
        group["lr"] = config.learning_rate
    return torch.optim.AdamW(groups, betas=settings.betas, **options)


def _ddp_step(model: ApotheonModel, config: TrainConfig) -> _Step:
    dist.init_process_group("gloo")
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = _optimizer(model, config, fused=True)
    learning: Sequence[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]

    def step(batch: dict[str, Tensor]) -> None:
        parallel(**batch).loss.backward()
        nn.utils.clip_grad_norm_(learning, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _deepspeed_step(model: ApotheonModel, config: TrainConfig) -> _Step:
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    from spark_ray.training.deepspeed_engine import deepspeed_config

    __compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled first
    deepspeed.init_distributed("gloo")
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=_optimizer(model, config),
        config={
            **deepspeed_config(2, None, []),
            "train_micro_batch_size_per_gpu": config.batch_size,
            "gradient_clipping": config.max_grad_norm,
        },
    )

    def step(batch: dict[str, Tensor]) -> None:
        engine.backward(engine(**batch).loss)
        engine.step()

    return step
