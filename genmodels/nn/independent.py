"""Likelihoods of pictures whose values are independent of each other given the parameters: Bernoulli over two levels, categorical over any."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.nn.scaling import wide
from genmodels.noise import categorical


@dataclass(frozen=True)
class Bernoulli:
    """p(x = 1) of every value: over two levels binary cross-entropy is -log p."""

    logits: Tensor
    """(B, C, H, W)."""

    @classmethod
    def of(cls, raw: Tensor) -> Self:
        """raw (B, C, H, W), as a network puts it out."""
        return cls(wide(raw))

    def log_prob(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) levels 0 and 1 -> (B, H, W) nats, all channels of a pixel together."""
        return -F.softplus(torch.where(x > 0, -self.logits, self.logits)).sum(1)

    def sample(self, u: Tensor) -> Tensor:
        """u (B, C + 1, H, W) uniforms in [0, 1), the first of which a mixture would take -> (B, C, H, W) uint8."""
        return (u[:, 1:] >= torch.sigmoid(-self.logits)).to(torch.uint8)

    def mode(self) -> Tensor:
        """(B, C, H, W) uint8: the most likely level of each value."""
        return (self.logits > 0).to(torch.uint8)


@dataclass(frozen=True)
class Categorical:
    """p(level) of every value: levels are names, and a level's neighbours know nothing of it."""

    logits: Tensor
    """(B, C, H, W, K)."""

    @classmethod
    def of(cls, raw: Tensor, *, channels: int) -> Self:
        """raw (B, C K, H, W), as a network puts it out."""
        batch, _, height, width = raw.shape
        return cls(wide(raw).reshape(batch, channels, -1, height, width).movedim(2, -1))

    def log_prob(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) levels -> (B, H, W) nats, all channels of a pixel together."""
        index = x.long()[..., None].expand(*self.logits.shape[:-1], 1)
        return torch.log_softmax(self.logits, dim=-1).gather(-1, index)[..., 0].sum(1)

    def sample(self, u: Tensor) -> Tensor:
        """u (B, C + 1, H, W) uniforms in [0, 1), the first of which a mixture would take -> (B, C, H, W) uint8."""
        return categorical(self.logits, u[:, 1:]).to(torch.uint8)

    def mode(self) -> Tensor:
        """(B, C, H, W) uint8: the most likely level of each value."""
        return self.logits.argmax(-1).to(torch.uint8)
