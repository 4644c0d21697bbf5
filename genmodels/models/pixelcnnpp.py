"""PixelCNN++: an image as a product over pixels of discretised logistic mixtures, seen at several resolutions at once.

PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications (Salimans, Karpathy, Chen, Kingma, 2017),
arXiv:1701.05517.

A pixel's channels share one mixture of M logistics: earlier channels move the means (eq. 3) and weigh the components, so that each value has a
conditional of its own, a ratio of two mixtures, and the sampler draws by that. A vertical stream of features knows every row above, a horizontal
one what is left of the pixel; both halve the picture and double it again, with shortcuts at equal sizes (nn/streams.py).

We differ from the paper in five ways. (1) Halving costs odd rows and columns their coarse view of the even one before; so the first convolutions
are as wide as the row (up to `reach`) and not 3, and no earlier pixel is lost. (2) Doubling repeats pixels and convolves, in place of a transposed
convolution. (3) ELU in place of ELU beside its mirror image, which would double the work; no weight normalisation. (4) A learnt map over
positions is added to the first layer, which helps small centred pictures. (5) The mixture's means start out spread over the levels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.core import Event, Objective, Optimizer, Trained
from genmodels.core.forced import TeacherForced
from genmodels.models import pixelcnnpp_packed
from genmodels.nn.gates import drop
from genmodels.nn.heads import raster
from genmodels.nn.likelihood import LogisticMixture
from genmodels.nn.scaling import scaled
from genmodels.nn.streams import COLUMNS, ROWS, Stream, Trail, halved
from genmodels.noise import Noise
from genmodels.sampling.native import Compiled
from genmodels.sampling.packing import Packer, Plan


@dataclass
class Canvas:
    """What later pixels will need of a picture half drawn."""

    y: Tensor | None
    """(B,) int64."""
    pixel: Tensor
    """(B, C, 1, 1) uint8 levels of the present pixel, as far as they are drawn."""
    row: Tensor
    """(B, C + 1, 1, reach + W): the network's input of the row being drawn, zeros left of it and where nothing is drawn yet."""
    vertical: Trail
    horizontal: Trail
    hints: list[Tensor | None]
    """What the rows above tell each horizontal block of this row, (B, hidden, 1, W'); of a coarser row where that is read."""
    raw: Tensor
    """(B, P, 1, 1) parameters of the present pixel's mixture."""
    step: int = 0
    """The value that comes next: channels of a pixel, pixels of a row, rows."""


class PixelCNNPlusPlus(Trained, Compiled, TeacherForced):
    modalities = frozenset({"image"})
    compiled = "pixelcnnpp"
    VERSION = 2

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """blocks: residual blocks a resolution, both down and up; scales: halvings, fewer for tiny pictures; reach: columns of the first layer."""

        hidden: int = 24
        blocks: int = 1
        scales: int = 2
        components: int = 5
        reach: int = 32
        dropout: float = 0.1

        def __post_init__(self) -> None:
            if min(self.hidden, self.blocks, self.components, self.reach) < 1 or self.scales < 0 or not 0 <= self.dropout < 1:
                raise ValueError(f"{self}; wanted sizes of at least 1, scales of at least 0 and a dropout below 1")

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        if event.levels == 0:
            raise ValueError(f"PixelCNNPlusPlus models levels; got {event}")
        channels, height, width = event.shape
        self.reach = max(1, min(config.reach, width - 1))
        sizes, hidden = halved((height, width), config.scales), config.hidden
        self.above = nn.Conv2d(channels + 1, hidden, (1, 2 * self.reach + 1))
        self.left = nn.Conv2d(channels + 1, hidden, (1, self.reach))
        self.place = nn.Parameter(torch.zeros(hidden, height, width))
        self.vertical = Stream(ROWS, hidden, sizes, blocks=config.blocks, classes=event.classes, dropout=config.dropout)
        self.horizontal = Stream(COLUMNS, hidden, sizes, blocks=config.blocks, classes=event.classes, dropout=config.dropout, hinted=True)
        self.out = nn.Conv2d(hidden, LogisticMixture.parameters(config.components, channels), 1)
        with torch.no_grad():
            means = self.out.bias.reshape(config.components, -1)[:, 1 : 1 + channels]  # type: ignore[union-attr]
            means.copy_((2 * torch.arange(config.components)[:, None] + 1) / config.components - 1)

    def mixture(self, x: Tensor, y: Tensor | None, noise: Noise | None = None) -> LogisticMixture:
        """x (B, C, H, W) levels -> the distribution of every pixel given those before it."""
        # Channels last: the layout that convolutions compute in. Autocast's width is kept.
        z = self._input(x).contiguous(memory_format=torch.channels_last)
        before = F.pad(z, (self.reach, self.reach, 1, 0))
        v = self.above(before[:, :, :-1])
        v = v + self.place.to(v.dtype)
        h = self.left(before[:, :, 1:, : -self.reach - 1])
        hints = self.horizontal.told(self.vertical(v, y, noise=noise))
        h = F.elu(self.horizontal(h, y, hints=hints, noise=noise)[-1])
        return self._mixture(self.out(drop(h, self.config.dropout, noise, "dropout.out")))

    def conditional_log_probs(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        return self.mixture(x, y, noise).conditionals(x)

    def all_logits(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        mixture = self.mixture(x, y, noise)
        return torch.stack([mixture.logits(x, channel).movedim(1, -1) for channel in range(self.event.shape[0])], dim=1)

    def objectives(self) -> list[Objective]:
        optimizer = Optimizer(lr=2e-3, betas=(0.9, 0.99))
        return [Objective(name="likelihood", loss=self.loss, parameters=list(self.parameters()), optimizer=optimizer)]

    def start(self, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Canvas:
        channels, _, width = self.event.shape
        zeros = self.place.new_zeros
        return Canvas(
            y=y,
            pixel=torch.zeros(n, channels, 1, 1, dtype=torch.uint8, device=self.device),
            row=zeros(n, channels + 1, 1, self.reach + width),
            vertical=self.vertical.start(n),
            horizontal=self.horizontal.start(n),
            hints=[None] * len(self.vertical.nodes),
            raw=zeros(n, self.out.out_channels, 1, 1),
        )

    def predict(self, memory: Canvas) -> Tensor:
        row, column, channel = raster(memory.step, self.event.shape[0], self.event.shape[2])
        if column == channel == 0:
            self._begin_row(memory, row)
        if channel == 0:
            h = self.left(memory.row[..., column : column + self.reach])
            outs = self.horizontal.step(memory.horizontal, h, memory.y, time=row | column, column=column, hints=memory.hints)
            assert outs[-1] is not None
            memory.raw = self.out(F.elu(outs[-1]))
        return self._mixture(memory.raw).logits(memory.pixel, channel)[..., 0, 0]

    def take(self, memory: Canvas, level: Tensor) -> None:
        channels, _, width = self.event.shape
        _, column, channel = raster(memory.step, channels, width)
        memory.pixel[:, channel, 0, 0] = level.to(torch.uint8)
        memory.step += 1
        if channel == channels - 1:
            memory.row[..., self.reach + column, None] = self._input(memory.pixel)

    def packed(self, packer: Packer) -> Plan:
        return pixelcnnpp_packed.plan(self, packer)

    def told(self, n: int, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        return pixelcnnpp_packed.told(self, n, y)

    def _begin_row(self, canvas: Canvas, row: int) -> None:
        """The vertical stream over the row just drawn, and a clean row."""
        v = self.above(F.pad(canvas.row, (0, self.reach))) + self.place[:, row, None]
        outs = self.vertical.step(canvas.vertical, v, canvas.y, time=row)
        fresh = self.horizontal.told(outs)
        canvas.hints = [old if new is None else new for old, new in zip(canvas.hints, fresh, strict=True)]
        canvas.row.zero_()
        canvas.horizontal.forget()

    def _mixture(self, raw: Tensor) -> LogisticMixture:
        return LogisticMixture.of(raw, channels=self.event.shape[0], levels=self.event.levels)

    def _input(self, x: Tensor) -> Tensor:
        """x (B, C, ...) levels -> (B, C + 1, ...): a channel of ones beside the picture's own, since zeros there mean outside."""
        z = scaled(x, self.event.levels, self.place.dtype)
        return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
