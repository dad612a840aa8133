"""What a replica does with a batch: one forward pass, in which each request has its own end."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import trained

from spark_ray.models.apotheon import Apotheon
from spark_ray.serving.inference import Pending, _answers, _load_apotheon, _Loaded, _write_group
from spark_ray.serving.messages import Written


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> _Loaded:
    folder = tmp_path_factory.mktemp("model")
    trained.save_tiny(folder)
    trained.record().write(folder)
    return _load_apotheon("mine", str(folder))


def pending(apotheon: Apotheon, seed: int, max_new_tokens: int) -> Pending:
    rng = np.random.default_rng(seed)
    frames = list(rng.integers(0, 255, (3, 64, 64, 3), dtype=np.uint8))
    return Pending(
        apotheon.processor.prepare(frames, [0.0, 0.5, 1.0], None), "caption", max_new_tokens
    )


def test_each_request_of_a_batch_ends_where_it_should(loaded: _Loaded) -> None:
    limits = [3, 9, 6]
    requests = [pending(loaded.apotheon, seed, limit) for seed, limit in enumerate(limits)]
    together = _write_group(loaded, requests)
    for request, written, limit in zip(requests, together, limits, strict=True):
        (alone,) = loaded.apotheon.write([request.clip], "caption", limit)
        assert written.text == alone
        assert written.tokens is not None
        assert written.tokens <= limit
        assert written.timing.queue >= 0
        assert written.timing.model > 0
    assert {written.finish for written in together} <= {"stop", "length"}


def test_a_request_whose_caller_has_gone_is_not_written_on(loaded: _Loaded) -> None:
    stays, gone = pending(loaded.apotheon, 1, 20), pending(loaded.apotheon, 2, 20)
    gone.cancelled.set()
    written, broken_off = _write_group(loaded, [stays, gone])
    assert written.text == loaded.apotheon.write([stays.clip], "caption", 20)[0]
    assert broken_off.tokens == 1
    (alone,) = _write_group(loaded, [gone])
    assert alone.tokens == 1


def test_what_breaks_one_request_does_not_break_the_others(loaded: _Loaded) -> None:
    sound, broken = pending(loaded.apotheon, 1, 5), pending(loaded.apotheon, 2, 5)
    broken.clip.pixels[:] = 0
    broken.clip = dataclasses.replace(broken.clip, frame_times=np.zeros(7, np.float32))
    answers = _answers(loaded, [sound, broken])
    written = answers[id(sound)]
    assert isinstance(written, Written)
    assert written.text == loaded.apotheon.write([sound.clip], "caption", 5)[0]
    assert isinstance(answers[id(broken)], Exception)


def test_only_what_has_one_shape_shares_a_batch(loaded: _Loaded) -> None:
    one, other = pending(loaded.apotheon, 1, 5), pending(loaded.apotheon, 2, 5)
    assert one.shape == other.shape
    fewer = Pending(
        loaded.apotheon.processor.prepare([np.zeros((64, 64, 3), np.uint8)], [0.0], None),
        "caption",
        5,
    )
    assert fewer.shape != one.shape
    assert Pending(one.clip, "transcript", 5).shape != one.shape


def test_a_model_says_where_it_comes_from(loaded: _Loaded, tmp_path: Path) -> None:
    assert (loaded.served.name, loaded.served.dataset_version) == ("mine", "v3")
    assert loaded.served.weights_hash == loaded.apotheon.weights.info().weights_hash
    trained.save_tiny(tmp_path)
    assert _load_apotheon("other", str(tmp_path)).served.dataset is None
