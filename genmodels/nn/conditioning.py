"""What several families share when they condition on a label."""

import torch
from torch import Tensor, nn


class ClassBias(nn.Module):
    """A learnt vector a label, added wherever a network wants to know the class; zeros for a row, or a model, without one."""

    def __init__(self, classes: int, features: int, *, scale: float = 0.02) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * torch.randn(classes, features))

    def forward(self, y: Tensor | None, rows: int) -> Tensor:
        """y (B,) int64, -1 unlabelled, or None -> (B, features)."""
        if y is None or len(self.weight) == 0:
            return self.weight.new_zeros(rows, self.weight.shape[1])
        return self.weight[y.clamp(min=0)] * (y >= 0).to(self.weight.dtype)[:, None]
