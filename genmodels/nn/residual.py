"""Convolutional towers that halve or double a picture of any size. Group norm throughout: batch norm would leak between images and between ranks."""

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn.conditioning import ClassBias


def sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes of a picture halved (rounding up) until its smaller side would fall below 4: 28x28 -> [(28, 28), (14, 14), (7, 7), (4, 4)]."""
    steps = [(height, width)]
    while min(steps[-1]) > 4:
        steps.append((-(-steps[-1][0] // 2), -(-steps[-1][1] // 2)))
    return steps


def widths(hidden: int, count: int) -> list[int]:
    """Feature maps of each size, the largest first: twice as many after a halving, four times from the second on."""
    return [hidden * min(4, 2**i) for i in range(count)]


def norm(features: int) -> nn.GroupNorm:
    """Group norm with about eight features a group."""
    groups = max(g for g in range(1, max(1, features // 8) + 1) if features % g == 0)
    return nn.GroupNorm(groups, features)


class Residual(nn.Module):
    """x (B, F, H, W) -> (B, F, H, W): two normalised convolutions beside the identity, a class bias between them."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.before, self.between = norm(features), norm(features)
        self.first, self.second = nn.Conv2d(features, features, 3, padding=1), nn.Conv2d(features, features, 3, padding=1)
        self.label = ClassBias(classes, features)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        out = self.label(self.first(F.elu(self.before(x))), y)
        return x + self.second(F.elu(self.between(out)))


class Down(nn.Module):
    """x (B, C, H, W) -> (B, out): residual blocks and halvings, then one linear map."""

    def __init__(self, channels: int, size: tuple[int, int], hidden: int, blocks: int, out: int, classes: int) -> None:
        super().__init__()
        steps = sizes(*size)
        wide = widths(hidden, len(steps))
        self.enter = nn.Conv2d(channels, hidden, 3, padding=1)
        self.blocks = nn.ModuleList(nn.ModuleList(Residual(features, classes) for _ in range(blocks)) for features in wide)
        self.halve = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(wide))
        self.leave = nn.Linear(wide[-1] * steps[-1][0] * steps[-1][1], out)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = self.enter(x)
        for i, blocks in enumerate(self.blocks):
            h = self.halve[i - 1](h) if i else h
            for block in blocks:  # type: ignore[union-attr]
                h = block(h, y)
        return self.leave(F.elu(h).flatten(1))


class Up(nn.Module):
    """z (B, features) -> (B, out, H, W): one linear map, then residual blocks and doublings to the exact size."""

    def __init__(self, features: int, size: tuple[int, int], hidden: int, blocks: int, out: int, classes: int) -> None:
        super().__init__()
        self.sizes = sizes(*size)[::-1]
        wide = widths(hidden, len(self.sizes))[::-1]
        self.start = (wide[0], *self.sizes[0])
        self.enter = nn.Linear(features, math.prod(self.start))
        self.blocks = nn.ModuleList(nn.ModuleList(Residual(maps, classes) for _ in range(blocks)) for maps in wide)
        self.grow = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(wide))
        self.last = norm(hidden)
        self.leave = nn.Conv2d(hidden, out, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        h = self.enter(z).reshape(len(z), *self.start)
        for i, blocks in enumerate(self.blocks):
            h = F.interpolate(self.grow[i - 1](h), size=self.sizes[i], mode="nearest") if i else h
            for block in blocks:  # type: ignore[union-attr]
                h = block(h, y)
        return self.leave(F.elu(self.last(h)))
