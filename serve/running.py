"""Rows drawn some steps at a time: between two turns requests join, what is done is answered, and what nobody waits for any more is dropped.

A row's bytes depend neither on its neighbours nor on how its steps are grouped (genmodels' compiled samplers promise that), so nothing of this shows
in them.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from genmodels.core import Drawing
from genmodels.sampling.native import NotFinite
from genmodels.sampling.together import advance_together, parted
from serve.draws import Stepwise
from serve.jobs import Part, shared

TURN = 0.03
"""Seconds that a turn should take: so long a request waits at most until it joins, and a listener until there is more to hear."""

FIRST = 32
"""Steps of the very first turn, before anything is known of their pace."""


@dataclass(eq=False)
class UnderWay:
    """A part of a request; its state is made at its first turn."""

    part: Part
    state: Drawing | None = None
    error: Exception | None = None

    @property
    def job(self) -> Stepwise:
        return self.part.job

    @property
    def done(self) -> bool:
        return self.state is not None and self.state.step == self.state.x.shape[1]


class Running:
    """At most max_rows rows at a time. `turn` belongs to the models' thread, all else to the event loop; they take turns."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows, self._steps = max_rows, FIRST
        self._waiting: deque[Stepwise] = deque()
        self._rows: list[UnderWay] = []

    def __bool__(self) -> bool:
        return bool(self._rows or self._waiting)

    @property
    def jobs(self) -> list[Stepwise]:
        return [*self._waiting, *(each.job for each in self._rows)]

    def add(self, job: Stepwise) -> None:
        self._waiting.append(job)

    def gather(self) -> bool:
        """Drops what nobody waits for and lets in who waits, as far as there is room; whether there is anything to draw."""
        self._rows = [each for each in self._rows if not each.job.future.done()]
        self._waiting = deque(job for job in self._waiting if job.left and not job.future.done())
        parts = shared(self._waiting, self._max_rows - sum(len(each.part) for each in self._rows))
        served = {id(part.job) for part in parts}
        self._waiting = deque(sorted(self._waiting, key=lambda job: id(job) in served))  # the others come first next time
        self._rows += [UnderWay(part) for part in parts]
        return bool(self._rows)

    def turn(self) -> None:
        """Some steps of every row."""
        new = sorted((each for each in self._rows if each.state is None), key=lambda each: hash(each.job.kin))
        for _, kin in groupby(new, key=lambda each: each.job.kin):
            self._begin(list(kin))
        rows = sorted((each for each in self._rows if each.error is None), key=lambda each: id(each.job.model))
        began, before = time.perf_counter(), _steps(rows)
        for _, kin in groupby(rows, key=lambda each: id(each.job.model)):
            self._advance(list(kin))
        self._pace(_steps(rows) - before, time.perf_counter() - began)

    def deliver(self) -> None:
        """Answers what is done, fails what failed, and lets the others be heard."""
        for each in self._rows:
            if each.error is not None:
                each.job.fail(each.error)
            elif each.done and each.state is not None:
                each.job.give(each.part.start, each.job.ended(each.state))
            elif each.state is not None:
                each.job.hear(each.state)
        self._rows = [each for each in self._rows if not each.done and each.error is None]

    def _begin(self, rows: Sequence[UnderWay]) -> None:
        """Requests of kin, all at once; each alone where that fails."""
        try:
            state = rows[0].job.begin([each.part for each in rows])
        except Exception as error:
            if len(rows) == 1:
                rows[0].error = error
            for each in rows if len(rows) > 1 else []:
                self._begin([each])
            return
        for each, its in zip(rows, parted(state, [len(each.part) for each in rows]), strict=True):
            each.state = its

    def _advance(self, rows: Sequence[UnderWay]) -> None:
        states = [each.state for each in rows if each.state is not None]
        try:
            advance_together(states, self._steps)
        except NotFinite as error:  # its neighbours begin again, and come to the same
            for each in rows:
                each.error = error if each.state is error.state else None
                each.state = None
        except Exception as error:
            for each in rows:
                each.error = error

    def _pace(self, drawn: int, seconds: float) -> None:
        """The steps of the next turn, of `drawn` row-steps in so many seconds."""
        if drawn > 0:
            rows = sum(len(each.part) for each in self._rows)
            self._steps = max(1, min(2 * self._steps, round(TURN * drawn / (seconds * rows))))


def _steps(rows: Sequence[UnderWay]) -> int:
    return sum(len(each.part) * each.state.step for each in rows if each.state is not None)
