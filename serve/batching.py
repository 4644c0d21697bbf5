"""Rows of several requests computed together, off the event loop: a thread of its own takes one block after another, a little of every request.

A request's rows do not depend on their neighbours (genmodels' samplers promise that), so it gets the same bytes alone as in company. Between
two blocks, requests that nobody waits for any more are dropped, and one that fails is failed alone. What can be drawn some steps at a time
is no block: a turn of it (running.py) comes between any two.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray

from serve.draws import Stepwise
from serve.jobs import Job, Part, shared
from serve.problem import Problem
from serve.running import Running

T = TypeVar("T")


class Batcher:
    """Computes jobs in one thread, `max_batch` rows at a time, waiting up to `wait` seconds for company when there is room."""

    def __init__(self, *, threads: int, max_batch: int, wait: float) -> None:
        self._max_batch, self._wait = max_batch, wait
        self._jobs: deque[Job] = deque()
        self._running = Running(max_batch)
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model", initializer=torch.set_num_threads, initargs=(threads,))
        self._loop_task: asyncio.Task[None] | None = None
        self._since: float | None = None

    async def rows(self, job: Job) -> NDArray[Any]:
        """The job's rows. Cancelling this drops what is not yet computed of it."""
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._work())
        if isinstance(job, Stepwise) and job.in_steps:
            self._running.add(job)
        else:
            self._jobs.append(job)
        self._arrived.set()
        return await job.future

    async def call(self, function: Callable[[], T]) -> T:
        """Runs a function in the models' thread, between two blocks or turns."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def busy_for(self) -> float:
        """Seconds that the present block or turn has been computing."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    async def close(self) -> None:
        if self._loop_task is not None:
            self._loop_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop_task
        for job in (*self._jobs, *self._running.jobs):
            job.fail(Problem(503, "stopping", "the server is stopping; ask again"))
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            turned = await self._turn()
            # Two that find nothing to do await nothing, so that whoever arrives meanwhile is not missed.
            if not await self._block() and not turned:
                self._arrived.clear()

    async def _turn(self) -> bool:
        """Some steps of all that is drawn in steps; whether there was any."""
        if not self._running.gather():
            return False
        self._since = time.monotonic()
        await self.call(self._running.turn)
        self._since = None
        self._running.deliver()
        return True

    async def _block(self) -> bool:
        """One block; whether there was any."""
        if not self._jobs:
            return False
        if not self._running:
            await self._company()
        if parts := self._take():
            self._since = time.monotonic()
            await self._compute(parts)
            self._since = None
        return True

    async def _company(self) -> None:
        """Waits for more rows when those here do not fill a block, but nobody waits longer for that than `wait`."""
        if self._jobs and sum(job.left for job in self._jobs) < self._max_batch:
            await asyncio.sleep(max(0.0, min(job.arrived for job in self._jobs) + self._wait - time.monotonic()))

    def _take(self) -> list[Part]:
        """A block's worth of rows of the longest-waiting job's kin."""
        self._jobs = deque(job for job in self._jobs if job.left and not job.future.done())
        if not self._jobs:
            return []
        kin = [job for job in self._jobs if job.kin == self._jobs[0].kin]
        parts = shared(kin, min(self._max_batch, kin[0].room))
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
