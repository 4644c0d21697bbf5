"""What the scores say of a model's codes and labels: whether the code collapsed, and how often the labels are named rightly."""

from collections.abc import Iterator
from dataclasses import replace

from genmodels.core import Batch, Encodes, GenerativeModel
from genmodels.evaluate import Score, accuracy, collapse
from pipelines import console
from pipelines.records import Shards
from pipelines.shards import examples

COLLAPSED = 0.1
"""Nats of KL(q(z|x) || p(z)) over all latents together, below which next to nothing of an example is in its code."""

BATCH = 256


def scores(model: GenerativeModel, shards: Shards, *, name: str, limit: int | None = None) -> list[Score]:
    """Of the test split (or its first `limit`): active units and KL a latent of a model whose codes are Gaussian, accuracy of one that classifies
    by other means than its density."""

    def test() -> Iterator[Batch]:
        return examples(shards, "test", BATCH, limit=limit)

    found: list[Score] = []
    if isinstance(model, Encodes) and not model.latent.levels:
        found = collapse(model, test(), split="test", name=name)
        _warn(found, model.latent.dims)
    right = accuracy(model, test(), split="test", name=name)
    found += [right] if right else []
    part = limit is not None and limit < shards.rows["test"]
    return [replace(score, protocol=f"{score.protocol}, the first {limit} in hash order") if part else score for score in found]


def _warn(found: list[Score], latents: int) -> None:
    """A line where the codes say nearly nothing."""
    if found and (total := found[1].value * latents) < COLLAPSED:
        console.say(
            f"[yellow]posterior collapse: {found[0].value:g} of {latents} latents are active, and all of them together say {total:.3f} nats of an "
            "example; try model.free_bits, a smaller model.beta or a weaker decoder[/yellow]"
        )
