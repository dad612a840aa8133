"""The MFU script runs where only torch, transformers and peft are, and refuses plain attention."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import mfu, mfu_models, mfu_profile, table
from benchmarks.harness import ROOT
from spark_ray.training.engines import TorchEngine

NOT_THERE = ("ray", "deepspeed", "mlflow", "av", "pyarrow", "scenedetect")
OPTIONS = SimpleNamespace(device="cpu", checkpointing=False)


def _engine(name: str) -> TorchEngine:
    torch.set_num_threads(1)
    model = mfu_models.build(mfu._toy(mfu_models.SETTINGS[name]), OPTIONS)
    return TorchEngine(model, mfu._OPTIONS, torch.device("cpu"))


def test_script_runs_without_ray_deepspeed_and_the_others():
    program = f"import sys; sys.modules.update(dict.fromkeys({NOT_THERE}))\n"
    program += "sys.argv[1:] = ['--device', 'cpu', '--quick']\n"
    program += "import runpy; runpy.run_module('benchmarks.mfu', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert all(f"\n{name}: " in done.stdout for name in mfu_models.SETTINGS)
    assert "fused everywhere" in done.stdout


def test_only_adapters_of_llama_learn_in_base_and_its_weights_are_half_as_large():
    model = _engine("base").module
    learning = {name for name, p in model.text.named_parameters() if p.requires_grad}

    assert learning
    assert all(".lora_" in name for name in learning)
    assert model.text.embed_tokens.weight.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_plain_attention_is_refused():
    engine = _engine("medium")
    engine.module.text.config._attn_implementation = "eager"

    with pytest.raises(SystemExit, match="text: 0 of its 1 attentions run fused"):
        mfu_profile.fused_attention(engine, sound=1.0)


def test_result_is_a_row_of_the_readmes_table():
    details = {"mfu": 0.4, "step_tflop": 4.0, "peak_tflops": 100.0, "step_ms": [90.0, 110.0]}
    result = mfu.result_of(mfu_models.SETTINGS["medium"], details, "")
    machine = {"cpu": "a CPU", "cores": 1, "memory_gib": 1, "python": "3.11"}

    assert not result.met
    assert result.ratio == pytest.approx(2.5)
    assert result.spread == pytest.approx((2.25, 2.75))
    assert "| mfu-medium | 2.50 |" in table.render([result.as_dict() | {"machine": machine}])
