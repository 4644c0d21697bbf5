"""How often a model that classifies, but not by its own density, names the right label."""

from collections.abc import Iterable

import torch

from genmodels.core import Batch, Classifies, Density, GenerativeModel, capabilities
from genmodels.evaluate.likelihood import evaluating, labelled
from genmodels.evaluate.score import Score


def accuracy(model: GenerativeModel, batches: Iterable[Batch], *, split: str, name: str | None = None) -> Score | None:
    """The share of the labelled examples that get their own label. None for a model without labels, one that does not classify, and for a density,
    whose every classification costs a score under each label."""
    if (
        not isinstance(model, Classifies)
        or isinstance(model, Density)
        or "classifies" not in capabilities(model)
        or not model.event.classes
    ):
        return None
    right = []
    with evaluating(model):
        for batch in batches:
            known = labelled(batch)
            if bool(known.any()) and batch.y is not None:
                found = model.classify(batch.x[known], None if batch.c is None else batch.c[known])
                right.append(found.argmax(1).cpu() == batch.y[known].cpu())
    if not right:
        return None
    hits = torch.cat(right).double()
    protocol, stderr = f"likeliest label by {model.classifies_by}", None if len(hits) < 2 else (hits.std() / len(hits) ** 0.5).item()
    return Score(
        model=name or type(model).__name__,
        name="accuracy",
        value=hits.mean().item(),
        unit="",
        protocol=protocol,
        split=split,
        n=len(hits),
        stderr=stderr,
    )
