"""The second pass: the rows whose ids begin alike, from all parts, become one Parquet file a split: sorted, deduplicated, labelled, split.

A bucket is a function of its rows alone, so its files are the same bytes whoever writes them, and again after a kill. Its levels are held once, as
they were read; they are put in order a row group at a time, on their way into the file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from genmodels import media
from pipelines import storage, tables
from pipelines.decoder import row_bytes
from pipelines.parquet import SPLITS, packing
from pipelines.parts import Work
from pipelines.sources.source import REST

BUCKET_BYTES = 128 * 2**20
SMALL_BYTES = 16 * 2**20
"""Up to eight buckets may be as small as this: as many as a part has row groups, so that no bucket reads another's rows, and cores to share them."""
GROUP_BYTES = 2**20


@dataclass(frozen=True)
class Cut:
    """What every bucket of a prepare shares besides its Work."""

    form: pa.Schema
    """Of the files; the event is in it."""
    labels: tuple[str, ...]
    fractions: Mapping[str, float]
    folder: str
    """URI of the shards."""
    fingerprint: str
    parts: tuple[str, ...]
    bits: int
    """Leading bits of an id that name its bucket."""


def bucket_bits(rows: int, settings: Mapping[str, Any]) -> int:
    """How many leading bits of the id name a bucket: for eight buckets of SMALL_BYTES or more, and of about BUCKET_BYTES where there are more."""
    total = rows * row_bytes(settings)
    return max((total // BUCKET_BYTES).bit_length(), min(3, (total // SMALL_BYTES).bit_length()))


def fill(work: Work, cut: Cut, bucket: int) -> dict[str, Any]:
    """Writes a bucket's files -> their entries of the manifest, and counts. Does nothing where an earlier run has finished it."""
    marker = storage.join(cut.folder, "work", f"bucket-{bucket:05d}.json")
    if storage.exists(marker) and _stands(cut, done := storage.read_json(marker)):
        return done
    rows, levels = _rows(work, cut, bucket)
    kept, counts = _deduplicated(work, cut, rows)
    side = _sides(kept, cut.fractions)
    files = [
        _write(work, cut, kept.filter(pa.array(side == i)), levels, split, bucket) for i, split in enumerate(SPLITS) if (side == i).any()
    ]
    done = {"fingerprint": cut.fingerprint, "bucket": bucket, "files": files, "counts": counts}
    storage.write_json(marker, done)
    return done


def _stands(cut: Cut, done: Mapping[str, Any]) -> bool:
    """Whether an earlier run's files are all there, whole."""
    if done.get("fingerprint") != cut.fingerprint:
        return False
    paths = [storage.join(cut.folder, file["name"]) for file in done["files"]]
    return all(storage.exists(path) and storage.sha256(path) == file["sha256"] for path, file in zip(paths, done["files"], strict=True))


class _Levels:
    """The levels of all rows of a bucket (n, row bytes) uint8, in the pieces in which they were read."""

    def __init__(self, pieces: Sequence[NDArray[np.uint8]]) -> None:
        self._pieces = pieces
        self._starts = np.cumsum([0, *map(len, pieces)])

    def take(self, at: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(k,) numbers of rows -> (k, row bytes), a copy."""
        piece = np.searchsorted(self._starts, at, side="right") - 1
        taken = np.empty((len(at), self._pieces[0].shape[1]), np.uint8)
        for i in np.unique(piece).tolist():
            mine = piece == i
            taken[mine] = self._pieces[i].take(at[mine] - self._starts[i], axis=0)
        return taken


def _rows(work: Work, cut: Cut, bucket: int) -> tuple[pa.Table, _Levels]:
    """The bucket's rows from all parts, sorted by id and then by source; `class` is the label's number, `at` the row's place among the levels."""
    low, high = bucket << 128 - cut.bits, (bucket + 1 << 128 - cut.bits) - 1
    inside = [("id", ">=", f"{low:032x}"), ("id", "<=", f"{high:032x}")] if cut.bits else None
    names = ["id", "levels", "length", "source", "label", "side"]
    tables, pieces = [], []
    for part in cut.parts:
        with storage.open_read(storage.join(work.folder, part)) as source:
            table = pq.read_table(source, columns=names, filters=inside, use_threads=False).replace_schema_metadata(None)
        tables.append(table.drop_columns("levels"))
        pieces += [_levels(chunk) for chunk in table.column("levels").chunks if len(chunk)]
    table = pa.concat_tables(tables)
    given = work.labels.of(work.source, table.column("source").to_pylist(), table.column("label").to_pylist())
    number = {label: i for i, label in enumerate(cut.labels)}
    table = table.append_column("class", pa.array([None if label is None else number[label] for label in given], pa.int32()))
    table = table.append_column("at", pa.array(np.arange(len(table))))
    return table.sort_by([("id", "ascending"), ("source", "ascending")]), _Levels(pieces)


def _levels(chunk: pa.Array) -> NDArray[np.uint8]:
    """(n, row bytes): the column as it lies in memory."""
    width = chunk.type.byte_width
    return np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width :][: len(chunk) * width].reshape(-1, width)


def _deduplicated(work: Work, cut: Cut, rows: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
    """One row an id, the one with the smallest source; all of them where an official split is kept whole. Counts what came more than once."""
    ids = np.asarray(rows.column("id").to_pylist(), dtype=object)
    new = np.ones(len(ids), bool)
    new[1:] = ids[1:] != ids[:-1]
    group = np.cumsum(new) - 1
    label = rows.column("class").fill_null(-1).to_numpy()
    counts = {
        "duplicates": int(len(ids) - new.sum()),
        "conflicting_labels": _mixed(group[label >= 0], label[label >= 0]),
        "leakage": _leakage(group, rows, cut) if work.source.official else {},
    }
    return (rows if work.source.official else rows.filter(pa.array(new))), counts


def _mixed(group: NDArray[np.int64], value: NDArray[Any]) -> int:
    """How many groups hold more than one value."""
    pairs = np.unique(np.stack([group, value.astype(np.int64)]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum()) if len(group) else 0


def _leakage(group: NDArray[np.int64], rows: pa.Table, cut: Cut) -> dict[str, int]:
    """How many ids lie on both of two sides of the official split."""
    split = _sides(rows, cut.fractions)
    on = {name: set(group[split == i].tolist()) for i, name in enumerate(SPLITS)}
    pairs = [(a, b) for i, a in enumerate(SPLITS) for b in SPLITS[i + 1 :]]
    return {f"{a}/{b}": len(on[a] & on[b]) for a, b in pairs}


def _sides(rows: pa.Table, fractions: Mapping[str, float]) -> NDArray[np.int64]:
    """The split of each row: its official side, else by the last 32 bits of its id (the first ones order the rows)."""
    place = np.array([int(name[-8:], 16) for name in rows.column("id").to_pylist()], dtype=np.float64) / 2**32
    side = np.array(rows.column("side").to_pylist(), dtype=object)
    train, valid = fractions["train"], fractions["valid"]
    split = (place >= train).astype(np.int64) + (place >= train + valid)
    split = np.where(side == REST, place >= train / (train + valid), split)
    for i, name in enumerate(SPLITS):
        split = np.where(side == name, i, split)
    return split


def _write(work: Work, cut: Cut, rows: pa.Table, levels: _Levels, split: str, bucket: int) -> dict[str, Any]:
    """One file -> its entry of the manifest, with histograms."""
    name, each = f"{split}-{bucket:05d}.parquet", group_rows(row_bytes(work.settings))
    starts, count = range(0, len(rows), each), np.zeros(work.settings.get("levels", 0), np.int64)
    with storage.writing(storage.join(cut.folder, name)) as file:
        with file.open("wb") as sink, pq.ParquetWriter(sink, cut.form, **packing(cut.form)) as writer:
            for group in (rows.slice(start, each) for start in starts):
                mine = levels.take(group.column("at").to_numpy())
                count += _counted(mine, len(count))
                writer.write_table(_shaped(group, _contents(work, group, mine), cut.form), row_group_size=each)
        whole = {"bytes": file.stat().st_size, "sha256": storage.sha256(str(file))}
    groups = [min(each, len(rows) - start) for start in starts]
    entry = {"name": name, "split": split, "rows": len(rows), **whole, "row_groups": groups}
    if work.settings["modality"] == "table":
        every = levels.take(rows.column("at").to_numpy())
        return {**entry, **tables.counted(every, rows.column("class"), work.settings, len(cut.labels))}
    return {**entry, **_histograms(work, cut, rows, count)}


def _contents(work: Work, rows: pa.Table, levels: NDArray[np.uint8]) -> dict[str, Any]:
    """The columns that are not the same in every modality; in a table the label is what is modelled, not what it is modelled given."""
    if work.settings["modality"] == "table":
        return {"label": pa.nulls(len(rows), pa.int32()), **tables.contents(levels, rows.column("class"), work.settings)}
    return {"label": rows.column("class"), "levels": levels}


def _shaped(rows: pa.Table, contents: Mapping[str, Any], form: pa.Schema) -> pa.Table:
    values = {name: rows.column(name) for name in ("id", "length", "source")} | dict(contents)
    for name in ("levels", "values", "condition"):
        if name in values:
            shaped = values[name].reshape(len(rows), *form.field(name).type.shape)
            values[name] = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(shaped))
    return pa.table([values[column] for column in form.names], schema=form)


def group_rows(each: int) -> int:
    """Rows of a row group, of so many levels each: a power of two, about GROUP_BYTES of levels, at most 8192."""
    return 2 ** min(13, max(4, (GROUP_BYTES // each).bit_length() - 1))


def _counted(levels: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """(count,): how often each level comes; of real values none. Pillow counts bytes ten times as fast as numpy."""
    if not count:
        return np.zeros(0, np.int64)
    return np.array(Image.fromarray(levels).histogram()[:count])


def _histograms(work: Work, cut: Cut, rows: pa.Table, count: NDArray[np.int64]) -> dict[str, Any]:
    """How often each level and each label comes; padding is not counted."""
    how = work.settings
    if how["modality"] == "audio":
        silence = int(media.encode(np.zeros(1), how["levels"], how["companding"])[0])
        count[silence] -= len(rows) * row_bytes(how) - int(rows.column("length").to_numpy().sum())
    label = rows.column("class").fill_null(-1).to_numpy()
    return {"levels": count.tolist(), "labels": np.bincount(label + 1, minlength=len(cut.labels) + 1).tolist()}


def merged(done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of all buckets together."""
    total: dict[str, Any] = {"duplicates": 0, "conflicting_labels": 0, "leakage": {}}
    for counts in (bucket["counts"] for bucket in done):
        for name in ("duplicates", "conflicting_labels"):
            total[name] += counts[name]
        for pair, number in counts["leakage"].items():
            total["leakage"][pair] = total["leakage"].get(pair, 0) + number
    return total


def describe(work: Work, cut: Cut, done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """manifest.json. No time, no worker, no path of this machine: the same data give the same bytes."""
    files = sorted((file for bucket in done for file in bucket["files"]), key=lambda file: (SPLITS.index(file["split"]), file["name"]))
    keep = ("name", "split", "rows", "bytes", "sha256", "row_groups")
    is_table = work.settings["modality"] == "table"
    return {
        "event": json.loads(cut.form.metadata[b"genmodels.event"]),
        "fingerprint": cut.fingerprint,
        "files": [{name: file[name] for name in keep} for file in files],
        "labels": [] if is_table else list(cut.labels),
        "prepare": {**work.settings, "labels": list(cut.labels)} if is_table else dict(work.settings),
        "splits": {split: _split(cut, [file for file in files if file["split"] == split], is_table) for split in SPLITS},
        "split_by": "the source's official split" if work.source.official else "hash of the content",
        **merged(done),
    }


def _split(cut: Cut, files: Sequence[Mapping[str, Any]], is_table: bool) -> dict[str, Any]:
    """What a split holds: rows, levels, labels; of a table also each column of numbers."""
    rows, levels = sum(file["rows"] for file in files), np.sum([file["levels"] for file in files], axis=0).tolist() if files else []
    if is_table:
        return {"rows": rows, "levels": levels, "columns": tables.described([file["columns"] for file in files])}
    labels = np.sum([file["labels"] for file in files], axis=0).tolist() if files else [0] * (len(cut.labels) + 1)
    return {"rows": rows, "levels": levels, "labels": dict(zip(cut.labels, labels[1:], strict=True)), "unlabelled": labels[0]}
