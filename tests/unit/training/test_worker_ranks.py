"""What the ranks of a run settle among themselves, on three real ones of two nodes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from spark_ray.apotheon import ApotheonOutput
from spark_ray.apotheon.losses import IGNORED, learned_tokens
from spark_ray.training.data import Batch
from spark_ray.training.ranks import once_on_each_node
from spark_ray.training.validation import split_losses
from spark_ray.training.worker import Worker

NODES = ["a", "b", "a"]
CPU = torch.device("cpu")
WEIGHTS: Any = SimpleNamespace(caption_weight=1.0, transcription_weight=2.0, contrastive_weight=0.5)


def _labels(learned: int) -> Batch:
    """A clip with so many tokens to learn in the first of its two texts, and one in the other."""
    labels = torch.full((1, 2, 8), IGNORED)
    labels[0, 0, : learned + 1] = 5
    labels[0, 1, :2] = 5
    return Batch({"labels": labels}, [0])


def _tokens_of(inputs: dict[str, torch.Tensor]) -> ApotheonOutput:
    """A share of what a model would say for which a token of a caption costs 1, 2 or 3, by rank,
    and others 3.
    """
    captions, transcripts = learned_tokens(inputs["labels"]).sum(dim=0) * float(len(NODES))
    captions = captions * (1 + dist.get_rank())
    zero, one = torch.zeros(()), torch.tensor(1.0)
    return ApotheonOutput(
        loss=zero,
        caption_loss=captions / inputs["label_counts"][0],
        transcription_loss=3 * transcripts / inputs["label_counts"][1],
        contrastive_loss=one,
    )


def _rank(rank: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), len(NODES))
    dist.init_process_group("gloo", rank=rank, world_size=len(NODES), store=store)
    worker = object.__new__(Worker)
    worker.rank, worker.world_size, worker.device = rank, len(NODES), CPU
    calls: list[int] = []

    def fetch() -> str:
        calls.append(rank)
        return f"copy of rank {rank}"

    with patch("ray.get_runtime_context") as context:
        context.return_value = SimpleNamespace(get_node_id=lambda: NODES[rank])
        copy = once_on_each_node(fetch)
    counts = worker._label_counts([_labels(rank), _labels(4)])
    losses = split_losses(_tokens_of, [_labels(rank).tensors, _labels(4).tensors], WEIGHTS, CPU)
    found = {"copy": copy, "calls": calls, "counts": counts.tolist(), "losses": losses}
    torch.save(found, folder / f"{rank}.pt")
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
    caption = (4 * 1 + 5 * 2 + 6 * 3) / (4 + 5 + 6)
    expected = {"loss": caption + 2 * 3 + 0.5, "caption_loss": caption, "transcription_loss": 3.0}
    expected |= {"contrastive_loss": 1.0}
    assert all(rank["losses"] == pytest.approx(expected) for rank in found)
    learned = (0 + 1 + 2) + 3 * 4
    assert all(rank["counts"] == [learned / 2, 6 / 2] for rank in found)
