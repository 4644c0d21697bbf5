"""The layers of nn/lstm.py above one another, one pixel after the other.

A pixel is a chain of small products, so its time is a count of operations. What a row's pixels need of the rows above is computed for all columns and
layers at once when the row begins; what is left to a pixel is one product into a layer's gates, the cell, and one product out of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.nn.lstm import DiagonalLayer, RowLayer
from genmodels.nn.recurrence import cell

Columns = list[Tensor]


@dataclass
class Row:
    """What the pixels of n rows, W wide, leave for those right of them and below, L layers of it."""

    residual: Tensor
    """(L + 1, W, n, features): what the rows above add to each layer's input, and last of all to the output."""
    gates: list[Columns]
    """By layer and column (n, 4 hidden): what they add to the gates, biases included."""
    inputs: list[Columns]
    """By layer (n, features) of each column so far, without `residual`; zeros left of the picture first."""
    h: list[Columns]
    """By layer (n, hidden) of each column so far; zeros left of the picture first."""
    c: list[Columns]
    """By layer (n, hidden). Row LSTM: of each column, left of the pixel the present row's, from it on the row above's; diagonal: first of all that of
    the pixel before."""
    right: Tensor
    """(L, W, n, hidden): h of the sweep from the right in the row above; zeros where there is no such sweep."""


@dataclass(frozen=True, kw_only=True)
class Stack(ABC):
    """The weights of L layers as a pixel of n pictures reads them, and how it does. Copies of a Row share it."""

    above: tuple[int, ...]
    """Offsets of the columns of the row above whose hidden states a pixel's gates read."""
    beside: tuple[int, ...]
    """Offsets of the columns of its own row whose inputs they read."""
    bias: Tensor
    """(L, 1, n, 4 hidden) of the gates, the labels' in it."""
    told: Tensor
    """(L, in, 4 hidden): to the gates from the hidden states of `above`, then from the residuals of `beside`."""
    enter: Columns
    """By layer (in, 4 hidden): to the gates from what `_state` reads."""
    leave: Columns
    """By layer (hidden, features): from h to what is added to the layer's input."""
    leave_bias: Tensor
    """(L, 1, features)."""

    def begin(self, residual: Tensor) -> Row:
        """The first row; residual (W, n, features) as in `finish`."""
        (layers, _, n, gates), width = self.bias.shape, len(residual)
        h = residual.new_zeros(layers, width, n, gates // 4)
        kept = Row(residual=residual, gates=[], inputs=[], h=[], c=[list(each.unbind()) for each in h], right=h)
        self._open(kept, residual, h)
        return kept

    def pixel(self, kept: Row, x: Tensor, column: int) -> Tensor:
        """x (n, features) of the pixel without its residual; those left of it were given before -> the last layer's output (n, features)."""
        for layer, leave in enumerate(self.leave):
            kept.inputs[layer].append(x)
            h = self._state(kept, layer, column)
            kept.h[layer].append(h)
            x = torch.addmm(x, h, leave)
        return x + kept.residual[-1, column]

    @abstractmethod
    def finish(self, kept: Row, residual: Tensor) -> None:
        """The row is complete. residual (W, n, features): what it and the rows above add to the first layer's input in the next one."""

    @abstractmethod
    def _state(self, kept: Row, layer: int, column: int) -> Tensor:
        """(n, hidden): a layer's h at the column; writes its c."""

    def _open(self, kept: Row, residual: Tensor, h: Tensor) -> None:
        """A row begins under one of hidden states h (L, W, n, hidden)."""
        (layers, width, n, hidden), left = h.shape, -min(self.beside)
        added = torch.baddbmm(self.leave_bias, kept.right.flatten(1, 2), torch.stack(self.leave))
        kept.residual = torch.cat([residual[None], added.unflatten(1, (width, n))]).cumsum(0)
        seen = torch.cat([_around(h, self.above), _around(kept.residual[:-1], self.beside)], dim=-1)
        gates = torch.bmm(seen.flatten(1, 2), self.told).view(layers, width, n, 4 * hidden) + self.bias
        kept.gates = [list(each.unbind()) for each in gates]
        kept.inputs = [[torch.zeros_like(residual[0])] * left for _ in range(layers)]
        kept.h = [[torch.zeros_like(h[0, 0])] for _ in range(layers)]


@dataclass(frozen=True, kw_only=True)
class RowStack(Stack):
    """Row LSTMs: c is the one above, and h of the row above is told to the gates before the row begins."""

    @classmethod
    def of(cls, layers: Sequence[RowLayer], n: int, y: Tensor | None) -> "RowStack":
        """Of n pictures; y (n,) labels."""
        reach = layers[0].reach
        enter = torch.stack([layer.enter.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1) for layer in layers])
        recur = torch.stack([layer.recur.weight.T for layer in layers])
        return cls(
            above=tuple(range(-reach, reach + 1)),
            beside=tuple(range(-reach, 1)),
            bias=_biases(layers, n, y),
            told=torch.cat([recur, enter], dim=1),
            enter=list(enter.unbind()),
            **_leaving(layers),
        )

    def finish(self, kept: Row, residual: Tensor) -> None:
        self._open(kept, residual, _stacked(kept.h, len(residual)))

    def _state(self, kept: Row, layer: int, column: int) -> Tensor:
        seen = torch.cat(kept.inputs[layer][column:], dim=1)
        gates = torch.addmm(kept.gates[layer][column], seen, self.enter[layer])
        h, kept.c[layer][column] = cell(gates, kept.c[layer][column])
        return h


@dataclass(frozen=True, kw_only=True)
class DiagonalStack(Stack):
    """Diagonal BiLSTMs: h and c are those of the pixel before. The sweeps from the right run when the row is complete, all layers' together."""

    right_bias: Tensor
    """(L, 1, n, 4 hidden), as `bias` of the sweep from the left."""
    right_told: Tensor
    """(L, hidden + features, 4 hidden): to the gates from the h above and from the input."""
    right_before: Tensor
    """(L, hidden, 4 hidden): to the gates from the h on the right."""

    @classmethod
    def of(cls, layers: Sequence[DiagonalLayer], n: int, y: Tensor | None) -> "DiagonalStack":
        """Of n pictures; y (n,) labels."""
        hidden = layers[0].hidden
        enter, right_enter = torch.stack([layer.enter.weight[..., 0, 0].T for layer in layers]).chunk(2, dim=2)
        bias, right_bias = _biases(layers, n, y).chunk(2, dim=3)
        recur, right_recur = torch.stack([layer.recur for layer in layers]).transpose(2, 3).unbind(1)
        (before, over), (right_before, right_over) = recur.split(hidden, dim=1), right_recur.split(hidden, dim=1)
        return cls(
            above=(0,),
            beside=(0,),
            bias=bias,
            told=torch.cat([over, enter], dim=1),
            enter=list(torch.cat([enter, before], dim=1).unbind()),
            right_bias=right_bias,
            right_told=torch.cat([right_over, right_enter], dim=1),
            right_before=right_before.contiguous(),
            **_leaving(layers),
        )

    def finish(self, kept: Row, residual: Tensor) -> None:
        kept.right = self._from_right(kept, len(residual))
        for each in kept.c:
            each[0] = torch.zeros_like(each[0])
        self._open(kept, residual, _stacked(kept.h, len(residual)))

    def _state(self, kept: Row, layer: int, column: int) -> Tensor:
        seen = torch.cat([kept.inputs[layer][-1], kept.h[layer][-1]], dim=1)
        gates = torch.addmm(kept.gates[layer][column], seen, self.enter[layer])
        h, kept.c[layer][0] = cell(gates, kept.c[layer][0])
        return h

    def _from_right(self, kept: Row, width: int) -> Tensor:
        """(L, W, n, hidden): the sweeps from the right over the row just completed."""
        seen = torch.cat([kept.right, _stacked(kept.inputs, width) + kept.residual[:-1]], dim=-1)
        gates = torch.bmm(seen.flatten(1, 2), self.right_told).unflatten(1, seen.shape[1:3]) + self.right_bias
        h = c = torch.zeros_like(kept.right[:, 0])
        states = []
        for told in reversed(gates.unbind(1)):
            h, c = cell(torch.baddbmm(told, h, self.right_before), c)
            states.append(h)
        return torch.stack(states[::-1], dim=1)


def _stacked(columns: list[Columns], width: int) -> Tensor:
    """Of each layer the last W tensors (n, f) -> (L, W, n, f)."""
    return torch.stack([torch.stack(each[-width:]) for each in columns])


def _around(x: Tensor, offsets: Sequence[int]) -> Tensor:
    """x (L, W, n, f) -> (L, W, n, len(offsets) f): beside one another what lies at each offset from a column, zeros outside the picture."""
    before, width = -min(offsets), x.shape[1]
    padded = F.pad(x, (0, 0, 0, 0, before, max(offsets)))
    return torch.cat([padded[:, before + offset : before + offset + width] for offset in offsets], dim=-1)


def _biases(layers: Sequence[RowLayer] | Sequence[DiagonalLayer], n: int, y: Tensor | None) -> Tensor:
    """(L, 1, n, gates): each layer's biases and what a picture's label adds to them."""
    return torch.stack([layer.label(_bias(layer.enter).expand(n, -1), y) for layer in layers])[:, None]


def _leaving(layers: Sequence[RowLayer] | Sequence[DiagonalLayer]) -> dict[str, Any]:
    return {
        "leave": [layer.leave.weight[..., 0, 0].T.contiguous() for layer in layers],
        "leave_bias": torch.stack([_bias(layer.leave) for layer in layers])[:, None],
    }


def _bias(layer: torch.nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
