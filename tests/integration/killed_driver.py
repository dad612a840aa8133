"""`spark-ray …`, killed with SIGKILL at its Nth change of the dataset on disk.

    python killed_driver.py N data build …

A change is a file that is about to take its name (the written bytes still lie under a temporary
one), that has just taken it, or a file or folder that has just been removed. Only the driver dies,
and only there: what the workers do goes on until Ray notices.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from spark_ray.cli import main

steps_left = int(sys.argv[1])


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
raise SystemExit(main(sys.argv[2:]))
