"""The training stream where few examples show their label: some positions hold those, again and again, lest a label be met once an epoch."""

from dataclasses import replace

import torch
from torch import Tensor

from genmodels.core import Batch
from pipelines.records import Shards
from pipelines.shards import Stream, examples


class Repeated:
    """A Stream whose positions divisible by `every` hold the examples that show their label, one after the other in disk order; the others hold what
    the Stream has there. Still a pure function of the position."""

    def __init__(self, stream: Stream, shards: Shards, *, labels: int | None, every: int) -> None:
        shown = [_labelled(batch) for batch in examples(shards, "train", 1024, labels=labels)]
        self._stream, self._every = stream, every
        self._held = {name: torch.cat([one[name] for one in shown]) for name in shown[0]}

    def batch(self, step: int, batch_size: int, *, rank: int = 0, workers: int = 1) -> Batch:
        """As Stream.batch."""
        batch = self._stream.batch(step, batch_size, rank=rank, workers=workers)
        here = batch.position % self._every == 0
        rows = batch.position[here] // self._every % len(self._held["y"])
        changed = {name: getattr(batch, name).clone() for name in self._held}
        for name, column in changed.items():
            column[here] = self._held[name][rows]
        return replace(batch, **changed)


def _labelled(batch: Batch) -> dict[str, Tensor]:
    """The columns of the examples that show their label."""
    assert batch.y is not None
    columns = {name: getattr(batch, name) for name in ("x", "y", "c", "length")}
    return {name: column[batch.y >= 0] for name, column in columns.items() if column is not None}
