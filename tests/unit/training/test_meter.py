"""The peak that MFU is a share of: that of the very GPU, in the run's arithmetic, or none."""

import pytest
import torch

from spark_ray.training.meter import known_peak_tflops

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_a_peak_is_that_of_the_very_gpu(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert known_peak_tflops(GPU, "bf16") == peak
    assert known_peak_tflops(GPU, "fp16") == peak
    assert known_peak_tflops(GPU, "fp32") is None, "fp32 products are no bf16 products"


def test_a_cpu_has_no_known_peak():
    assert known_peak_tflops(torch.device("cpu"), "bf16") is None
