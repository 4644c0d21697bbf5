"""Convolutional LSTM layers that sweep a picture, over its rows or over its diagonals; nn/lstm_stack.py goes pixel by pixel.

Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner, Kavukcuoglu, 2016), arXiv:1601.06759, sections 3.1 to 3.3. What comes from the input is
computed for the whole picture at once; what comes from the state is a product of matrices a row or a diagonal.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn.conditioning import ClassBias
from genmodels.nn.recurrence import recur


class Sweep(nn.Module, ABC):
    """x (B, features, H, W) -> the same: an LSTM over the picture beside the identity. A pixel's output knows its input and no later one's."""

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor | None) -> Tensor: ...


class RowLayer(Sweep):
    """Row LSTM (section 3.1): a row's gates read its input at the pixel and left of it, and the hidden states of the row above around the pixel."""

    def __init__(self, features: int, hidden: int, kernel: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.reach = hidden, kernel // 2
        self.enter = nn.Conv2d(features, 4 * hidden, (1, self.reach + 1))  # mask B is a kernel without the columns right of the pixel
        self.recur = nn.Linear(kernel * hidden, 4 * hidden, bias=False)
        self.leave = nn.Conv2d(hidden, features, 1)
        self.label = ClassBias(classes, 4 * hidden)
        _remember(self.enter, hidden)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        z = x.permute(1, 2, 3, 0)
        padded = F.pad(z, (0, 0, self.reach, 0))
        seen = torch.cat([padded[:, :, i : i + z.shape[2]] for i in range(self.reach + 1)])
        gates = _product(self.enter.weight[:, :, 0].movedim(2, 1).flatten(1), _biases(self.enter, self.label, y, len(x)), seen)
        (h,) = recur(gates[None], self.recur.weight[None], range(-self.reach, self.reach + 1), diagonal=False)
        return x + _mixed(self.leave, h).permute(3, 0, 1, 2)


class DiagonalLayer(Sweep):
    """Diagonal BiLSTM (section 3.2): two sweeps, each reading the pixel above and the one beside it, from the left and from the right.

    The one from the right is shifted down by one row before both are added: in its own row it has seen what is yet to come.
    """

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.enter = nn.Conv2d(features, 8 * hidden, 1)
        self.recur = nn.Parameter(torch.empty(2, 4 * hidden, 2 * hidden).uniform_(-1, 1) / (2 * hidden) ** 0.5)
        self.leave = nn.Conv2d(hidden, features, 1)
        self.label = ClassBias(classes, 8 * hidden)
        _remember(self.enter, hidden)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        z = x.permute(1, 2, 3, 0)
        weights = self.enter.weight[:, :, 0, 0].chunk(2)
        biases = _biases(self.enter, self.label, y, len(x)).chunk(2)
        gates = torch.stack([_product(weight, bias, side) for weight, bias, side in zip(weights, biases, (z, z.flip(2)), strict=True)])
        left, right = recur(gates, self.recur, (0, -1), diagonal=True)
        past = F.pad(right.flip(2), (0, 0, 0, 0, 1, 0))[:, :-1]
        return x + _mixed(self.leave, left + past).permute(3, 0, 1, 2)


def _mixed(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of width 1 where batches lie innermost, as `recur` wants them: x (in, H, W, B) -> (out, H, W, B)."""
    assert layer.bias is not None
    return _product(layer.weight[..., 0, 0], layer.bias[:, None], x)


def _product(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """weight (out, in), bias (out, B or 1), x (in, H, W, B) -> (out, H, W, B)."""
    return torch.mm(weight, x.flatten(1)).unflatten(1, x.shape[1:]) + bias[:, None, None]


def _biases(layer: nn.Conv2d, label: ClassBias, y: Tensor | None, n: int) -> Tensor:
    """(out, n): the layer's bias and what each picture's label adds to it."""
    assert layer.bias is not None
    return label(layer.bias.expand(n, -1), y).T


def _remember(enter: nn.Conv2d, hidden: int) -> None:
    """Forget gates start open: a bias of 1 (Jozefowicz, Zaremba, Sutskever, 2015)."""
    assert enter.bias is not None
    with torch.no_grad():
        enter.bias.view(-1, 4, hidden)[:, 1] = 1
