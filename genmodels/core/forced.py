"""What samplers may ask of a family besides one value after the other: all conditionals at once, and how far its rows depend on each other."""

from abc import ABC, abstractmethod

from torch import Tensor

from genmodels.noise import Noise


class TeacherForced(ABC):
    """Computes the logits of all values in one pass of its network."""

    @abstractmethod
    def all_logits(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        """x (B, *shape) levels -> (B, *shape, K): the logits of each value given those before it in `order`. noise: of dropout, in training."""


class Slanted(ABC):
    """Draws pictures in raster order, and does not read all of the row above a pixel."""

    @property
    @abstractmethod
    def behind(self) -> int:
        """How many columns a row must be behind the row above it for all that its next pixel depends on to be drawn: one more than how far
        to the right that pixel sees in the row above, and rows further up are as much further ahead."""
