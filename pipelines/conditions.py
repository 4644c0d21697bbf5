"""What a model that draws under a condition is asked for: the conditions of a split's first examples, or conditions made of them where shards
store none."""

from collections.abc import Sequence

import torch
from torch import Tensor

from genmodels.core import Batch, GenerativeModel
from pipelines.records import Shards
from pipelines.shards import examples

SEEN = 1024
"""Examples among which one of each label that is asked for is looked for."""


def asked(
    model: GenerativeModel, shards: Shards, split: str, n: int, labels: Sequence[int] | None
) -> tuple[Sequence[int] | None, Tensor | None]:
    """The labels and conditions (n, *condition.shape) of n samples; for a model without a condition the labels as they are, and None.

    Sample i's condition is that of the next example with its label (any next one where none has it); without labels, of example i, whose label it
    gets. Where the split has fewer examples they come again. Raises ValueError for a model that cannot make its condition.
    """
    if model.event.condition is None:
        return labels, None
    seen = max(n, SEEN)
    batch = next(examples(shards, split, seen, limit=seen))
    rows = torch.arange(n) % len(batch) if labels is None or batch.y is None else _matching(batch.y, labels)
    if labels is None and model.event.classes and batch.y is not None and bool((batch.y[rows] >= 0).all()):
        labels = batch.y[rows].tolist()
    return labels, derived(model, batch)[rows]


def derived(model: GenerativeModel, batch: Batch) -> Tensor:
    if batch.c is not None:
        return batch.c
    return torch.cat([model.derive(model.examples(part)).cpu() for part in batch.x.split(256)])


def _matching(y: Tensor, labels: Sequence[int]) -> Tensor:
    """(n,) int64: for each label the next row that has it."""
    rows, taken = [], dict.fromkeys(labels, 0)
    for i, label in enumerate(labels):
        having = (y == label).nonzero()[:, 0]
        rows.append(int(having[taken[label] % len(having)]) if len(having) else i % len(y))
        taken[label] += 1
    return torch.tensor(rows, dtype=torch.int64)
