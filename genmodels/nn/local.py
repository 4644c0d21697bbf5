"""Conditioning that depends on the place: Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016), sec. 2.3, h = m(c)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.core import Event
from genmodels.nn.scaling import scaled

DILATIONS = (1, 2, 4, 8)


class Context(nn.Module):
    """m(c): a convolutional network over the whole condition, at the condition's own resolution. Nothing is masked, since all of c is given.

    Dilated layers see 15 places to every side and more, so that the rim of a large hole is seen from its middle.
    """

    def __init__(self, event: Event, features: int) -> None:
        super().__init__()
        self.levels = event.levels
        inside = [d for d in DILATIONS if d < max(event.shape[1:])]
        self.first = nn.Conv2d(event.shape[0] + 1, features, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(features, features, 3, padding=d, dilation=d) for d in inside)

    def forward(self, c: Tensor) -> Tensor:
        """c (B, *condition.shape) levels or real values -> (B, features, h, w)."""
        dtype = self.first.weight.dtype
        h = self.first(with_ones(scaled(c, self.levels, dtype) if self.levels else c.to(dtype)))
        for layer in self.layers:
            h = h + layer(F.elu(h))
        return F.elu(h)


class LocalBias(nn.Module):
    """What each place of the context adds to a network, wherever that wants to know the condition. It has no parameters where there is none."""

    def __init__(self, context: int, features: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(context, features, 1, bias=False) if context else None

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """x (B, features, H, W), context (B, context, h, w) -> x with the place's vector added; untouched where there is no condition."""
        told = self.told(context, (x.shape[2], x.shape[3]))
        return x if told is None else x + told

    def told(self, context: Tensor | None, size: tuple[int, int]) -> Tensor | None:
        """(B, features, *size): all that is added, each place of the context repeated over the block of the picture that it covers."""
        if self.mix is None or context is None:
            return None
        mixed = self.mix(context)  # before it is repeated: the same products, fewer of them
        height, width = size[0] // mixed.shape[2], size[1] // mixed.shape[3]
        if height == width == 1:
            return mixed
        return mixed[:, :, :, None, :, None].expand(-1, -1, -1, height, -1, width).flatten(4).flatten(2, 3)


def heard(x: Tensor, told: Tensor | None, row: int, column: int | None = None) -> Tensor:
    """x (B, features, 1, W), or (B, features, 1, 1) where a column is given -> with what a LocalBias told of that row or place."""
    if told is None:
        return x
    return x + (told[:, :, row, None] if column is None else told[:, :, row, None, column, None])


def with_ones(z: Tensor) -> Tensor:
    """z (B, C, H, W) -> (B, C + 1, H, W): a channel of ones beside the picture's own, so that zeros there mean outside."""
    return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
