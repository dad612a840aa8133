"""Files that can't be used end in one of our errors, quickly; damage that is small is counted."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_factory import clip_of, clips_of, pictures, tone

from spark_ray.core.errors import CorruptMedia, MediaError, MediaLimitExceeded, NotAVideo
from spark_ray.media.decode import DecodeOptions, Span, decode_clips
from spark_ray.media.encode import AudioTrack as SoundToWrite
from spark_ray.media.encode import write_tracks, write_video
from spark_ray.media.source import MediaLimits, open_source


def decode_bytes(data: bytes, **settings: object) -> list:
    options = DecodeOptions(**{"scene_detection": False, "smart_sampling": False, **settings})
    return list(decode_clips(io.BytesIO(data), Span(), options))


def video_bytes(path: Path, count: int = 50, **settings: object) -> bytes:
    write_video(path, pictures(count), Fraction(25), gop=5, **settings)
    return path.read_bytes()


def faststart(path: Path, source: Path) -> bytes:
    """The same packets with the index before them."""
    with (
        av.open(str(source)) as old,
        av.open(str(path), "w", container_options={"movflags": "+faststart"}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"This is not a video at all.\n" * 400,
        b"\x00" * 100_000,
        np.random.default_rng(0).bytes(100_000),
        b"%PDF-1.7\n" + b"x" * 5000,
        b"\x89PNG\r\n\x1a\n" + b"\x00" * 5000,
    ],
    ids=["empty", "one byte", "text", "zeros", "noise", "pdf", "png"],
)
def test_what_is_no_video_is_called_so(data: bytes) -> None:
    with pytest.raises(NotAVideo):
        decode_bytes(data)


def test_an_mp4_without_its_index_is_no_video(tmp_path: Path) -> None:
    data = video_bytes(tmp_path / "a.mp4")
    with pytest.raises(NotAVideo, match="cut off before its index"):
        decode_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("detection", [True, False], ids=["every frame", "sparse"])
def test_an_mp4_cut_in_the_middle_is_corrupt(tmp_path: Path, detection: bool) -> None:
    video_bytes(tmp_path / "a.mp4")
    data = faststart(tmp_path / "b.mp4", tmp_path / "a.mp4")
    assert len(decode_bytes(data)) == 1
    with pytest.raises(CorruptMedia):
        decode_bytes(data[: len(data) // 2], scene_detection=detection)


def test_a_matroska_file_cut_in_the_middle_is_corrupt(tmp_path: Path) -> None:
    data = video_bytes(tmp_path / "a.mkv")
    with pytest.raises(CorruptMedia, match=r"ends after \d\.\d s of the announced 2\.0 s"):
        decode_bytes(data[: len(data) // 2])


def test_a_cut_file_is_used_as_far_as_it_goes_when_the_settings_allow(tmp_path: Path) -> None:
    data = video_bytes(tmp_path / "a.mkv")
    (clip,) = decode_bytes(data[: len(data) * 2 // 3], max_corrupt_ratio=0.6)
    assert 0.8 < clip.end_s < 1.6


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_file_with_sound_alone_is_no_video(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write_tracks(path, [SoundToWrite(pcm=tone(0.5), sample_rate=16_000)])
    with pytest.raises(NotAVideo, match="no video stream"):
        decode_bytes(path.read_bytes())


@pytest.mark.parametrize("suffix", ["avi", "txt", ""])
def test_the_name_of_a_file_means_nothing(tmp_path: Path, suffix: str) -> None:
    data = video_bytes(tmp_path / "a.mp4", 10)
    other = tmp_path / f"b.{suffix}"
    other.write_bytes(data)
    assert len(clip_of(other, fps=25.0).frames) == 10


def test_rubbish_behind_a_video_is_ignored(tmp_path: Path) -> None:
    data = video_bytes(tmp_path / "a.mp4")
    (clip,) = decode_bytes(data + b"\x00" * 5000)
    assert clip.end_s == pytest.approx(2.0)


def spoil(path: Path, packets: range) -> bytes:
    """The file with the coded data of some video packets overwritten."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        found = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for number in packets:
        position, size = found[number]
        data[position + 5 : position + size] = b"\xff" * (size - 5)
    return bytes(data)


@pytest.mark.parametrize("detection", [True, False], ids=["every frame", "sparse"])
def test_a_little_damage_is_counted_and_forgiven(tmp_path: Path, detection: bool) -> None:
    video_bytes(tmp_path / "a.mp4", 100)
    data = spoil(tmp_path / "a.mp4", range(51, 53))
    (clip,) = decode_bytes(data, fps=25.0, scene_detection=detection)
    assert 1 <= clip.info.decode_errors <= 5
    assert len(clip.frames) >= 95 if detection else clip.frames
    assert clip.end_s == pytest.approx(4.0)


def test_much_damage_is_corrupt(tmp_path: Path) -> None:
    video_bytes(tmp_path / "a.mp4", 100)
    data = spoil(tmp_path / "a.mp4", range(20, 80))
    with pytest.raises(CorruptMedia, match=r"max_corrupt_ratio=0\.05"):
        decode_bytes(data, fps=25.0, scene_detection=True)


def test_damage_from_end_to_end_is_corrupt(tmp_path: Path) -> None:
    video_bytes(tmp_path / "a.mp4", 20)
    with pytest.raises(CorruptMedia):
        decode_bytes(spoil(tmp_path / "a.mp4", range(20)), max_corrupt_ratio=1.0)


def claim_size(data: bytes, width: int, height: int) -> bytes:
    """The MP4 with other dimensions in its sample entry."""
    at = data.index(b"avc1", data.index(b"stsd"))
    return data[: at + 28] + struct.pack(">HH", width, height) + data[at + 32 :]


def test_absurd_dimensions_end_in_an_error_of_ours(tmp_path: Path) -> None:
    data = video_bytes(tmp_path / "a.mp4", 10)
    for size in ((65_535, 65_535), (0, 0), (1, 65_535)):
        try:
            clips = decode_bytes(claim_size(data, *size))
        except MediaError:
            continue
        assert clips[0].frames  # the bitstream knows better


def test_a_picture_above_the_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", pictures(5, (320, 240)), Fraction(25))
    with pytest.raises(MediaLimitExceeded, match="max_pixels=76799"):
        clips_of(tmp_path / "a.mp4", max_pixels=320 * 240 - 1)
    assert clips_of(tmp_path / "a.mp4", max_pixels=320 * 240)


def test_a_frame_rate_above_the_limit_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", pictures(30), Fraction(120))
    with pytest.raises(MediaLimitExceeded, match=r"120 frames/s .* max_frame_rate=100"):
        clips_of(tmp_path / "a.mp4", max_frame_rate=100)
    assert clips_of(tmp_path / "a.mp4", max_frame_rate=120)


def test_a_playlist_that_names_another_file_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    video_bytes(secret, 10)
    (tmp_path / "secret.ts").write_bytes(video_bytes(tmp_path / "b.ts", 10))
    playlists = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\n{tmp_path}/secret.ts\n"
        "#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {secret}\n",
        "concat quoted": f"ffconcat version 1.0\nfile '{secret}'\nduration 1\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period>'
        f"<AdaptationSet><Representation><BaseURL>{secret}</BaseURL></Representation>"
        "</AdaptationSet></Period></MPD>",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    }
    for name, text in playlists.items():
        path = tmp_path / f"{name}.mp4"
        path.write_text(text)
        with (
            path.open("rb") as file,
            pytest.raises(NotAVideo),
            open_source(file, MediaLimits()),
        ):
            pass


def test_h264_with_b_frames_in_avi_never_goes_back_in_time(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_video(path, pictures(50), Fraction(25), options={"bf": "3"}, gop=12)
    for detection in (True, False):
        clip = clip_of(path, fps=5.0, scene_detection=detection)
        times = [s.time for s in clip.samples]
        assert times == sorted(set(times))
        assert len(times) == pytest.approx(10, abs=1)
        assert clip.end_s == pytest.approx(2.0, abs=0.2)
