"""Likelihoods over levels: mixtures of discretised logistics, and the discretised Gaussian.

PixelCNN++ (Salimans, Karpathy, Chen, Kingma, 2017), arXiv:1701.05517, eq. 1 and 2. We count in levels, not in [-1, 1], so that the edges of
neighbouring bins are the same floating-point number and the masses telescope to one for any number of levels, any mean and any scale; and we take a
bin's mass as sigmoid(upper) * sigmoid(-lower) * (1 - exp(-width)), which is exact where the difference of two sigmoids cancels.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.nn.scaling import scaled, wide
from genmodels.noise import categorical


@dataclass(frozen=True)
class LogisticMixture:
    """p(x | ...) of one pixel's C channels: a mixture of M components, each a chain R, G given R, B given R and G of discretised logistics."""

    weights: Tensor
    """(B, M, H, W) logits of the components."""
    means: Tensor
    """(B, M, C, H, W) in [-1, 1] or anywhere."""
    log_scales: Tensor
    """(B, M, C, H, W), of the same unit."""
    coefficients: Tensor
    """(B, M, C (C - 1) / 2, H, W): how far earlier channels move a mean: R to G, R to B, G to B. Zeros: independent channels of one component."""
    levels: int

    @staticmethod
    def parameters(components: int, channels: int) -> int:
        """How many numbers a pixel needs."""
        return components * (1 + 2 * channels + channels * (channels - 1) // 2)

    @classmethod
    def of(cls, raw: Tensor, *, channels: int, levels: int) -> Self:
        """raw (B, parameters, H, W), as a network puts it out. Scales stay between a hundredth of a level and the whole range."""
        batch, _, height, width = raw.shape
        pairs = channels * (channels - 1) // 2
        parts = wide(raw).reshape(batch, -1, 1 + 2 * channels + pairs, height, width)
        weights, means, scales, coefficients = parts.split([1, channels, channels, pairs], dim=2)
        narrowest = math.log(0.02 / (levels - 1))
        return cls(weights[:, :, 0], means, (scales - 2).clamp(min=narrowest, max=2.0), torch.tanh(coefficients), levels)

    def log_prob(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) levels -> (B, H, W) nats, all channels of a pixel together."""
        each = [self._component(x, c) for c in range(x.shape[1])]
        return torch.logsumexp(torch.log_softmax(self.weights, dim=1) + torch.stack(each).sum(0), dim=1)

    def conditionals(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) levels -> (B, C, H, W) nats of each channel given those before it in its pixel; they add up to log_prob."""
        weights, each = torch.log_softmax(self.weights, dim=1), []
        for c in range(x.shape[1]):
            joint = weights + self._component(x, c)
            each.append(torch.logsumexp(joint, dim=1))
            weights = joint - each[-1][:, None]
        return torch.stack(each, dim=1)

    def logits(self, x: Tensor, c: int) -> Tensor:
        """x (B, C, H, W) levels, of which the channels before c are read -> (B, K, H, W) nats of every level of channel c given those."""
        weights = torch.log_softmax(self.weights, dim=1)
        for earlier in range(c):
            weights = torch.log_softmax(weights + self._component(x, earlier), dim=1)
        mean, scale = self._in_levels(x, c)
        every = torch.arange(self.levels, device=mean.device, dtype=mean.dtype)[:, None, None]
        return torch.logsumexp(weights[:, :, None] + discretised_logistic(every, mean[:, :, None], scale[:, :, None], self.levels), dim=1)

    def sample(self, u: Tensor) -> Tensor:
        """u (B, C + 1, H, W) uniforms in [0, 1) -> (B, C, H, W) uint8 (int64 above 256 levels): the component, then its channels in order."""
        chosen = categorical(self.weights.movedim(1, -1), u[:, 0])[:, None]  # (B, 1, H, W)
        drawn = torch.zeros_like(u[:, 1:], dtype=torch.int64)
        for c in range(u.shape[1] - 1):
            mean, scale = (value.gather(1, chosen)[:, 0] for value in self._in_levels(drawn, c))
            # The uniform is moved to the middle of its cell, so that its logit is finite; beyond the ends lies the mass of the end levels.
            middle = u[:, c + 1].to(mean.dtype) + 2.0**-25
            drawn[:, c] = (mean + scale * torch.logit(middle)).round().clamp(0, self.levels - 1).long()
        return drawn.to(torch.uint8) if self.levels <= 256 else drawn

    def mode(self) -> Tensor:
        """(B, C, H, W): each channel's most likely level, given the levels chosen for the channels before it."""
        batch, _, channels, height, width = self.means.shape
        x = torch.zeros(batch, channels, height, width, dtype=torch.int64, device=self.means.device)
        score = torch.log_softmax(self.weights, dim=1)
        for c in range(channels):
            best, most = x[:, c].clone(), torch.full_like(self.means[:, 0, 0], -math.inf)
            for level in range(self.levels):
                x[:, c] = level
                mass = torch.logsumexp(score + self._component(x, c), dim=1)
                best, most = torch.where(mass > most, level, best), torch.maximum(mass, most)
            x[:, c] = best
            score = score + self._component(x, c)
        return x.to(torch.uint8) if self.levels <= 256 else x

    def _in_levels(self, x: Tensor, c: int) -> tuple[Tensor, Tensor]:
        """(B, M, H, W) mean and scale of channel c given the channels before it, counted in levels."""
        mean, first = self.means[:, :, c], c * (c - 1) // 2
        for earlier in range(c):
            mean = mean + self.coefficients[:, :, first + earlier] * scaled(x[:, earlier], self.levels, mean.dtype)[:, None]
        unit = (self.levels - 1) / 2
        return (mean + 1) * unit, torch.exp(self.log_scales[:, :, c]) * unit

    def _component(self, x: Tensor, c: int) -> Tensor:
        """(B, M, H, W) nats of channel c under each component."""
        mean, scale = self._in_levels(x, c)
        return discretised_logistic(x[:, c][:, None].to(mean.dtype), mean, scale, self.levels)


def discretised_logistic(level: Tensor, mean: Tensor, scale: Tensor, levels: int) -> Tensor:
    """level, mean, scale broadcast together, in levels -> nats: the logistic's mass within half a level; the end levels take the tails."""
    upper, lower = (level + 0.5 - mean) / scale, (level - 0.5 - mean) / scale
    below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
    inside = below + above + torch.log(-torch.expm1(-1 / scale))
    return torch.where(level <= 0, below, torch.where(level >= levels - 1, above, inside))


def discretised_gaussian(level: Tensor, mean: Tensor, scale: Tensor, levels: int) -> Tensor:
    """level, mean, scale broadcast together, float64, in levels -> nats of a Gaussian's mass within half a level; the end levels take the tails."""
    lower = (torch.where(level <= 0, -math.inf, level - 0.5) - mean) / scale
    upper = (torch.where(level >= levels - 1, math.inf, level + 0.5) - mean) / scale
    near, far = torch.maximum(lower, -upper), torch.maximum(upper, -lower)  # counted in the nearer tail, so that nothing cancels
    mass = (torch.erfc(near * 0.5**0.5) - torch.erfc(far * 0.5**0.5)) / 2
    nats, deep = mass.log(), mass < 1e-280  # float64 ends a little further down
    if bool(deep.any()):
        above, below = torch.special.log_ndtr(-near[deep]), torch.special.log_ndtr(-far[deep])
        nats[deep] = above + torch.log(-torch.expm1(below - above))
    return nats
