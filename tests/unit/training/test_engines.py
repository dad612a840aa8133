"""Both engines on two real ranks: the step of one process, the gate, restarts, other world sizes.

Each case runs in processes of its own, since a process joins `torch.distributed` once.
"""

import gc
import math
import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import apotheons
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from spark_ray.apotheon.adaptation import set_trainable
from spark_ray.training.engines import Engine, StepOptions, TorchEngine

STEPS = 6
# Each takes two processes that import DeepSpeed.
ZERO1, ZERO3 = (pytest.param(name, marks=pytest.mark.nightly) for name in ("zero1", "zero3"))
ENGINES = ["ddp", ZERO1, "zero2", ZERO3, "zero3+optimizer+parameters"]
FROZEN = 0.02  # as if an earlier stage had learned it: an engine that starts anew has other weights
CPU = torch.device("cpu")
OPTIONS = StepOptions("fp32", 1, 0.01, (0.9, 0.98), 1.0, {"vision": 0.5})


def make_engine(
    name: str,
    world_size: int,
    converted: bool = False,
    frozen: float | None = None,
    options: StepOptions = OPTIONS,
) -> Engine:
    """An engine; what does not learn begins with the value `frozen`, where one is given."""
    model = apotheons.model()
    set_trainable(model, {"heads"}, frames=True, audio=True)
    if frozen is not None:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data.fill_(frozen)
    if name == "ddp":
        return TorchEngine(model, options, CPU)
    from spark_ray.training.deepspeed_engine import DeepSpeedEngine, deepspeed_config

    config = deepspeed_config(int(name[4]), None, name.split("+")[1:])
    return DeepSpeedEngine(model, options, CPU, config, 4 // world_size, universal=converted)


def share(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    clips = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    return {name: tensor[clips] for name, tensor in apotheons.batch().items()}


def train(engine: Engine, inputs: dict[str, torch.Tensor], steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = engine.accumulate(inputs, last=True).loss.detach().clone()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        assert engine.step(1e-3).applied
        losses.append(float(loss))
    return losses


def _join(rank: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store)


def _rank(rank: int, name: str, folder: Path) -> None:
    """Half of the steps, a checkpoint, the other half; then again from the checkpoint; then a gate.

    One process for all of it: starting it and importing torch is most of the time.
    """
    _join(rank, folder)
    engine, inputs = make_engine(name, 2, frozen=FROZEN), share(rank, 2)
    losses = train(engine, inputs, STEPS // 2)
    engine.save(folder)
    losses += train(engine, inputs, STEPS // 2)
    weights = engine.full_state()
    engine.close()
    module = weakref.ref(engine.module)
    del engine
    gc.collect()
    freed = module() is None

    engine = make_engine(name, 2)
    engine.load(folder)
    again = train(engine, inputs, STEPS // 2)
    resumed = engine.full_state()
    kept = engine.full_state(keep=rank == 0)
    result = {"losses": losses, "weights": weights, "again": again, "resumed": resumed}
    result |= {"kept": kept, "freed": freed}
    torch.save({**result, **_spoil(engine, inputs, rank)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def _spoil(engine: Engine, inputs: dict[str, torch.Tensor], rank: int) -> dict[str, Any]:
    """A step in which the second rank sees and hears what is no number, then a sound one."""
    before = engine.full_state()
    spoiled = dict(inputs)
    if rank == 1:
        for name in ("pixel_values", "input_features"):
            spoiled[name] = torch.full_like(inputs[name], math.nan)
    engine.accumulate(spoiled, last=True)
    applied = engine.step(1e-3).applied
    after = engine.full_state()
    train(engine, inputs, 1)
    return {"applied": applied, "before": before, "after": after, "later": engine.full_state()}


def _alone(rank: int, name: str, folder: Path) -> None:
    """The second half of the steps on one rank, from the checkpoint of two."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store-alone"), 1)
    dist.init_process_group("gloo", rank=rank, world_size=1, store=store)
    if name != "ddp":
        from spark_ray.training.deepspeed_engine import convert_checkpoint

        convert_checkpoint(folder)
    engine = make_engine(name, 1, converted=name != "ddp")
    engine.load(folder)
    losses = train(engine, share(0, 1), STEPS // 2)
    torch.save({"losses": losses, "weights": engine.full_state()}, folder / "alone.pt")
    dist.destroy_process_group()


def _rank_in_bf16(rank: int, name: str, folder: Path) -> None:
    """A step of eight equal micro-batches, a checkpoint, and another; then one of a single one, and
    one that is no number.
    """
    _join(rank, folder)
    inputs, options = share(rank, 2), replace(OPTIONS, precision="bf16", accumulation=8)

    def step(engine: Engine, micro_batches: int) -> float:
        for micro in range(1, micro_batches + 1):
            engine.accumulate(inputs, last=micro == micro_batches)
        return engine.step(1e-3).grad_norm

    engine = make_engine(name, 2, options=options)
    norms = [step(engine, 8)]
    engine.save(folder)
    step(engine, 8)
    weights = engine.full_state()
    engine.close()
    engine = make_engine(name, 2, options=options)
    engine.load(folder)
    step(engine, 8)
    resumed = engine.full_state()
    engine.close()
    engine = make_engine(name, 2, options=replace(options, accumulation=1))
    norms.append(step(engine, 1))
    found = {"norms": norms, "weights": weights, "resumed": resumed}
    torch.save({**found, **_spoil(engine, inputs, rank)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def load(file: Path) -> Any:
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def alone() -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same steps over all clips in one plain process."""
    torch.set_num_threads(1)
    engine = make_engine("ddp", 1, frozen=FROZEN)
    losses = train(engine, share(0, 1), STEPS)
    return losses, engine.full_state()


@pytest.mark.parametrize("name", ENGINES)
def test_two_ranks_a_restart_and_one_rank_take_the_same_steps(name, alone, tmp_path: Path):
    run_ranks(_rank, name, tmp_path, ranks=2)
    first, second = load(tmp_path / "0.pt"), load(tmp_path / "1.pt")

    assert first["losses"] == pytest.approx(alone[0], rel=1e-4)
    for key, value in alone[1].items():
        torch.testing.assert_close(first["weights"][key], value, atol=2e-4, rtol=1e-3)
        assert torch.equal(first["weights"][key], second["weights"][key])

    assert first["again"] == first["losses"][STEPS // 2 :]
    assert all(torch.equal(first["resumed"][key], first["weights"][key]) for key in alone[1])

    assert second["kept"] == {}, "one copy of the whole weights is enough for a checkpoint"
    assert all(torch.equal(first["kept"][key], first["weights"][key]) for key in alone[1])

    for rank in (first, second):
        if not name.startswith("zero3"):  # DeepSpeed's own hooks keep that
            assert rank["freed"], "the next stage's engine needs the memory"
        assert_skipped(rank)

    run_ranks(_alone, name, tmp_path, ranks=1)
    fewer = load(tmp_path / "alone.pt")
    assert fewer["losses"] == pytest.approx(first["losses"][STEPS // 2 :], rel=1e-4)
    for key, value in alone[1].items():
        torch.testing.assert_close(fewer["weights"][key], value, atol=2e-4, rtol=1e-3)


def assert_skipped(found: dict[str, Any]) -> None:
    """Of what `_spoil` found on a rank."""
    before, after, later = (found[when] for when in ("before", "after", "later"))
    assert not found["applied"], "a gradient that is no number must not be applied"
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not all(torch.equal(after[key], later[key]) for key in before)
    assert all(value.isfinite().all() for value in later.values())


@pytest.mark.parametrize("name", ["ddp", "zero2", ZERO3])
def test_in_bf16_gradients_add_up_in_full_and_a_restart_changes_nothing(name, tmp_path: Path):
    run_ranks(_rank_in_bf16, name, tmp_path, ranks=2)
    found = load(tmp_path / "0.pt")
    assert_skipped(found)
    assert all(
        torch.equal(found["resumed"][key], found["weights"][key]) for key in found["weights"]
    )
    many, one = found["norms"]
    assert many == pytest.approx(one, rel=1e-5), "eight eighths of a gradient are that gradient"
