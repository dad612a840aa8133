"""What can happen in the closed world of synthetic clips, and how likely it is.

There are 96 captions for one scene (6 colours x 4 shapes x 4 motions), 7,680 for two scenes in
order (of unlike colour), and 336 narrations. What is said has nothing to do with what is seen.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np

from spark_ray.core.schema import Record
from spark_ray.media.drawing import COLOURS, MOTIONS, SHAPES, SceneSpec
from spark_ray.media.speech import VOICES

Sidecar = Literal["txt", "json", "caption.srt", "caption.vtt"]

SIZES = ((256, 256), (320, 240), (480, 270), (640, 360))
RATES = (Fraction(12), Fraction(24), Fraction(25), Fraction(30_000, 1001), Fraction(30))
COMMON_ENCODING = ("libx264", "mp4")
# Every fourth clip takes the next of these, so that 32 clips hold all of them.
RARE_ENCODINGS = (
    ("libx265", "mp4"),
    ("libvpx-vp9", "webm"),
    ("libsvtav1", "mkv"),
    ("mpeg4", "avi"),
    ("libx264", "ts"),
    ("libx264", "mov"),
    ("libx265", "mkv"),
    ("libx264", "mkv"),
)

# Room for the longest narration in the slowest voice, and a margin.
_SHORTEST_S, _LONGEST_S = 2.8, 3.4

_NARRATIONS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        ("the weather today is",),
        ("sunny", "rainy", "cloudy", "windy"),
        ("and",),
        ("warm", "cold", "mild", "dry"),
    ),
    (
        ("the",),
        ("train", "bus", "ferry", "tram"),
        ("to",),
        ("london", "paris", "oslo", "vienna"),
        ("leaves at",),
        ("six", "seven", "nine", "noon"),
    ),
    (
        ("my friend", "our teacher", "the baker", "the doctor"),
        ("bought", "lost", "found", "painted"),
        ("a",),
        ("small", "new", "wooden", "heavy"),
        ("boat", "lamp", "table", "basket"),
    ),
)

_Choice = TypeVar("_Choice")


class ClipSpec(Record):
    """All that decides a clip's pixels, sound and container.

    `rate` is frames a second; with `variable_rate` a quarter of its frames are left out. A clip
    without `narration` has no audio stream. `embedded_subtitles` carry the narration.
    """

    seed: int
    width: int
    height: int
    rate: Fraction
    variable_rate: bool = False
    codec: str = "libx264"
    container: str = "mp4"
    scenes: list[SceneSpec]
    distractors: int = 0
    noise: float = 0.0
    narration: str | None = None
    voice: str = VOICES[0]
    speech_rate_wpm: int = 170
    pitch: int = 50
    embedded_subtitles: bool = False
    sidecar: Sidecar = "txt"

    @property
    def duration_s(self) -> float:
        return self.scenes[-1].end_s

    @property
    def caption(self) -> str:
        """Every scene in order: "a red circle moves left, then a blue square grows"."""
        return " ".join(self.phrases)

    @property
    def phrases(self) -> list[str]:
        """What each scene adds to the caption."""
        first, *others = (scene.caption for scene in self.scenes)
        texts = [first, *(f"then {text}" for text in others)]
        return [f"{text}," for text in texts[:-1]] + texts[-1:]

    @property
    def cuts_s(self) -> list[float]:
        """Seconds of the first frame after each hard cut."""
        return [scene.start_s for scene in self.scenes[1:]]

    @property
    def label(self) -> str:
        return self.scenes[0].colour


def sample_spec(seed: int, index: int) -> ClipSpec:
    """The clip number `index` (from 0) of the world `seed`.

    Three in four are small H.264 in MP4. About one in three has two scenes, one in ten is silent,
    and of those of H.264 in MP4 or Matroska one in eight has a variable rate. Nine in ten of those
    that speak have their words as subtitles too, where the container can hold them.
    """
    rng = np.random.default_rng([seed, index])
    rare = index % 4 == 3
    codec, container = RARE_ENCODINGS[index // 4 % len(RARE_ENCODINGS)] if rare else COMMON_ENCODING
    width, height = _pick(rng, SIZES[:2] if rare else SIZES, (4, 4, 1, 1))
    rate = _pick(rng, RATES, (10, 1, 1, 1, 1))
    silent = rng.random() < 0.1
    free_timing = codec == "libx264" and container in {"mp4", "mkv"}
    subtitles = container in {"mp4", "mov", "mkv"}
    return ClipSpec(
        seed=int(rng.integers(2**31)),
        width=width,
        height=height,
        rate=rate,
        variable_rate=bool(free_timing and rng.random() < 0.125),
        codec=codec,
        container=container,
        scenes=_sample_scenes(rng, rate),
        distractors=int(rng.integers(5)),
        noise=_pick(rng, (0.0, 2.0), (3, 1)),
        narration=None if silent else _sample_narration(rng),
        voice=_pick(rng, VOICES),
        speech_rate_wpm=int(rng.integers(165, 191)),
        pitch=int(rng.integers(35, 66)),
        embedded_subtitles=bool(subtitles and not silent and rng.random() < 0.9),
        sidecar=_pick(rng, ("txt", "json", "caption.srt", "caption.vtt"), (8, 2, 1, 1)),
    )


def _sample_scenes(rng: np.random.Generator, rate: Fraction) -> list[SceneSpec]:
    """One scene, or two about equally long; both end on a frame's edge."""
    frames = round(rng.uniform(_SHORTEST_S, _LONGEST_S) * rate)
    edges = [0, frames]
    if rng.random() < 1 / 3:
        edges.insert(1, round(frames * rng.uniform(0.46, 0.54)))
    colours = rng.permutation(len(COLOURS))
    return [
        SceneSpec(
            colour=COLOURS[colours[number]],
            shape=_pick(rng, SHAPES),
            motion=_pick(rng, MOTIONS),
            start_s=float(start / rate),
            end_s=float(end / rate),
        )
        for number, (start, end) in enumerate(pairwise(edges))
    ]


def _sample_narration(rng: np.random.Generator) -> str:
    """A sentence, every one as likely as any other."""
    sizes = [float(np.prod([len(slot) for slot in form])) for form in _NARRATIONS]
    form = _NARRATIONS[rng.choice(len(sizes), p=np.array(sizes) / sum(sizes))]
    return " ".join(_pick(rng, slot) for slot in form)


def _pick(
    rng: np.random.Generator, choices: Sequence[_Choice], weights: Sequence[float] | None = None
) -> _Choice:
    if weights is None:
        return choices[int(rng.integers(len(choices)))]
    odds = np.array(weights[: len(choices)], float)
    return choices[int(rng.choice(len(choices), p=odds / odds.sum()))]


def frame_times(spec: ClipSpec) -> list[float]:
    """Seconds at which the clip's frames are shown.

    A variable rate leaves out frames as a phone in dim light does, but never the first of a scene.
    """
    count = round(spec.duration_s * spec.rate)
    times = [float(number / spec.rate) for number in range(count)]
    if not spec.variable_rate:
        return times
    kept = np.random.default_rng([spec.seed, count]).random(count) > 0.25
    starts = {round(scene.start_s * spec.rate) for scene in spec.scenes}
    # The last frame stays too: a container knows the duration from nothing else.
    return [
        time
        for number, time in enumerate(times)
        if kept[number] or number in starts or number == count - 1
    ]
