"""The output layers of pictures drawn in raster order: the channels of a pixel one after the other."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn.scaling import wide


class ChannelHeads(nn.ModuleList):
    """One head a channel: R from the features of its pixel, G given R, B given R and G. A head's last layer starts where nn.Conv2d does."""

    def __init__(self, features: int, hidden: int, channels: int, levels: int) -> None:
        super().__init__(nn.Sequential(nn.Conv2d(features + c, hidden, 1), nn.ELU(), nn.Conv2d(hidden, levels, 1)) for c in range(channels))

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """h (B, features, H, W), z (B, C, H, W) scaled levels -> (B, C, H, W, K) logits."""
        # Nothing is appended for R, and in autocast's width: torch.cat would copy h, and widen it.
        each = [self[c](torch.cat([h, z[:, :c].to(h.dtype)], dim=1) if c else h) for c in range(len(self))]
        return torch.stack([logits.movedim(1, -1) for logits in each], dim=1)

    def one(self, h: Tensor, earlier: Tensor) -> Tensor:
        """h (B, features, 1, 1), earlier (B, c) scaled levels of the channels before -> (B, K) logits of channel c."""
        return self[earlier.shape[1]](torch.cat([h, earlier[..., None, None]], dim=1))[..., 0, 0]

    def packed(self) -> "PackedHeads":
        layers = [(head[0], head[2]) for head in self]  # type: ignore[index]
        return PackedHeads(tuple((a.weight[..., 0, 0].T, a.bias, b.weight[..., 0, 0].T, b.bias) for a, b in layers))


@dataclass(frozen=True)
class PackedHeads:
    """ChannelHeads as plain matrices, for one pixel after the other."""

    heads: tuple[tuple[Tensor, Tensor, Tensor, Tensor], ...]
    """A channel's (features + c, hidden), (hidden,), (hidden, K), (K,)."""

    def one(self, h: Tensor, earlier: Tensor) -> Tensor:
        """h (B, features), earlier (B, c) scaled levels of the channels before -> (B, K) logits of channel c."""
        c = earlier.shape[1]
        enter, enter_bias, leave, leave_bias = self.heads[c]
        seen = torch.cat([h, earlier], dim=1) if c else h
        return torch.addmm(leave_bias, F.elu(torch.addmm(enter_bias, seen, enter)), leave)


def nats(logits: Tensor, x: Tensor) -> Tensor:
    """logits (..., K), x (...) levels -> (...) nats of those levels."""
    return -F.cross_entropy(wide(logits).flatten(0, -2), x.flatten().long(), reduction="none").reshape(x.shape)


def raster(step: int, channels: int, width: int) -> tuple[int, int, int]:
    """Row, column and channel of the value drawn at a step of Autoregressive's raster order."""
    pixel, channel = divmod(step, channels)
    return *divmod(pixel, width), channel
