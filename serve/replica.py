"""One model in memory: it draws samples and scores examples for several requests at once, and moves to another version while it answers."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmodels.core import Bounded, Classifies, Decodes, Density, Energy, GenerativeModel, Partition
from genmodels.evaluate import grounds
from serve import code_requests, media_types, requests
from serve.batching import Batcher
from serve.code_jobs import Decoding, Encoding, drawn_code
from serve.draws import Listening, Sampling, completing, repeated, sampling
from serve.jobs import Classifying, Job, Scoring, ScoringValues
from serve.loading import Loaded, load
from serve.messages import (
    Classified,
    Decode,
    Decoded,
    Draw,
    Drawn,
    Encode,
    Encoded,
    End,
    Examples,
    Fill,
    Filled,
    Interpolate,
    Weigh,
    Weighed,
)
from serve.problem import Problem
from serve.schema import Description, LogPartition, Settings, Target

Answer = TypeVar("Answer")
STUCK = 3.0
"""Times the request timeout that one block may compute before the replica calls itself sick."""


class Replica:
    """Serves the model that `reconfigure` names. Knows the registry only by what it is told: a version, a place and a digest."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = Settings.of(settings)
        self._loaded: Loaded | None = None
        self._batcher: Batcher | None = None

    async def reconfigure(self, target: Mapping[str, Any]) -> None:
        """Loads what the target names and serves it from then on; requests under way end with what they began with.

        Raises ValueError when the artifact is not there or is not the one meant; the model served so far stays.
        """
        wanted = Target.of(target)
        self._loaded = await self._blocks.call(lambda: load(wanted, self._settings))

    async def describe(self) -> Description:
        return self._ready().description

    async def sample(self, asked: Draw) -> Drawn:
        """Raises Problem for what the model does not take."""
        loaded = self._of_version(asked.version)
        requests.check_draw(asked, loaded.description)
        job = sampling(Sampling, loaded.model, asked)
        levels = await self._rows(job)
        return Drawn(levels=levels, labels=None if job.y is None else tuple(job.y.tolist()), description=loaded.description)

    async def listen(self, asked: Draw) -> AsyncGenerator[Drawn]:
        """One sound as it is drawn, levels (1, t) at a time; all of it at once where the model is drawn in blocks. Raises Problem as `sample`."""
        loaded = self._of_version(asked.version)
        requests.check_draw(asked, loaded.description)
        media_types.check_one_sound(loaded.description, asked.n)
        job = sampling(Listening, loaded.model, asked)
        labels, rows, heard = None if job.y is None else tuple(job.y.tolist()), asyncio.ensure_future(self._rows(job)), 0
        try:
            while (piece := await job.pieces.get()) is not None:
                heard += len(piece)
                yield Drawn(levels=piece[None], labels=labels, description=loaded.description)
            yield Drawn(levels=(await rows)[:, heard:], labels=labels, description=loaded.description)
        finally:
            rows.cancel()

    async def score(self, asked: Weigh) -> Weighed:
        """Raises Problem for what the model does not take."""
        loaded = self._of_version(asked.version)
        requests.check_weigh(asked, loaded.description)
        partition = await self._partition(loaded)
        rows = await self._rows(_scoring(loaded.model, asked, partition))
        nats = rows.reshape(len(rows), -1).sum(1, dtype=np.float64) if asked.map else rows
        who, protocol = loaded.description, _protocol(loaded.model, asked, partition)
        return Weighed(nats=nats, map=rows if asked.map else None, protocol=protocol, partition=partition, description=who)

    async def complete(self, asked: Fill) -> Filled:
        """Raises Problem for what the model does not take."""
        loaded = self._of_version(asked.version)
        requests.check_fill(asked, loaded.description)
        job = completing(loaded.model, asked)
        rows = await self._rows(job)
        return Filled(
            levels=rows["levels"],
            labels=asked.y,
            method=job.method,
            exact=job.exact,
            ess=None if np.isnan(rows["ess"]).any() else rows["ess"],
            description=loaded.description,
        )

    async def classify(self, asked: Examples) -> Classified:
        """Raises Problem for what the model does not take."""
        loaded = self._of_version(asked.version)
        requests.check_classify(asked, loaded.description)
        rows = await self._rows(Classifying(model=loaded.model, n=len(asked.x), **_examples(loaded.model, asked)))
        assert isinstance(loaded.model, Classifies)
        return Classified(log_probs=rows, protocol=f"p(y|x) by {loaded.model.classifies_by}", description=loaded.description)

    async def encode(self, asked: Encode) -> Encoded:
        """Raises Problem for what the model does not take."""
        loaded = self._of_version(asked.version)
        code_requests.check_encode(asked, loaded.description)
        job = Encoding(model=loaded.model, n=len(asked.x), y=_labels(asked.y), **_examples(loaded.model, asked))
        rows = await self._rows(job)
        parameters = {name: rows[:, number] for number, name in enumerate(job.names)}
        protocol = "q(z|x)" if asked.y is None else "q(z|x,y)"
        return Encoded(distribution=job.distribution, parameters=parameters, protocol=protocol, description=loaded.description)

    async def decode(self, asked: Decode) -> Decoded:
        """Raises Problem for what the model does not take."""
        loaded = self._of_version(asked.version)
        code_requests.check_decode(asked, loaded.description)
        return await self._decoded(loaded, torch.as_tensor(asked.z.copy()), asked.y)

    async def interpolate(self, asked: Interpolate) -> Decoded:
        """Raises Problem for what the model does not take."""
        loaded = self._of_version(asked.version)
        code_requests.check_interpolate(asked, loaded.description)
        assert isinstance(loaded.model, Decodes)
        labels = (None, None) if asked.y is None else (asked.y[0], asked.y[-1])
        a, b = [await self._code(loaded.model, end, label) for end, label in zip(asked.ends, labels, strict=True)]
        return await self._decoded(loaded, loaded.model.path(a[None], b[None], asked.n)[0], asked.y, row=True)

    async def derive(self, x: NDArray[Any]) -> NDArray[Any]:
        """x (n, *shape) levels -> (n, *condition.shape): what the model conditions on when it is given whole examples."""
        model = self._ready().model

        def work() -> NDArray[Any]:
            with torch.no_grad():
                return model.derive(model.examples(torch.as_tensor(x))).cpu().numpy()

        return await _taken(self._blocks.call(work))

    async def check_health(self) -> None:
        """Raises RuntimeError when a block has been computing for far longer than any request may take."""
        if self._batcher is not None and self._batcher.busy_for() > STUCK * self._settings.timeout_s:
            raise RuntimeError(f"one block has been computing for {self._batcher.busy_for():.0f} s")

    async def close(self) -> None:
        if self._batcher is not None:
            await self._batcher.close()

    async def _code(self, model: Decodes, end: End, label: int | None) -> Tensor:
        """(*latent.shape)"""
        if end.x is None:
            assert end.seed is not None
            seed = end.seed
            return await _taken(self._blocks.call(lambda: drawn_code(model, seed, end.index)))
        y = None if label is None else torch.tensor([label])
        rows = await self._rows(Encoding(model=model, n=1, x=torch.as_tensor(end.x[None].copy()), lengths=None, c=None, y=y))
        return torch.from_numpy(rows[0, 0])

    async def _decoded(self, loaded: Loaded, z: Tensor, y: tuple[int, ...] | None, *, row: bool = False) -> Decoded:
        levels = await self._rows(Decoding(model=loaded.model, n=len(z), z=z, y=_labels(y)))
        return Decoded(levels=levels, labels=y, z=z.numpy(), row=row, description=loaded.description)

    async def _partition(self, loaded: Loaded) -> LogPartition | None:
        """log Z of an unnormalised density: its artifact's; of an artifact without one estimated when it is first asked for."""
        model = loaded.model
        if not isinstance(model, Energy) or isinstance(model, Density | Bounded):
            return None
        if loaded.partition is None:
            loaded.partition = asyncio.ensure_future(self._blocks.call(lambda: log_partition(model)))
        return await _taken(asyncio.shield(loaded.partition))  # whoever gives up waiting leaves it to the next

    async def _rows(self, job: Job) -> NDArray[Any]:
        return await _taken(self._blocks.rows(job))

    @property
    def _blocks(self) -> Batcher:
        """Made inside the event loop that will use it."""
        if self._batcher is None:
            settings = self._settings
            self._batcher = Batcher(threads=settings.threads, max_batch=settings.max_batch, wait=settings.batch_wait_ms / 1000)
        return self._batcher

    def _ready(self) -> Loaded:
        if self._loaded is None:
            raise Problem(503, "not-ready", "the model is still being loaded; ask again", {"Retry-After": "1"})
        return self._loaded

    def _of_version(self, version: str | None) -> Loaded:
        loaded = self._ready()
        if version is not None and version != loaded.description.version:
            raise Problem(
                404, "unknown-version", f"{loaded.description.model} is served as version {loaded.description.version}; got {version}"
            )
        return loaded


async def _taken(answer: Awaitable[Answer]) -> Answer:
    """The answer; where the model says that it does not take what was asked, Problem 422 with its words."""
    try:
        return await answer
    except ValueError as error:
        raise Problem(422, "not-taken", " ".join(str(error).split())) from None


def log_partition(model: Energy) -> LogPartition:
    return LogPartition(**asdict(model.partition()))


def _labels(y: tuple[int, ...] | None) -> Tensor | None:
    return None if y is None else torch.tensor(y)


def _scoring(model: GenerativeModel, asked: Weigh, partition: LogPartition | None) -> Scoring | ScoringValues:
    y, n = _labels(asked.y), len(asked.x)
    if asked.map:
        return ScoringValues(model=model, n=n, y=y, **_examples(model, asked))
    log_z = partition.value if partition else 0.0
    return Scoring(model=model, n=n, y=y, seed=asked.seed, k=asked.k, log_partition=log_z, **_examples(model, asked))


def _examples(model: GenerativeModel, asked: Examples) -> dict[str, Any]:
    """The columns of examples as tensors."""
    return {
        "x": torch.as_tensor(asked.x.copy()),
        "lengths": None if asked.lengths is None else torch.tensor(asked.lengths),
        "c": repeated(asked.c, len(asked.x), model.event),
    }


def _protocol(model: GenerativeModel, asked: Weigh, partition: LogPartition | None) -> str:
    given = ",".join(name for name, value in (("y", asked.y), ("c", model.event.condition)) if value is not None)
    what = f"p(x|{given})" if given else "p(x)"
    if partition is None:
        return (f"exact {what}" if isinstance(model, Density) else f"IWAE_{asked.k} lower bound of {what}") + grounds(model)
    return Partition(**partition.model_dump()).protocol(what)
