"""A convolution over the past of a raster scan: the masks A and B of PixelRNN and PixelCNN, without a mask."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PastConv2d(nn.Module):
    """A kernel x kernel convolution that sees of its window what comes before the centre in raster order, and the centre too where `centre` (mask B).

    The taps it may see are the first ones of the kernel in raster order, so only those are weights: nothing is multiplied by a mask, and the rows
    below the centre are never computed. x (B, inputs, H, W) -> (B, outputs, H, W); outside the picture there are zeros.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, centre: bool) -> None:
        super().__init__()
        self.kernel, self.reach = kernel, kernel // 2
        self.taps = self.reach * kernel + self.reach + centre
        bound = (inputs * self.taps) ** -0.5  # as nn.Conv2d begins, counting the taps that are there
        self.weight = nn.Parameter(torch.empty(outputs, inputs, self.taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        window = F.pad(self.weight, (0, (self.reach + 1) * self.kernel - self.taps)).unflatten(2, (self.reach + 1, self.kernel))
        return F.conv2d(F.pad(x, (self.reach, self.reach, self.reach, 0)), window, self.bias)

    def at(self, seen: Tensor) -> Tensor:
        """seen (B, inputs, reach + 1, kernel), the rows of the window down to the centre's -> (B, outputs, 1, 1): the result at its centre."""
        return F.linear(seen.flatten(2)[..., : self.taps].flatten(1), self.weight.flatten(1), self.bias)[..., None, None]
