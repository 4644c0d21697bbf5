"""The networks of a GAN's two players, for pictures and for tables. Neither mixes the rows of a batch, and no critic normalises its activations."""

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.core import Event
from genmodels.models.spectral import SpectralConv2d, SpectralLinear, normalised
from genmodels.nn.conditioning import ClassBias
from genmodels.nn.residual import Up, sizes, widths


class PictureGenerator(nn.Module):
    """z (B, latent), y (B,) int64 or None -> (B, C, H, W) in [-1, 1]."""

    def __init__(self, event: Event, *, latent: int, embedding: int, hidden: int, blocks: int) -> None:
        super().__init__()
        channels, height, width = event.shape
        self.embedding = embedding if event.classes else 0
        self.label = ClassBias(event.classes, self.embedding, scale=1.0)
        self.up = Up(latent + self.embedding, (height, width), hidden, blocks, channels, classes=0)

    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        return torch.tanh(self.up(torch.cat([z, self.label(z.new_zeros(len(z), self.embedding), y)], dim=1), None))


def _spread(layers: Iterable[nn.Module]) -> None:
    """First weights that keep the variance from layer to layer (He et al., 2015)."""
    for layer in layers:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        nn.init.kaiming_normal_(layer.weight, 0.2)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class TableGenerator(nn.Module):
    """z (B, latent), y (B,) int64 or None -> (B, D): in [-1, 1] for levels, any number for real values. blocks: hidden layers but the first."""

    def __init__(self, event: Event, *, latent: int, embedding: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.embedding, self.bounded = embedding if event.classes else 0, event.levels > 0
        self.label = ClassBias(event.classes, self.embedding, scale=1.0)
        wide = [latent + self.embedding] + [hidden] * (blocks + 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(wide))
        self.leave = nn.Linear(hidden, event.dims)
        _spread([*self.layers, self.leave])

    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        h = torch.cat([z, self.label(z.new_zeros(len(z), self.embedding), y)], dim=1)
        for layer in self.layers:
            h = F.elu(layer(h))
        return torch.tanh(self.leave(h)) if self.bounded else self.leave(h)


class Projection(nn.Module):
    """h (B, features), y (B,) int64 or None -> (B,): the label's vector times h; 0 for a row without a label (y = -1).

    cGANs with Projection Discriminator (Miyato, Koyama, 2018), arXiv:1802.05637: the first term of eq. 4.
    """

    def __init__(self, classes: int, features: int, *, spectral: bool) -> None:
        super().__init__()
        self.spectral = spectral
        self.weight = nn.Parameter(torch.randn(classes, features) / features**0.5)

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        if y is None:
            return h.new_zeros(len(h))
        weight = normalised(self.weight) if self.spectral else self.weight
        return (weight[y.clamp(min=0)] * h).sum(1) * (y >= 0)


class PictureCritic(nn.Module):
    """x (B, C, H, W) in [-1, 1], y (B,) int64 or None -> (B,): the logit of being real, or the Wasserstein critic's value."""

    def __init__(self, event: Event, *, embedding: int, hidden: int, spectral: bool, projects: bool) -> None:
        super().__init__()
        channels, height, width = event.shape
        convolution, linear = (SpectralConv2d, SpectralLinear) if spectral else (nn.Conv2d, nn.Linear)
        steps = sizes(height, width)
        wide = widths(hidden, len(steps))
        features = wide[-1] * steps[-1][0] * steps[-1][1]
        self.embedding = embedding if event.classes and not projects else 0
        self.label = ClassBias(event.classes if self.embedding else 0, self.embedding, scale=1.0)
        self.enter = convolution(channels + self.embedding, hidden, 3, padding=1)
        self.halve = nn.ModuleList(convolution(a, b, 3, stride=2, padding=1) for a, b in pairwise(wide))
        self.mix = convolution(wide[-1], wide[-1], 3, padding=1)
        self.leave = linear(features, 1)
        self.project = Projection(event.classes, features, spectral=spectral) if projects else None
        _spread([self.enter, *self.halve, self.mix])

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        label = self.label(x.new_zeros(len(x), self.embedding, *x.shape[2:]), y)
        h = F.leaky_relu(self.enter(torch.cat([x, label], dim=1)), 0.2)
        for halve in self.halve:
            h = F.leaky_relu(halve(h), 0.2)
        h = F.leaky_relu(self.mix(h), 0.2).flatten(1)
        value = self.leave(h)[:, 0]
        return value if self.project is None else value + self.project(h, y)


class TableCritic(nn.Module):
    """x (B, D), y (B,) int64 or None -> (B,), as PictureCritic. blocks: hidden layers but the first."""

    def __init__(self, event: Event, *, embedding: int, hidden: int, blocks: int, spectral: bool, projects: bool) -> None:
        super().__init__()
        linear = SpectralLinear if spectral else nn.Linear
        self.embedding = embedding if event.classes and not projects else 0
        self.label = ClassBias(event.classes if self.embedding else 0, self.embedding, scale=1.0)
        wide = [event.dims + self.embedding] + [hidden] * (blocks + 1)
        self.layers = nn.ModuleList(linear(a, b) for a, b in pairwise(wide))
        self.leave = linear(hidden, 1)
        self.project = Projection(event.classes, hidden, spectral=spectral) if projects else None
        _spread(self.layers)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = torch.cat([x, self.label(x.new_zeros(len(x), self.embedding), y)], dim=1)
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.2)
        value = self.leave(h)[:, 0]
        return value if self.project is None else value + self.project(h, y)
