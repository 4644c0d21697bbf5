"""Shards on disk: their manifest, and reading row groups of their files.

A folder of `<split>-<bucket>.parquet` files and a manifest.json whose presence means complete. Rows lie in the order of their id, a hash of the
decoded content, so they are shuffled on disk already; plain pyarrow, pandas and DuckDB read them.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from genmodels.core import Batch, Event
from pipelines import storage
from pipelines.errors import Failed, Refused
from pipelines.few_labels import shown
from pipelines.parquet import SPLITS, schema
from pipelines.records import Shards


def manifest(shards: Shards) -> dict[str, Any]:
    """Event, files (rows, bytes, sha256, row groups), labels and their counts, histograms of levels, duplicates, conflicts, leakage."""
    return storage.read_json(storage.join(shards.uri, "manifest.json"))


@dataclass(frozen=True)
class Rows:
    """Columns of n examples as arrays: x (n, *shape) uint8 or float32, label (n,) int64 with -1 for none, length (n,) int64 or None,
    c (n, *condition.shape) or None."""

    x: NDArray[Any]
    label: NDArray[np.int64]
    length: NDArray[np.int64] | None
    c: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.label)

    def batch(self, index: NDArray[np.int64] | slice, event: Event, *, position: NDArray[np.int64], step: int = 0) -> Batch:
        """A copy of some rows, as torch tensors of its own."""
        return Batch(
            x=torch.from_numpy(_copied(self.x, index)),
            y=torch.from_numpy(_copied(self.label, index)) if event.classes else None,
            length=None if self.length is None else torch.from_numpy(_copied(self.length, index)),
            c=None if self.c is None else torch.from_numpy(_copied(self.c, index)),
            position=torch.from_numpy(position),
            step=step,
        )

    def after(self, start: int) -> "Rows":
        """The rows from one on."""
        c, length = (None if column is None else column[start:] for column in (self.c, self.length))
        return Rows(self.x[start:], self.label[start:], length, c)

    @staticmethod
    def join(parts: Sequence["Rows"]) -> "Rows":
        c, length = (
            [column for column in columns if column is not None] for columns in zip(*((p.c, p.length) for p in parts), strict=True)
        )
        x, label = (np.concatenate(columns) for columns in zip(*((part.x, part.label) for part in parts), strict=True))
        return Rows(x, label, np.concatenate(length) if length else None, np.concatenate(c) if c else None)


def _copied(column: NDArray[Any], index: NDArray[np.int64] | slice) -> NDArray[Any]:
    return column[index].copy() if isinstance(index, slice) else column.take(index, axis=0)


def dtype(event: Event) -> type[np.uint8] | type[np.float32]:
    return np.uint8 if event.levels else np.float32


def row_bytes(event: Event) -> int:
    """Of an example in memory and of what it is modelled given."""
    return event.dims * (1 if event.levels else 4) + (row_bytes(event.condition) if event.condition else 0)


def _tensor(column: pa.ChunkedArray) -> NDArray[Any]:
    content = column.combine_chunks()
    return (content.chunk(0) if isinstance(content, pa.ChunkedArray) else content).to_numpy_ndarray()


class Stored:
    """One split on disk: its row groups in order, each (file, index in the file, rows)."""

    def __init__(self, shards: Shards, split: str, *, labels: int | None = None) -> None:
        """labels: how many of them are shown, as pipelines.few_labels chooses; the other rows are as if they had none."""
        if split not in SPLITS:
            raise Refused(f"split {split!r}; wanted one of {', '.join(SPLITS)}")
        self.uri, self.event, self.split = shards.uri, shards.event, split
        files = [file for file in manifest(shards)["files"] if file["split"] == split]
        self.groups = [(file["name"], index, rows) for file in files for index, rows in enumerate(file["row_groups"])]
        self.sizes = np.array([rows for _, _, rows in self.groups], dtype=np.int64)
        self.rows = int(self.sizes.sum())
        if self.rows == 0:
            raise Failed(f"the {split} split of {shards.uri} is empty; add data, or raise data.split.{split} in the recipe")
        self._shown = None if labels is None else shown(self._labels(), labels, [*shards.labels][: shards.event.classes])

    def read(self, groups: Sequence[int], *, threads: int = 1) -> Rows:
        """The rows of some row groups, in the order asked for. Besides them it holds one row group a thread."""
        ends = np.cumsum(self.sizes[list(groups)])
        rows = self._empty(int(ends[-1]))
        places = sorted((group, int(end)) for group, end in zip(groups, ends, strict=True))
        each = -(-len(places) // threads)
        slices = [places[start : start + each] for start in range(0, len(places), each)]
        if len(slices) == 1:
            self._fill(rows, slices[0])
        else:
            with ThreadPoolExecutor(len(slices)) as pool:
                list(pool.map(lambda part: self._fill(rows, part), slices))
        return rows

    def _empty(self, n: int) -> Rows:
        given = self.event.condition
        return Rows(
            x=np.empty((n, *self.event.shape), dtype(self.event)),
            label=np.empty(n, np.int64),
            length=np.empty(n, np.int64) if self.event.modality == "audio" else None,
            c=None if given is None else np.empty((n, *given.shape), dtype(given)),
        )

    def _fill(self, rows: Rows, places: Sequence[tuple[int, int]]) -> None:
        """Row groups into rows, each up to its end there; a file is opened once."""
        for name, inside in groupby(places, key=lambda place: self.groups[place[0]][0]):
            with storage.open_read(storage.join(self.uri, name)) as source, pq.ParquetFile(source) as file:
                for group, end in inside:
                    table = file.read_row_group(self.groups[group][1], columns=self._columns, use_threads=False)
                    self._put(rows, slice(end - len(table), end), table)
                    if self._shown is not None:
                        first = int(self.sizes[:group].sum())
                        rows.label[end - len(table) : end][~self._shown[first : first + len(table)]] = -1

    def _labels(self) -> NDArray[np.int64]:
        """(rows,) in disk order, -1 for none."""
        parts = []
        for name in dict.fromkeys(name for name, _, _ in self.groups):
            with storage.open_read(storage.join(self.uri, name)) as source:
                parts.append(pq.read_table(source, columns=["label"], use_threads=False).column("label").fill_null(-1).to_numpy())
        return np.concatenate(parts).astype(np.int64)

    @property
    def _columns(self) -> list[str]:
        return [name for name in schema(self.event).names if name not in ("id", "source")]

    def _put(self, rows: Rows, here: slice, table: pa.Table) -> None:
        rows.x[here] = _tensor(table.column("levels" if self.event.levels else "values"))
        if rows.c is not None:
            rows.c[here] = _tensor(table.column("condition"))
        rows.label[here] = table.column("label").fill_null(-1).to_numpy()
        if rows.length is not None:
            rows.length[here] = table.column("length").to_numpy()
