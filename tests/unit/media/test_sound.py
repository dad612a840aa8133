"""Sound is what an independent resampler hears, at the time at which it was heard."""

import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_factory import clip_of, clips_of, pictures, tone

from spark_ray.media.audio_codec import decode_audio
from spark_ray.media.audio_track import AudioTrack as Collector
from spark_ray.media.decode import Span
from spark_ray.media.encode import AudioTrack, VideoTrack, write_tracks, write_video

RATE = 16_000
EDGE = 64
CLOSE = 8
"""Steps of 16 bits by which two good resamplers may differ; the tones have 9000."""


def samples(clip_audio: bytes | None) -> np.ndarray:
    assert clip_audio is not None
    return np.round(decode_audio(clip_audio) * 32768).astype(int)


def resampled(path: Path) -> tuple[float, np.ndarray]:
    """When sound is first heard with the picture, and all from there, by NumPy alone."""
    parts, begins, rate = [], None, 0
    with av.open(str(path)) as container:
        zero = container.streams.video[0]
        zero_s = float(zero.start_time * zero.time_base)
        for frame in container.decode(audio=0):
            if frame.time + frame.samples / frame.sample_rate <= zero_s:
                continue
            begins = frame.time - zero_s if begins is None else begins
            rate = frame.sample_rate
            parts.append(mono(frame))
    return begins, at_16_khz(np.concatenate(parts), rate)


def mono(frame: av.AudioFrame) -> np.ndarray:
    """The mean of one or two channels, in steps of 16 bits."""
    pcm = frame.to_ndarray().astype(float)
    if not frame.format.is_planar:
        pcm = pcm.reshape(-1, frame.layout.nb_channels).T
    full = {"flt": 1.0, "s16": 2.0**15, "s32": 2.0**31}[frame.format.name.removesuffix("p")]
    return pcm.mean(axis=0) / full * 32768


def at_16_khz(pcm: np.ndarray, rate: int, reach: int = 64) -> np.ndarray:
    """Each sample a sum of those around its time, weighted by a windowed sinc."""
    if rate == RATE:
        return pcm
    cutoff = min(1.0, RATE / rate)  # of the sinc: no tone above half of either rate may pass
    reach = round(reach / cutoff)
    at = np.arange(round(len(pcm) * RATE / rate)) * rate / RATE
    taps = np.floor(at).astype(int)[:, None] + np.arange(1 - reach, reach + 1)
    away = taps - at[:, None]
    weights = cutoff * np.sinc(cutoff * away) * np.cos(np.pi * away / (2 * reach)) ** 2
    padded = np.pad(pcm, reach)
    return (padded[taps + reach] * weights).sum(axis=1)


def worst(ours: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, but at the ends, where each resampler makes up what lies beyond."""
    return float(np.abs(ours - expected)[EDGE:-EDGE].max())


def video(count: int = 25) -> VideoTrack:
    return VideoTrack(frames=pictures(count, (64, 64)), rate=Fraction(25))


def stereo(seconds: float, rate: int) -> np.ndarray:
    return np.stack([tone(seconds, rate, 300), tone(seconds, rate, 500)], axis=1)


@pytest.mark.parametrize(
    ("suffix", "codec", "pcm", "rate"),
    [
        ("mp4", "aac", tone(1.0, 44_100), 44_100),
        ("mp4", "aac", stereo(1.0, 48_000), 48_000),
        ("mkv", "libopus", stereo(1.0, 48_000), 48_000),
        ("mkv", "flac", tone(1.0, 22_050), 22_050),
        ("mkv", "pcm_s16le", tone(1.0, 8_000), 8_000),
        ("avi", "pcm_s16le", stereo(1.0, 44_100), 44_100),
        ("ts", "aac", tone(1.0, 48_000), 48_000),
        ("mov", "pcm_s16le", tone(1.0), RATE),
    ],
)
def test_sound_equals_an_independent_resample(
    tmp_path: Path, suffix: str, codec: str, pcm: np.ndarray, rate: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    write_tracks(path, [video(), AudioTrack(pcm=pcm, sample_rate=rate, codec=codec)])
    begins_s, expected = resampled(path)
    begin = round(begins_s * RATE)
    expected = expected[-begin:] if begin < 0 else np.pad(expected, (begin, 0))
    ours = samples(clip_of(path).audio)
    assert len(ours) == len(expected)
    assert worst(ours, expected) <= CLOSE
    # That is close enough to tell a shift by one sample, and a gain that is off by 1 %.
    assert worst(ours[1:], expected[:-1]) > 5 * CLOSE
    assert worst(ours[:-1], expected[1:]) > 5 * CLOSE
    assert worst(1.01 * ours, expected) > 5 * CLOSE


def test_sound_at_16_khz_is_kept_to_the_sample(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-20_000, 20_000, RATE).astype(np.int16)
    write_tracks(
        tmp_path / "a.mkv", [video(), AudioTrack(pcm=noise, sample_rate=RATE, codec="pcm_s16le")]
    )
    np.testing.assert_array_equal(samples(clip_of(tmp_path / "a.mkv").audio), noise)


def test_sound_that_begins_later_follows_silence(tmp_path: Path) -> None:
    late = AudioTrack(pcm=tone(0.5), sample_rate=RATE, codec="pcm_s16le", start_s=0.4)
    write_tracks(tmp_path / "a.mkv", [video(), late])
    ours = samples(clip_of(tmp_path / "a.mkv").audio)
    np.testing.assert_array_equal(ours, [*np.zeros(6400, int), *tone(0.5)])


def test_sound_that_begins_earlier_is_cut_at_the_first_frame(tmp_path: Path) -> None:
    late_picture = VideoTrack(
        frames=pictures(25, (64, 64)), rate=Fraction(25), pts=[0.3 + i / 25 for i in range(25)]
    )
    sound = AudioTrack(pcm=tone(1.3), sample_rate=RATE, codec="pcm_s16le")
    write_tracks(tmp_path / "a.mkv", [late_picture, sound])
    ours = samples(clip_of(tmp_path / "a.mkv").audio)
    np.testing.assert_array_equal(ours, tone(1.3)[4800:])


def two_utterances(path: Path, hole_s: float) -> np.ndarray:
    """Half a second of sound, a hole in the timestamps, half a second more; returns the truth."""
    first, second = tone(0.5, hertz=300), tone(0.5, hertz=700)
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        picture.width = picture.height = 64
        sound = container.add_stream("pcm_s16le", rate=RATE)
        sound.layout = "mono"
        for number, pixels in enumerate(pictures(50, (64, 64))):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        for pcm, start_s in ((first, 0.0), (second, 0.5 + hole_s)):
            frame = av.AudioFrame.from_ndarray(pcm[np.newaxis], format="s16", layout="mono")
            frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
            frame.pts = round(start_s * RATE)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return np.concatenate([first, np.zeros(round(hole_s * RATE), np.int16), second])


def test_a_hole_in_the_sound_becomes_silence_of_its_length(tmp_path: Path) -> None:
    truth = two_utterances(tmp_path / "a.mkv", hole_s=0.7)
    np.testing.assert_array_equal(samples(clip_of(tmp_path / "a.mkv").audio), truth)


def mono_frames(pcm: np.ndarray, rate: int, size: int = 1024) -> list[av.AudioFrame]:
    blocks = [pcm[i : i + size] for i in range(0, len(pcm), size)]
    frames = []
    for block in blocks:
        frame = av.AudioFrame.from_ndarray(block[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = rate
        frames.append(frame)
    return frames


def test_many_small_holes_do_not_add_up_to_a_shift() -> None:
    track = Collector()
    for number, frame in enumerate(mono_frames(tone(2.0), RATE, 1600)):
        track.push(frame, number * 0.15)  # 0.1 s of sound every 0.15 s
    track.finish()
    assert track.end_s == pytest.approx(19 * 0.15 + 0.1, abs=0.11)


def test_a_wild_timestamp_costs_no_memory() -> None:
    track = Collector()
    first, second = mono_frames(tone(0.2), RATE, 1600)
    track.push(first, 0.0)
    track.push(second, 3e7)  # a year later: 960 GB as samples
    heard = track.take(0.0, 1.0)
    assert heard is not None
    assert len(heard) <= RATE
    np.testing.assert_array_equal(heard[:1600], tone(0.1))


def test_a_stream_may_change_its_layout_and_rate_midway() -> None:
    track = Collector()
    pair = np.repeat(tone(0.5)[np.newaxis], 2, axis=0)
    second = av.AudioFrame.from_ndarray(np.ascontiguousarray(pair), format="s16p", layout="stereo")
    second.sample_rate = RATE
    third = mono_frames(tone(0.5, 32_000), 32_000, 16_000)[0]
    track.push(mono_frames(tone(0.5), RATE, 8000)[0], 0.0)
    track.push(second, 0.5)
    track.push(third, 1.0)
    track.finish()
    heard = track.take(0.0, None)
    assert heard is not None
    assert len(heard) == pytest.approx(1.5 * RATE, abs=16)
    np.testing.assert_array_equal(heard[:8000], tone(0.5))
    assert np.abs(heard[8000:16_000].astype(int) - tone(0.5)).max() <= 1


def test_surround_sound_is_mixed_down(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    centre = np.zeros((6, RATE), np.int16)
    centre[2] = tone(1.0)  # speech sits in the centre channel
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        picture.width = picture.height = 64
        sound = container.add_stream("pcm_s16le", rate=RATE)
        sound.layout = "5.1"
        for number, pixels in enumerate(pictures(25, (64, 64))):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        packed = np.ascontiguousarray(centre.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout="5.1")
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    # The usual weights, to a sum of 1: centre 1, left and right √½ each, the two behind ½ each.
    expected = tone(1.0) / (1 + np.sqrt(2) + 1)
    ours = samples(clip_of(path).audio)
    assert np.abs(ours - expected).max() <= 1


@pytest.mark.parametrize(
    ("suffix", "codec", "exact"),
    [("mkv", "pcm_s16le", True), ("mp4", "aac", False), ("ts", "aac", False)],
)
def test_spans_of_sound_lie_where_they_lie_in_the_whole(
    tmp_path: Path, suffix: str, codec: str, exact: bool
) -> None:
    path = tmp_path / f"a.{suffix}"
    sweep = np.cumsum(np.linspace(100, 2000, 3 * RATE)) / RATE
    pcm = np.round(9000 * np.sin(2 * np.pi * sweep)).astype(np.int16)
    write_tracks(path, [video(75), AudioTrack(pcm=pcm, sample_rate=RATE, codec=codec)])
    whole = samples(clip_of(path).audio)
    for start, end in ((0.0, 1.1), (1.1, 1.9), (1.9, 2.5)):
        part = samples(clip_of(path, Span(start, end)).audio)
        assert len(part) == round((end - start) * RATE)
        there = whole[round(start * RATE) : round(end * RATE)]
        if exact:
            np.testing.assert_array_equal(part, there)
        else:  # a codec with overlapping blocks needs one to settle after a seek
            assert np.abs(part - there)[2048:].max() <= 1


def test_clips_of_one_pass_share_the_sound_without_loss_or_repeat(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    noise = np.random.default_rng(1).integers(-9000, 9000, 4 * RATE).astype(np.int16)
    frames = pictures(100, (64, 64), cuts=(30, 61))
    tracks = [
        VideoTrack(frames=frames, rate=Fraction(25)),
        AudioTrack(pcm=noise, sample_rate=RATE, codec="pcm_s16le"),
    ]
    write_tracks(path, tracks)
    clips = clips_of(path, split="scenes")
    assert len(clips) == 3
    np.testing.assert_array_equal(np.concatenate([samples(c.audio) for c in clips]), noise)


def test_a_video_without_sound_has_none(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", pictures(10), Fraction(25))
    assert clip_of(tmp_path / "a.mp4").audio is None


def test_sound_can_be_left_out_and_stored_as_wav(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", pictures(10), Fraction(25), audio=(tone(0.4), RATE))
    assert clip_of(tmp_path / "a.mp4", extract_audio=False).audio is None
    flac, wav = (clip_of(tmp_path / "a.mp4", audio_format=f).audio for f in ("flac", "wav"))
    assert (flac[:4], wav[:4]) == (b"fLaC", b"RIFF")
    np.testing.assert_array_equal(samples(flac), samples(wav))


def test_sound_shorter_than_the_picture_does_not_read_on_past_the_span(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_tracks(path, [video(50), AudioTrack(pcm=tone(0.3), sample_rate=RATE)])
    assert len(samples(clip_of(path, Span(0.0, 1.0)).audio)) == pytest.approx(0.3 * RATE, abs=400)
    assert clip_of(path, Span(1.0, 2.0)).audio is None


@pytest.mark.parametrize("start_s", [None, 0.5])
def test_hours_of_sound_behind_the_last_picture_are_not_held(
    tmp_path: Path, start_s: float | None
) -> None:
    path = tmp_path / "a.mp4"
    silence = AudioTrack(pcm=np.zeros(600 * RATE, np.int16), sample_rate=RATE)
    write_tracks(path, [video(50), silence])
    span = Span() if start_s is None else Span(start_s, 1.5)
    tracemalloc.start()
    clip = clip_of(path, span, clip_max_s=5.0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 5 << 20  # all of it would be 19 MB
    assert len(samples(clip.audio)) == RATE * (10 if start_s is None else 1)


def test_the_newest_sound_is_held_for_a_picture_that_comes_late(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    noise = np.random.default_rng(2).integers(-9000, 9000, 60 * RATE).astype(np.int16)
    times = [i / 25 for i in range(25)] + [58 + i / 25 for i in range(25)]
    picture = VideoTrack(frames=pictures(50, (64, 64)), rate=Fraction(25), pts=times)
    write_tracks(path, [picture, AudioTrack(pcm=noise, sample_rate=RATE, codec="pcm_s16le")])
    first, *_, last = clips_of(path, split="scenes", clip_max_s=1.0)
    np.testing.assert_array_equal(samples(first.audio), noise[: round(first.end_s * RATE)])
    np.testing.assert_array_equal(samples(last.audio), noise[round(last.start_s * RATE) :])
