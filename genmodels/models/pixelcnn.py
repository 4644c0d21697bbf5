"""The gated PixelCNN: an image as a product of K-way softmaxes, sub-pixel by sub-pixel in raster order.

Conditional Image Generation with PixelCNN Decoders (van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu, 2016), arXiv:1606.05328.

Two stacks leave no blind spot: the vertical one sees every row above, the horizontal one what is left of the pixel. Kernels are cropped to what they
may see, so no weight is ever multiplied by a mask; the vertical stack is shifted down by one row where it feeds the horizontal one, and nowhere else.
We differ from the paper in three ways. (1) The channels of one pixel are ordered in the output layers, one for R, one for G given R, one for B given
R and G, in place of feature maps split in three: the two stacks then run once a pixel, not once a sub-pixel. (2) The vertical stack is residual too.
(3) A learnt map over positions is added to the first layer, which helps small centred pictures.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.core import Autoregressive, Event, Objective, Optimizer, Trained
from genmodels.nn.conditioning import ClassBias
from genmodels.nn.gates import drop, gate
from genmodels.nn.heads import ChannelHeads, raster
from genmodels.nn.scaling import scaled, wide
from genmodels.noise import Noise


class GatedLayer(nn.Module):
    """One layer of both stacks. v, h (B, features, H, W) -> the same with `hidden` features; v's row i knows of rows <= i, h of what came before."""

    def __init__(self, features: int, hidden: int, kernel: int, classes: int, *, first: bool, last: bool) -> None:
        super().__init__()
        self.first, self.reach = first, kernel // 2
        self.vertical = nn.Conv2d(features, 2 * hidden, (self.reach + 1, kernel))
        self.hint = nn.Conv2d(2 * hidden, 2 * hidden, 1)
        # The paper's mask A is a kernel without its last column: the first layer must not see the pixel itself.
        self.horizontal = nn.Conv2d(features, 2 * hidden, (1, self.reach if first else self.reach + 1), bias=False)
        self.out = nn.Conv2d(hidden, hidden, 1)
        self.h_class = ClassBias(classes, 2 * hidden)
        # Nothing reads the vertical stack after its last hint.
        self.skip = None if last else nn.Conv2d(features, hidden, 1) if first else nn.Identity()
        self.v_class = ClassBias(0 if last else classes, 2 * hidden)

    def forward(self, v: Tensor, h: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        risen = self.vertical(F.pad(v, (self.reach, self.reach, self.reach, 0)))
        hint = F.pad(self.hint(risen), (0, 0, 1, 0))[:, :, :-1]  # the one shift: a pixel hears of the rows above its own
        run = self.horizontal(F.pad(h, (self.reach, 0, 0, 0))[..., : h.shape[-1] + self.reach - self.first])
        return self.next_v(v, risen, y), self.next_h(h, run + hint, y)

    def next_v(self, v: Tensor, risen: Tensor, y: Tensor | None) -> Tensor:
        return v if self.skip is None else self.skip(v) + gate(self.v_class(risen, y))

    def next_h(self, h: Tensor, run: Tensor, y: Tensor | None) -> Tensor:
        out = self.out(gate(self.h_class(run, y)))
        return out if self.first else h + out


@dataclass
class Canvas:
    """What later pixels will need of a picture half drawn."""

    y: Tensor | None
    """(B,) int64."""
    row: Tensor
    """(B, C, W) levels of the row being drawn, 0 where nothing is drawn yet."""
    above: list[Tensor]
    """A layer's (B, features, reach, W): the rows that its vertical kernel covers above the next one."""
    hints: list[Tensor]
    """A layer's (B, 2 hidden, 1, W): what the rows above tell the pixels of this row."""
    left: list[Tensor]
    """A layer's (B, features, 1, reach + W): its horizontal input in this row, zeros left of the picture."""
    h: Tensor
    """(B, hidden, 1, 1): the horizontal stack at the present pixel."""
    step: int = 0
    """The sub-pixel that comes next: channels of a pixel, pixels of a row, rows."""


class GatedPixelCNN(Trained, Autoregressive):
    modalities = frozenset({"image"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """hidden: feature maps of each stack; kernel: odd width of the full kernel; head: width of the output layers."""

        hidden: int = 32
        layers: int = 5
        kernel: int = 5
        head: int = 64
        dropout: float = 0.1

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
            raise ValueError(f"GatedPixelCNN models levels; got {event}")
        channels, height, width = event.shape
        features = [channels + 1, *[config.hidden] * config.layers]
        self.layers = nn.ModuleList(
            GatedLayer(features[i], config.hidden, config.kernel, event.classes, first=i == 0, last=i == config.layers - 1)
            for i in range(config.layers)
        )
        self.place = nn.Parameter(torch.zeros(config.hidden, height, width))
        self.heads = ChannelHeads(config.hidden, config.head, channels, event.levels)

    def logits(self, z: Tensor, y: Tensor | None, noise: Noise | None = None) -> Tensor:
        """z (B, C, H, W) scaled levels -> (B, C, H, W, K): the logits of each sub-pixel given those before it."""
        v = h = _with_ones(z)
        for i, layer in enumerate(self._layers()):
            h_in = h if i == 0 else drop(h, self.config.dropout, noise, f"dropout.h.{i}")
            v_in = v if i == 0 else drop(v, self.config.dropout, noise, f"dropout.v.{i}")
            v, h = layer(v_in, h_in, y)
            h = h + self.place if i == 0 else h
        h = drop(F.elu(h), self.config.dropout, noise, "dropout.head")
        return self.heads(h, z)

    def conditional_log_probs(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        logits = wide(self.logits(scaled(x, self.event.levels, self.place.dtype), y, noise))
        return -F.cross_entropy(logits.flatten(0, -2), x.flatten().long(), reduction="none").reshape(x.shape)

    def objectives(self) -> list[Objective]:
        optimizer = Optimizer(lr=2e-3, betas=(0.9, 0.99))
        return [Objective(name="likelihood", loss=self.loss, parameters=list(self.parameters()), optimizer=optimizer)]

    def start(self, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Canvas:
        channels, _, width = self.event.shape
        layers, zeros = self._layers(), self.place.new_zeros
        return Canvas(
            y=y,
            row=torch.zeros(n, channels, width, dtype=torch.uint8, device=self.device),
            above=[zeros(n, layer.vertical.in_channels, layer.reach, width) for layer in layers],
            hints=[zeros(n, 2 * self.config.hidden, 1, width) for _ in layers],
            left=[zeros(n, layer.vertical.in_channels, 1, layer.reach + width) for layer in layers],
            h=zeros(n, self.config.hidden, 1, 1),
        )

    def predict(self, memory: Canvas) -> Tensor:
        row, column, channel = raster(memory.step, self.event.shape[0], self.event.shape[2])
        if channel == 0:
            memory.h = self._next_features(memory, row, column)
        return self.heads.one(memory.h, scaled(memory.row[:, :channel, column], self.event.levels, memory.h.dtype))

    def take(self, memory: Canvas, level: Tensor) -> None:
        channels, _, width = self.event.shape
        _, column, channel = raster(memory.step, channels, width)
        memory.row[:, channel, column] = level.to(torch.uint8)
        memory.step += 1
        if channel == channels - 1:
            memory.left[0][..., self._layers()[0].reach + column] = self._input(memory.row[:, :, None, column, None])[..., 0]
            if column == width - 1:
                self._finish_row(memory)

    def _next_features(self, canvas: Canvas, row: int, column: int) -> Tensor:
        """The horizontal stack at one pixel, from what is kept of its left and of the rows above -> (B, hidden, 1, 1)."""
        h = torch.empty(0)
        for i, layer in enumerate(self._layers()):
            if i:
                canvas.left[i][..., layer.reach + column] = h[..., 0]
            seen = canvas.left[i][..., column : column + layer.reach + (i > 0)]
            h = layer.next_h(h, layer.horizontal(seen) + canvas.hints[i][..., column, None], canvas.y)
            h = h + self.place[:, row, column, None, None] if i == 0 else h
        return F.elu(h)

    def _finish_row(self, canvas: Canvas) -> None:
        """The vertical stack over the row just drawn: what the next row will hear of."""
        v = self._input(canvas.row[:, :, None])
        for i, layer in enumerate(self._layers()):
            seen = torch.cat([canvas.above[i], v], dim=2)
            risen = layer.vertical(F.pad(seen, (layer.reach, layer.reach, 0, 0)))
            canvas.above[i], canvas.hints[i] = seen[:, :, 1:], layer.hint(risen)
            canvas.left[i].zero_()
            v = layer.next_v(v, risen, canvas.y)

    def _input(self, x: Tensor) -> Tensor:
        return _with_ones(scaled(x, self.event.levels, self.place.dtype))

    def _layers(self) -> list[GatedLayer]:
        return list(self.layers)  # type: ignore[arg-type]


def _with_ones(z: Tensor) -> Tensor:
    """A channel of ones beside the picture's own: zeros there mean outside."""
    return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
