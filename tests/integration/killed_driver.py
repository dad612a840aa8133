"""`spark-ray …`, killed with SIGKILL at its Nth change of the dataset on disk, for N = 1, 2, 3, …

    python killed_driver.py FIRST FILE data build …

Runs follow each other, the first killed at change FIRST, until one comes through or FILE is there.
Prints how many were killed; the exit status is that of the last, as a shell would have it.
A change is a file that is about to take its name (the written bytes still lie under a temporary
one), that has just taken it, or a file or folder that has just been removed. Only the driver dies,
and only there: what the workers do goes on until Ray notices. Runs are forked, to import but once.
"""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from spark_ray.cli import main

steps_left = int(sys.argv[1])
stop_file = Path(sys.argv[2])
MOST = 40


def step() -> None:
    global steps_left
    steps_left -= 1
    if steps_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def replace(self: Path, target: Any, original: Callable[..., Any] = Path.replace) -> Any:
    step()
    done = original(self, target)
    step()
    return done


def rm(self: Any, path: Any, original: Callable[..., Any] = LocalFileSystem.rm, **how: Any) -> None:
    original(self, path, **how)
    step()


Path.replace = replace  # type: ignore[method-assign]
LocalFileSystem.rm = rm

# Imported before the first fork, so that each run need not.
import_module("spark_ray.datasets.commands")
for killed in range(MOST):
    child = os.fork()
    if child == 0:
        raise SystemExit(main(sys.argv[3:]))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGKILL or stop_file.exists():
        print(f"killed {killed + (status < 0)} times")
        raise SystemExit(status)
    steps_left += 1
raise SystemExit(f"{MOST} runs got nowhere")
