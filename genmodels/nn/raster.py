"""Pictures drawn in raster order from one vector of features a pixel: what the families share that differ in how they come by that vector."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from genmodels.core import Autoregressive, Event, Objective, Optimizer, Trained
from genmodels.core.forced import TeacherForced
from genmodels.nn import derived
from genmodels.nn.heads import ChannelHeads, nats, raster
from genmodels.nn.local import Context, LocalBias, with_ones
from genmodels.nn.scaling import scaled
from genmodels.noise import Noise


@dataclass(frozen=True)
class Told:
    """What label and condition say while a picture is drawn."""

    y: Tensor | None
    """(B,) int64."""
    layers: list[tuple[Tensor | None, ...]]
    """What each LocalBias of a layer adds to every place, (B, features, H, W); None where there is no condition."""


@dataclass
class Scan:
    """A picture half drawn."""

    told: Told
    row: Tensor
    """(B, C, W) levels of the row being drawn, 0 where nothing is drawn yet."""
    kept: Any
    """What the family's layers need of the pixels before the present one."""
    h: Tensor
    """(B, features, 1, 1) of the present pixel."""
    step: int = 0
    """The sub-pixel that comes next: channels of a pixel, pixels of a row, rows."""


class Raster(Trained, Autoregressive, TeacherForced):
    """A family says how to come by the features of all pixels at once (`logits`) and of one after the other (the methods with an underscore)."""

    modalities = frozenset({"image"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """kernel: odd; head: width of the output layers. condition: none, or a picture (nn/derived.py): given with each example, or derived from it:
        smaller by `factor`, grey, or masked."""

        hidden: int = 32
        layers: int = 5
        kernel: int = 5
        head: int = 64
        dropout: float = 0.1
        condition: derived.Condition = "none"
        factor: int = 2

        def __post_init__(self) -> None:
            if self.kernel % 2 == 0 or self.kernel < 3:
                raise ValueError(f"kernel {self.kernel}; wanted an odd number from 3 on")
            if min(self.hidden, self.layers, self.head) < 1 or not 0 <= self.dropout < 1:
                sizes = f"hidden {self.hidden}, layers {self.layers}, head {self.head}, dropout {self.dropout}"
                raise ValueError(f"{sizes}; wanted sizes of at least 1 and a dropout below 1")
            derived.check(self.condition, self.factor)

    config: Config
    place: nn.Parameter
    """(features, H, W): a learnt map over positions."""
    heads: ChannelHeads
    context: Context | None

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        if event.levels == 0:
            raise ValueError(f"{type(self).__name__} models levels; got {event}")
        self.event = derived.conditioned(event, config.condition, config.factor)

    def derive(self, x: Tensor) -> Tensor:
        if self.config.condition in ("none", "given"):
            return super().derive(x)
        return derived.derive(x, self.config.condition, self.config.factor, self.event.levels)

    @abstractmethod
    def logits(self, z: Tensor, y: Tensor | None, noise: Noise | None = None, *, c: Tensor | None = None) -> Tensor:
        """z (B, C, H, W) scaled levels, c (B, *condition.shape) -> (B, C, H, W, K): the logits of each sub-pixel given those before it."""

    def conditional_log_probs(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        return nats(self.all_logits(x, y=y, c=c, noise=noise), x)

    def all_logits(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        return self.logits(scaled(x, self.event.levels, self.place.dtype), y, noise, c=c)

    def objectives(self) -> list[Objective]:
        optimizer = Optimizer(lr=2e-3, betas=(0.9, 0.99))
        return [Objective(name="likelihood", loss=self.loss, parameters=list(self.parameters()), optimizer=optimizer)]

    @final
    def start(self, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Scan:
        channels, height, width = self.event.shape
        context = self._context(c)
        return Scan(
            told=Told(y, [tuple(local.told(context, (height, width)) for local in layer) for layer in self._locals()]),
            row=torch.zeros(n, channels, width, dtype=torch.uint8, device=self.device),
            kept=self._blank(n),
            h=self.place.new_zeros(n, len(self.place), 1, 1),
        )

    @final
    def predict(self, memory: Scan) -> Tensor:
        row, column, channel = raster(memory.step, self.event.shape[0], self.event.shape[2])
        if channel == 0:
            memory.h = self._pixel(memory, row, column)
        return self.heads.one(memory.h, scaled(memory.row[:, :channel, column], self.event.levels, memory.h.dtype))

    @final
    def take(self, memory: Scan, level: Tensor) -> None:
        channels, _, width = self.event.shape
        row, column, channel = raster(memory.step, channels, width)
        memory.row[:, channel, column] = level.to(torch.uint8)
        memory.step += 1
        if channel == channels - 1:
            self._keep_pixel(memory, self._input(memory.row[:, :, None, column, None])[..., 0], column)
            if column == width - 1:
                self._keep_row(memory, self._input(memory.row[:, :, None]), row)

    @abstractmethod
    def _locals(self) -> list[tuple[LocalBias, ...]]:
        """A layer's places where the condition is heard."""

    @abstractmethod
    def _blank(self, n: int) -> Any:
        """Scan.kept of n pictures of which nothing is drawn."""

    @abstractmethod
    def _pixel(self, scan: Scan, row: int, column: int) -> Tensor:
        """(B, features, 1, 1): what the heads read of one pixel, from what is kept of the pixels before it."""

    @abstractmethod
    def _keep_pixel(self, scan: Scan, z: Tensor, column: int) -> None:
        """z (B, C + 1, 1): a pixel just drawn, as the first layer reads it."""

    @abstractmethod
    def _keep_row(self, scan: Scan, z: Tensor, row: int) -> None:
        """z (B, C + 1, 1, W): the row just drawn, as the first layer reads it."""

    def _input(self, x: Tensor) -> Tensor:
        return with_ones(scaled(x, self.event.levels, self.place.dtype))

    @final
    def _context(self, c: Tensor | None) -> Tensor | None:
        return None if self.context is None or c is None else self.context(c)
