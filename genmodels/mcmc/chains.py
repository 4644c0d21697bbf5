"""Many chains at once: warmup, draws, and what came of them."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genmodels.mcmc.adaptation import Adaptation
from genmodels.mcmc.kernels import Adaptive, Kernel, State
from genmodels.noise import Noise, derive, words

FORESEEN = 1 << 16
"""Numbers of a tag that are found at once: one at a time they cost more than most steps."""


@dataclass(frozen=True)
class Chains:
    """What chains drew after warmup: draws (C, N, d) and log_density (C, N) nats, float64.

    accepted (C,): mean acceptance probability; errors (C,) int64: proposals refused because their log density was no number; step_size: as warmup
    chose it, NaN for a kernel without one; seconds: of the draws, warmup_seconds: before them; kernel and state: to go on from.
    """

    draws: Tensor
    log_density: Tensor
    accepted: Tensor
    errors: Tensor
    step_size: float
    seconds: float
    warmup_seconds: float
    kernel: Kernel
    state: State


def run(kernel: Kernel, theta: Tensor, *, warmup: int, draws: int, seed: int, thin: int = 1) -> Chains:
    """Chains from theta (C, d): `warmup` steps that choose step size and metric, then `draws` kept draws, every thin-th step.

    Raises ValueError for a start whose log density is not finite, or numbers of steps that make no chain.
    """
    began = time.perf_counter()
    kernel, state = warm(kernel, theta, warmup=warmup, seed=seed)
    return advance(kernel, state, draws=draws, seed=seed, thin=thin, warmup_seconds=time.perf_counter() - began)


@torch.no_grad()
def warm(kernel: Kernel, theta: Tensor, *, warmup: int, seed: int) -> tuple[Kernel, State]:
    """The kernel with step size and metric as `warmup` steps choose them, for good, and where the chains are by then."""
    if warmup < 0:
        raise ValueError(f"{warmup} steps of warmup; wanted 0 or more")
    state = kernel.init(theta)
    noises = foreseen(derive(seed, "warmup"), len(theta))
    if not isinstance(kernel, Adaptive) or warmup == 0:
        for _, noise in zip(range(warmup), noises, strict=False):
            state = kernel.step(state, noise)
        return kernel, state
    adaptation = Adaptation(kernel, state, next(foreseen(derive(seed, "reasonable"), len(theta))), warmup)
    for step, noise in zip(range(warmup), noises, strict=False):
        state = adaptation.kernel.step(state, noise)
        adaptation.after(step, state, noise)
    return adaptation.done, state


@torch.no_grad()
def advance(kernel: Kernel, state: State, *, draws: int, seed: int, thin: int = 1, first: int = 0, warmup_seconds: float = 0.0) -> Chains:
    """Draws first..first+draws-1 of a seed, by a kernel that stays as it is: so many draws in several calls are those of one call."""
    if draws < 1 or thin < 1:
        raise ValueError(f"{draws} draws, every {thin} steps; wanted at least 1 of each")
    began = time.perf_counter()
    before, thetas, nats, accepted = state.errors, [], [], torch.zeros_like(state.accepted)
    for step, noise in zip(range(draws * thin), foreseen(derive(seed, "draws"), len(state.theta), first * thin), strict=False):
        state = kernel.step(state, noise)
        accepted += state.accepted
        if (step + 1) % thin == 0:
            thetas.append(state.theta)
            nats.append(state.log_density)
    return Chains(
        draws=torch.stack(thetas, dim=1),
        log_density=torch.stack(nats, dim=1),
        accepted=accepted / (draws * thin),
        errors=state.errors - before,
        step_size=float(kernel.size) if isinstance(kernel, Adaptive) else float("nan"),
        seconds=time.perf_counter() - began,
        warmup_seconds=warmup_seconds,
        kernel=kernel,
        state=state,
    )


def foreseen(seed: int, chains: int, first: int = 0) -> Iterator[Noise]:
    """Noise(seed, position=range(chains), step) of step first, first + 1, ...: the same numbers, found for many steps at once."""
    kept: dict[tuple[str, str, tuple[int, ...]], tuple[int, Tensor]] = {}
    step = first
    while True:
        yield Foreseen(seed, chains, step, kept)
        step += 1


class Foreseen(Noise):
    """The noise of one step of all chains, which looks numbers up that it found for the steps after it too."""

    def __init__(self, seed: int, chains: int, step: int, kept: dict[tuple[str, str, tuple[int, ...]], tuple[int, Tensor]]) -> None:
        super().__init__(seed, position=torch.arange(chains), step=step)
        self._kept = kept

    def uniform(self, tag: str, shape: Sequence[int] = ()) -> Tensor:
        return self._found("uniform", tag, tuple(shape))

    def normal(self, tag: str, shape: Sequence[int] = ()) -> Tensor:
        return self._found("normal", tag, tuple(shape))

    def shared(self, tag: str, shape: Sequence[int] = ()) -> Tensor:
        return self._found("shared", tag, tuple(shape))

    def _found(self, kind: str, tag: str, shape: tuple[int, ...]) -> Tensor:
        start, found = self._kept.get((kind, tag, shape), (self.step, torch.empty(0)))
        if not start <= self.step < start + len(found):
            start, found = self.step, Ahead(self, FORESEEN).found(kind, tag, shape)
            self._kept[kind, tag, shape] = start, found
        return found[self.step - start]


class Ahead(Noise):
    """A row for every chain of this step and of as many after it as come to `size` numbers."""

    def __init__(self, noise: Noise, size: int) -> None:
        super().__init__(noise.seeds, position=noise.position, step=noise.step)
        self._size = size
        self._steps = torch.zeros(0)

    def found(self, kind: str, tag: str, shape: tuple[int, ...]) -> Tensor:
        """(steps, chains, *shape), or (steps, *shape) of shared ones."""
        chains = torch.tensor([-1]) if kind == "shared" else self.position
        each = max(1, torch.Size(shape).numel() * len(chains))
        steps = self.step + torch.arange(max(1, min(1024, self._size // each)))
        self._steps = steps.repeat_interleave(len(chains))[:, None]
        self.position = chains.repeat(len(steps))
        drawn = super().normal(tag, shape) if kind == "normal" else super().uniform(tag, shape)
        return drawn.reshape(len(steps), *(() if kind == "shared" else (len(chains),)), *shape)

    def _words(self, tag: str, position: Tensor, size: int) -> Tensor:
        return words(self._keys(tag), position, self._steps, size)
