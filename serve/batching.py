"""Rows of several requests computed together, off the event loop: a thread of its own takes one block after another, a little of every request.

A request's rows do not depend on their neighbours (genmodels' samplers promise that), so it gets the same bytes alone as in company. Between
two blocks, requests that nobody waits for any more are dropped, and one that fails is failed alone.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmodels.core import BLOCK, Bounded, Density, GenerativeModel
from genmodels.noise import Noise
from serve.schema import Problem

T = TypeVar("T")


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
class Scoring(Job):
    """log p, or its bound, of x (n, *shape) levels in nats; y (n,), lengths (n,) or None; k draws of a bound by `seed`."""

    x: Tensor
    y: Tensor | None
    lengths: Tensor | None
    seed: int
    k: int

    @property
    def kin(self) -> object:
        return self  # alone: the last bit of a score shows, so a request's blocks are the same whoever else is asking

    @staticmethod
    def compute(parts: Sequence[Part]) -> NDArray[Any]:
        part = parts[0]
        blocks = [part.job.block(start, min(start + BLOCK, part.stop)) for start in range(part.start, part.stop, BLOCK)]
        return np.concatenate(blocks)

    def block(self, start: int, stop: int) -> NDArray[np.float64]:
        """Rows start..stop, padded to a full block with the last of them."""
        rows = torch.arange(start, start + BLOCK).clamp_(max=stop - 1)
        y = None if self.y is None else self.y[rows]
        lengths = None if self.lengths is None else self.lengths[rows]
        with torch.no_grad():
            if isinstance(self.model, Density):
                nats = self.model.log_prob(self.x[rows], y, length=lengths)
            else:
                assert isinstance(self.model, Bounded)
                noise = Noise(self.seed, position=rows).to(self.model.device)
                nats = self.model.iwae(self.model.examples(self.x[rows]), y, self.k, noise)
        return nats[: stop - start].double().cpu().numpy()


class Batcher:
    """Computes jobs in one thread, `max_batch` rows at a time, waiting up to `wait` seconds for company when there is room."""

    def __init__(self, *, threads: int, max_batch: int, wait: float) -> None:
        self._max_batch, self._wait = max_batch, wait
        self._jobs: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model", initializer=torch.set_num_threads, initargs=(threads,))
        self._loop_task: asyncio.Task[None] | None = None
        self._since: float | None = None

    async def rows(self, job: Job) -> NDArray[Any]:
        """The job's rows. Cancelling this drops what is not yet computed of it."""
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._work())
        self._jobs.append(job)
        self._arrived.set()
        return await job.future

    async def call(self, function: Callable[[], T]) -> T:
        """Runs a function in the models' thread, between two blocks."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def busy_for(self) -> float:
        """Seconds that the present block has been computing."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    async def close(self) -> None:
        if self._loop_task is not None:
            self._loop_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop_task
        for job in self._jobs:
            job.fail(Problem(503, "stopping", "the server is stopping; ask again"))
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await self._company()
            parts = self._take()
            if not parts:
                self._arrived.clear()
                continue
            self._since = time.monotonic()
            await self._compute(parts)
            self._since = None

    async def _company(self) -> None:
        """Waits for more rows when those here do not fill a block, but nobody waits longer for that than `wait`."""
        if self._jobs and sum(job.left for job in self._jobs) < self._max_batch:
            await asyncio.sleep(max(0.0, min(job.arrived for job in self._jobs) + self._wait - time.monotonic()))

    def _take(self) -> list[Part]:
        """A block's worth of rows: an equal share of every job of the longest-waiting job's kin, then whatever still fits."""
        self._jobs = deque(job for job in self._jobs if job.left and not job.future.done())
        if not self._jobs:
            return []
        kin = [job for job in self._jobs if job.kin == self._jobs[0].kin]
        parts, room = [], self._max_batch
        for share in (max(1, room // len(kin)), room):
            for job in kin:
                if rows := min(share, job.left, room):
                    parts.append(job.take(rows))
                    room -= rows
        served = {id(part.job) for part in parts}
        self._jobs = deque(sorted(self._jobs, key=lambda job: id(job) in served))  # the others come first next time
        return parts

    async def _compute(self, parts: list[Part]) -> None:
        try:
            rows = await self.call(lambda: parts[0].job.compute(parts))
        except Exception as error:
            if len({id(part.job) for part in parts}) == 1:
                parts[0].job.fail(error)
                return
            for part in parts:  # one of them is at fault; the others shall not pay for it
                await self._compute([part])
            return
        for part in parts:
            part.job.give(part.start, rows[: len(part)])
            rows = rows[len(part) :]


def _columns(columns: Sequence[Tensor | None], parts: Sequence[Part]) -> Tensor | None:
    """The parts' rows of a column that all of them have, or none."""
    taken = [column[part.start : part.stop] for column, part in zip(columns, parts, strict=True) if column is not None]
    return torch.cat(taken) if taken else None
