"""Sampling by fixed-point iteration: guess an example, draw every value given the guess, take the draws for the next guess.

Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving (Song, Meng, Liao, Ermon, 2021), arXiv:2002.03629; for discrete values
Predictive Sampling with Forecasting Autoregressive Models (Wiggers, Hoogeboom, 2020), arXiv:2002.09928.

The only fixed point of these draws, each by a uniform of its own that stays the same, is what the ancestral sampler draws from the same uniforms: the
first value depends on no guess, so it is right after the first pass, the second after the second, and all D of them after D at the latest. It is sure
of all values up to and with the first one that a pass changed. Most values hear little of their neighbours and are right
long before that, so that a picture takes a small part of the passes that it has values: worth it where a pass costs little more than a step, on a GPU
at a small batch. The second paper draws by the Gumbel-max trick; here it is the inverse CDF in level order, as everywhere.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genmodels.core import Autoregressive, Sampler
from genmodels.core.forced import TeacherForced
from genmodels.sampling.capture import Capture
from genmodels.sampling.passes import Asked, Guess, Pass


class FixedPoint(Sampler):
    """Draws families that give all logits at once; others are drawn eagerly. capture: as in Asked."""

    def __init__(self, capture: Capture | None = None) -> None:
        self.capture = capture

    def begin(self, model: Autoregressive, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> "Settling | None":
        if not isinstance(model, TeacherForced):
            return None
        x = torch.zeros(n, model.steps, dtype=torch.uint8, device=model.device)
        return Settling(Asked(model, y, c, None, self.capture), x)

    def padded(self, model: Autoregressive) -> bool:
        return True

    def backend(self, model: Autoregressive) -> str:
        return "fixed-point" if isinstance(model, TeacherForced) else "eager"


@dataclass
class Settling(Guess):
    """done: steps of which it is sure, in every row."""

    def _draw(self, recorded: Pass, until: int) -> None:
        while self.done < until:
            recorded.replay()
            self.passes += 1
            self.done = max(self.done, min(int(recorded.moved) + 1, self.x.shape[1]))
