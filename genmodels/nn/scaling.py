"""Levels as the numbers that a network takes."""

import torch
from torch import Tensor


def scaled(x: Tensor, levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """x integer levels 0..K-1 -> the same shape in [-1, 1]."""
    return x.to(dtype) * (2 / (levels - 1)) - 1


def wide(x: Tensor) -> Tensor:
    """x in float32 at least: what autocast made narrow is widened before it becomes nats."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rounded(value: Tensor, levels: int) -> Tensor:
    """value in [-1, 1] -> uint8, the nearest of K levels."""
    return ((value + 1) * ((levels - 1) / 2)).round().clamp(0, levels - 1).to(torch.uint8)
