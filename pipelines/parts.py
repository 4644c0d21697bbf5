"""The first pass: inputs decoded into parts, kept in storage under what shaped them, so that data added later costs only itself.

A part is a Parquet file of decoded rows, sorted by id, named after the range of input keys it lies in and a hash of the inputs it holds. A task takes
a range of keys, finds which inputs existing parts hold already, and decodes the others.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genmodels import media
from pipelines import storage
from pipelines.decoder import TIMED_OUT, Decoder, columns, content_id, row_bytes
from pipelines.sources.labels import Labels
from pipelines.sources.source import EVERYWHERE, LISTING, Containers, Examples, Files, Source
from pipelines.tables import rows as table_rows

VERSION = 1
"""Raised when the same input and settings would give another part than before."""

FILES_PER_BATCH = 256
BATCH_BYTES = 16 * 2**20
FILES_PER_PART = 4096
PART_BYTES = 64 * 2**20
GROUP_BYTES = 2**20
"""Of levels in a row group, which is read whole by whoever wants some of it: where there are many buckets, each wants a little of every part."""

_REPEATED = ("input", "label", "side")

Range = tuple[str, str]
Bad = tuple[str, str, str, int]
"""An input that could not be read: its key, source, reason and size in bytes."""


@dataclass(frozen=True)
class Work:
    """What every task of a prepare shares."""

    source: Source
    settings: Mapping[str, Any]
    labels: Labels
    seconds: float
    folder: str
    """URI of the parts."""
    listings: tuple[str, ...]
    """URIs of the inputs' listings."""


def ranges(count: int, each: Sequence[str] | None) -> list[Range]:
    """Ranges of keys, one a task: one an input where `each` gives their keys, else about 2048 files a range, more of them where there are few."""
    if each is not None:
        return [(key, key) for key in each]
    tasks = max(1, count // 2048, min(8, count // 32))
    bits = min(12, (tasks - 1).bit_length())
    return [(f"{i << 128 - bits:032x}", f"{(i + 1 << 128 - bits) - 1:032x}") for i in range(2**bits)]


def gather(work: Work, bounds: Range, names: Sequence[str]) -> dict[str, Any]:
    """Every input of a range in parts -> the parts' names, how many rows they have, their labels, and the bad inputs. names: parts that exist."""
    wanted = _listed(work.listings, bounds)
    left, used, bad = set(wanted.column("key").to_pylist()), [], []
    for name in sorted(name for name in names if _overlaps(name, bounds)):
        keys, rejected = _held(work, name)
        if mine := keys & left:
            used.append(name if mine == keys else _subset(work, name, mine, bounds))
            bad += [entry for entry in rejected if entry[0] in mine]
            left -= mine
    for keys, rows, rejected in _decoded(work, _among(wanted, "key", left)):
        used.append(_write(work, rows, rejected, keys, bounds))
        bad += rejected
    return {"parts": used, "bad": bad, **_summary(work, used)}


def _listed(listings: Iterable[str], bounds: Range) -> pa.Table:
    """The inputs whose keys lie in a range, in the order of their keys."""
    inside = [("key", ">=", bounds[0]), ("key", "<=", bounds[1])]
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(uri)), filters=inside, use_threads=False) for uri in listings]
    table = pa.concat_tables(tables) if tables else LISTING.empty_table()
    return table.sort_by("key")


def _overlaps(name: str, bounds: Range) -> bool:
    low, high, _ = name.split("-")
    return low <= bounds[1][:8] and bounds[0][:8] <= high


def _held(work: Work, name: str) -> tuple[set[str], list[Bad]]:
    """Which inputs a part holds; a time-out under a shorter limit than today's does not count."""
    with storage.open_read(storage.join(work.folder, name)) as source, pq.ParquetFile(source) as file:
        rejected = [tuple(entry) for entry in json.loads(file.schema_arrow.metadata[b"bad"])]
        keys = set(file.read(columns=["input"], use_threads=False).column(0).unique().to_pylist())
    limits = file.schema_arrow.metadata[b"seconds"].decode()
    cut = TIMED_OUT.format(limit=float(limits))
    stands = [entry for entry in rejected if entry[2] != cut or float(limits) >= work.seconds]
    return keys | {entry[0] for entry in stands}, stands


def _decoded(work: Work, todo: pa.Table) -> Iterator[tuple[list[str], pa.Table, list[Bad]]]:
    """The inputs in parts' worth, decoded: the keys of a part's inputs, its rows, and the bad ones among the inputs."""
    keys, tables, bad = [], [], []
    for batch in _batches(todo, isinstance(work.source, Files)):
        rows, rejected = _decode(work, batch)
        keys += batch.column("key").to_pylist()
        tables.append(rows)
        bad += rejected
        if len(keys) >= FILES_PER_PART or sum(map(len, tables)) * row_bytes(work.settings) >= PART_BYTES:
            yield keys, pa.concat_tables(tables), bad
            keys, tables, bad = [], [], []
    if keys:
        yield keys, pa.concat_tables(tables), bad


def _batches(todo: pa.Table, many: bool) -> Iterator[pa.Table]:
    """As many inputs as are decoded at once: files up to a number and a weight, containers one by one."""
    start, weight = 0, 0
    for i, size in enumerate(todo.column("size").to_pylist()):
        if i > start and (not many or i - start == FILES_PER_BATCH or weight + size > BATCH_BYTES):
            yield todo.slice(start, i - start)
            start, weight = i, 0
        weight += size
    if len(todo) > start:
        yield todo.slice(start)


def _decode(work: Work, inputs: pa.Table) -> tuple[pa.Table, list[Bad]]:
    if isinstance(work.source, Containers):
        return _from_containers(work, work.source, inputs)
    assert isinstance(work.source, Files)
    return _from_files(work, work.source, inputs)


def _from_files(work: Work, source: Files, inputs: pa.Table) -> tuple[pa.Table, list[Bad]]:
    names = inputs.column("source").to_pylist()
    rows, reasons = _decoder(work.settings, work.seconds).decode([source.local(name) or source.read(name) for name in names])
    return _complete(rows, inputs), _bad(inputs, reasons)


def _from_containers(work: Work, source: Containers, inputs: pa.Table) -> tuple[pa.Table, list[Bad]]:
    tables, bad = [_part_schema(work.settings).empty_table()], []
    for i, entry in enumerate(inputs.to_pylist()):
        batch = inputs.slice(i, 1)
        try:
            examples = source.examples(entry["source"], entry["piece"])
        except ValueError as error:
            bad += _bad(batch, {0: media.reason(error)})
            continue
        rows, reasons = _quantised(examples, work)
        encoded, each = examples.encoded, row_bytes(work.settings)
        bad += [(entry["key"], examples.names[at], why, len(encoded[at]) if encoded else each) for at, why in reasons.items()]
        at = rows.column("index").to_pylist()
        names = [f"{examples.names[i]}{_window(number)}" for i, number in zip(at, rows.column("window").to_pylist(), strict=True)]
        labels = [examples.labels[i] if examples.labels is not None else None for i in at]
        sides = [examples.sides[i] if examples.sides is not None else EVERYWHERE for i in at]
        tables.append(_columns(rows, [entry["key"]] * len(rows), names, labels, sides))
    return pa.concat_tables(tables), bad


def _quantised(examples: Examples, work: Work) -> tuple[pa.Table, dict[int, str]]:
    """The rows of a container's examples, as the decoder makes them."""
    if examples.encoded is not None:
        return _decoder(work.settings, work.seconds).decode(list(examples.encoded))
    if examples.values is not None:
        return table_rows(examples, work.settings)
    if examples.pixels is not None:
        levels = media.levels_from_pixels(examples.pixels, work.settings)
        cut = [(i, 0, row.tobytes(), 0) for i, row in enumerate(levels)]
    else:
        waves = enumerate(examples.waves or ())
        cut = [(i, k, codes.tobytes(), n) for i, wave in waves for k, (codes, n) in enumerate(media.windows(wave, work.settings))]
    made = [(*row, content_id(row[2], row[3])) for row in cut]
    named = zip(columns(work.settings).names, zip(*made, strict=True) if made else [()] * 5, strict=True)
    return pa.table({name: list(values) for name, values in named}, schema=columns(work.settings)), {}


def _complete(rows: pa.Table, batch: pa.Table) -> pa.Table:
    index = rows.column("index")
    sources = batch.column("source").take(index).to_pylist()
    names = [name + _window(number) for name, number in zip(sources, rows.column("window").to_pylist(), strict=True)]
    return _columns(rows, batch.column("key").take(index), names, pa.nulls(len(rows), pa.string()), [EVERYWHERE] * len(rows))


def _columns(rows: pa.Table, key: Any, source: Any, label: Any, side: Any) -> pa.Table:
    own = [rows.column(name) for name in ("id", "levels", "length")]
    schema = pa.schema([("input", pa.string()), *((name, rows.schema.field(name).type) for name in ("id", "levels", "length"))])
    schema = pa.schema([*schema, ("source", pa.string()), ("label", pa.string()), ("side", pa.string())])
    arrays = [
        column if isinstance(column, (pa.Array, pa.ChunkedArray)) else pa.array(column, pa.string())
        for column in (key, source, label, side)
    ]
    return pa.table([arrays[0], *own, *arrays[1:]], schema=schema)


def _part_schema(settings: Mapping[str, Any]) -> pa.Schema:
    return _columns(columns(settings).empty_table(), [], [], [], []).schema


def _window(number: int) -> str:
    return f"#{number}" if number else ""


def _bad(batch: pa.Table, reasons: Mapping[int, str]) -> list[Bad]:
    at = batch.take(pa.array(list(reasons), pa.int64()))
    return list(
        zip(at.column("key").to_pylist(), at.column("source").to_pylist(), reasons.values(), at.column("size").to_pylist(), strict=True)
    )


def _write(work: Work, rows: pa.Table, bad: Sequence[Bad], keys: Sequence[str], bounds: Range) -> str:
    """A part, under a name that says what is in it."""
    held = hashlib.blake2b("".join(sorted(keys)).encode() + str(work.seconds if bad else "").encode(), digest_size=8).hexdigest()
    name = f"{bounds[0][:8]}-{bounds[1][:8]}-{held}.parquet"
    metadata = {"bad": json.dumps(sorted(bad)), "seconds": repr(work.seconds)}
    table = rows.sort_by([("id", "ascending"), ("source", "ascending")]).replace_schema_metadata(metadata)
    with storage.writing(storage.join(work.folder, name)) as file:
        write_groups(file, table, row_bytes(work.settings))
    return name


def write_groups(file: Path, table: pa.Table, each: int) -> None:
    """Writes a part's file. Its row groups end where ids of other leading bits begin, so that a bucket reads no other's; each: bytes of a row."""
    per_group = max(16, GROUP_BYTES // each)
    cuts = [0, len(table)]
    if len(table) * each >= GROUP_BYTES:
        cuts = [0, *np.searchsorted(table.column("id").to_numpy(), [f"{2 * octant:x}" for octant in range(1, 8)]).tolist(), len(table)]
    options: dict[str, Any] = {"use_dictionary": list(_REPEATED), "compression": "lz4"}
    with file.open("wb") as sink, pq.ParquetWriter(sink, table.schema, **options) as writer:
        for start, stop in pairwise(cuts):
            writer.write_table(table.slice(start, stop - start), row_group_size=per_group)


def _subset(work: Work, name: str, keys: set[str], bounds: Range) -> str:
    """Some inputs of a part, as a part of their own: the others were taken away, or lie in another range by now."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(work.folder, name))), use_threads=False)
    bad = [tuple(entry) for entry in json.loads(table.schema.metadata[b"bad"]) if entry[0] in keys]
    return _write(work, _among(table, "input", keys), bad, sorted(keys), bounds)


def _among(table: pa.Table, column: str, keys: set[str]) -> pa.Table:
    return table.filter(pa.array([key in keys for key in table.column(column).to_pylist()], pa.bool_()))


def _summary(work: Work, names: Sequence[str]) -> dict[str, Any]:
    rows, labels, inputs = 0, set(), set()
    for name in names:
        with storage.open_read(storage.join(work.folder, name)) as source, pq.ParquetFile(source) as file:
            table = file.read(columns=["input", "source", "label"], use_threads=False)
        rows += len(table)
        inputs |= set(table.column("input").unique().to_pylist())
        labels |= set(work.labels.of(work.source, table.column("source").to_pylist(), table.column("label").to_pylist()))
    return {"rows": rows, "labels": sorted(label for label in labels if label is not None), "read": len(inputs)}


_decoders: dict[str, Decoder] = {}


def _decoder(settings: Mapping[str, Any], seconds: float) -> Decoder:
    """This process's decoder; kept from task to task, since starting one takes a third of a second."""
    key = json.dumps([dict(settings), seconds], sort_keys=True)
    if key not in _decoders:
        for old in _decoders.values():
            old.close()
        _decoders.clear()
        _decoders[key] = Decoder(settings, seconds)
    return _decoders[key]
