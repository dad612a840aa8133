import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from spark_ray.core.errors import CorruptMedia, ModelError, NothingSaid
from spark_ray.core.schema import Clip
from spark_ray.models.captioning import CaptionOptions, build_captioner
from spark_ray.models.frame_captioner import clip_caption, most_central
from spark_ray.models.protocols import Captioner
from spark_ray.models.qwen2_vl import _join_frames

Checkpoints = Callable[[str], Path]
FAMILIES = ["blip", "blip2", "florence2", "qwen2_vl"]


def jpeg(seed: int) -> bytes:
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    picture = cv2.resize(colours, (48, 36), interpolation=cv2.INTER_CUBIC)
    return bytes(cv2.imencode(".jpg", picture)[1])


def make_clips() -> list[Clip]:
    """Six clips of one to four frames, all different, and one without any."""
    counts = [1, 4, 2, 0, 3, 1, 2]
    return [
        Clip(
            clip_id=f"clip-{number}",
            video_id="video",
            unit_id="unit",
            source_path="a.mp4",
            frames=[jpeg(10 * number + frame) for frame in range(count)],
        )
        for number, count in enumerate(counts)
    ]


def load(family: str, folder: Path, **settings: object) -> Captioner:
    options = CaptionOptions.model_validate(
        {"caption_max_new_tokens": 8, "caption_batch_size": 4, **settings}
        | {"caption_backend": family, "caption_model": str(folder)}
    )
    captioner = build_captioner(options)
    captioner.load()
    return captioner


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def broken_copy(tiny_checkpoint: Checkpoints, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("blip"), tmp_path / "copy"))


def test_load_says_exactly_which_weights(family: str, tiny_checkpoint: Checkpoints) -> None:
    folder = tiny_checkpoint(family)
    captioner = build_captioner(CaptionOptions(caption_backend=family, caption_model=str(folder)))
    info = captioner.load()
    assert info is not None
    content = (folder / "model.safetensors").read_bytes()
    assert info.weights_hash == hashlib.sha256(content).hexdigest()
    assert info.name == str(folder)
    assert info.revision is None
    assert (info.prompt is None) == (family in {"blip", "blip2"})


def test_every_frame_gets_a_caption_and_every_clip_one_of_its_own(
    family: str, tiny_checkpoint: Checkpoints
) -> None:
    clips = make_clips()
    captions = load(family, tiny_checkpoint(family)).caption(clips)
    assert set(captions) == {clip.clip_id for clip in clips if clip.frames}
    for clip in clips:
        if clip.frames:
            caption = captions[clip.clip_id]
            assert len(caption.all_captions) == len(clip.frames)
            assert caption.text
            if family != "qwen2_vl":
                assert caption.text in caption.all_captions
    # Otherwise nothing below could tell one clip's caption from another's.
    assert len({caption.text for caption in captions.values()}) > 2


def test_a_caption_does_not_depend_on_its_batch_or_place(
    family: str, tiny_checkpoint: Checkpoints
) -> None:
    clips = make_clips()
    together = load(family, tiny_checkpoint(family)).caption(clips)

    one_by_one = load(family, tiny_checkpoint(family), caption_batch_size=1)
    alone = {key: value for clip in clips for key, value in one_by_one.caption([clip]).items()}
    assert alone == together

    captioner = load(family, tiny_checkpoint(family), caption_batch_size=5)
    for seed in range(3):
        shuffled = random.Random(seed).sample(clips, len(clips))
        cut = random.Random(seed).randrange(1, len(clips))
        pieces = captioner.caption(shuffled[:cut]) | captioner.caption(shuffled[cut:])
        assert pieces == together


def test_a_prompt_changes_what_is_said(family: str, tiny_checkpoint: Checkpoints) -> None:
    prompt = "<CAPTION>" if family == "florence2" else "redcat"
    clips = make_clips()
    captioner = load(family, tiny_checkpoint(family), caption_prompt=prompt)
    asked = captioner.caption(clips)
    assert asked != load(family, tiny_checkpoint(family)).caption(clips)
    alone = {key: value for clip in clips for key, value in captioner.caption([clip]).items()}
    assert alone == asked
    # BLIP's prompt is the beginning of its caption; what others were asked is no part of it.
    starts = [caption.text.startswith("redcat") for caption in asked.values()]
    assert all(starts) if family == "blip" else not any(starts)


def test_a_broken_frame_names_its_clip(tiny_checkpoint: Checkpoints) -> None:
    clips = make_clips()
    clips[1].frames[2] = b"\xff\xd8 no picture"
    with pytest.raises(CorruptMedia, match="clip-1"):
        load("blip", tiny_checkpoint("blip")).caption(clips)


def test_bfloat16_runs(family: str, tiny_checkpoint: Checkpoints) -> None:
    captioner = load(family, tiny_checkpoint(family), caption_dtype="bfloat16")
    assert len(captioner.caption(make_clips()[:2])) == 2


def test_weights_of_another_family_are_refused(family: str, tiny_checkpoint: Checkpoints) -> None:
    other = FAMILIES[FAMILIES.index(family) - 1]
    with pytest.raises(ModelError, match="is needed; choose other weights"):
        load(family, tiny_checkpoint(other))


def test_missing_weights_are_no_random_weights(broken_copy: Path) -> None:
    file = broken_copy / "model.safetensors"
    tensors = load_file(file)
    del tensors["vision_model.post_layernorm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .* vision_model\.post"):
        load("blip", broken_copy)


def test_truncated_weights_are_an_error(broken_copy: Path) -> None:
    file = broken_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="can't be loaded"):
        load("blip", broken_copy)


def test_pickled_weights_are_never_opened(broken_copy: Path) -> None:
    (broken_copy / "model.safetensors").rename(broken_copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin can run code"):
        load("blip", broken_copy)


def test_a_missing_tokenizer_is_an_error(broken_copy: Path) -> None:
    (broken_copy / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load("blip", broken_copy)


def test_the_most_central_caption_wins() -> None:
    captions = ["a cat on a sofa", "a black screen", "a cat on a red sofa", "the cat on a sofa"]
    assert most_central(captions) == "a cat on a sofa"
    assert most_central(["b", "a"]) == "b"
    assert most_central(["", "a", ""]) == "a"
    assert most_central(["", ""]) == ""


def test_a_clip_about_which_nothing_is_said_is_an_error() -> None:
    with pytest.raises(NothingSaid, match="clip-9"):
        clip_caption("clip-9", ["", " "])


def test_joined_frames_equal_patches_cut_from_the_video() -> None:
    frames, span, patch, merge, height, width = 6, 2, 4, 2, 16, 8
    video = torch.randn(frames, 3, height, width)
    rows, columns = height // patch, width // patch
    grid = (rows // merge, merge, patch, columns // merge, merge, patch)

    # What the family's image processor does to one picture, and its video processor to a video.
    pictures = video.view(frames, 3, *grid).permute(0, 2, 5, 3, 6, 1, 4, 7)
    pictures = pictures.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, span, -1, -1)
    pictures = pictures.reshape(frames * rows * columns, -1)
    expected = video.view(frames // span, span, 3, *grid).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    expected = expected.reshape(frames // span * rows * columns, -1)

    assert torch.equal(_join_frames(pictures, frames, span, patch), expected)


def test_qwen_sees_the_order_of_frames(tiny_checkpoint: Checkpoints) -> None:
    captioner = load("qwen2_vl", tiny_checkpoint("qwen2_vl"))
    clip = make_clips()[1]
    backwards = clip.model_copy(update={"frames": clip.frames[::-1]})
    forth, back = captioner.caption([clip]), captioner.caption([backwards])
    assert forth[clip.clip_id].text != back[clip.clip_id].text
    assert forth[clip.clip_id].all_captions == back[clip.clip_id].all_captions[::-1]
