"""Finished data sets: opening them, and the one order in which training reads them.

The order of training: epoch e takes the row groups through a keyed permutation, G of them at a time make a window, and the rows inside a window are
permuted again. The example at position p is a pure function of (seed, e = p // n, p % n), whatever the batch size and the number of workers; what is
held is two windows, the one in use and the one that is being read meanwhile, and the table of row groups.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from genmodels.core import Batch, Event
from pipelines import storage
from pipelines.errors import Refused
from pipelines.parquet import SPLITS, parquet, schema
from pipelines.records import Shards
from pipelines.stored import Rows, Stored, manifest, row_bytes
from pipelines.windows import Windows

__all__ = [
    "SPLITS",
    "WHOLE_BYTES",
    "WINDOW_BYTES",
    "Rows",
    "Stored",
    "Stream",
    "examples",
    "manifest",
    "open_shards",
    "parquet",
    "row_bytes",
    "schema",
]

WHOLE_BYTES = 512 * 2**20
"""A split up to this size is one window. A constant: the order depends on it."""

WINDOW_BYTES = 64 * 2**20
"""A larger split gets windows of as many row groups as fit in here; small ones are soon read, and rows lie in the order of a hash already."""


def open_shards(uri: str) -> Shards:
    """The finished Shards at a URI. Raises Refused where there are none, or they are not finished."""
    try:
        value = storage.read_json(storage.join(uri, "manifest.json"))
    except FileNotFoundError:
        raise Refused(f"no finished shards at {uri}: it holds no manifest.json; run `genmodels prepare` on the recipe") from None
    rows = {split: sum(file["rows"] for file in value["files"] if file["split"] == split) for split in SPLITS}
    return Shards(
        uri=uri,
        fingerprint=value["fingerprint"],
        event=Event.from_json(value["event"]),
        rows=rows,
        labels=tuple(value["labels"]),
        prepare=value["prepare"],
    )


class Stream:
    """The endless ordered stream of a split. The whole state is one number, the step."""

    def __init__(self, shards: Shards, split: str = "train", *, seed: int, window: int | None = None, labels: int | None = None) -> None:
        """window: how many row groups are permuted together; by default everything, or WINDOW_BYTES' worth of more than WHOLE_BYTES.
        labels: how many are shown, or None for all."""
        self._stored = Stored(shards, split, labels=labels)
        self.rows = self._stored.rows
        window = window or self._fitting(shards.event)
        if window < 1:
            raise ValueError(f"a window of {window} row groups; wanted at least 1")
        self._windows = Windows(self._stored, window, seed)

    def batch(self, step: int, batch_size: int, *, rank: int = 0, workers: int = 1) -> Batch:
        """Rank r's slice [floor(rB/W), floor((r+1)B/W)) of positions [tB, (t+1)B)."""
        first = step * batch_size
        start, stop = first + rank * batch_size // workers, first + (rank + 1) * batch_size // workers
        pieces, at = [], start
        while at < stop:
            piece = self._piece(at, stop, step)
            pieces.append(piece)
            at += len(piece)
        return pieces[0] if len(pieces) == 1 else _joined(pieces, step) if pieces else self._piece(start, start, step)

    def _piece(self, at: int, stop: int, step: int) -> Batch:
        """The positions from `at` on that lie in one window, up to `stop`."""
        epoch, offset = divmod(at, self.rows)
        window = self._windows.holding(epoch, offset)
        index = window.order[offset - window.first :][: stop - at]
        position = np.arange(at, at + len(index), dtype=np.int64)
        return window.rows.batch(index, self._stored.event, position=position, step=step)

    def _fitting(self, event: Event) -> int:
        row = row_bytes(event)
        return max(1, len(self._stored.groups) if self.rows * row <= WHOLE_BYTES else WINDOW_BYTES // int(row * self._stored.sizes.max()))


def _joined(pieces: Sequence[Batch], step: int) -> Batch:
    def column(name: str) -> Tensor | None:
        values = [getattr(piece, name) for piece in pieces]
        return None if values[0] is None else torch.cat(values)

    position = torch.cat([piece.position for piece in pieces])
    x = torch.cat([piece.x for piece in pieces])
    return Batch(x=x, y=column("y"), c=column("c"), length=column("length"), position=position, step=step)


def examples(shards: Shards, split: str, batch_size: int, *, limit: int | None = None, labels: int | None = None) -> Iterator[Batch]:
    """Every example of a split once, in disk order; the last batch may be short. position is the row's number. limit: only the first so many;
    labels: how many are shown, or None for all."""
    stored = Stored(shards, split, labels=labels)
    end = stored.rows if limit is None else min(limit, stored.rows)
    held, first, group = stored.read([0]), 0, 1
    for step, start in enumerate(range(0, end, batch_size)):
        stop = min(start + batch_size, end)
        while first + len(held) < stop:
            held, first, group = Rows.join([held.after(start - first), stored.read([group])]), start, group + 1
        index = slice(start - first, stop - first)
        yield held.batch(index, stored.event, position=np.arange(start, stop, dtype=np.int64), step=step)
