"""The network: what it attends to, what it must not see, and that generation is the same one."""

from pathlib import Path

import apotheons
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor, TextIteratorStreamer

from spark_ray.apotheon import ApotheonConfig, ApotheonModel, ApotheonProcessor
from spark_ray.apotheon.adaptation import Lora, add_lora, merged_state, set_trainable
from spark_ray.apotheon.layers import Media

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def model() -> ApotheonModel:
    return apotheons.model()


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    return apotheons.batch()


def test_a_text_state_does_not_see_later_tokens(model, batch):
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][:, :, 4:] = 5
    with torch.no_grad():
        before, after = model(**batch), model(**changed)
    torch.testing.assert_close(
        before.caption_logits[:, :4], after.caption_logits[:, :4], **TOLERANCE
    )
    assert not torch.allclose(before.caption_logits[:, 4:], after.caption_logits[:, 4:])


@pytest.mark.parametrize("name", ["pixel_values", "input_features"])
def test_what_the_mask_hides_changes_nothing(model, batch, name):
    changed = {**batch, name: batch[name].clone()}
    if name == "pixel_values":
        changed[name][~batch["frame_mask"]] = 9.0
    else:
        changed[name][batch["audio_frames"] == 0] = 9.0
    with torch.no_grad():
        before, after = model(**batch), model(**changed)
    torch.testing.assert_close(before.loss, after.loss, **TOLERANCE)


def test_a_missing_text_or_clip_is_a_number_in_half_precision(batch):
    half = apotheons.model().half()
    inputs = {n: t.half() if t.is_floating_point() else t for n, t in batch.items()}
    inputs["frame_mask"] = batch["frame_mask"].clone()
    inputs["frame_mask"][1] = False  # this clip has no sound either
    loss = half(**inputs).contrastive_loss
    loss.backward()
    assert loss.isfinite()
    gradients = [p.grad for p in half.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ["pixel_values", "input_features", "frame_times"])
def test_what_is_shown_and_heard_matters(model, batch, name):
    changed = {**batch, name: batch[name] + 1.0}
    with torch.no_grad():
        before, after = model(**batch), model(**changed)
    assert not torch.allclose(before.caption_logits[0], after.caption_logits[0])


def test_a_clip_is_the_same_alone_and_in_a_batch(model, batch):
    with torch.no_grad():
        together = model(**batch).caption_logits[0]
        alone = model(**{name: tensor[:1] for name, tensor in batch.items()}).caption_logits[0]
    length = int(batch["text_mask"][0, 0].sum())
    torch.testing.assert_close(together[:length], alone[:length], **TOLERANCE)


def test_a_clip_without_any_media_gives_finite_losses_and_gradients(batch):
    model = apotheons.model()
    empty = {**batch, "frame_mask": batch["frame_mask"].clone()}
    empty["frame_mask"][1] = False  # the silent clip loses its pictures too
    loss = model(**empty).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_every_trainable_weight_gets_a_gradient(batch):
    model = apotheons.model()
    model(**batch).loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize("task", ["caption", "transcript"])
def test_generation_with_caches_is_greedy_search_without(model, batch, task):
    media = apotheons.media(batch)
    written = model.generate(**media, task=task, max_new_tokens=8, do_sample=False)
    tokens = torch.full((4, 1), model.config.bos_token_id)
    with torch.no_grad():
        for _ in range(written.shape[1] - 1):
            logits = model(input_ids=tokens, tasks=(task,), **media).logits[:, -1]
            tokens = torch.cat([tokens, logits.argmax(dim=-1, keepdim=True)], dim=1)
    ended = (tokens == model.config.eos_token_id).cumsum(dim=1).bool()
    ended = torch.cat([torch.zeros(4, 1, dtype=torch.bool), ended[:, :-1]], dim=1)
    assert torch.equal(written[~ended], tokens[~ended])


def test_the_heads_write_the_logits_that_training_scores(model, batch):
    """The same tokens through the training pass and through the pass of `generate`."""
    with torch.no_grad():
        trained = model(**batch).transcription_logits
        media = apotheons.media(batch)
        alone = model(input_ids=batch["input_ids"][:, 1], tasks=("transcript",), **media).logits
    torch.testing.assert_close(trained, alone, **TOLERANCE)


def test_beams_find_texts_at_least_as_likely_as_greedy_search(model, batch):
    media = apotheons.media(batch, slice(0, 1))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    scores = []
    for beams in (1, 4):
        tokens = model.generate(**media, num_beams=beams, length_penalty=0.0, **options)
        with torch.no_grad():
            logits = model(input_ids=tokens, tasks=("caption",), **media).logits
        logits[..., model.config.eos_token_id] = float("-inf")
        chosen = logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])
        scores.append(float(chosen.sum()))
    assert scores[1] >= scores[0] - 1e-4


def test_sampling_follows_the_seed(model, batch):
    media = apotheons.media(batch)
    options = {"do_sample": True, "max_new_tokens": 10}
    written = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        written.append(model.generate(**media, **options).tolist())
    assert written[0] == written[1] != written[2]


def test_tokens_stream_out_as_they_are_written(model, batch):
    tokenizer = apotheons.processor().tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True, timeout=10)
    media = apotheons.media(batch, slice(0, 1))
    tokens = model.generate(**media, max_new_tokens=6, do_sample=False, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(tokens[0], skip_special_tokens=True)


def test_an_unknown_task_lists_the_known(model, batch):
    with pytest.raises(ValueError, match="caption, transcript"):
        model.generate(**apotheons.media(batch), task="poem")


def test_saved_and_loaded_it_is_the_same_model(model, batch, tmp_path: Path):
    model.save_pretrained(tmp_path)
    apotheons.processor().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), ApotheonConfig)
    loaded, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, ApotheonProcessor)
    with torch.no_grad():
        assert torch.equal(model(**batch).loss, loaded.eval()(**batch).loss)
    again = processor(frames=[apotheons.frames(3, 1)], captions=[apotheons.TEXTS[0]])
    first = apotheons.processor()(frames=[apotheons.frames(3, 1)], captions=[apotheons.TEXTS[0]])
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_gradient_checkpointing_computes_again_and_changes_no_gradient(batch):
    gradients = []
    for checkpointing in (False, True):
        model = apotheons.model().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        calls: list[nn.Module] = []
        inside = [model.vision.encoder.layers[0].mlp, model.audio.layers[0].fc1]
        inside += [model.text.layers[0].mlp, model.fusion[0].mlp]
        for module in inside:
            module.register_forward_pre_hook(lambda module, _, calls=calls: calls.append(module))
        model(**batch).loss.backward()
        assert [calls.count(module) for module in inside] == [1 + checkpointing] * 4
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], **TOLERANCE)


def test_the_vision_stem_freezes_alone() -> None:
    model = apotheons.model()
    set_trainable(model, {"vision_stem"}, frames=True, audio=True)
    still = {n for n, p in model.vision.named_parameters() if not p.requires_grad}
    assert still == {
        "embeddings.patch_embedding.weight",
        "post_layernorm.weight",
        "post_layernorm.bias",
    }


def test_adapters_alone_learn_and_merge_into_the_weights(batch):
    model = apotheons.model()
    add_lora(model, {"text": Lora(rank=4, alpha=8)})
    set_trainable(model, {"vision", "audio", "fusion"}, frames=True, audio=True)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any(".lora_" in name for name in learning)
    assert not any(name.startswith(("vision.", "audio.", "fusion.")) for name in learning)
    assert all(".lora_" in name for name in learning if name.startswith("text."))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(0, 0.05)
        adapted = model(**batch).caption_logits
        plain = ApotheonModel(model.config).eval()
        plain.load_state_dict(merged_state(model.state_dict(), model))
        torch.testing.assert_close(adapted, plain(**batch).caption_logits, **TOLERANCE)


def test_losses_in_16_bits_are_those_in_32(model, batch):
    with torch.no_grad():
        exact = model(**batch)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(**batch)
    for name in ("caption_loss", "transcription_loss", "contrastive_loss"):
        assert float(rounded[name]) == pytest.approx(float(exact[name]), rel=0.02)


def test_media_without_frames_or_audio_is_refused(model):
    with pytest.raises(ValueError, match="pixel_values or input_features"):
        model.encode_media()


def test_a_batch_of_one_text_costs_and_learns_that_alone(model, batch):
    captions = {
        name: tensor[:, :1] if name in ("input_ids", "text_mask", "labels") else tensor
        for name, tensor in batch.items()
    }
    with torch.no_grad():
        both, one = model(**batch), model(**captions, tasks=("caption",))
    torch.testing.assert_close(one.caption_loss, both.caption_loss, **TOLERANCE)
    assert one.transcription_logits is one.transcription_loss is None
    torch.testing.assert_close(one.loss, one.caption_loss + 0.5 * one.contrastive_loss, **TOLERANCE)


@pytest.mark.parametrize("tasks", [("caption",), ("caption", "transcript", "caption")])
def test_tasks_that_are_not_those_of_the_texts_are_refused(model, batch, tasks):
    with pytest.raises(ValueError, match="must name the 2 texts of each clip"):
        model(**batch, tasks=tasks)


def test_several_tokens_at_a_time_are_those_of_one_after_the_other(model, batch):
    """Assisted generation checks guesses in one step, behind a cache."""
    options = {"task": "caption", "max_new_tokens": 12, "do_sample": False}
    media = apotheons.media(batch, slice(1))
    plain = model.generate(**media, **options)
    guessed = model.generate(**media, **options, prompt_lookup_num_tokens=3)
    assert plain.tolist() == guessed.tolist()


def test_long_clips_are_pooled_in_half_precision():
    """The sum of thousands of tokens is no number of 16 bits; their mean is."""
    model = apotheons.model().half()
    tokens = torch.full((1, 4096, model.config.fusion_hidden_size), 20.0, dtype=torch.float16)
    real = torch.ones(1, 4096, dtype=torch.bool)
    real[:, -1] = False
    pooled, whole = model.embed_media(Media(tokens, real)), model.embed_media(Media(tokens, None))
    assert pooled.isfinite().all()
    torch.testing.assert_close(pooled, whole)
