import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from spark_ray.core.errors import ConfigError, MissingDependency
from spark_ray.media.speech import SAMPLE_RATE, VOICES, speak

pytest.importorskip("espeakng_loader")

SENTENCE = "the weather today is sunny and warm"


@pytest.mark.parametrize("voice", VOICES)
def test_a_sentence_is_audible_and_lasts_about_two_seconds(voice: str) -> None:
    pcm, rate = speak(SENTENCE, voice=voice)
    assert (pcm.dtype, pcm.ndim, rate) == (np.int16, 1, SAMPLE_RATE)
    assert 1.5 < len(pcm) / rate < 3.0
    assert np.abs(pcm.astype(int)).mean() > 500
    assert np.abs(pcm.astype(int)).max() > 8000


def test_what_was_said_before_does_not_colour_a_sentence() -> None:
    first, _ = speak(SENTENCE, voice="en-us+f3", pitch=60)
    speak("something else", voice="en-us+m3", rate_wpm=190)
    again, _ = speak(SENTENCE, voice="en-us+f3", pitch=60)
    np.testing.assert_array_equal(first, again)


def test_threads_do_not_disturb_each_other() -> None:
    jobs = [(voice, rate) for voice in VOICES for rate in (150, 180)]
    alone = [speak(SENTENCE, voice=voice, rate_wpm=rate)[0] for voice, rate in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda j: speak(SENTENCE, voice=j[0], rate_wpm=j[1])[0], jobs))
    for expected, actual in zip(alone, together, strict=True):
        np.testing.assert_array_equal(expected, actual)


def test_voice_rate_and_pitch_are_heard() -> None:
    plain, _ = speak(SENTENCE)
    assert len(speak(SENTENCE, rate_wpm=220)[0]) < 0.9 * len(plain)
    for change in ({"voice": "en-us+m3"}, {"pitch": 80}):
        other, _ = speak(SENTENCE, **change)
        shared = min(len(plain), len(other))
        assert not np.array_equal(plain[:shared], other[:shared])


def test_nothing_to_say_is_silence() -> None:
    assert not speak("")[0].any()


def test_an_unknown_voice_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"en-gnome.*en-us"):
        speak(SENTENCE, voice="en-gnome")


def test_without_the_package_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingDependency, match=r"spark-ray\[demo\]"):
        speak(SENTENCE)
