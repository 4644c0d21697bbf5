"""Sampling pictures in slanted waves: pixels that do not depend on each other are drawn at once, in the raster order's own conditionals.

A pixel of a PixelCNN sees the row above it only a few columns to its right. So a row may follow the one above it at that distance, `behind`, and not
at a whole row's: pixel (i, j) is drawn in wave j + behind * i, and a picture takes W + behind * (H - 1) waves in place of W * H steps. A wave is as
many passes of the whole network as there are channels, of which only the wave's values are taken. What stands where nothing is drawn yet is never
heard of.

Fixed-point iteration never takes more passes than this, but must look after each of them whether it is done; a wavefront's number is known.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genmodels.core import Autoregressive, Sampler
from genmodels.core.forced import Slanted, TeacherForced
from genmodels.sampling.capture import Capture
from genmodels.sampling.passes import Asked, Guess, Pass


class Wavefront(Sampler):
    """Draws families that say how far a row may follow the one above; others are drawn eagerly. capture: as in Asked."""

    def __init__(self, capture: Capture | None = None) -> None:
        self.capture = capture

    def begin(self, model: Autoregressive, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> "Advancing | None":
        if not self._can(model):
            return None
        x, when = torch.zeros(n, model.steps, dtype=torch.uint8, device=model.device), turns(model)
        reached = tuple((when[order].cummax(0).values + 1).tolist())
        return Advancing(Asked(model, y, c, when, self.capture), x, reached=reached)

    def padded(self, model: Autoregressive) -> bool:
        return True

    def backend(self, model: Autoregressive) -> str:
        return "wavefront" if self._can(model) else "eager"

    def _can(self, model: Autoregressive) -> bool:
        return isinstance(model, Slanted) and isinstance(model, TeacherForced)


@dataclass
class Advancing(Guess):
    """done: passes that are behind it."""

    reached: tuple[int, ...] = ()
    """(D,): how many passes it takes for a step and all before it to be drawn."""

    def _draw(self, recorded: Pass, until: int) -> None:
        while self.done < self.reached[until - 1]:
            recorded.replay()
            self.passes += 1
            self.done += 1


def turns(model: Autoregressive) -> Tensor:
    """(D,) int64 by place: the pass in which each value is drawn."""
    assert isinstance(model, Slanted)
    channels, height, width = model.event.shape
    channel, row, column = (torch.arange(size, device=model.device) for size in (channels, height, width))
    wave = column + min(model.behind, width) * row[:, None]
    return (wave * channels + channel[:, None, None]).flatten()
