"""Whether a model repeats its training set: how far samples lie from it, beside how far unseen examples do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genmodels.core import Batch, Event
from genmodels.evaluate import Score


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Median distances as scores; the samples that lie nearest to the training set (indices, nearest first) and their training examples."""

    scores: list[Score]
    samples: list[int]
    examples: np.ndarray


def nearest(
    model: str,
    samples: np.ndarray,
    test: Batch | None,
    train: Iterable[Batch],
    event: Event,
    *,
    pairs: int,
    spread: Sequence[float] | None = None,
) -> Neighbours:
    """samples (n, *shape) levels against every training example: the distance is the root mean square over values, levels scaled to [0, 1], real
    values by their spread (dims,) in the training set.

    A model that has learnt the distribution lies about as far from the training set as the test examples do; one that copies lies at 0.
    """
    scale = torch.tensor(spread or [float(max(1, event.levels - 1))], dtype=torch.float64)
    drawn = torch.from_numpy(samples)
    unseen = test.x if test is not None else drawn[:0]
    queries = _scaled(torch.cat([drawn, unseen]), event, scale)
    best = torch.full((len(queries),), float("inf"), dtype=torch.float64)
    closest = torch.zeros_like(torch.cat([drawn, unseen]))
    count = 0
    for batch in train:
        distance, index = _squared(queries, _scaled(batch.x, event, scale), event).min(1)
        nearer = distance < best
        best[nearer] = distance[nearer]
        closest[nearer] = batch.x[index[nearer]]
        count += len(batch)
    best = (best / event.dims).sqrt() / (scale if event.levels else 1)
    chosen = best[: len(drawn)].argsort(stable=True)[:pairs]
    scores = [
        _score(who, part, count, event) for who, part in ((model, best[: len(drawn)]), ("test examples", best[len(drawn) :])) if len(part)
    ]
    copies = Score(
        model=model,
        name="copies of training examples",
        value=float((best[: len(drawn)] == 0).double().mean()),
        unit="",
        protocol=f"share of samples equal to one of {count} training examples in every value",
        split="train",
        n=len(drawn),
    )
    return Neighbours(scores=[*scores, copies], samples=chosen.tolist(), examples=closest[chosen].numpy())


def _score(who: str, distance: Tensor, count: int, event: Event) -> Score:
    scaled = "levels in [0, 1]" if event.levels else "columns in standard deviations"
    protocol = f"median over examples of the root mean square difference to the nearest of {count} training examples, {scaled}"
    value = distance.median().item()
    return Score(model=who, name="nearest training example", value=value, unit="", protocol=protocol, split="train", n=len(distance))


def _scaled(x: Tensor, event: Event, scale: Tensor) -> Tensor:
    """(n, D) float64; levels stay whole, and are scaled when their distance is known."""
    flat = x.flatten(1).to(torch.float64)
    return flat if event.levels else flat / scale


def _squared(a: Tensor, b: Tensor, event: Event) -> Tensor:
    """(n, D), (m, D) float64 -> (n, m) squared distances; of integer levels exactly, so that a copy lies at 0, and of real values too."""
    if not event.levels:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_(min=0)
