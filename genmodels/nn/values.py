"""Levels as numbers, for families that read and predict each value of an event by a short vector.

Two levels: one sign to read, one logit to predict. Up to 16: indicators and a softmax, which know nothing of an order of the levels. More: a position
on a line and a mixture of discretised logistics (nn/likelihood.py), whose size does not grow with the levels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.nn.likelihood import discretised_logistic
from genmodels.nn.scaling import scaled, wide
from genmodels.noise import categorical

SOFTMAX = 16
"""The most levels that are told apart one by one."""
ROWS = 16
"""Examples whose every level is looked at together."""


def input_features(levels: int) -> int:
    """How many numbers `features` makes of a value."""
    return 1 if levels == 2 else levels - 1 if levels <= SOFTMAX else 3


def features(x: Tensor, levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """x (...) levels -> (..., input_features): a sign; or an indicator of each level but 0; or the level in [-1, 1], is it the lowest, the highest.

    The ends have indicators because silence, paper and ink lie there: much mass on one level, next to which the line says little.
    """
    if levels == 2:
        return scaled(x, levels, dtype)[..., None]
    if levels <= SOFTMAX:
        return (x[..., None] == torch.arange(1, levels, device=x.device)).to(dtype)
    return torch.stack([scaled(x, levels, dtype), (x == 0).to(dtype), (x == levels - 1).to(dtype)], dim=-1)


def output_parameters(levels: int, components: int = 5) -> int:
    """P: how many numbers describe the distribution of a value."""
    return 1 if levels == 2 else levels if levels <= SOFTMAX else 3 * components


def log_probs(raw: Tensor, levels: int) -> Tensor:
    """raw (..., P), as a network puts it out -> (..., K) nats of every level, which sum to one. Zeros: uniform up to 16 levels, near it above."""
    if levels == 2:
        logit = wide(raw)[..., 0]
        return torch.stack([F.logsigmoid(-logit), F.logsigmoid(logit)], dim=-1)
    if levels <= SOFTMAX:
        return torch.log_softmax(wide(raw), dim=-1)
    return _mixture(raw[..., None, :], torch.arange(levels, device=raw.device), levels)


def log_prob(raw: Tensor, x: Tensor, levels: int) -> Tensor:
    """raw (..., P), x (...) levels -> (...) nats of those levels."""
    if levels == 2:
        return F.logsigmoid(wide(raw)[..., 0] * scaled(x, levels, wide(raw).dtype))
    if levels <= SOFTMAX:
        return -F.cross_entropy(wide(raw).flatten(0, -2), x.flatten().long(), reduction="none").reshape(x.shape)
    return _mixture(raw, x, levels)


def uniforms(levels: int) -> int:
    """How many random numbers `sample` takes for a value."""
    return 1 if levels <= SOFTMAX else 2


def sample(raw: Tensor, u: Tensor, levels: int) -> Tensor:
    """raw (..., P), u (..., uniforms) in [0, 1) -> (...) uint8, drawn by those uniforms from what `log_probs` says."""
    if levels == 2:
        return (u[..., 0] >= torch.sigmoid(-wide(raw)[..., 0])).to(torch.uint8)
    if levels <= SOFTMAX:
        return categorical(log_probs(raw, levels), u[..., 0]).to(torch.uint8)
    weight, mean, scale = _logistics(raw, levels)
    chosen = categorical(weight, u[..., 0])[..., None]
    # The uniform is moved to the middle of its cell, so that its logit is finite; beyond the ends lies the mass of the end levels.
    middle = u[..., 1].to(mean.dtype) + 2.0**-25
    drawn = mean.gather(-1, chosen)[..., 0] + scale.gather(-1, chosen)[..., 0] * torch.logit(middle)
    return drawn.round().clamp(0, levels - 1).to(torch.uint8)


def mode(raw: Tensor, levels: int) -> Tensor:
    """raw (B, ..., P) -> (B, ...) uint8: the most likely level of each value."""
    if levels == 2:
        return (wide(raw)[..., 0] > 0).to(torch.uint8)
    return torch.cat([log_probs(row, levels).argmax(-1) for row in raw.split(ROWS)]).to(torch.uint8)


def _mixture(raw: Tensor, x: Tensor, levels: int) -> Tensor:
    """x broadcast against raw's (...) -> nats."""
    weight, mean, scale = _logistics(raw, levels)
    each = discretised_logistic(x[..., None].to(mean.dtype), mean, scale, levels)
    return torch.logsumexp(torch.log_softmax(weight, dim=-1) + each, dim=-1)


def _logistics(raw: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """raw (..., 3 M) -> (..., M) each: logits of the components, their means and scales in levels. Scales: at least a hundredth of a level."""
    weight, mean, log_scale = wide(raw).unflatten(-1, (3, -1)).unbind(-2)
    components, unit = weight.shape[-1], (levels - 1) / 2
    # The means start out side by side: components that start equal get equal gradients for ever.
    start = (torch.arange(components, device=raw.device, dtype=mean.dtype) * 2 + 1) / components - 1
    scale = (log_scale - math.log(components)).clamp(min=math.log(0.01 / unit), max=2.0).exp()
    return weight, (mean + start + 1) * unit, scale * unit
