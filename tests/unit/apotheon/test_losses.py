"""The losses against plain formulas, and that dealing clips to ranks changes nothing."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch.nn import functional as F  # noqa: N812

from spark_ray.apotheon.losses import IGNORED, contrastive_loss, text_keys, token_cross_entropy


def test_tokens_are_predicted_from_those_before():
    logits, labels = torch.randn(2, 4, 7), torch.tensor([[1, 2, 3, 4], [1, 5, IGNORED, IGNORED]])
    expected = F.cross_entropy(
        torch.stack([logits[0, 0], logits[0, 1], logits[0, 2], logits[1, 0]]),
        torch.tensor([2, 3, 4, 5]),
    )
    torch.testing.assert_close(token_cross_entropy(logits, labels), expected)


def test_no_label_at_all_costs_nothing():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = token_cross_entropy(logits, torch.full((2, 3), IGNORED))
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().sum() == 0


def test_contrast_is_clips_symmetric_cross_entropy():
    media, texts = (F.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    scores = 10 * media @ texts.T
    expected = (
        F.cross_entropy(scores, torch.arange(5)) + F.cross_entropy(scores.T, torch.arange(5))
    ) / 2
    found = contrastive_loss(
        media, texts, torch.ones(5, dtype=torch.bool), torch.arange(5), torch.tensor(10.0).log()
    )
    torch.testing.assert_close(found, expected)


def test_clips_without_a_text_take_no_part():
    media, texts = (F.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    valid = torch.tensor([True, True, False, True, False])
    scale = torch.tensor(2.0)
    whole = contrastive_loss(media, texts, valid, torch.arange(5), scale)
    part = contrastive_loss(media[valid], texts[valid], valid[valid], torch.arange(5)[valid], scale)
    torch.testing.assert_close(whole, part)


def test_equal_texts_are_no_negatives_of_each_other():
    """Two clips of one text, perfectly embedded, cost no more than the even spread over them."""
    media = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=1)
    loss = contrastive_loss(
        media, media, torch.ones(3, dtype=torch.bool), torch.tensor([4, 4, 9]), torch.tensor(4.6)
    )
    torch.testing.assert_close(loss, torch.log(torch.tensor(2.0)) * 2 / 3, atol=1e-4, rtol=0)


def test_keys_are_equal_for_equal_tokens_alone():
    ids = torch.tensor([[1, 7, 8, 2, 0], [1, 7, 8, 2, 9], [1, 8, 7, 2, 0], [1, 7, 8, 8, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]) > 0
    keys = text_keys(ids, mask).tolist()
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def _batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 4, 7, generator=generator)
    labels = torch.randint(0, 7, (6, 4), generator=generator)
    labels[1, 2:] = labels[4, 1:] = IGNORED
    media, texts = (F.normalize(torch.randn(6, 8, generator=generator), dim=1) for _ in range(2))
    valid = torch.tensor([True, True, False, True, True, True])
    return logits, labels, media, texts, valid, torch.tensor([1, 2, 3, 1, 5, 6])


def _losses_and_gradients(share: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits, labels, media, texts, valid, keys = (tensor[share] for tensor in _batch())
    logits.requires_grad_(True)
    media.requires_grad_(True)
    loss = token_cross_entropy(logits, labels) + contrastive_loss(
        media, texts, valid, keys, torch.tensor(2.0)
    )
    loss.backward()
    return loss.detach(), logits.grad, media.grad


def _rank(rank: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store)
    torch.save(_losses_and_gradients(slice(3 * rank, 3 * rank + 3)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_have_the_loss_and_the_gradients_of_one(tmp_path: Path):
    """The mean over ranks, as DDP takes it, is the loss over all clips."""
    run_ranks(_rank, str(tmp_path), ranks=2)
    (loss_0, logits_0, media_0), (loss_1, logits_1, media_1) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)
    )
    loss, logits, media = _losses_and_gradients(slice(None))
    torch.testing.assert_close((loss_0 + loss_1) / 2, loss)
    torch.testing.assert_close(torch.cat([logits_0, logits_1]) / 2, logits)
    torch.testing.assert_close(torch.cat([media_0, media_1]) / 2, media)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 6)])
def test_keys_have_the_shape_of_the_texts(shape):
    ids = torch.ones(shape, dtype=torch.long)
    assert text_keys(ids, ids > 0).shape == shape[:-1]
