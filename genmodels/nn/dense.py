"""Fully connected nets of tanh units, as the literature of latent variables has them."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from genmodels.nn.conditioning import ClassBias


class Dense(nn.Module):
    """x (B, ...) -> (B, *shape): layers of tanh units, each with a class bias, then one linear map.

    First weights: Understanding the difficulty of training deep feedforward neural networks (Glorot, Bengio, 2010).
    """

    def __init__(self, features: int, *, hidden: int, layers: int, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([features, *[hidden] * layers]))
        self.labels = nn.ModuleList(ClassBias(classes, hidden) for _ in range(layers))
        self.leave = nn.Linear(hidden if layers else features, math.prod(self.shape))
        for layer in (*self.hidden, self.leave):
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = x.flatten(1)
        for layer, label in zip(self.hidden, self.labels, strict=True):
            h = torch.tanh(label(layer(h), y))
        return self.leave(h).reshape(len(x), *self.shape)
