"""PixelCNN, plain and gated: an image as a product of K-way softmaxes, sub-pixel by sub-pixel in raster order.

Plain: Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner, Kavukcuoglu, 2016), arXiv:1601.06759, sec. 3.5: one stack of masked convolutions.
It has a blind spot: in the d-th row above a pixel it sees nothing further right than r + d - 1 columns, r being the reach of the first kernel.
Gated: Conditional Image Generation with PixelCNN Decoders (van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu, 2016),
arXiv:1606.05328. Two stacks leave no blind spot: the vertical one sees every row above, the horizontal one what is left of the pixel. The vertical
stack is shifted down by one row where it feeds the horizontal one, and nowhere else.

Both can have a condition that depends on the place (sec. 2.3): a picture that is given, or one made of the example: smaller, grey or with a hole.
Kernels are cropped to what they may see, so no weight is ever multiplied by a mask. We differ from the papers in three ways. (1) The channels of one
pixel are ordered in the output layers, one for R, one for G given R, one for B given R and G, in place of feature maps split in three: the stacks
then run once a pixel, not once a sub-pixel. (2) The vertical stack is residual too. (3) A learnt map over positions is added to the first layer,
which helps small centred pictures.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.core import Event
from genmodels.core.forced import Slanted
from genmodels.models import pixelcnn_packed
from genmodels.nn.conditioning import ClassBias
from genmodels.nn.gates import drop, gate
from genmodels.nn.heads import ChannelHeads
from genmodels.nn.local import Context, LocalBias, heard, with_ones
from genmodels.nn.masked import PastConv2d
from genmodels.nn.raster import Raster, Scan
from genmodels.noise import Noise
from genmodels.sampling.native import Compiled
from genmodels.sampling.packing import Packer, Plan


class Block(nn.Module):
    """What one masked 3x3 convolution adds: x (B, 2 hidden, H, W) -> the same, down to `hidden` features and up again (fig. 5, left)."""

    def __init__(self, hidden: int, classes: int, context: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(2 * hidden, hidden, 1), nn.Conv2d(hidden, 2 * hidden, 1)
        self.past = PastConv2d(hidden, hidden, 3, centre=True)
        self.label, self.local = ClassBias(classes, hidden), LocalBias(context, hidden)

    def forward(self, x: Tensor, y: Tensor | None, context: Tensor | None) -> Tensor:
        return self.rise(self.local(self.past(self.lower(x)), context), y)

    def lower(self, x: Tensor) -> Tensor:
        return F.relu(self.down(F.relu(x)))

    def rise(self, seen: Tensor, y: Tensor | None) -> Tensor:
        return self.up(F.relu(self.label(seen, y)))


class PixelCNN(Raster, Compiled, Slanted):
    VERSION = 2
    compiled = "pixelcnn"

    @dataclass(frozen=True, kw_only=True)
    class Config(Raster.Config):
        """hidden: feature maps of the masked convolutions, half of those between them; kernel: width of the first convolution, the others have 3."""

        layers: int = 8
        kernel: int = 7
        dropout: float = 0.0

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        channels, height, width = event.shape
        context = config.hidden if self.event.condition else 0
        self.first = PastConv2d(channels + 1, 2 * config.hidden, config.kernel, centre=False)
        self.label = ClassBias(event.classes, 2 * config.hidden)
        self.place = nn.Parameter(torch.zeros(2 * config.hidden, height, width))
        self.blocks = nn.ModuleList(Block(config.hidden, event.classes, context) for _ in range(config.layers))
        self.heads = ChannelHeads(2 * config.hidden, config.head, channels, event.levels)
        self.context = Context(self.event.condition, config.hidden) if self.event.condition else None

    @property
    def behind(self) -> int:
        # The first convolution sees `reach` columns to the right there; one of the others goes up a row only with what it saw left of the pixel.
        return self.first.reach + 1

    def logits(self, z: Tensor, y: Tensor | None, noise: Noise | None = None, *, c: Tensor | None = None) -> Tensor:
        context, rate = self._context(c), self.config.dropout
        # Channels last: the layout that convolutions compute in, so none turns its input and output around. Autocast's width is kept.
        h = self.label(self.first(with_ones(z).contiguous(memory_format=torch.channels_last)), y)
        h = h + self.place.to(h.dtype)
        for i, block in enumerate(self._blocks()):
            h = h + block(drop(h, rate, noise, f"dropout.{i}"), y, context)
        return self.heads(F.relu(drop(h, rate, noise, "dropout.head")), z)

    def _locals(self) -> list[tuple[LocalBias, ...]]:
        return [(block.local,) for block in self._blocks()]

    def _blank(self, n: int) -> list[Tensor]:
        """A masked convolution's (B, features, reach + 1, W + 2 reach): its input in the rows that it covers, the present one last."""
        pasts = [self.first, *(block.past for block in self._blocks())]
        return [self.place.new_zeros(n, past.weight.shape[1], past.reach + 1, self.event.shape[2] + 2 * past.reach) for past in pasts]

    def _pixel(self, scan: Scan, row: int, column: int) -> Tensor:
        first, *inputs = scan.kept
        h = (
            self.label(self.first.at(first[..., column : column + self.config.kernel]), scan.told.y)
            + self.place[:, row, column, None, None]
        )
        for block, (told,), kept in zip(self._blocks(), scan.told.layers, inputs, strict=True):
            kept[:, :, -1, column + 1] = block.lower(h)[..., 0, 0]
            h = h + block.rise(heard(block.past.at(kept[..., column : column + 3]), told, row, column), scan.told.y)
        return F.relu(h)

    def _keep_pixel(self, scan: Scan, z: Tensor, column: int) -> None:
        scan.kept[0][:, :, -1, self.first.reach + column] = z[..., 0]

    def _keep_row(self, scan: Scan, z: Tensor, row: int) -> None:
        scan.kept = [F.pad(rows[:, :, 1:], (0, 0, 0, 1)) for rows in scan.kept]

    def packed(self, packer: Packer) -> Plan:
        return pixelcnn_packed.plain(self, packer)

    def told(self, n: int, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        return pixelcnn_packed.plain_told(self, n, y, c)

    def _blocks(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]


class GatedLayer(nn.Module):
    """One layer of both stacks. v, h (B, features, H, W) -> the same with `hidden` features; v's row i knows of rows <= i, h of what came before."""

    def __init__(self, features: int, hidden: int, kernel: int, classes: int, context: int, *, first: bool, last: bool) -> None:
        super().__init__()
        self.first, self.reach = first, kernel // 2
        self.vertical = nn.Conv2d(features, 2 * hidden, (self.reach + 1, kernel))
        self.hint = nn.Conv2d(2 * hidden, 2 * hidden, 1)
        # The paper's mask A is a kernel without its last column: the first layer must not see the pixel itself.
        self.horizontal = nn.Conv2d(features, 2 * hidden, (1, self.reach if first else self.reach + 1), bias=False)
        self.out = nn.Conv2d(hidden, hidden, 1)
        self.h_class, self.h_local = ClassBias(classes, 2 * hidden), LocalBias(context, 2 * hidden)
        # Nothing reads the vertical stack after its last hint.
        self.skip = None if last else nn.Conv2d(features, hidden, 1) if first else nn.Identity()
        self.v_class, self.v_local = ClassBias(0 if last else classes, 2 * hidden), LocalBias(0 if last else context, 2 * hidden)

    def forward(self, v: Tensor, h: Tensor, y: Tensor | None, context: Tensor | None) -> tuple[Tensor, Tensor]:
        risen = self.vertical(F.pad(v, (self.reach, self.reach, self.reach, 0)))
        hint = F.pad(self.hint(risen), (0, 0, 1, 0))[:, :, :-1]  # the one shift: a pixel hears of the rows above its own
        run = self.horizontal(F.pad(h, (self.reach, 0, 0, 0))[..., : h.shape[-1] + self.reach - self.first])
        return self.next_v(v, self.v_local(risen, context), y), self.next_h(h, self.h_local(run + hint, context), y)

    def next_v(self, v: Tensor, risen: Tensor, y: Tensor | None) -> Tensor:
        return v if self.skip is None else self.skip(v) + gate(self.v_class(risen, y))

    def next_h(self, h: Tensor, run: Tensor, y: Tensor | None) -> Tensor:
        out = self.out(gate(self.h_class(run, y)))
        return out if self.first else h + out


@dataclass
class Stacks:
    """What the two stacks keep of a picture half drawn."""

    above: list[Tensor]
    """A layer's (B, features, reach, W): the rows that its vertical kernel covers above the next one."""
    hints: list[Tensor]
    """A layer's (B, 2 hidden, 1, W): what the rows above tell the pixels of this row."""
    left: list[Tensor]
    """A layer's (B, features, 1, reach + W): its horizontal input in this row, zeros left of the picture."""


class GatedPixelCNN(Raster, Compiled, Slanted):
    VERSION = 2
    compiled = "gated_pixelcnn"

    @dataclass(frozen=True, kw_only=True)
    class Config(Raster.Config):
        """hidden: feature maps of each stack; kernel: width of the full kernel."""

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        channels, height, width = event.shape
        context = config.hidden if self.event.condition else 0
        features = [channels + 1, *[config.hidden] * config.layers]
        self.layers = nn.ModuleList(
            GatedLayer(features[i], config.hidden, config.kernel, event.classes, context, first=i == 0, last=i == config.layers - 1)
            for i in range(config.layers)
        )
        self.place = nn.Parameter(torch.zeros(config.hidden, height, width))
        self.heads = ChannelHeads(config.hidden, config.head, channels, event.levels)
        self.context = Context(self.event.condition, config.hidden) if self.event.condition else None

    @property
    def behind(self) -> int:
        return (
            self.config.layers * (self.config.kernel // 2) + 1
        )  # every layer of the vertical stack sees further to the right in its own row

    def logits(self, z: Tensor, y: Tensor | None, noise: Noise | None = None, *, c: Tensor | None = None) -> Tensor:
        context = self._context(c)
        # Channels last: the layout that convolutions compute in, so none turns its input and output around. Autocast's width is kept.
        v = h = with_ones(z).contiguous(memory_format=torch.channels_last)
        for i, layer in enumerate(self._layers()):
            h_in = h if i == 0 else drop(h, self.config.dropout, noise, f"dropout.h.{i}")
            v_in = v if i == 0 else drop(v, self.config.dropout, noise, f"dropout.v.{i}")
            v, h = layer(v_in, h_in, y, context)
            h = h + self.place.to(h.dtype) if i == 0 else h
        h = drop(F.elu(h), self.config.dropout, noise, "dropout.head")
        return self.heads(h, z)

    def _locals(self) -> list[tuple[LocalBias, ...]]:
        return [(layer.v_local, layer.h_local) for layer in self._layers()]

    def _blank(self, n: int) -> Stacks:
        layers, zeros, width = self._layers(), self.place.new_zeros, self.event.shape[2]
        return Stacks(
            above=[zeros(n, layer.vertical.in_channels, layer.reach, width) for layer in layers],
            hints=[zeros(n, 2 * self.config.hidden, 1, width) for _ in layers],
            left=[zeros(n, layer.vertical.in_channels, 1, layer.reach + width) for layer in layers],
        )

    def _pixel(self, scan: Scan, row: int, column: int) -> Tensor:
        h, kept = torch.empty(0), scan.kept
        for i, (layer, (_, told)) in enumerate(zip(self._layers(), scan.told.layers, strict=True)):
            if i:
                kept.left[i][..., layer.reach + column] = h[..., 0]
            seen = kept.left[i][..., column : column + layer.reach + (i > 0)]
            run = heard(layer.horizontal(seen) + kept.hints[i][..., column, None], told, row, column)
            h = layer.next_h(h, run, scan.told.y)
            h = h + self.place[:, row, column, None, None] if i == 0 else h
        return F.elu(h)

    def _keep_pixel(self, scan: Scan, z: Tensor, column: int) -> None:
        scan.kept.left[0][..., self._layers()[0].reach + column] = z

    def _keep_row(self, scan: Scan, z: Tensor, row: int) -> None:
        """The vertical stack over the row just drawn: what the next row will hear of."""
        v, kept = z, scan.kept
        for i, (layer, (told, _)) in enumerate(zip(self._layers(), scan.told.layers, strict=True)):
            seen = torch.cat([kept.above[i], v], dim=2)
            risen = layer.vertical(F.pad(seen, (layer.reach, layer.reach, 0, 0)))
            kept.above[i], kept.hints[i] = seen[:, :, 1:], layer.hint(risen)
            kept.left[i].zero_()
            v = layer.next_v(v, heard(risen, told, row), scan.told.y)

    def packed(self, packer: Packer) -> Plan:
        return pixelcnn_packed.gated(self, packer)

    def told(self, n: int, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        return pixelcnn_packed.gated_told(self, n, y, c)

    def _layers(self) -> list[GatedLayer]:
        return list(self.layers)  # type: ignore[arg-type]
