"""The losses of a batch, and of a whole split."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from spark_ray.apotheon import ApotheonConfig, ApotheonOutput
from spark_ray.apotheon.losses import learned_tokens, world_size
from spark_ray.core.anatomy import TASKS

LOSSES = ("loss", "caption_loss", "transcription_loss", "contrastive_loss")


def batch_losses(output: ApotheonOutput) -> Tensor:
    """The `LOSSES` of a batch; 0 for a head that the stage has no texts for."""
    assert output.loss is not None
    found = (getattr(output, name) for name in LOSSES)
    zero = torch.zeros_like(output.loss)
    return torch.stack([zero if loss is None else loss.detach() for loss in found]).float()


def split_losses(
    evaluate: Callable[[dict[str, Any]], ApotheonOutput],
    batches: Iterable[dict[str, Any]],
    config: ApotheonConfig,
    device: torch.device,
) -> dict[str, float]:
    """Every token weighs alike, whichever batch it is in. Every rank must call it.

    The contrastive loss is a mean over batches, since it is one among the clips of each.

    Args:
        batches: arguments of the model's `forward`, those of this rank.
    """
    undivided = torch.ones(len(TASKS), device=device)
    sums, counts = torch.zeros(2, len(TASKS) + 1, device=device)
    for inputs in batches:
        output = evaluate({**inputs, "label_counts": undivided})
        sums += batch_losses(output)[1:]  # `loss` follows from the split's own
        counts[:-1] += learned_tokens(inputs["labels"]).sum(dim=0)
        counts[-1] += 1 / world_size()
    if world_size() > 1:
        dist.all_reduce(sums)
        dist.all_reduce(counts)
    caption, transcription, contrastive = (
        sums / world_size() / counts.clamp(min=1)
    ).tolist()  # every rank's share of a loss is multiplied by the number of ranks
    return {
        "loss": config.caption_weight * caption
        + config.transcription_weight * transcription
        + config.contrastive_weight * contrastive,
        "caption_loss": caption,
        "transcription_loss": transcription,
        "contrastive_loss": contrastive,
    }
