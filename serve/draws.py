"""What a replica draws for a request: samples and completions, block by block, or some steps at a time among others' rows."""

import asyncio
import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmodels.core import Autoregressive, Completes, Drawing, Event, GenerativeModel
from genmodels.core.completion import CONTINUED
from genmodels.noise import Noise
from genmodels.sampling.native import Compiled, Native
from serve.jobs import Job, Part
from serve.messages import Draw, Fill

Drawer = TypeVar("Drawer", bound="Sampling")
FEW = 4
"""Rows of a completion that are computed at once while they may take a swarm of draws each."""


@dataclass(kw_only=True, eq=False)
class Stepwise(Job):
    """Draws first..first+n-1 of a seed. y (n,) int64 or None; c (n, *condition.shape) or None.

    They are drawn some steps at a time where a compiled sampler gives a row the same bytes in any company, at whatever step the others are.
    """

    seed: int
    first: int
    y: Tensor | None
    c: Tensor | None
    temperature: float

    @property
    def in_steps(self) -> bool:
        model = self.model
        return isinstance(model, Compiled) and isinstance(model.sampler, Native) and not model.sampler.padded(model)

    @staticmethod
    @abstractmethod
    def begin(parts: Sequence[Part]) -> Drawing:
        """The rows of parts of kin, in their order, before the first step."""

    @abstractmethod
    def ended(self, state: Drawing) -> NDArray[Any]:
        """The rows of a part that is drawn to its end."""

    def hear(self, state: Drawing) -> None:
        """Called while a part is being drawn, after every turn."""


@dataclass(kw_only=True, eq=False)
class Sampling(Stepwise):
    @property
    def kin(self) -> object:
        return Sampling, id(self.model)

    @staticmethod
    def compute(parts: Sequence[Part]) -> NDArray[Any]:
        seeds, indices, columns = _rows(parts)
        return parts[0].job.model.sample_rows(seeds, indices, **columns).cpu().numpy()

    @staticmethod
    def begin(parts: Sequence[Part]) -> Drawing:
        seeds, indices, columns = _rows(parts)
        return parts[0].job.model.begin(Noise(seeds, position=indices), **columns)

    def ended(self, state: Drawing) -> NDArray[Any]:
        assert isinstance(self.model, Autoregressive)
        return self.model.read(state).numpy()


@dataclass(kw_only=True, eq=False)
class Listening(Sampling):
    """One sound that somebody hears while it is drawn: what can be heard since last time lies in `pieces`, (t,) levels each, and None when no
    more will come. What comes of it in the end is the whole, as of any sampling."""

    pieces: "asyncio.Queue[NDArray[Any] | None]" = field(default_factory=asyncio.Queue)
    heard: int = 0

    def __post_init__(self) -> None:
        self.future.add_done_callback(lambda _: self.pieces.put_nowait(None))

    def hear(self, state: Drawing) -> None:
        drawn = np.zeros(state.x.shape[1], bool)
        drawn[state.order.reshape(-1)[: state.step].numpy()] = True  # a family may not go through a sound from its beginning to its end
        audible = int(drawn.cumprod(dtype=np.int64).sum())
        if audible > self.heard:
            self.pieces.put_nowait(state.x[0, self.heard : audible].numpy().copy())
            self.heard = audible


@dataclass(kw_only=True, eq=False)
class Completing(Stepwise):
    """Completions of x (*shape) levels where known (*shape) says so. Gives rows of (levels, ess), ess NaN where nothing is weighted; how they
    were made is known when the first of them are."""

    x: Tensor
    known: Tensor
    method: str = ""
    exact: bool = False

    @property
    def in_steps(self) -> bool:
        return super().in_steps and self._autoregressive.continues(self.known, n=self.n, seed=self.seed, first=self.first)

    @property
    def kin(self) -> object:
        return self  # alone: a model completes for one seed at a time

    @property
    def room(self) -> int:
        return sys.maxsize if self.exact else FEW

    @staticmethod
    def compute(parts: Sequence[Part]) -> NDArray[Any]:
        job = parts[0].job
        assert isinstance(job.model, Completes)
        _, indices, columns = _rows(parts)
        columns |= {"temperature": job.temperature, "seed": job.seed, "first": indices[0]}
        done = job.model.complete(job.x.expand(len(indices), *job.x.shape), job.known, **columns)
        job.method, job.exact = done.method, done.exact
        return _weighed(done.x.cpu().numpy(), np.nan if done.ess is None else done.ess.cpu().numpy())

    @staticmethod
    def begin(parts: Sequence[Part]) -> Drawing:
        job, (_, indices, columns) = parts[0].job, _rows(parts)
        columns |= {"temperature": job.temperature, "seed": job.seed}
        return job.model.continued(job.x.expand(len(indices), *job.x.shape), job.known, indices=indices, **columns)

    def ended(self, state: Drawing) -> NDArray[Any]:
        self.method, self.exact = CONTINUED, True
        return _weighed(self._autoregressive.read(state).numpy(), np.nan)

    @property
    def _autoregressive(self) -> Autoregressive:
        assert isinstance(self.model, Autoregressive)
        return self.model


def sampling(kind: type[Drawer], model: GenerativeModel, asked: Draw) -> Drawer:
    y = None if asked.y is None else torch.tensor(asked.y)
    if y is None and model.event.classes:
        y = model.drawn_labels(Noise([asked.seed], position=range(asked.first, asked.first + asked.n)).to(model.device)).cpu()
    return kind(**_draw(model, asked), y=y)


def completing(model: GenerativeModel, asked: Fill) -> Completing:
    y = None if asked.y is None else torch.tensor(asked.y)
    return Completing(**_draw(model, asked), y=y, x=torch.as_tensor(asked.x.copy()), known=torch.as_tensor(asked.known.copy()))


def repeated(c: NDArray[Any] | None, n: int, event: Event) -> Tensor | None:
    """A condition of each of n rows: as given, or the one that all of them share."""
    if c is None or event.condition is None:
        return None
    rows = torch.as_tensor(c.copy())
    return rows if rows.ndim > len(event.condition.shape) else rows.expand(n, *c.shape)


def _draw(model: GenerativeModel, asked: Draw) -> dict[str, Any]:
    c = repeated(asked.c, asked.n, model.event)
    return {"model": model, "n": asked.n, "seed": asked.seed, "first": asked.first, "c": c, "temperature": asked.temperature}


def _weighed(levels: NDArray[Any], ess: Any) -> NDArray[Any]:
    out = np.empty(len(levels), dtype=[("levels", levels.dtype, levels.shape[1:]), ("ess", np.float32)])
    out["levels"], out["ess"] = levels, ess
    return out


def _rows(parts: Sequence[Part]) -> tuple[list[int], list[int], dict[str, Any]]:
    """Seed and index of every row of samples, and the columns that the model takes beside them."""
    jobs = [part.job for part in parts for _ in range(len(part))]
    indices = [part.job.first + row for part in parts for row in range(part.start, part.stop)]
    y, c = (_joined([getattr(part.job, name) for part in parts], parts) for name in ("y", "c"))
    return [job.seed for job in jobs], indices, {"y": y, "c": c, "temperature": torch.tensor([job.temperature for job in jobs])}


def _joined(columns: Sequence[Tensor | None], parts: Sequence[Part]) -> Tensor | None:
    """The parts' rows of a column that all of them have, or none."""
    taken = [column[part.start : part.stop] for column, part in zip(columns, parts, strict=True) if column is not None]
    return torch.cat(taken) if taken else None
