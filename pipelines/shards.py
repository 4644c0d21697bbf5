"""Finished data sets: their format, opening them, and the one order in which training reads them.

A folder of `<split>-<bucket>.parquet` files and a manifest.json whose presence means complete. Rows lie in the order of their id, a hash of the
decoded content, so they are shuffled on disk already; plain pyarrow, pandas and DuckDB read them.

The order of training: epoch e takes the row groups through a keyed permutation, G of them at a time make a window, and the rows inside a window are
permuted again. The example at position p is a pure function of (seed, e = p // n, p % n), whatever the batch size and the number of workers; what is
held is one window and the table of row groups.
"""

import io
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmodels.core import Batch, Event
from genmodels.noise import derive, permuted
from pipelines import storage
from pipelines.errors import Failed, Refused
from pipelines.records import Shards

SPLITS = ("train", "valid", "test")
WINDOW_BYTES = 512 * 2**20
"""A split up to this size is one window; a larger one gets windows of as many row groups as fit. A constant: the order depends on it."""


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


def manifest(shards: Shards) -> dict[str, Any]:
    """Event, files (rows, bytes, sha256, row groups), labels and their counts, histograms of levels, duplicates, conflicts, leakage."""
    return storage.read_json(storage.join(shards.uri, "manifest.json"))


def schema(event: Event) -> pa.Schema:
    """Columns of a Parquet file of Shards; the event itself is in the metadata."""
    content = ("levels", pa.fixed_shape_tensor(pa.uint8(), event.shape))
    if not event.levels:
        content = ("values", pa.fixed_shape_tensor(pa.float32(), event.shape))
    columns = [("id", pa.string()), content, ("label", pa.int32())]
    columns += [("length", pa.int32())] if event.modality == "audio" else []
    return pa.schema([*columns, ("source", pa.string())], metadata={"genmodels.event": json.dumps(event.to_json(), sort_keys=True)})


def parquet(table: pa.Table, **options: Any) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


@dataclass(frozen=True)
class Rows:
    """Columns of n examples as arrays: x (n, *shape) uint8 or float32, label (n,) int64 with -1 for none, length (n,) int64 or None."""

    x: NDArray[Any]
    label: NDArray[np.int64]
    length: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.label)

    def batch(self, index: NDArray[np.int64] | slice, event: Event, *, position: NDArray[np.int64], step: int = 0) -> Batch:
        return Batch(
            x=torch.from_numpy(np.array(self.x[index])),
            y=torch.from_numpy(np.array(self.label[index])) if event.classes else None,
            length=None if self.length is None else torch.from_numpy(np.array(self.length[index])),
            position=torch.from_numpy(position),
            step=step,
        )

    @staticmethod
    def join(parts: Sequence["Rows"]) -> "Rows":
        lengths = [part.length for part in parts if part.length is not None]
        x, label = (np.concatenate(column) for column in zip(*((part.x, part.label) for part in parts), strict=True))
        return Rows(x, label, np.concatenate(lengths) if lengths else None)


class Stored:
    """One split on disk: its row groups in order, each (file, index in the file, rows)."""

    def __init__(self, shards: Shards, split: str) -> None:
        if split not in SPLITS:
            raise Refused(f"split {split!r}; wanted one of {', '.join(SPLITS)}")
        self.uri, self.event, self.split = shards.uri, shards.event, split
        files = [file for file in manifest(shards)["files"] if file["split"] == split]
        self.groups = [(file["name"], index, rows) for file in files for index, rows in enumerate(file["row_groups"])]
        self.sizes = np.array([rows for _, _, rows in self.groups], dtype=np.int64)
        self.rows = int(self.sizes.sum())
        if self.rows == 0:
            raise Failed(f"the {split} split of {shards.uri} is empty; add data, or raise data.split.{split} in the recipe")

    def read(self, groups: Sequence[int]) -> Rows:
        """The rows of some row groups, in the order asked for; each file is opened once."""
        parts: dict[int, Rows] = {}
        for name in dict.fromkeys(self.groups[group][0] for group in groups):
            with storage.open_read(storage.join(self.uri, name)) as source, pq.ParquetFile(source) as file:
                for group in sorted({group for group in groups if self.groups[group][0] == name}):
                    parts[group] = self._rows(file.read_row_group(self.groups[group][1], columns=self._columns, use_threads=False))
        return Rows.join([parts[group] for group in groups])

    @property
    def _columns(self) -> list[str]:
        return [name for name in schema(self.event).names if name not in ("id", "source")]

    def _rows(self, table: pa.Table) -> Rows:
        content = table.column("levels" if self.event.levels else "values").combine_chunks()
        tensor = content.chunk(0) if isinstance(content, pa.ChunkedArray) else content
        label = table.column("label").fill_null(-1).to_numpy().astype(np.int64)
        length = table.column("length").to_numpy().astype(np.int64) if "length" in table.column_names else None
        return Rows(tensor.to_numpy_ndarray(), label, length)


class Stream:
    """The endless ordered stream of a split. The whole state is one number, the step."""

    def __init__(self, shards: Shards, split: str = "train", *, seed: int, window: int | None = None) -> None:
        """window: how many row groups are permuted together and held; by default everything, or WINDOW_BYTES' worth where that is less."""
        self._stored, self._seed = Stored(shards, split), seed
        self.rows = self._stored.rows
        self._window = window or self._fitting(shards.event)
        if self._window < 1:
            raise ValueError(f"a window of {window} row groups; wanted at least 1")
        self._epochs: dict[int, _Epoch] = {}
        self._held: dict[tuple[int, int], tuple[Rows, NDArray[np.int64]]] = {}
        self._everything: Rows | None = None

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
        window, first, size = self._epoch(epoch).locate(offset)
        rows, order = self._hold(epoch, window)
        here = slice(offset - first, min(size, offset - first + stop - at))
        position = np.arange(at, at + here.stop - here.start, dtype=np.int64)
        return rows.batch(order[here], self._stored.event, position=position, step=step)

    def _epoch(self, epoch: int) -> "_Epoch":
        if epoch not in self._epochs:
            self._epochs = {old: self._epochs[old] for old in self._epochs if old == epoch - 1}
            self._epochs[epoch] = _Epoch(self._stored.sizes, self._window, self._seed, epoch)
        return self._epochs[epoch]

    def _hold(self, epoch: int, window: int) -> tuple[Rows, NDArray[np.int64]]:
        """A window's rows and the order in which they come; the last two windows are kept, since a batch may lie in both."""
        if (epoch, window) not in self._held:
            for old in list(self._held)[:-1]:
                del self._held[old]
            groups = self._epoch(epoch).groups(window)
            order = permuted(int(self._stored.sizes[groups].sum()), seed=derive(self._seed, "rows", epoch, window)).numpy()
            self._held[epoch, window] = (
                self._whole(groups, order) if self._window >= len(self._stored.groups) else (self._read(groups), order)
            )
        return self._held[epoch, window]

    def _read(self, groups: NDArray[np.int64]) -> Rows:
        return self._stored.read(groups.tolist())

    def _whole(self, groups: NDArray[np.int64], order: NDArray[np.int64]) -> tuple[Rows, NDArray[np.int64]]:
        """Where everything is held it is read once, in disk order, and an epoch is only an order."""
        if self._everything is None:
            self._everything = self._stored.read(range(len(self._stored.groups)))
        starts = np.concatenate([[0], np.cumsum(self._stored.sizes)[:-1]])
        disk = np.concatenate([starts[group] + np.arange(int(self._stored.sizes[group])) for group in groups.tolist()])
        return self._everything, disk[order]

    def _fitting(self, event: Event) -> int:
        row = event.dims * (1 if event.levels else 4)
        return max(1, len(self._stored.groups) if self.rows * row <= WINDOW_BYTES else WINDOW_BYTES // int(row * self._stored.sizes.max()))


class _Epoch:
    """One epoch's permutation of the row groups, cut into windows."""

    def __init__(self, sizes: NDArray[np.int64], window: int, seed: int, epoch: int) -> None:
        self._order = permuted(len(sizes), seed=derive(seed, "groups", epoch)).numpy()
        self._window = window
        ends = np.cumsum(sizes[self._order])[np.minimum(np.arange(window, len(sizes) + window, window), len(sizes)) - 1]
        self._starts = [0, *ends.tolist()]

    def locate(self, offset: int) -> tuple[int, int, int]:
        """The window that holds an offset into the epoch, its first offset and its size."""
        window = bisect_right(self._starts, offset) - 1
        return window, self._starts[window], self._starts[window + 1] - self._starts[window]

    def groups(self, window: int) -> NDArray[np.int64]:
        return self._order[window * self._window : (window + 1) * self._window]


def _joined(pieces: Sequence[Batch], step: int) -> Batch:
    def column(name: str) -> Tensor | None:
        values = [getattr(piece, name) for piece in pieces]
        return None if values[0] is None else torch.cat(values)

    position = torch.cat([piece.position for piece in pieces])
    return Batch(x=torch.cat([piece.x for piece in pieces]), y=column("y"), length=column("length"), position=position, step=step)


def examples(shards: Shards, split: str, batch_size: int, *, limit: int | None = None) -> Iterator[Batch]:
    """Every example of a split once, in disk order; the last batch may be short. position is the row's number. limit: only the first so many."""
    stored = Stored(shards, split)
    end = stored.rows if limit is None else min(limit, stored.rows)
    held, first, group = stored.read([0]), 0, 1
    for step, start in enumerate(range(0, end, batch_size)):
        stop = min(start + batch_size, end)
        while first + len(held) < stop:
            left = slice(start - first, None)
            rest = Rows(held.x[left], held.label[left], None if held.length is None else held.length[left])
            held, first, group = Rows.join([rest, stored.read([group])]), start, group + 1
        index = slice(start - first, stop - first)
        yield held.batch(index, stored.event, position=np.arange(start, stop, dtype=np.int64), step=step)
