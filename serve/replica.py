"""One model in memory: it draws samples and scores examples for several requests at once, and moves to another version while it answers."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from genmodels import artifact
from genmodels.core import Density, GenerativeModel, capabilities
from genmodels.sampling.native import Compiled, Native
from serve import catalogue, media_types, requests
from serve.batching import Batcher
from serve.draws import Listening, Sampling, completing, repeated, sampling
from serve.jobs import Classifying, Job, Scoring, ScoringValues
from serve.messages import Classified, Draw, Drawn, Examples, Fill, Filled, Weigh, Weighed
from serve.problem import Problem
from serve.schema import Description, Settings, Target

Answer = TypeVar("Answer")
STUCK = 3.0
"""Times the request timeout that one block may compute before the replica calls itself sick."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model and what it says of itself; a request keeps the one it began with."""

    model: GenerativeModel
    description: Description


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
        self._loaded = await self._blocks.call(lambda: _load(wanted, self._settings))

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
        rows = await self._rows(_scoring(loaded.model, asked))
        nats = rows.reshape(len(rows), -1).sum(1, dtype=np.float64) if asked.map else rows
        who, protocol = loaded.description, _protocol(loaded.model, asked)
        return Weighed(nats=nats, map=rows if asked.map else None, protocol=protocol, description=who)

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
        rows = await self._rows(Classifying(model=loaded.model, n=len(asked.x), **_examples(asked)))
        return Classified(log_probs=rows, protocol="exact p(y|x) by Bayes' rule", description=loaded.description)

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


def _load(target: Target, settings: Settings) -> Loaded:
    located = catalogue.Located(
        name=target.name, version=target.version, artifact=target.artifact, digest=target.digest, aliases=target.aliases
    )
    folder = catalogue.fetch(located)
    model = artifact.load(folder, device="cuda" if settings.gpus_per_replica else "cpu")
    if isinstance(model, Compiled):
        model.sampler = Native(precision=settings.precision, threads=settings.threads)
    return Loaded(model=model, description=_describe(folder, model, target, settings))


def _describe(folder: Path, model: GenerativeModel, target: Target, settings: Settings) -> Description:
    said = artifact.read(folder)
    return Description(
        model=target.name,
        version=target.version,
        aliases=list(target.aliases),
        artifact=target.digest,
        family=said.family,
        event=said.event.to_json(),
        labels=list(said.labels),
        capabilities=capabilities(model),  # of the code that answers, whatever wrote the folder
        prepare=_plain(said.prepare),
        scores=[_plain(score) for score in said.scores],
        lineage=_plain(said.lineage),
        equality_class=model.equality_class,
        max_samples=settings.max_samples,
    )


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value), default=list))


async def _taken(answer: Awaitable[Answer]) -> Answer:
    """The answer; where the model says that it does not take what was asked, Problem 422 with its words."""
    try:
        return await answer
    except ValueError as error:
        raise Problem(422, "not-taken", " ".join(str(error).split())) from None


def _scoring(model: GenerativeModel, asked: Weigh) -> Scoring | ScoringValues:
    y, n = None if asked.y is None else torch.tensor(asked.y), len(asked.x)
    if asked.map:
        return ScoringValues(model=model, n=n, y=y, **_examples(asked))
    return Scoring(model=model, n=n, y=y, seed=asked.seed, k=asked.k, **_examples(asked))


def _examples(asked: Examples) -> dict[str, Any]:
    """The columns of examples as tensors."""
    return {
        "x": torch.as_tensor(asked.x.copy()),
        "lengths": None if asked.lengths is None else torch.tensor(asked.lengths),
        "c": repeated(asked.c, len(asked.x)),
    }


def _protocol(model: GenerativeModel, asked: Weigh) -> str:
    what = "p(x)" if asked.y is None else "p(x|y)"
    return f"exact {what}" if isinstance(model, Density) else f"IWAE_{asked.k} lower bound of {what}"
