"""The GPUs: what the driver sees, and whether PyTorch can use it."""

import importlib.util
import subprocess
from collections.abc import Iterator

from spark_ray.doctor.config import DoctorConfig
from spark_ray.doctor.findings import Finding, wrong_if

_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
_TIMEOUT_S = 30.0


def check_gpus(config: DoctorConfig) -> Iterator[Finding]:
    needed = "gpu" in config.needs
    try:
        asked = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError:
        text = "no NVIDIA driver on this machine; models run on CPUs"
        yield Finding("gpu", wrong_if(needed), text)
        return
    except subprocess.TimeoutExpired:
        text = f"nvidia-smi does not answer within {_TIMEOUT_S:g} s; a GPU hangs: restart the node"
        yield Finding("gpu", "wrong", text)
        return
    found = [line.strip() for line in asked.stdout.splitlines() if line.strip()]
    if asked.returncode != 0 or not found:
        said = (asked.stderr or asked.stdout).strip().splitlines() or ["no GPU"]
        text = f"nvidia-smi says: {said[0]}; install the driver, or pass the GPUs to the container"
        yield Finding("gpu", "wrong", text)
        return
    for line in found:
        yield Finding("gpu", "ok", line)
    yield check_torch(len(found))


def check_torch(gpus: int) -> Finding:
    """Whether PyTorch sees as many GPUs as the driver."""
    if importlib.util.find_spec("torch") is None:
        text = "PyTorch is not installed: pip install 'spark-ray[models]'"
        return Finding("gpu", "note", text)
    import torch

    seen = torch.cuda.device_count()
    if seen < gpus:
        why = (
            f"PyTorch {torch.__version__} is a build without CUDA"
            if torch.version.cuda is None
            else f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) sees {seen} of {gpus}: "
            "its CUDA is newer than the driver, or CUDA_VISIBLE_DEVICES hides some"
        )
        return Finding("gpu", "wrong", f"{why}; install a build that fits the driver")
    return Finding("gpu", "ok", f"PyTorch {torch.__version__} sees {seen}")
