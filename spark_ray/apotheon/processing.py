"""From frames, sound and texts to the tensors of `ApotheonModel`, and from token ids to text.

Two steps, so that CPU workers can do the costly one ahead of time and send small arrays: `prepare`
makes one clip ready (8-bit pixels, mel frames, token ids), `collate` makes a batch of such clips.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from spark_ray.apotheon.losses import IGNORED

AUDIO_RATE_HZ = 16_000


@dataclass
class PreparedClip:
    """A clip as arrays; a modality or text that it lacks has length 0.

    `pixels` `[F, S, S, 3]` uint8 RGB, `frame_times` `[F]` seconds, `mel` `[W, bins, mel frames]`
    float16, `audio_frames` `[W]` mel frames of sound, `texts` token ids, a list for each task.
    """

    pixels: np.ndarray
    frame_times: np.ndarray
    mel: np.ndarray
    audio_frames: np.ndarray
    texts: list[list[int]]


class ApotheonProcessor(ProcessorMixin):
    """Prepares clips for Apotheon and decodes what it writes.

    Args:
        feature_extractor: a `WhisperFeatureExtractor`; its chunk is one window of audio.
        tokenizer: the text model's, with a start and an end token.
        image_size: pixels of a side; frames are scaled so that the shorter side fits, and cropped.
        image_mean, image_std: by channel, of pixels in 0 to 1; CLIP's own by default.
        max_frames: of a clip; of more, that many are taken at even distances.
        max_windows: of audio; what comes later is not heard.
        max_text_tokens: longer texts are cut.
    """

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        image_size: int = 224,
        image_mean: Sequence[float] = tuple(OPENAI_CLIP_MEAN),
        image_std: Sequence[float] = tuple(OPENAI_CLIP_STD),
        max_frames: int = 32,
        max_windows: int = 4,
        max_text_tokens: int = 256,
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.max_frames = max_frames
        self.max_windows = max_windows
        self.max_text_tokens = max_text_tokens
        super().__init__(feature_extractor, tokenizer, **kwargs)

    model_input_names: ClassVar = [
        "input_ids",
        "text_mask",
        "labels",
        "pixel_values",
        "frame_times",
        "frame_mask",
        "input_features",
        "audio_frames",
    ]

    def __call__(
        self,
        frames: Sequence[Sequence[np.ndarray]] | None = None,
        frame_times: Sequence[Sequence[float]] | None = None,
        audio: Sequence[np.ndarray | None] | None = None,
        captions: Sequence[str | None] | None = None,
        transcripts: Sequence[str | None] | None = None,
    ) -> BatchFeature:
        """A batch of clips, each argument with one entry for each.

        Args:
            frames: RGB images, `[height, width, 3]` uint8 each.
            frame_times: seconds of the frames from the clip's start; one second apart if not given.
            audio: mono samples at 16 kHz, `[samples]` float in -1 to 1.
            captions, transcripts: texts to score or to learn.

        Raises:
            ValueError: nothing was given, or not equally many of everything.
        """
        given = [a for a in (frames, frame_times, audio, captions, transcripts) if a is not None]
        if not given:
            raise ValueError("give frames, audio, captions or transcripts; nothing was given")
        count = len(given[0])
        if any(len(argument) != count for argument in given):
            raise ValueError(f"every argument needs one entry a clip, not {list(map(len, given))}")
        clips = []
        for number in range(count):
            pictures = frames[number] if frames is not None else []
            times = frame_times[number] if frame_times is not None else range(len(pictures))
            clips.append(
                self.prepare(
                    pictures,
                    [float(time) for time in times],
                    audio[number] if audio is not None else None,
                    captions[number] if captions is not None else None,
                    transcripts[number] if transcripts is not None else None,
                )
            )
        return self.normalise(self.collate(clips))

    def prepare(
        self,
        frames: Sequence[np.ndarray],
        frame_times: Sequence[float],
        audio: np.ndarray | None = None,
        caption: str | None = None,
        transcript: str | None = None,
    ) -> PreparedClip:
        """Scale the pictures, take the sound's mel spectrogram, tokenize the texts."""
        if len(frames) != len(frame_times):
            raise ValueError(f"{len(frames)} frames have {len(frame_times)} times")
        chosen = even_choice(len(frames), self.max_frames)
        size = self.image_size
        pixels = [fit_square(frames[number], size) for number in chosen]
        mel, audio_frames = self._mel_windows(audio)
        return PreparedClip(
            pixels=np.stack(pixels) if pixels else np.zeros((0, size, size, 3), np.uint8),
            frame_times=np.array([frame_times[number] for number in chosen], np.float32),
            mel=mel,
            audio_frames=audio_frames,
            texts=[self.tokenize(text) for text in (caption, transcript)],
        )

    def _mel_windows(self, audio: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        extractor = self.feature_extractor
        window = extractor.n_samples
        if audio is None or len(audio) == 0:
            shape = (0, extractor.feature_size, extractor.nb_max_frames)
            return np.zeros(shape, np.float16), np.zeros(0, np.int64)
        starts = range(0, min(len(audio), window * self.max_windows), window)
        pieces = [audio[start : start + window] for start in starts]
        mel = extractor(pieces, sampling_rate=AUDIO_RATE_HZ, return_tensors="np").input_features
        heard = [-(-len(piece) // extractor.hop_length) for piece in pieces]
        return mel.astype(np.float16), np.array(heard, np.int64)

    def tokenize(self, text: str | None) -> list[int]:
        """Start, tokens, end; nothing at all where there is no text."""
        if text is None or not text.strip():
            return []
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return [start, *self._tokens(text)[: self.max_text_tokens - 2], end]

    def count_tokens(self, text: str) -> int:
        """Of a whole text with its start and end, which may be more than `tokenize` keeps."""
        return len(self._tokens(text)) + 2

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return tokens

    def collate(self, clips: Sequence[PreparedClip], always: Collection[str] = ()) -> BatchFeature:
        """A batch in small types, 8-bit pixels and 16-bit mel; `normalise` makes it the model's.

        What no clip has is left out, unless it is among `always`: "frames", "audio", "texts". Ranks
        that train together need the same inputs, or they wait for each other's gradients for ever.
        """
        data: dict[str, torch.Tensor] = {}
        if "frames" in always or any(len(clip.pixels) for clip in clips):
            data |= self._collate_frames(clips)
        if "audio" in always or any(len(clip.mel) for clip in clips):
            data |= self._collate_audio(clips)
        if "texts" in always or any(any(clip.texts) for clip in clips):
            data |= self._collate_texts(clips)
        return BatchFeature(data)

    def normalise(self, batch: BatchFeature) -> BatchFeature:
        """The arguments of `ApotheonModel.forward` from a collated batch, on whatever device."""
        data = dict(batch)
        if "pixel_values" in data:
            pixels = data["pixel_values"]
            mean, std = (
                torch.tensor(values, device=pixels.device).view(3, 1, 1) * 255
                for values in (self.image_mean, self.image_std)
            )
            data["pixel_values"] = (pixels.float() - mean) / std
        if "input_features" in data:
            data["input_features"] = data["input_features"].float()
        return BatchFeature(data)

    def _collate_frames(self, clips: Sequence[PreparedClip]) -> dict[str, torch.Tensor]:
        counts = [len(clip.pixels) for clip in clips]
        size = self.image_size
        pixels = np.zeros((len(clips), max(1, *counts), 3, size, size), np.uint8)
        times = np.zeros(pixels.shape[:2], np.float32)
        for row, clip in enumerate(clips):
            pixels[row, : counts[row]] = clip.pixels.transpose(0, 3, 1, 2)
            times[row, : counts[row]] = clip.frame_times
        return {
            "pixel_values": torch.from_numpy(pixels),
            "frame_times": torch.from_numpy(times),
            "frame_mask": torch.arange(pixels.shape[1]) < torch.tensor(counts)[:, None],
        }

    def _collate_audio(self, clips: Sequence[PreparedClip]) -> dict[str, torch.Tensor]:
        counts = [len(clip.mel) for clip in clips]
        shape = (len(clips), max(1, *counts), *clips[0].mel.shape[1:])
        mel = torch.zeros(shape, dtype=torch.float16)
        frames = torch.zeros(shape[:2], dtype=torch.long)
        for row, clip in enumerate(clips):
            mel[row, : counts[row]] = torch.from_numpy(clip.mel)
            frames[row, : counts[row]] = torch.from_numpy(clip.audio_frames)
        return {"input_features": mel, "audio_frames": frames}

    def _collate_texts(self, clips: Sequence[PreparedClip]) -> dict[str, torch.Tensor]:
        length = max(1, *(len(text) for clip in clips for text in clip.texts))
        shape = (len(clips), len(clips[0].texts), length)
        input_ids = torch.full(shape, self.tokenizer.pad_token_id)
        mask = torch.zeros(shape, dtype=torch.bool)
        for row, clip in enumerate(clips):
            for task, text in enumerate(clip.texts):
                input_ids[row, task, : len(text)] = torch.tensor(text, dtype=torch.long)
                mask[row, task, : len(text)] = True
        labels = input_ids.masked_fill(~mask, IGNORED)
        return {"input_ids": input_ids, "text_mask": mask, "labels": labels}

    def decode_texts(self, tokens: torch.Tensor) -> list[str]:
        """What `generate` wrote, without start, end and padding."""
        return [
            text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        ]


def even_choice(available: int, wanted: int) -> list[int]:
    """`wanted` of `available` positions, as evenly spread as can be; the ends are among them."""
    if available <= wanted:
        return list(range(available))
    if wanted == 1:
        return [available // 2]
    return [round(number * (available - 1) / (wanted - 1)) for number in range(wanted)]


def fit_square(image: np.ndarray, size: int) -> np.ndarray:
    """Scale the shorter side to `size` and cut out the middle: `[size, size, 3]`."""
    # Imported here: the model is trained on ready pixels where there is no OpenCV.
    import cv2

    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    scale = size / min(height, width)
    shrinks = scale < 1
    target = max(size, round(width * scale)), max(size, round(height * scale))
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    scaled = cv2.resize(image, target, interpolation=method)
    top, left = (scaled.shape[0] - size) // 2, (scaled.shape[1] - size) // 2
    return scaled[top : top + size, left : left + size]
