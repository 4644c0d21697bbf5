"""The gated activation that PixelCNN and WaveNet share, and dropout that can be replayed."""

import torch
from torch import Tensor

from genmodels.noise import Noise


def gate(x: Tensor) -> Tensor:
    """x (B, 2 F, ...) -> (B, F, ...): tanh of the first half times sigmoid of the second (van den Oord et al., 2016, eq. 2)."""
    filtered, gated = x.chunk(2, dim=1)
    return torch.tanh(filtered) * torch.sigmoid(gated)


def drop(x: Tensor, rate: float, noise: Noise | None, tag: str) -> Tensor:
    """x (B, F, ...) with whole feature maps dropped at `rate` and the others scaled up; untouched without noise, which is how evaluation calls it."""
    if noise is None or rate == 0:
        return x
    keep = noise.uniform(tag, (x.shape[1],)) >= rate
    return x * (keep.to(x.dtype) / (1 - rate)).reshape(*keep.shape, *[1] * (x.ndim - 2))
