"""The three losses of Apotheon, so normalised that the number of ranks does not change them.

Every rank returns its share of the loss of the *global* batch, times the number of ranks: the mean
of the gradients over the ranks, which is what DDP and DeepSpeed take, is then the gradient of one
loss over all clips, however they are dealt out.

Of the micro-batches of a step the engines take the mean. Token losses that are divided by what the
mean micro-batch of the step holds, and not by what their own does, weigh every token of it alike.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F  # noqa: N812

IGNORED = -100
"""Label of a position that is not learned."""


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def learned_tokens(labels: Tensor) -> Tensor:
    """How many tokens of each text are learned: `[..., L]` labels to `[...]`."""
    return (labels[..., 1:] != IGNORED).sum(dim=-1)


def token_cross_entropy(logits: Tensor, labels: Tensor, count: Tensor | None = None) -> Tensor:
    """Next-token cross-entropy, averaged over the tokens of all ranks.

    Args:
        logits: `[B, L, V]`; those at position i predict label i + 1.
        labels: `[B, L]`, `IGNORED` where nothing is learned.
        count: what the sum over all ranks is divided by; unset: how many tokens they learn.

    Returns:
        A scalar; 0, with a gradient of 0, where no rank has a label.
    """
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
    if count is None:
        count = _global_sum(learned_tokens(labels).sum())
    return losses * world_size() / count


def contrastive_loss(
    media: Tensor, texts: Tensor, valid: Tensor, text_keys: Tensor, log_scale: Tensor
) -> Tensor:
    """Symmetric cross-entropy between clips and texts of all ranks (CLIP, arXiv:2103.00020).

    Texts that are equal are no negatives of each other: the target is spread evenly over them, as
    in UniCL (arXiv:2204.03610).

    Args:
        media, texts: `[B, E]`, of unit length.
        valid: `[B]`, False where a clip has no media or no text.
        text_keys: `[B]`, equal for equal texts.
        log_scale: logarithm of the inverse temperature, a scalar or `[1]`.
    """
    all_media, all_texts = _gather(media), _gather(texts)
    all_valid, all_keys = _gather_constant(valid), _gather_constant(text_keys)
    scale = log_scale.exp().clamp(max=100.0).float()
    targets = ((text_keys[:, None] == all_keys[None]) & all_valid[None]).float()
    targets = targets / targets.sum(dim=1, keepdim=True).clamp(min=1)
    loss = media.new_zeros((), dtype=torch.float32)
    for ours, theirs in ((media, all_texts), (texts, all_media)):
        # Autocast would compute these in 16 bits, in which near clips can't be told apart.
        with torch.autocast(media.device.type, enabled=False):
            similarities = scale * ours.float() @ theirs.float().T
        similarities = similarities.masked_fill(~all_valid[None], torch.finfo(torch.float32).min)
        # Where the target is 0 the logarithm may be -inf: 0 * -inf would be no number.
        logs = similarities.log_softmax(dim=1).clamp(min=-1e4)
        loss = loss - 0.5 * ((targets * logs).sum(dim=1) * valid).sum()
    return loss * world_size() / _global_sum(valid.sum())


def text_keys(input_ids: Tensor, mask: Tensor) -> Tensor:
    """A 63-bit number for each text, equal for equal tokens: `[..., L]` to `[...]`."""
    powers = torch.arange(1, input_ids.shape[-1] + 1, device=input_ids.device)
    factors = (powers * 0x9E3779B97F4A7C1 + 0x7F4A7C15) ^ (powers << 17)
    return ((input_ids + 1) * factors * mask).sum(dim=-1)


def _gather(tensor: Tensor) -> Tensor:
    """`[B, ...]` of every rank as one, through which gradients flow back to their ranks."""
    return torch.cat(all_gather(tensor)) if world_size() > 1 else tensor


def _gather_constant(tensor: Tensor) -> Tensor:
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def _global_sum(count: Tensor) -> Tensor:
    """The sum over all ranks, at least 1, without a gradient."""
    total = count.detach().float()
    if world_size() > 1:
        dist.all_reduce(total)
    return total.clamp(min=1)
