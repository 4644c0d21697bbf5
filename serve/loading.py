"""A model from its folder, and what it says of itself."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genmodels import artifact
from genmodels.core import Chained, Classifies, Decodes, Encodes, GenerativeModel, capabilities
from genmodels.evaluate import grounds
from genmodels.sampling.native import Compiled, Native
from serve import catalogue
from serve.schema import Description, LogPartition, Settings, Target


@dataclass(kw_only=True)
class Loaded:
    """A model and what it says of itself; a request keeps the one it began with."""

    model: GenerativeModel
    description: Description
    partition: "asyncio.Future[LogPartition] | None" = None
    """log Z of its weights, once somebody has asked for it."""


def load(target: Target, settings: Settings) -> Loaded:
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
        withheld=dict(model.withheld),
        latent=_plain(model.latent.to_json()) if isinstance(model, Encodes | Decodes) else None,
        chain=_chain(model),
        classifies_by=model.classifies_by if isinstance(model, Classifies) and "classifies" not in model.withheld else None,
        prepare=_plain(said.prepare),
        scores=[_plain(score) for score in said.scores],
        lineage=_plain(said.lineage),
        equality_class=model.equality_class,
        max_samples=settings.max_samples,
    )


def _chain(model: GenerativeModel) -> str | None:
    """By what samples are approximate: the chain that draws them, or the draws of a posterior, never without their R-hat."""
    if isinstance(model, Chained):
        return f"approximate: {model.chain}"
    return f"approximate:{found}" if (found := grounds(model)) else None


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value), default=list))
