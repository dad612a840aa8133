"""What the ranks of a run settle among themselves, on three real ones of two nodes."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.distributed as dist
from ranks import run_ranks

from spark_ray.apotheon.losses import IGNORED
from spark_ray.training.data import Batch
from spark_ray.training.ranks import once_on_each_node
from spark_ray.training.worker import Worker

NODES = ["a", "b", "a"]


def _labels(learned: int) -> Batch:
    """A clip with so many tokens to learn in the first of its two texts, and one in the other."""
    labels = torch.full((1, 2, 8), IGNORED)
    labels[0, 0, : learned + 1] = 5
    labels[0, 1, :2] = 5
    return Batch({"labels": labels}, [0])


def _rank(rank: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), len(NODES))
    dist.init_process_group("gloo", rank=rank, world_size=len(NODES), store=store)
    worker = object.__new__(Worker)
    worker.rank, worker.world_size, worker.device = rank, len(NODES), torch.device("cpu")
    calls: list[int] = []

    def fetch() -> str:
        calls.append(rank)
        return f"copy of rank {rank}"

    with patch("ray.get_runtime_context") as context:
        context.return_value = SimpleNamespace(get_node_id=lambda: NODES[rank])
        copy = once_on_each_node(fetch)
    counts = worker._label_counts([_labels(rank), _labels(4)])
    torch.save({"copy": copy, "calls": calls, "counts": counts.tolist()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_one_rank_fetches_for_its_node_and_all_count_all_labels(tmp_path: Path):
    run_ranks(_rank, tmp_path, ranks=len(NODES))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(NODES))]
    assert [rank["copy"] for rank in found] == [
        "copy of rank 0",
        "copy of rank 1",
        "copy of rank 0",
    ]
    assert [rank["calls"] for rank in found] == [[0], [1], []]
    learned = (0 + 1 + 2) + 3 * 4
    assert all(rank["counts"] == [learned / 2, 6 / 2] for rank in found)
