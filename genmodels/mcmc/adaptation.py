"""What warmup chooses: a step size by dual averaging and a diagonal metric in growing windows, for all chains together.

The No-U-Turn Sampler (Hoffman and Gelman, 2014), arXiv:1111.4246; the windows are those of Stan's reference manual in simpler proportions. Where we
differ: the chains of a run share one step size and one metric, learnt from all of them, so that one chain astray cannot be left with a bad one.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genmodels.mcmc.kernels import Adaptive, State
from genmodels.noise import Noise


@dataclass
class DualAveraging:
    """Algorithm 5: moves log step size until acceptance is on average what is wanted."""

    start: float
    target: float
    error: float = 0.0
    mean: float = 0.0
    count: int = 0

    GAMMA, T0, KAPPA = 0.05, 10, 0.75

    def update(self, accepted: float) -> float:
        """The step size to go on with after one of this mean acceptance probability."""
        self.count += 1
        share = 1 / (self.count + self.T0)
        self.error += share * (self.target - accepted - self.error)
        log_size = math.log(10 * self.start) - math.sqrt(self.count) / self.GAMMA * self.error
        forget = self.count**-self.KAPPA
        self.mean += forget * (log_size - self.mean)
        return math.exp(log_size)

    @property
    def chosen(self) -> float:
        """The step size for good: a mean in which later steps weigh more."""
        return math.exp(self.mean) if self.count else self.start


def windows(warmup: int) -> list[int]:
    """The steps at whose end a new metric is set: after an eighth come windows that double, and a tenth at the end is left to the step size."""
    begin, end = warmup // 8, warmup - warmup // 10
    size, ends = max(10, warmup // 40), []
    while begin + size <= end:
        begin = end if begin + 3 * size > end else begin + size
        ends.append(begin)
        size *= 2
    return ends


class Adaptation:
    """Warmup of one kernel: `kernel` is what to take the next step with, `done` the one for good."""

    def __init__(self, kernel: Adaptive, state: State, noise: Noise, warmup: int) -> None:
        self._metric = state.theta.new_ones(state.theta.shape[1])
        self._from, self._ends = warmup // 8, windows(warmup)
        self._seen: list[Tensor] = []
        self.kernel = kernel
        self._restart(state, noise)

    def after(self, step: int, state: State, noise: Noise) -> None:
        """Takes into account where step number `step` led."""
        self.kernel = self.kernel.tuned(_number(self._averaging.update(float(state.accepted.mean()))), self._metric)
        if step >= self._from:
            self._seen.append(state.theta)
        if step + 1 in self._ends:
            self._metric = _variances(torch.cat(self._seen), self._metric)
            self._seen = []
            self._restart(state, noise)

    @property
    def done(self) -> Adaptive:
        return self.kernel.tuned(_number(self._averaging.chosen), self._metric)

    def _restart(self, state: State, noise: Noise) -> None:
        self.kernel = reasonable(self.kernel.tuned(self.kernel.size, self._metric), self._metric, state, noise)
        self._averaging = DualAveraging(float(self.kernel.size), self.kernel.target)


def reasonable(kernel: Adaptive, metric: Tensor, state: State, noise: Noise) -> Adaptive:
    """Algorithm 4: the step size doubled or halved until the mean acceptance probability crosses one half."""
    grows = float(kernel.step(state, noise).accepted.mean()) > 0.5
    for _ in range(50):
        other = kernel.tuned(kernel.size * (2.0 if grows else 0.5), metric)
        if (float(other.step(state, noise).accepted.mean()) > 0.5) != grows:
            return kernel if grows else other
        kernel = other
    return kernel


def _variances(theta: Tensor, before: Tensor) -> Tensor:
    """theta (n, d) -> (d,); of a coordinate that never moved, what was there before."""
    found = theta.var(0)
    return torch.where(found > 0, found, before)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
