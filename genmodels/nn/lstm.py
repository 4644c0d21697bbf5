"""Convolutional LSTM layers that sweep a picture, over its rows or over its diagonals, at once for training and pixel by pixel for sampling.

Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner, Kavukcuoglu, 2016), arXiv:1601.06759, sections 3.1 to 3.3. What comes from the input is
computed for the whole picture by one convolution; what comes from the state is one product of matrices a row or a diagonal.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn.conditioning import ClassBias
from genmodels.nn.scaling import wide


def cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM (eq. 3). gates (..., 4 hidden): input, forget, output, content; c (..., hidden) -> h, c (..., hidden), float32 at least."""
    hidden = c.shape[-1]
    opened, content = wide(gates).split([3 * hidden, hidden], dim=-1)
    i, f, o = torch.sigmoid(opened).chunk(3, dim=-1)
    c = f * c + i * torch.tanh(content)
    return o * torch.tanh(c), c


class Sweep(nn.Module, ABC):
    """x (B, features, H, W) -> the same: an LSTM over the picture beside the identity. A pixel's output knows its input and no later one's.

    `begin`, `pixel` and `finish` compute the same one pixel at a time; what they keep is the layer's own.
    """

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor | None) -> Tensor: ...

    @abstractmethod
    def begin(self, n: int, width: int) -> Any:
        """What is kept of n pictures `width` pixels wide of which nothing is known."""

    @abstractmethod
    def pixel(self, kept: Any, x: Tensor, column: int, y: Tensor | None) -> Tensor:
        """x (n, features, 1, 1), the present row's pixel at the column; those left of it were given before -> its output (n, features, 1, 1)."""

    @abstractmethod
    def finish(self, kept: Any) -> None:
        """The row is complete; the next pixel is the first one of the next row."""


@dataclass
class RowMemory:
    """What a RowLayer's later pixels need."""

    inputs: Tensor
    """(n, features, 1, reach + W): this row's, zeros left of the picture."""
    told: Tensor
    """(n, W, 4 hidden): what the row above adds to the gates."""
    h: Tensor
    """(n, W, hidden) of the present row."""
    c: Tensor
    """(n, W, hidden): left of the pixel the present row's, from it on the row above's."""


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
        rows = self.label(self.enter(F.pad(x, (self.reach, 0))), y).permute(2, 0, 3, 1).contiguous()
        h = c = wide(rows.new_zeros(*rows.shape[1:3], self.hidden))
        swept = []
        for row in rows.unbind():
            h, c = cell(row + self._above(h), c)
            swept.append(h)
        return x + self.leave(torch.stack(swept).permute(1, 3, 0, 2))

    def begin(self, n: int, width: int) -> RowMemory:
        zeros = self.recur.weight.new_zeros
        return RowMemory(
            inputs=zeros(n, self.enter.in_channels, 1, self.reach + width),
            told=zeros(n, width, 4 * self.hidden),
            h=zeros(n, width, self.hidden),
            c=zeros(n, width, self.hidden),
        )

    def pixel(self, kept: RowMemory, x: Tensor, column: int, y: Tensor | None) -> Tensor:
        kept.inputs[..., self.reach + column] = x[..., 0]
        gates = self.label(self.enter(kept.inputs[..., column : column + self.reach + 1]), y)[..., 0, 0]
        h, c = cell(gates + kept.told[:, column], kept.c[:, column])
        kept.h[:, column], kept.c[:, column] = h, c
        return x + self.leave(h[..., None, None])

    def finish(self, kept: RowMemory) -> None:
        kept.told = self._above(kept.h)

    def _above(self, h: Tensor) -> Tensor:
        """h (B, W, hidden) of a row -> (B, W, 4 hidden) for the gates of the next one: a convolution along the row, as one product."""
        width, h = h.shape[1], F.pad(h, (0, 0, self.reach, self.reach))
        return self.recur(torch.cat([h[:, i : i + width] for i in range(2 * self.reach + 1)], dim=-1))


@dataclass
class DiagonalMemory:
    """What a DiagonalLayer's later pixels need."""

    gates: Tensor
    """(n, W, 4 hidden): what the present row's input adds to the gates of the sweep from the right, which waits for the row's end."""
    h: Tensor
    """(n, 1 + W, hidden) of the sweep from the left: left of the pixel the present row's, from it on the row above's; zeros left of the picture."""
    c: Tensor
    """(n, hidden) of the sweep from the left, at the pixel before."""
    right: Tensor
    """(n, W, hidden): h of the sweep from the right in the row above."""


class DiagonalLayer(Sweep):
    """Diagonal BiLSTM (section 3.2): two sweeps, each reading the pixel above and the one beside it, from the left and from the right.

    The one from the right is shifted down by one row before both are added: in its own row it has seen what is yet to come.
    """

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.enter = nn.Conv2d(features, 8 * hidden, 1)
        self.recur = nn.Parameter(torch.empty(2, 2 * hidden, 4 * hidden).uniform_(-1, 1) / (2 * hidden) ** 0.5)
        self.leave = nn.Conv2d(hidden, features, 1)
        self.label = ClassBias(classes, 8 * hidden)
        _remember(self.enter, hidden)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        left, right = self.label(self.enter(x), y).chunk(2, dim=1)
        left, right = self.sweep(torch.stack([left, right.flip(-1)]))
        past = F.pad(right.flip(-1), (0, 0, 1, 0))[:, :, :-1]
        return x + self.leave(left + past)

    def sweep(self, gates: Tensor) -> Tensor:
        """gates (2, B, 4 hidden, H, W), the second mirrored -> (2, B, hidden, H, W): both sweeps at once, one diagonal of the picture a step."""
        # Outside the picture the gates are 0: left of it the states stay 0, and right of it nobody inside reads them.
        diagonals = skew(gates).permute(4, 0, 1, 3, 2).contiguous()
        h = c = wide(diagonals.new_zeros(*diagonals.shape[1:4], self.hidden))
        swept = []
        for diagonal in diagonals.unbind():
            above = F.pad(h, (0, 0, 1, 0))[:, :, :-1]
            told = torch.baddbmm(diagonal.flatten(1, 2), torch.cat([h, above], dim=-1).flatten(1, 2), self.recur)
            h, c = cell(told.view_as(diagonal), c)
            swept.append(h)
        return unskew(torch.stack(swept).permute(1, 2, 4, 3, 0))

    def begin(self, n: int, width: int) -> DiagonalMemory:
        zeros = self.recur.new_zeros
        return DiagonalMemory(
            gates=zeros(n, width, 4 * self.hidden),
            h=zeros(n, 1 + width, self.hidden),
            c=zeros(n, self.hidden),
            right=zeros(n, width, self.hidden),
        )

    def pixel(self, kept: DiagonalMemory, x: Tensor, column: int, y: Tensor | None) -> Tensor:
        gates, kept.gates[:, column] = self.label(self.enter(x), y)[..., 0, 0].chunk(2, dim=1)
        h, kept.c = cell(torch.addmm(gates, kept.h[:, column : column + 2].flatten(1), self.recur[0]), kept.c)
        kept.h[:, column + 1] = h
        return x + self.leave((h + kept.right[:, column])[..., None, None])

    def finish(self, kept: DiagonalMemory) -> None:
        h = c = torch.zeros_like(kept.c)
        for column in reversed(range(kept.gates.shape[1])):
            seen = torch.cat([h, kept.right[:, column]], dim=1)
            h, c = cell(torch.addmm(kept.gates[:, column], seen, self.recur[1]), c)
            kept.right[:, column] = h
        kept.c.zero_()


def skew(x: Tensor) -> Tensor:
    """x (..., H, W) -> (..., H, W + H - 1), row i moved right by i: column d holds the diagonal of the pixels with row + column = d, else zeros."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, height)).flatten(-2)[..., :-height].unflatten(-1, (height, width + height - 1))


def unskew(x: Tensor) -> Tensor:
    """The picture (..., H, W) that `skew` made x (..., H, W + H - 1) of."""
    height, width = x.shape[-2], x.shape[-1] - x.shape[-2] + 1
    return F.pad(x.flatten(-2), (0, height)).unflatten(-1, (height, width + height))[..., :width]


def _remember(enter: nn.Conv2d, hidden: int) -> None:
    """Forget gates start open: a bias of 1 (Jozefowicz, Zaremba, Sutskever, 2015)."""
    assert enter.bias is not None
    with torch.no_grad():
        enter.bias.view(-1, 4, hidden)[:, 1] = 1
