"""From files to Shards, with Ray Data, in two passes: decode to parts, then sort, deduplicate and split inside buckets of like ids.

The same inputs give the same bytes on any number of workers, from any root folder, after any number of kills. What is done is not done again: parts are
kept under what shaped them, finished buckets under their fingerprint, and manifest.json, written last, means complete.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genmodels import media
from genmodels.core import Event
from pipelines import buckets, cluster, console, parts, storage
from pipelines.errors import Failed, Refused, Stop
from pipelines.fingerprint import fingerprint, libraries
from pipelines.parts import Bad, Work
from pipelines.recipe import Data, Recipe
from pipelines.records import Output, Shards
from pipelines.shards import open_shards
from pipelines.sources import open_source
from pipelines.sources.labels import Labels, ordered
from pipelines.sources.source import Containers

VERSION = 1
"""Raised when the same data and recipe would give other bytes than before."""

LIBRARIES = ("numpy", "pillow", "pyarrow", "scikit-learn", "scipy", "soundfile", "soxr")


def prepare(recipe: Recipe) -> Shards:
    """The recipe's data as Shards; done already where they exist. Raises Failed for data that cannot be used and storage that cannot be written."""
    listing = _listing(recipe)
    if listing.output.done:
        console.done("prepare", listing.output.uri)
        return open_shards(listing.output.uri)
    if listing.count == 0:
        raise Failed(
            f"no inputs in {recipe.data.source}; wanted {recipe.data.modality} files there (hidden ones and tables are not counted)"
        )
    try:
        listing.store()
        _prepare(recipe, listing)
    except OSError as error:
        raise Failed(
            f"prepare could not write to {recipe.root}: {error.strerror or media.reason(error)}; free some space or set storage elsewhere"
        ) from error
    return open_shards(listing.output.uri)


def output(recipe: Recipe) -> Output:
    """Where the Shards of a recipe are, or will be. Looks at the inputs, starts nothing."""
    return _listing(recipe).output


def settings(data: Data) -> dict[str, Any]:
    """How a file becomes levels, in the words of genmodels.media."""
    if data.image:
        return {"modality": "image", **data.image.model_dump()}
    if data.audio:
        return {"modality": "audio", **data.audio.model_dump(), "companding": "mu-law" if data.audio.levels == 256 else None}
    raise Refused("data.table: tables are not prepared yet; wanted data.image or data.audio")


def event_of(prepare: dict[str, Any], classes: int) -> Event:
    if prepare["modality"] == "image":
        shape = (prepare["channels"], prepare["height"], prepare["width"])
        return Event(modality="image", shape=shape, levels=prepare["levels"], classes=classes)
    rate, steps = prepare["sample_rate"], media.window_steps(prepare)
    return Event(
        modality="audio", shape=(steps,), levels=prepare["levels"], sample_rate=rate, companding=prepare["companding"], classes=classes
    )


@dataclass
class Listing:
    """The inputs, as tables of some thousands on disk; here only how many there are and what they hash to."""

    work: Work
    output: Output
    count: int
    tables: list[pa.Table]
    each: list[str] | None

    def store(self) -> None:
        for uri, table in zip(self.work.listings, self.tables, strict=True):
            if not storage.exists(uri):
                sink = io.BytesIO()
                pq.write_table(table.sort_by("key"), sink, row_group_size=1024)
                storage.write_bytes(uri, sink.getvalue())


def _listing(recipe: Recipe) -> Listing:
    source, how = open_source(recipe.data, recipe.root), settings(recipe.data)
    tables, uris, total, keys = [], [], 0, []
    for table in source.listings(None):
        tables.append(table)
        keys += table.column("key").to_pylist()
        uris.append(storage.join(recipe.root, "parts", "listings", f"{_digest(table)}.parquet"))
    used = libraries(*LIBRARIES)
    shaped = fingerprint("parts", parts.VERSION, media.VERSION, how, type(source).__name__, source.facts, used)
    labels = Labels(recipe.data.label)
    split = recipe.data.split.model_dump()
    whole = fingerprint("prepare", VERSION, shaped, sorted(keys), recipe.data.label.model_dump(), split)
    uri = storage.join(recipe.root, "shards", f"{recipe.name}-{whole}")
    del total
    return Listing(
        work=Work(source, how, labels, recipe.data.seconds_per_file, storage.join(recipe.root, "parts", shaped), tuple(uris)),
        output=Output(fingerprint=whole, uri=uri, done=storage.exists(storage.join(uri, "manifest.json"))),
        count=len(keys),
        tables=tables,
        each=keys if isinstance(source, Containers) else None,
    )


def _digest(table: pa.Table) -> str:
    return hashlib.blake2b("".join(sorted(table.column("key").to_pylist())).encode(), digest_size=12).hexdigest()


def _prepare(recipe: Recipe, listing: Listing) -> None:
    work, where = listing.work, listing.output.uri
    names = _names(work.folder)
    tasks = parts.ranges(listing.count, listing.each)
    gathered: list[dict[str, Any]] = []
    with console.stage("prepare", total=listing.count, unit="inputs") as bar:
        for done in _map(lambda bounds: parts.gather(work, tuple(bounds), names), tasks):
            gathered.append(done)
            bad = sum(len(each["bad"]) for each in gathered)
            bar.to(sum(each["read"] for each in gathered) + bad, note=f"{bad} bad" if bad else None)
        rejected = sorted(tuple(entry) for done in gathered for entry in done["bad"])
        _quarantine(where, rejected)
        _bearable(recipe.data, rejected, listing.count, where)
        cut = _cut(recipe, listing, gathered)
        filled = list(_map(lambda bucket: buckets.fill(work, cut, bucket), list(range(2**cut.bits))))
    filled.sort(key=lambda done: min((file["name"][-13:] for file in done["files"]), default=""))
    value = buckets.describe(work, cut, filled) | {"inputs": listing.count, "quarantined": len(rejected)}
    _clean(where, {file["name"] for file in value["files"]} | {"quarantine.parquet"})
    storage.write_json(storage.join(where, "manifest.json"), value)


def _cut(recipe: Recipe, listing: Listing, gathered: Sequence[dict[str, Any]]) -> buckets.Cut:
    labels = tuple(ordered([label for done in gathered for label in done["labels"]]))
    rows = sum(done["rows"] for done in gathered)
    names = tuple(sorted({name for done in gathered for name in done["parts"]}))
    return buckets.Cut(
        event=event_of(dict(listing.work.settings), len(labels)),
        labels=labels,
        fractions=recipe.data.split.model_dump(),
        folder=listing.output.uri,
        fingerprint=listing.output.fingerprint,
        parts=names,
        bits=buckets.bucket_bits(rows, listing.work.settings),
    )


def _bearable(data: Data, rejected: Sequence[Bad], count: int, where: str) -> None:
    if not rejected:
        return
    _, source, reason, _ = min(rejected, key=lambda entry: entry[1])
    first = f"{source}: {reason}"
    if len(rejected) >= count:
        raise Failed(
            f"none of the {count} inputs of {data.source} could be read; the first: {first} (all of them: {where}/quarantine.parquet)"
        )
    allowed = data.max_bad if data.max_bad >= 1 else data.max_bad * count
    if len(rejected) > allowed:
        raise Failed(
            f"{len(rejected)} of {count} inputs could not be read, more than data.max_bad = {data.max_bad:g} allows; the first: {first} "
            f"(all of them: {where}/quarantine.parquet)"
        )


def _quarantine(where: str, rejected: Sequence[Bad]) -> None:
    columns = list(zip(*sorted(entry[1:] for entry in rejected), strict=True)) or [(), (), ()]
    form = pa.schema([("source", pa.string()), ("reason", pa.string()), ("size", pa.int64())])
    sink = io.BytesIO()
    pq.write_table(pa.table([list(column) for column in columns], schema=form), sink)
    storage.write_bytes(storage.join(where, "quarantine.parquet"), sink.getvalue())


def _names(folder: str) -> list[str]:
    fs, path = storage.filesystem(folder)
    found = fs.ls(path, detail=False) if fs.exists(path) else []
    return sorted(name.rpartition("/")[2] for name in found if name.endswith(".parquet") and not name.rpartition("/")[2].startswith("."))


def _clean(where: str, keep: set[str]) -> None:
    """What a killed run left half written, and the buckets' notes."""
    fs, path = storage.filesystem(where)
    for name in fs.ls(path, detail=False):
        if name.rstrip("/").rpartition("/")[2] not in keep:
            fs.rm(name, recursive=True)


def _map(function: Callable[[Any], dict[str, Any]], items: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """function of every item, one Ray Data task each; results as they come. A Stop or an OSError inside a task comes out here as itself."""
    cluster.connect()
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def task(row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"result": json.dumps(function(json.loads(row["item"])))}
        except Stop as stop:
            return {"result": json.dumps({"failed": str(stop)})}
        except OSError as error:
            return {"result": json.dumps({"errno": error.errno, "failed": error.strerror or str(error)})}

    data = ray.data.from_items([{"item": json.dumps(item)} for item in items], override_num_blocks=len(items)).map(task)
    for row in data.iter_rows():
        result = json.loads(row["result"])
        if "errno" in result:
            raise OSError(result["errno"], result["failed"])
        if "failed" in result:
            raise Failed(result["failed"])
        yield result
