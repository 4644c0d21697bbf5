"""What a replica computes for a request, block by block: samples, completions, scores, labels."""

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

from genmodels.core import BLOCK, Autoregressive, Bounded, Classifies, Completes, Density, GenerativeModel
from genmodels.noise import Noise

FEW = 4
"""Rows of a completion that are computed at once while they may take a swarm of draws each."""


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


@dataclass(kw_only=True, eq=False)
class Sampling(Job):
    """Samples first..first+n-1 of a seed. y (n,) int64 or None; c (n, *condition.shape) or None."""

    seed: int
    first: int
    y: Tensor | None
    c: Tensor | None
    temperature: float

    @property
    def kin(self) -> object:
        return Sampling, id(self.model)

    @staticmethod
    def compute(parts: Sequence[Part]) -> NDArray[Any]:
        jobs: list[Sampling] = [part.job for part in parts for _ in range(len(part))]
        rows = [row for part in parts for row in range(part.start, part.stop)]
        drawn = jobs[0].model.sample_rows(
            [job.seed for job in jobs],
            [job.first + row for job, row in zip(jobs, rows, strict=True)],
            y=_columns([part.job.y for part in parts], parts),
            c=_columns([part.job.c for part in parts], parts),
            temperature=torch.tensor([job.temperature for job in jobs]),
        )
        return drawn.cpu().numpy()


@dataclass(kw_only=True, eq=False)
class Completing(Job):
    """Completions first..first+n-1 of a seed of x (*shape) levels where known (*shape) says so. Gives rows of (levels, ess), ess NaN
    where nothing is weighted; how they were made is known when the first block is done."""

    seed: int
    first: int
    x: Tensor
    known: Tensor
    y: Tensor | None
    c: Tensor | None
    temperature: float
    method: str = ""
    exact: bool = False

    @property
    def kin(self) -> object:
        return self  # alone: a model completes for one seed at a time

    @property
    def room(self) -> int:
        return sys.maxsize if self.exact else FEW

    @staticmethod
    def compute(parts: Sequence[Part]) -> NDArray[Any]:
        job, rows = parts[0].job, slice(parts[0].start, parts[0].stop)
        assert isinstance(job.model, Completes)
        done = job.model.complete(
            job.x.expand(len(parts[0]), *job.x.shape),
            job.known,
            seed=job.seed,
            y=None if job.y is None else job.y[rows],
            c=None if job.c is None else job.c[rows],
            temperature=job.temperature,
            first=job.first + parts[0].start,
        )
        job.method, job.exact = done.method, done.exact
        levels = done.x.cpu().numpy()
        out = np.empty(len(levels), dtype=[("levels", levels.dtype, levels.shape[1:]), ("ess", np.float32)])
        out["levels"], out["ess"] = levels, np.nan if done.ess is None else done.ess.cpu().numpy()
        return out


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
    """log p, or its bound, in nats, float64; y (n,) or None; k draws of a bound by `seed`."""

    y: Tensor | None
    seed: int
    k: int

    def weigh(self, rows: Tensor) -> Tensor:
        x, lengths, c = self.picked(rows)
        y = None if self.y is None else self.y[rows]
        if isinstance(self.model, Density):
            return self.model.log_prob(x, y, c, length=lengths).double()
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


def _columns(columns: Sequence[Tensor | None], parts: Sequence[Part]) -> Tensor | None:
    """The parts' rows of a column that all of them have, or none."""
    taken = [column[part.start : part.stop] for column, part in zip(columns, parts, strict=True) if column is not None]
    return torch.cat(taken) if taken else None
