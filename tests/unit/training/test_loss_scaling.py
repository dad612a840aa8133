"""fp16 with its loss scaled up, which a CPU can compute too, if not fast."""

from pathlib import Path

import apotheons
import pytest
import torch

from spark_ray.training import engines
from spark_ray.training.engines import StepOptions, TorchEngine

CPU = torch.device("cpu")


def make_engine(precision: engines.Precision) -> TorchEngine:
    options = StepOptions(precision, 1, 0.01, (0.9, 0.98), 1.0, {})
    return TorchEngine(apotheons.model(), options, CPU)


def test_a_scale_that_is_too_large_is_halved_and_no_weight_changes_until_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engines, "check_precision", lambda *_: None)
    clips = apotheons.batch()
    exact = make_engine("fp32")
    exact.accumulate(clips, last=True)
    norm = exact.step(1e-3).grad_norm

    engine = make_engine("fp16")
    assert engine.scaler.state_dict()["scale"] == 2.0**16, "small gradients are not lost"
    engine.scaler.load_state_dict({**engine.scaler.state_dict(), "scale": 2.0**40})
    before = engine.full_state()
    engine.accumulate(clips, last=True)
    assert not engine.step(1e-3).applied
    assert engine.scaler.get_scale() == 2.0**39
    after = engine.full_state()
    assert all(torch.equal(before[name], after[name]) for name in before)

    engine.save(tmp_path)
    resumed = make_engine("fp16")
    resumed.load(tmp_path)
    assert resumed.scaler.get_scale() == 2.0**39
    resumed.scaler.load_state_dict({**resumed.scaler.state_dict(), "scale": 2.0**10})
    resumed.accumulate(clips, last=True)
    outcome = resumed.step(1e-3)
    assert outcome.applied
    assert outcome.grad_norm == pytest.approx(norm, rel=0.02), "it is scaled back"
