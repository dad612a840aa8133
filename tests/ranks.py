"""Ranks of `torch.distributed`: processes, forked from one that has imported what they need."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def run_ranks(function: Callable[..., None], *arguments: Any, ranks: int) -> None:
    """Call `function(rank, *arguments)` in as many processes, and wait for their end.

    Raises:
        torch.multiprocessing.ProcessRaisedException: one of them failed; with its traceback.
    """
    # The first call of a session starts that process; to import this is most of a rank's time.
    multiprocessing.set_forkserver_preload(["deepspeed", "apotheons", "spark_ray.training.engines"])
    mp.start_processes(function, args=arguments, nprocs=ranks, start_method="forkserver")
