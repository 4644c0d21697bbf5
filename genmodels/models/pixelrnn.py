"""PixelRNN: an image as a product of K-way softmaxes, each seeing the pixels before it through LSTMs that sweep rows or diagonals.

Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner, Kavukcuoglu, 2016), arXiv:1601.06759.

The Row LSTM knows only a cone of the past, which opens by `width` // 2 columns on either side with every row up; the Diagonal BiLSTM knows all of it.
Kernels are cropped to what they may see (mask A in the first layer, B later), so no weight is ever multiplied by a mask.
We differ from the paper in four ways. (1) The channels of one pixel are ordered in the output layers, one for R, one for G given R, one for B given
R and G, in place of feature maps split in three. (2) The Diagonal BiLSTM sweeps one column beyond the right edge. Without it the last pixel of a row
is hidden from most of the row below: the sweep from the right, shifted down by a row, starts at that pixel's own features, which cannot know it, so
that only the first convolution reaches it, from a few columns away. (3) A channel of ones beside the picture tells its edge from a middle level.
(4) A label, where there is one, moves every gate; and the output layers have ELUs inside.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.core import Autoregressive, Event, Objective, Optimizer, Trained
from genmodels.core.forced import TeacherForced
from genmodels.nn.gates import drop
from genmodels.nn.heads import ChannelHeads, PackedHeads, nats, raster
from genmodels.nn.lstm import DiagonalLayer, RowLayer, Sweep
from genmodels.nn.lstm_stack import DiagonalStack, Row, RowStack, Stack
from genmodels.nn.scaling import scaled
from genmodels.noise import Noise


class FirstLayer(nn.Module):
    """Mask A: x (B, C + 1, H, W) -> (B, features, H, W) of the rows above the pixel and of what is left of it."""

    def __init__(self, channels: int, features: int, kernel: int) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.above = nn.Conv2d(channels, features, (self.reach, kernel))
        self.left = nn.Conv2d(channels, features, (1, self.reach), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        above = self.above(F.pad(x, (self.reach, self.reach, self.reach, 0))[:, :, :-1])
        return above + self.left(F.pad(x, (self.reach, 0))[..., :-1])


@dataclass(frozen=True)
class Packed:
    """The weights as the pixels read them one after the other."""

    left: Tensor
    """(reach (C + 1), features): the first layer's, of the pixels left of this one."""
    stack: Stack
    heads: PackedHeads
    scale: Tensor
    """(K,): levels as the network reads them."""


@dataclass
class Canvas:
    """What later pixels will need of a picture half drawn. Its width counts the columns beyond the edge."""

    packed: Packed
    above: Tensor
    """(B, C + 1, reach, width): the rows that the first layer's kernel covers above this one."""
    line: Tensor
    """((reach + width) (C + 1), B): this row as the first layer reads it, pixel by pixel, zeros left and right of the picture."""
    layers: Row
    """What the LSTMs keep."""
    h: Tensor
    """(B, features) of the present pixel."""
    step: int = 0
    """The sub-pixel that comes next: channels of a pixel, pixels of a row, rows."""


class PixelRNN(Trained, Autoregressive, TeacherForced):
    """What both kinds share: everything but the recurrent layer."""

    VERSION = 2
    modalities = frozenset({"image"})

    beyond: ClassVar[int]
    """Columns right of the picture that the layers run over too."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """hidden: features of each LSTM, half of those between the layers; kernel: odd width of the first convolution; head: of the output layers."""

        hidden: int = 16
        layers: int = 2
        kernel: int = 7
        head: int = 32
        dropout: float = 0.0

        def __post_init__(self) -> None:
            if self.kernel % 2 == 0 or self.kernel < 3:
                raise ValueError(f"kernel {self.kernel}; wanted an odd number from 3 on")
            if min(self.hidden, self.layers, self.head) < 1 or not 0 <= self.dropout < 1:
                raise ValueError(
                    f"hidden {self.hidden}, layers {self.layers}, head {self.head}, dropout {self.dropout}; wanted sizes of at least 1"
                )

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        if event.levels == 0:
            raise ValueError(f"{type(self).__name__} models levels; got {event}")
        channels = event.shape[0]
        self.first = FirstLayer(channels + 1, 2 * config.hidden, config.kernel)
        self.layers = nn.ModuleList(self.layer() for _ in range(config.layers))
        self.heads = ChannelHeads(2 * config.hidden, config.head, channels, event.levels)

    @abstractmethod
    def layer(self) -> Sweep:
        """A fresh recurrent layer of 2 hidden features."""

    @abstractmethod
    def stack(self, n: int, y: Tensor | None) -> Stack:
        """The layers for n pictures drawn pixel by pixel."""

    def logits(self, z: Tensor, y: Tensor | None, noise: Noise | None = None) -> Tensor:
        """z (B, C, H, W) scaled levels -> (B, C, H, W, K): the logits of each sub-pixel given those before it."""
        h = self.first(self._padded(z))
        for i, layer in enumerate(self._layers()):
            h = layer(drop(h, self.config.dropout, noise, f"dropout.{i}"), y)
        h = drop(F.relu(h[..., : z.shape[-1]]), self.config.dropout, noise, "dropout.head")
        return self.heads(h, z)

    def conditional_log_probs(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        return nats(self.all_logits(x, y=y, c=c, noise=noise), x)

    def all_logits(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        return self.logits(self._scaled(x), y, noise)

    def objectives(self) -> list[Objective]:
        return [Objective(name="likelihood", loss=self.loss, parameters=list(self.parameters()), optimizer=Optimizer(lr=4e-3))]

    def start(self, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Canvas:
        channels, _, width = self.event.shape
        span, reach, zeros = width + self.beyond, self.first.reach, self.first.above.weight.new_zeros
        packed, above = self._packed(n, y), zeros(n, channels + 1, reach, span)
        line = zeros(reach + span, channels + 1, n)
        line[reach : reach + width, channels] = 1  # read from a pixel on when it is drawn
        return Canvas(
            packed=packed,
            above=above,
            line=line.flatten(0, 1),
            layers=packed.stack.begin(self._hint(above)),
            h=zeros(n, 2 * self.config.hidden),
        )

    def predict(self, memory: Canvas) -> Tensor:
        _, column, channel = raster(memory.step, self.event.shape[0], self.event.shape[2])
        if channel == 0:
            memory.h = torch.relu(self._features(memory, column))
        start = self._start(column)
        return memory.packed.heads.one(memory.h, memory.line[start : start + channel].T)

    def take(self, memory: Canvas, level: Tensor) -> None:
        channels, _, width = self.event.shape
        _, column, channel = raster(memory.step, channels, width)
        torch.index_select(memory.packed.scale, 0, level, out=memory.line[self._start(column) + channel])
        memory.step += 1
        if channel == channels - 1 and column == width - 1:
            self._finish_row(memory)

    def _features(self, canvas: Canvas, column: int) -> Tensor:
        """All layers at one pixel of the present row, from what is kept of those before it -> (B, features)."""
        end = self._start(column)
        left = canvas.line[end - len(canvas.packed.left) : end].T
        return canvas.packed.stack.pixel(canvas.layers, torch.mm(left, canvas.packed.left), column)

    def _finish_row(self, canvas: Canvas) -> None:
        width = self.event.shape[2]
        for column in range(width, width + self.beyond):
            self._features(canvas, column)
        drawn = canvas.line[self._start(0) :].unflatten(0, (width + self.beyond, -1)).permute(2, 1, 0)[:, :, None]
        canvas.above = torch.cat([canvas.above, drawn], dim=2)[:, :, 1:]
        canvas.packed.stack.finish(canvas.layers, self._hint(canvas.above))

    def _hint(self, above: Tensor) -> Tensor:
        """(width, B, features): what the rows above add to the first layer."""
        return self.first.above(F.pad(above, (self.first.reach, self.first.reach)))[:, :, 0].permute(2, 0, 1)

    def _packed(self, n: int, y: Tensor | None) -> Packed:
        return Packed(
            left=self.first.left.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1),
            stack=self.stack(n, y),
            heads=self.heads.packed(),
            scale=self._scaled(torch.arange(self.event.levels, device=self.device)),
        )

    def _start(self, column: int) -> int:
        """Where in Canvas.line a pixel begins."""
        return (self.first.reach + column) * (self.event.shape[0] + 1)

    def _padded(self, z: Tensor) -> Tensor:
        return F.pad(_with_ones(z), (0, self.beyond))

    def _scaled(self, x: Tensor) -> Tensor:
        return scaled(x, self.event.levels, self.first.above.weight.dtype)

    def _layers(self) -> list[Sweep]:
        return list(self.layers)  # type: ignore[arg-type]


class RowLSTM(PixelRNN):
    """Sees a cone, here with q = width // 2: (r + layers) q + kernel // 2 columns to the left in the r-th row above, its own row being r = 0.

    To the right it sees (r - 1) q + kernel // 2 columns there, or r q - 1 where that is more; in its own row none.
    """

    beyond = 0

    @dataclass(frozen=True, kw_only=True)
    class Config(PixelRNN.Config):
        """width: odd, how many pixels of the row above, and of the input with those right of the pixel left out, a state reads."""

        width: int = 3

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.width % 2 == 0 or self.width < 3:
                raise ValueError(f"width {self.width}; wanted an odd number from 3 on")

    config: Config

    def layer(self) -> RowLayer:
        return RowLayer(2 * self.config.hidden, self.config.hidden, self.config.width, self.event.classes)

    def stack(self, n: int, y: Tensor | None) -> RowStack:
        return RowStack.of(list(self.layers), n, y)  # type: ignore[arg-type]


class DiagonalBiLSTM(PixelRNN):
    """Sees every pixel before the present one."""

    beyond = 1

    def layer(self) -> DiagonalLayer:
        return DiagonalLayer(2 * self.config.hidden, self.config.hidden, self.event.classes)

    def stack(self, n: int, y: Tensor | None) -> DiagonalStack:
        return DiagonalStack.of(list(self.layers), n, y)  # type: ignore[arg-type]


def _with_ones(z: Tensor) -> Tensor:
    """A channel of ones beside the picture's own: zeros there mean outside."""
    return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
