"""What the training job adds to the training itself: Ray, data, metrics, checks, tracking.

The whole job, from a dataset on disk, against a bare loop over the same batches, ready in memory:
the same model and optimizer, 2 processes, one thread each. Both skip their first steps; neither
writes a checkpoint or validates in between. What is compared is time a step, so 1.05 are 0.95 of
the bare loop's steps a second.

On the two cores of a small machine the comparison is harder than on GPUs: the bare loop has both
to itself, while the job's data actors and a dozen of Ray's daemons run on the same two, and each
rank waits for the one that was held up. The model is therefore so large that a clip's training
outweighs its decoding as it does elsewhere (`details` tell both), and the clip cache is off, which
would spare the decoding altogether. Beside the time of a step stands the CPU that a rank's process
takes for it, which is what the loop itself adds, wherever the others run.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPVisionConfig, LlamaConfig

from benchmarks.harness import CACHE, ROOT, WORKERS, Result, ratio_result
from spark_ray.apotheon import ApotheonConfig, ApotheonModel
from spark_ray.apotheon.adaptation import set_trainable
from spark_ray.apotheon.sizes import processor_for, tiny
from spark_ray.core.background import beside
from spark_ray.datasets.build import build_dataset
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.samples import load_index
from spark_ray.media.synthetic import write_world
from spark_ray.training.config import TrainConfig
from spark_ray.training.curriculum import Stage
from spark_ray.training.data import BatchMaker
from spark_ray.training.engines import StepOptions, parameter_groups
from spark_ray.training.plan import RunPlan
from spark_ray.training.run import train
from spark_ray.training.start import initial_model, starting_point

GOAL = 1 / 0.95
GOAL_WAIT = 0.05
ENGINES = {"ddp": "a bare PyTorch DDP loop", "zero2": "a bare DeepSpeed ZeRO-2 loop"}
_MAX_FRAMES = 16
_SAMPLE_S = 0.5

_DATA_SHARE = "0.002"
"""Of Ray's memory, for batches ahead of the step: about 30 of them.

With the usual half, the data actors would make all batches of so short a run during its first
steps, which don't count, and rest in those that do.
"""


class Size(NamedTuple):
    """How much is measured: clips that are drawn, steps, and the first ones that don't count."""

    clips: int
    steps: int
    skipped: int
    repetitions: int
    width: int
    batch: int
    """Of one process."""


FULL = Size(clips=200, steps=60, skipped=20, repetitions=3, width=256, batch=2)
QUICK = Size(clips=24, steps=6, skipped=2, repetitions=1, width=64, batch=1)


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Job and bare loop in turn, each in a fresh process; medians over the repetitions."""
    size = QUICK if quick else FULL
    make_material(size)
    jobs: dict[str, list[dict[str, Any]]] = {name: [] for name in ENGINES}
    loops: dict[str, list[dict[str, Any]]] = {name: [] for name in ENGINES}
    for _ in range(size.repetitions):
        for engine in ENGINES:
            loops[engine].append(_program("bare", engine, quick))
            jobs[engine].append(_program("job", engine, quick))
    facts = {
        "clips_a_step": size.batch * WORKERS,
        "processes": WORKERS,
        "threads_of_each": 1,
        "arithmetic": "fp32",
        "parameters": loops["ddp"][0]["parameters"],
        "making_a_clip_s": statistics.median(run["clip_s"] for run in loops["ddp"]),
    }
    for engine, baseline in ENGINES.items():
        ours, theirs = ([run["step_s"] for run in runs[engine]] for runs in (jobs, loops))
        yield ratio_result(
            f"training-{engine}", f"{baseline} over the same batches in memory", GOAL, ours, theirs,
            **facts, step_s={"job": ours, "bare": theirs}, runs=jobs[engine],
        )  # fmt: skip
        ours, theirs = ([run["rank_cpu_s"] for run in runs[engine]] for runs in (jobs, loops))
        yield ratio_result(
            f"training-{engine}-cpu", f"CPU of a rank in {baseline}", GOAL, ours, theirs,
            rank_cpu_s={"job": ours, "bare": theirs},
        )  # fmt: skip
    waits = [run["data_wait"] for runs in jobs.values() for run in runs]
    yield Result(
        "training-data-wait", "the whole time of a step", statistics.median(waits), GOAL_WAIT,
        (min(waits), max(waits)), {**facts, "by_engine": {
            engine: [run["data_wait"] for run in runs] for engine, runs in jobs.items()
        }},
    )  # fmt: skip


def _program(name: str, engine: str, quick: bool) -> dict[str, Any]:
    """What one of the programs below prints last, run in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.training", name, engine, *["--quick"] * quick]
    environment = {**os.environ, "RAY_DATA_OBJECT_STORE_MEMORY_LIMIT_FRACTION": _DATA_SHARE}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} exited {done.returncode}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return found


# Material ----------------------------------------------------------------------------------------


def make_material(size: Size) -> Path:
    """The folder of the dataset, once, and of the model's first weights as the code now has it."""
    folder = _folder(size)
    done = folder / "dataset.done"
    if not done.exists():
        write_world(folder / "world", size.clips, workers=WORKERS)
        _build(folder)
        done.touch()
    _save_model(size, folder / "model")
    return folder


def _build(folder: Path) -> None:
    build_dataset(
        BuildConfig.from_values(
            input=[str(folder / "world" / "clips")],
            output=str(folder / "dataset"),
            fps=4.0,
            motion_threshold=0.02,
            perceptual_hashing=False,
            label_from_folder=True,
            caption_backend="sidecar",
            transcription_backend="subtitles",
        )
    )


def _folder(size: Size) -> Path:
    return CACHE / f"training-{size.clips}-{size.width}"


def _save_model(size: Size, folder: Path) -> None:
    """An Apotheon between `tiny` and `small`, which a job starts from with `init_from`."""
    config = _config(size, "ddp", Path("unused")).model_copy(update={"init_from": None})
    plan, _ = _plan(config)
    tokenizer = plan.processor.tokenizer
    model_config = _model_config(size.width, tokenizer)
    torch.manual_seed(0)
    ApotheonModel(model_config).save_pretrained(folder)
    processor_for(model_config, tokenizer, _MAX_FRAMES).save_pretrained(folder)


def _plan(config: TrainConfig) -> tuple[RunPlan, ApotheonConfig]:
    """As the job makes it, but for the validation at its end."""
    split = load_index(config.reference).split("train")
    model_config, processor = starting_point(config, split)
    return RunPlan(config, processor, split, None), model_config


def _model_config(width: int, tokenizer: Any) -> ApotheonConfig:
    config = tiny(tokenizer)
    audio, text = config.audio_config, config.text_config
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 4}
    audio.d_model, audio.encoder_ffn_dim, audio.encoder_layers = width, 4 * width, 4
    special = {name: getattr(text, name) for name in ("bos_token_id", "eos_token_id")}
    return ApotheonConfig(
        vision_config=CLIPVisionConfig(image_size=64, patch_size=8, num_hidden_layers=6, **sizes),
        audio_config=audio,
        text_config=LlamaConfig(
            vocab_size=text.vocab_size,
            pad_token_id=text.pad_token_id,
            num_hidden_layers=4,
            **special,
            **sizes,
        ),
        fusion_hidden_size=width,
        fusion_layers=4,
        fusion_heads=4,
        fusion_mlp_size=4 * width,
        contrastive_size=width,
        mel_rate_hz=config.mel_rate_hz,
    )


def _config(size: Size, engine: str, folder: Path) -> TrainConfig:
    """One stage with everything in it, which the data actors don't come to the end of."""
    material = _folder(size)
    epochs = 4 * -(-size.steps * size.batch * WORKERS // size.clips)
    return TrainConfig.from_values(
        dataset=str(material / "dataset"),
        output_dir=str(folder / "run"),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        init_from=str(material / "model"),
        engine=engine,
        num_workers=[WORKERS],
        threads_per_worker=1,
        batch_size=size.batch,
        gradient_accumulation=1,
        max_steps=size.steps,
        epochs=epochs,
        curriculum=[Stage(name="all", epochs=epochs, modalities=["text", "audio", "video"])],
        max_frames=_MAX_FRAMES,
        data_cache_bytes=0,
        mixed_precision="fp32",
        checkpoint_every_steps=size.steps,
        validate_every_epochs=epochs,
    )


# The job -----------------------------------------------------------------------------------------


def job(size: Size, engine: str) -> dict[str, Any]:
    """Steps of the whole job, by what its tracker was told and when."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix="spark-ray-benchmark-") as folder:
        config = _config(size, engine, Path(folder))
        started = time.perf_counter()
        with _cpu_of("RayTrainWorker") as samples:
            train(config)
        wall_s = time.perf_counter() - started
        client = MlflowClient(config.tracking_uri)
        experiment = client.get_experiment_by_name(config.experiment)
        (tracked,) = client.search_runs([experiment.experiment_id])
        told = {
            name: sorted(client.get_metric_history(tracked.info.run_id, name), key=_step_of)
            for name in ("step_s", "data_wait")
        }
    steps, waits = ([m.value for m in told[name]][size.skipped :] for name in told)
    ends_s = [metric.timestamp / 1000 for metric in told["step_s"]][size.skipped - 1 :]
    waited_s = sum(step * wait for step, wait in zip(steps, waits, strict=True))
    return {
        "step_s": (ends_s[-1] - ends_s[0]) / len(steps),
        "rank_cpu_s": _cpu_between(samples, ends_s[0], ends_s[-1]) / WORKERS / len(steps),
        "inside_step_s": statistics.mean(steps),
        "all_steps_s": [round(metric.value, 3) for metric in told["step_s"]],
        "data_wait": waited_s / sum(steps),
        "steps": len(steps),
        "wall_s": wall_s,
    }


@contextmanager
def _cpu_of(title: str) -> Iterator[list[tuple[float, float]]]:
    """Times, and the CPU seconds of all processes with this title up to then."""
    samples: list[tuple[float, float]] = []

    def watch(over: threading.Event) -> None:
        while not over.wait(_SAMPLE_S):
            taken = 0.0
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if title in " ".join(process.cmdline()):
                        taken += sum(process.cpu_times()[:2])
            samples.append((time.time(), taken))

    with beside(watch, "cpu"):
        yield samples


def _cpu_between(samples: Sequence[tuple[float, float]], start: float, end: float) -> float:
    times, taken = zip(*samples, strict=True)
    before, after = np.interp([start, end], times, taken)
    return float(after - before)


def _step_of(metric: Any) -> int:
    return int(metric.step)


# Bare loops --------------------------------------------------------------------------------------


def bare(size: Size, engine: str) -> dict[str, Any]:
    """The same steps in two processes that do nothing else."""
    with tempfile.TemporaryDirectory(prefix="spark-ray-benchmark-") as folder:
        answer = Path(folder) / "answer.json"
        torch.multiprocessing.spawn(
            _bare_rank, (size, engine, _free_port(), answer), nprocs=WORKERS
        )
        found: dict[str, Any] = json.loads(answer.read_text())
        return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _bare_rank(rank: int, size: Size, engine: str, port: int, answer: Path) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORKERS),
        "DS_ACCELERATOR": "cpu",
    }
    torch.set_num_threads(1)
    config = _config(size, engine, Path("unused"))
    model, batches, clip_s = _in_memory(config, size, rank)
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
    config: TrainConfig, size: Size, rank: int
) -> tuple[ApotheonModel, list[dict[str, Tensor]], float]:
    """Model and batches as the job's worker of this rank has them, and the time of a clip."""
    plan, model_config = _plan(config)
    maker = BatchMaker(plan, rank, WORKERS)
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


def main() -> None:
    parser = argparse.ArgumentParser(description="One run of the job, or of a bare loop.")
    parser.add_argument("program", choices=["job", "bare"])
    parser.add_argument("engine", choices=list(ENGINES))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    size = QUICK if given.quick else FULL
    make_material(size)
    print(json.dumps({"job": job, "bare": bare}[given.program](size, given.engine)), flush=True)


if __name__ == "__main__":
    main()
