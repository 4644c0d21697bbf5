"""What a replica computes for a request, block by block; here what it says of given examples: scores and labels."""

import asyncio
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmodels.core import BLOCK, Autoregressive, Bounded, Classifies, Density, Energy, GenerativeModel
from genmodels.noise import Noise


@dataclass(kw_only=True, eq=False)
class Job(ABC):
    """n rows that somebody waits for; `done` of them are taken already, and what came of each block lies in `out`."""

    model: GenerativeModel
    n: int
    done: int = 0
    arrived: float = field(default_factory=time.monotonic)
    out: dict[int, NDArray[Any]] = field(default_factory=dict)
    future: "asyncio.Future[NDArray[Any]]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def left(self) -> int:
        return self.n - self.done

    @property
    @abstractmethod
    def kin(self) -> object:
        """Jobs of equal kin may share a block."""

    @property
    def room(self) -> int:
        """How many rows a block of this job's kin may hold."""
        return sys.maxsize

    @staticmethod
    @abstractmethod
    def compute(parts: Sequence["Part"]) -> NDArray[Any]:
        """The rows of parts of kin, in their order."""

    def take(self, rows: int) -> "Part":
        start, self.done = self.done, self.done + rows
        return Part(self, start, self.done)

    def give(self, start: int, rows: NDArray[Any]) -> None:
        self.out[start] = rows
        if sum(map(len, self.out.values())) == self.n and not self.future.done():
            self.future.set_result(np.concatenate([self.out[start] for start in sorted(self.out)]))

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(frozen=True)
class Part:
    """Rows start..stop of a job."""

    job: Any
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def shared(jobs: Sequence[Job], room: int) -> list[Part]:
    """Up to `room` rows: an equal share of every job, then whatever still fits."""
    parts = []
    for share in (max(1, room // max(1, len(jobs))), room):
        for job in jobs:
            if rows := min(share, job.left, room):
                parts.append(job.take(rows))
                room -= rows
    return parts


@dataclass(kw_only=True, eq=False)
class Weighing(Job):
    """Something about each of x (n, *shape) levels; lengths (n,), c (n, *condition.shape) or None."""

    x: Tensor
    lengths: Tensor | None
    c: Tensor | None

    @property
    def kin(self) -> object:
        return self  # alone: the last bit of a score shows, so a request's blocks are the same whoever else is asking

    @staticmethod
    def compute(parts: Sequence[Part]) -> NDArray[Any]:
        part = parts[0]
        with torch.no_grad():
            blocks = [part.job.block(start, min(start + BLOCK, part.stop)) for start in range(part.start, part.stop, BLOCK)]
        return np.concatenate(blocks)

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start..stop, padded to a full block with the last of them."""
        rows = torch.arange(start, start + BLOCK).clamp_(max=stop - 1)
        return self.weigh(rows)[: stop - start].cpu().numpy()

    @abstractmethod
    def weigh(self, rows: Tensor) -> Tensor:
        """rows (BLOCK,) int64 -> (BLOCK, ...)."""

    def picked(self, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x, lengths and c of some rows."""
        return self.x[rows], None if self.lengths is None else self.lengths[rows], None if self.c is None else self.c[rows]


@dataclass(kw_only=True, eq=False)
class Scoring(Weighing):
    """log p, or its bound, in nats, float64; y (n,) or None; k draws of a bound by `seed`; log Z of an energy."""

    y: Tensor | None
    seed: int
    k: int
    log_partition: float = 0.0

    def weigh(self, rows: Tensor) -> Tensor:
        x, lengths, c = self.picked(rows)
        y = None if self.y is None else self.y[rows]
        if isinstance(self.model, Density):
            return self.model.log_prob(x, y, c, length=lengths).double()
        if isinstance(self.model, Energy) and not isinstance(self.model, Bounded):
            return -self.model.energy(self.model.examples(x)).double() - self.log_partition
        assert isinstance(self.model, Bounded)
        noise = Noise(self.seed, position=rows).to(self.model.device)
        return self.model.iwae(self.model.examples(x), y, self.k, noise).double()


@dataclass(kw_only=True, eq=False)
class ScoringValues(Weighing):
    """log p of every value given those before it, nats, (n, *shape) float32; y (n,) or None."""

    y: Tensor | None

    def weigh(self, rows: Tensor) -> Tensor:
        x, lengths, c = self.picked(rows)
        assert isinstance(self.model, Autoregressive)
        return self.model.log_probs(x, None if self.y is None else self.y[rows], c, length=lengths).float()


@dataclass(kw_only=True, eq=False)
class Classifying(Weighing):
    """log p(y|x) in nats, (n, classes) float64."""

    def weigh(self, rows: Tensor) -> Tensor:
        x, lengths, c = self.picked(rows)
        assert isinstance(self.model, Classifies)
        return self.model.classify(x, c, length=lengths).double()
