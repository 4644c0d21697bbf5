"""What several families share when they condition on a label."""

import torch
from torch import Tensor, nn


class ClassBias(nn.Module):
    """A learnt vector a label, added wherever a network wants to know the class. It has no parameters where there are no classes."""

    def __init__(self, classes: int, features: int, *, scale: float = 0.02) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * torch.randn(classes, features)) if classes else None

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        """x (B, features, ...), y (B,) int64, -1 unlabelled, or None -> x with each row's vector added; untouched where there is no label."""
        if self.weight is None or y is None:
            return x
        vectors = self.weight.to(x.dtype)[y.clamp(min=0)] * (y >= 0).to(x.dtype)[:, None]
        return x + vectors.reshape(*vectors.shape, *[1] * (x.ndim - 2))


class ClassLinear(nn.Module):
    """A linear layer of the last axis, and a vector a label: (B, ..., inputs) -> (B, ..., outputs)."""

    def __init__(self, inputs: int, outputs: int, classes: int) -> None:
        super().__init__()
        self.linear, self.label = nn.Linear(inputs, outputs), ClassBias(classes, outputs)

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        return self.label(self.linear(h).movedim(-1, 1), y).movedim(1, -1)
