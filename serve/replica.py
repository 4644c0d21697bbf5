"""One model in memory: it draws samples and scores examples for several requests at once, and moves to another version while it answers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genmodels import artifact, machine
from genmodels.core import Density, GenerativeModel
from genmodels.noise import Noise
from serve import catalogue, requests
from serve.batching import Batcher, Sampling, Scoring
from serve.schema import Description, Draw, Drawn, Problem, Settings, Target, Weigh, Weighed

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
        job = self._sampling(loaded.model, asked)
        levels = await self._blocks.rows(job)
        return Drawn(levels=levels, labels=None if job.y is None else tuple(job.y.tolist()), description=loaded.description)

    async def score(self, asked: Weigh) -> Weighed:
        """Raises Problem for what the model does not take."""
        loaded = self._of_version(asked.version)
        requests.check_weigh(asked, loaded.description)
        nats = await self._blocks.rows(_scoring(loaded.model, asked))
        return Weighed(nats=nats, protocol=_protocol(loaded.model, asked), description=loaded.description)

    async def check_health(self) -> None:
        """Raises RuntimeError when a block has been computing for far longer than any request may take."""
        if self._batcher is not None and self._batcher.busy_for() > STUCK * self._settings.timeout_s:
            raise RuntimeError(f"one block has been computing for {self._batcher.busy_for():.0f} s")

    async def close(self) -> None:
        if self._batcher is not None:
            await self._batcher.close()

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

    def _sampling(self, model: GenerativeModel, asked: Draw) -> Sampling:
        y = None if asked.y is None else torch.tensor(asked.y)
        if y is None and model.event.classes:
            y = model.drawn_labels(Noise([asked.seed], position=range(asked.first, asked.first + asked.n)).to(model.device)).cpu()
        c = None if asked.c is None else torch.as_tensor(asked.c).expand(asked.n, *asked.c.shape)
        return Sampling(model=model, n=asked.n, seed=asked.seed, first=asked.first, y=y, c=c, temperature=asked.temperature)


def _load(target: Target, settings: Settings) -> Loaded:
    located = catalogue.Located(
        name=target.name, version=target.version, artifact=target.artifact, digest=target.digest, aliases=target.aliases
    )
    folder = catalogue.fetch(located)
    model = artifact.load(folder, device="cuda" if settings.gpus_per_replica else "cpu")
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
        capabilities=list(said.capabilities),
        prepare=_plain(said.prepare),
        scores=[_plain(score) for score in said.scores],
        lineage=_plain(said.lineage),
        equality_class=machine.equality_class(device=model.device),
        max_samples=settings.max_samples,
    )


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value), default=list))


def _scoring(model: GenerativeModel, asked: Weigh) -> Scoring:
    return Scoring(
        model=model,
        n=len(asked.x),
        x=torch.as_tensor(asked.x.copy()),
        y=None if asked.y is None else torch.tensor(asked.y),
        lengths=None if asked.lengths is None else torch.tensor(asked.lengths),
        seed=asked.seed,
        k=asked.k,
    )


def _protocol(model: GenerativeModel, asked: Weigh) -> str:
    what = "p(x)" if asked.y is None else "p(x|y)"
    return f"exact {what}" if isinstance(model, Density) else f"IWAE_{asked.k} lower bound of {what}"
