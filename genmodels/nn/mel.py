"""Log-mel features of a sound, derived from its levels: how loud each band of hearing is, frame by frame.

The mel scale is the common 2595 log10(1 + f / 700) (O'Shaughnessy, Speech communication, 1987). Amplitudes are those of genmodels.media, which this
layer may not import.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

QUIETEST = 1e-7
"""Power that counts as silence: 70 dB below the loudest."""


def amplitude(x: Tensor, levels: int, companding: str | None) -> Tensor:
    """x (...) levels -> (...) float64 in -1..1."""
    wave = x.to(torch.float64) * (2 / (levels - 1)) - 1
    return wave.sign() * torch.expm1(wave.abs() * math.log(256)) / 255 if companding == "mu-law" else wave


def frames(steps: int, hop: int) -> int:
    """How many frames of `hop` steps a sound has; the last one may be short."""
    return -(-steps // hop)


def log_mel(wave: Tensor, sample_rate: int, hop: int, mels: int) -> Tensor:
    """wave (B, T) in -1..1 -> (B, mels, frames) float32 in -1 (silence) to 1 (the loudest sine). Frame j is centred on steps j hop .. (j + 1) hop.

    Each frame sees the power of two steps that holds 3 hops, under a Hann window; there is silence around the sound.
    """
    window = torch.hann_window(1 << (3 * hop - 1).bit_length(), dtype=wave.dtype, device=wave.device)
    size, missing = len(window), frames(wave.shape[1], hop) * hop - wave.shape[1]
    around = size - hop
    padded = F.pad(wave, (around // 2, around - around // 2 + missing))
    spectrum = torch.stft(padded, size, hop, window=window / (window.sum() / 2), center=False, return_complex=True)
    power = filterbank(sample_rate, size, mels).to(wave) @ spectrum.abs().square()
    return (1 - 2 * torch.log(power.clamp(QUIETEST, 1)) / math.log(QUIETEST)).to(torch.float32)


def filterbank(sample_rate: int, size: int, mels: int) -> Tensor:
    """(mels, size / 2 + 1) float64: triangles over the bins of a spectrum, evenly spaced in mels from 0 to half the sample rate.

    A triangle narrower than the spacing of the bins is widened to it, so that none is empty.
    """
    spacing = sample_rate / size
    edges = 700 * (10 ** (torch.linspace(0, math.log10(1 + sample_rate / 1400), mels + 2, dtype=torch.float64)) - 1)
    middle = edges[1:-1, None]
    below, above = (middle - edges[:-2, None]).clamp(min=spacing), (edges[2:, None] - middle).clamp(min=spacing)
    bins = torch.arange(size // 2 + 1, dtype=torch.float64) * spacing
    return torch.minimum((bins - middle) / below + 1, (middle - bins) / above + 1).clamp(min=0)
