"""The container files install what the constraints pin, by the same steps as everybody."""

import re
import shlex
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from spark_ray.serving.proxy import PROXY_ENVIRONMENT

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "cluster" / "images"
KINDS = ("cpu", "gpu")
# vLLM has an environment of its own.
LAPTOPS_ONLY = {"bench", "demo", "dev", "docs", "monitoring", "notebooks", "vllm"}


def instructions(kind: str) -> list[tuple[str, str]]:
    """Each instruction with its arguments, its lines joined."""
    text = (IMAGES / f"{kind}.Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


@pytest.mark.parametrize("kind", KINDS)
def test_every_package_is_installed_with_the_constraints(kind: str, tmp_path: Path) -> None:
    """`make` itself says what it would run."""
    (install,) = [
        rest for word, rest in instructions(kind) if word == "RUN" and "make install" in rest
    ]
    words = shlex.split(install)
    make = words[words.index("make") :]
    printed = subprocess.run(
        [*make, "--dry-run", f"VENV={tmp_path}/none"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    installs = [line for line in printed.splitlines() if "pip install" in line]
    assert len(installs) >= 4
    for line in installs:
        assert "--constraint requirements/constraints.txt" in line or "--no-deps" in line
    assert "torch setuptools" in installs[0], "first, so that nothing else chooses its build"
    (extras,) = re.findall(r"--editable '\.\[(.*?)\]'", printed)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    nodes_need = set(project["optional-dependencies"]) - LAPTOPS_ONLY
    assert set(extras.split(",")) == nodes_need, "any job and any file of Serve runs on any node"


@pytest.mark.parametrize("kind", KINDS)
def test_ray_up_finds_ray_in_a_login_shell(kind: str, tmp_path: Path) -> None:
    """Debian's /etc/profile sets PATH anew, then reads what lies in /etc/profile.d."""
    runs = " && ".join(rest for word, rest in instructions(kind) if word == "RUN")
    (write,) = [step for step in runs.split("&&") if "/etc/profile.d/" in step]
    subprocess.run(write.replace("/etc/profile.d", str(tmp_path)), shell=True, check=True)
    (script,) = tmp_path.glob("*.sh")
    debian = "/usr/local/bin:/usr/bin:/bin"
    path = subprocess.run(
        ["/bin/sh", "-c", f"PATH={debian}; . {script}; echo $PATH"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (environment,) = [rest for word, rest in instructions(kind) if word == "ENV"]
    image = dict(pair.split("=", 1) for pair in environment.split())["PATH"]
    assert path == image.replace("$PATH", debian)


@pytest.mark.parametrize("kind", KINDS)
def test_what_make_needs_is_copied(kind: str) -> None:
    copied = {
        name for word, rest in instructions(kind) if word == "COPY" for name in rest.split()[1:-1]
    }
    assert {"Makefile", "pyproject.toml", "README.md", "requirements", "spark_ray"} <= copied
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("kind", KINDS)
def test_proxies_answer_for_a_lost_gateway(kind: str) -> None:
    (environment,) = [rest for word, rest in instructions(kind) if word == "ENV"]
    variables = dict(pair.split("=", 1) for pair in environment.split())
    assert variables.items() >= PROXY_ENVIRONMENT.items()


def test_only_the_build_of_torch_and_the_gpu_settings_differ() -> None:
    cpu, gpu = (instructions(kind) for kind in KINDS)
    differing = [(a, b) for a, b in zip(cpu, gpu, strict=True) if a != b]
    assert [a[0] for a, _ in differing] == ["RUN", "ENV"]
    (torch_cpu, torch_gpu), (environment, with_gpu) = ((a[1], b[1]) for a, b in differing)
    assert "download.pytorch.org/whl/cpu" in torch_cpu
    assert "PIP_EXTRA_INDEX_URL" not in torch_gpu
    assert set(environment.split()) < set(with_gpu.split())


def test_the_constraints_are_what_is_tested_here() -> None:
    """Nodes and laptops must have one Ray; the pin is what this very environment runs."""
    pins = dict(
        line.split("==")
        for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for package in ("ray", "torch", "transformers", "deepspeed", "av"):
        assert version(package).partition("+")[0] == pins[package]
    for kind in KINDS:
        (image,) = [rest for word, rest in instructions(kind) if word == "FROM"]
        assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", image)
