"""From files to Shards, with Ray Data, in two passes: decode to parts, then sort, deduplicate and split inside buckets of like ids.

The same inputs give the same bytes on any number of workers, from any root folder, after any number of kills. Nothing is done twice: parts are kept
under what shaped them, finished buckets under their fingerprint; manifest.json is written last and means complete.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from genmodels import media
from genmodels.core import Event
from pipelines import buckets, console, parts, storage, tables, tasks
from pipelines.errors import Failed
from pipelines.fingerprint import fingerprint, libraries
from pipelines.parquet import parquet, schema
from pipelines.parts import Bad, Work
from pipelines.recipe import Recipe
from pipelines.records import Output, Shards
from pipelines.sections import Data
from pipelines.shards import open_shards
from pipelines.sources import open_source
from pipelines.sources.labels import Labels, ordered
from pipelines.sources.source import Containers, Leaf, Source
from pipelines.sources.tables import Table
from pipelines.sources.tree import unreachable

VERSION = 2
"""Raised when the same data and recipe would give other bytes than before."""

LIBRARIES = ("numpy", "pillow", "pyarrow", "scikit-learn", "scipy", "soundfile", "soxr")
"""Whose versions shape the bytes."""


def prepare(recipe: Recipe) -> Shards:
    """The recipe's data as Shards; done already where they exist. Raises Failed for data that cannot be used and storage that cannot be written."""
    inputs = _look(recipe)
    if inputs.output.done:
        console.done("prepare", inputs.output.uri)
        return open_shards(inputs.output.uri)
    if inputs.count == 0:
        raise Failed(
            f"data.source {recipe.data.source} holds no files; wanted {recipe.data.modality} files there; hidden ones, texts and tables do not count"
        )
    try:
        if inputs.unwritten is not None:
            raise inputs.unwritten
        _make(recipe, replace(inputs, work=replace(inputs.work, source=inputs.work.source.fetched(recipe.root))))
    except OSError as error:
        words = error.strerror or media.reason(error)
        raise Failed(f"prepare could not write to {recipe.root}: {words}; free some space there, or set storage elsewhere") from error
    return open_shards(inputs.output.uri)


def output(recipe: Recipe) -> Output:
    """Where the Shards of a recipe are, or will be. Looks at the inputs; starts nothing, downloads nothing."""
    return _look(recipe).output


def settings(data: Data, source: Source) -> dict[str, Any]:
    """How a file becomes levels, in the words of genmodels.media; of a table, which columns make an example."""
    if data.image:
        return {"modality": "image", **data.image.model_dump()}
    if data.audio:
        return {"modality": "audio", **data.audio.model_dump(), "companding": "mu-law" if data.audio.levels == 256 else None}
    assert isinstance(source, Table)
    return {"modality": "table", **asdict(source.layout)}


def event_of(how: dict[str, Any], classes: int) -> Event:
    """The event of examples decoded by these settings."""
    if how["modality"] == "image":
        return Event(modality="image", shape=(how["channels"], how["height"], how["width"]), levels=how["levels"], classes=classes)
    if how["modality"] == "table":
        return _table_event(how, classes)
    steps, law = media.window_steps(how), how["companding"]
    return Event(modality="audio", shape=(steps,), levels=how["levels"], sample_rate=how["sample_rate"], companding=law, classes=classes)


def _table_event(how: dict[str, Any], labels: int) -> Event:
    """The target given the features; without a target, the features."""
    features = Event(modality="table", shape=(len(how["features"]),), levels=0)
    if how["target"] is None:
        return features
    return Event(modality="table", shape=(1,), levels=labels if how["kind"] == "classification" else 0, condition=features)


@dataclass(frozen=True)
class Inputs:
    """What there is to prepare: a count, and what it hashes to. The rows lie in storage, some thousands a leaf."""

    work: Work
    output: Output
    count: int
    each: list[str] | None
    """Keys of containers, which are few."""
    unwritten: OSError | None
    """Why the leaves could not be kept; no matter to someone who only asks what would be done."""


def _look(recipe: Recipe) -> Inputs:
    source = open_source(recipe.data)
    how = settings(recipe.data, source)
    cache = storage.join(recipe.root, "parts", "listings")
    count, total, names, each, unwritten = 0, 0, [], [], None
    for leaf in source.leaves(cache):
        try:
            _keep(cache, leaf)
        except OSError as error:
            unwritten = error
        keys = leaf[1].column("key").to_pylist()
        # A sum is the same whatever leaves the inputs came in.
        count, total = count + len(keys), (total + sum(int(key, 16) for key in keys)) % 2**128
        names.append(storage.join(cache, f"{leaf[0]}.parquet"))
        each += keys if isinstance(source, Containers) else []
    labels = Labels(recipe.data.label, _csv(recipe.data, source))
    shaped = fingerprint("parts", parts.VERSION, media.VERSION, how, type(source).__name__, dict(source.facts), libraries(*LIBRARIES))
    whole = fingerprint("prepare", VERSION, shaped, count, f"{total:032x}", labels.facts, recipe.data.split.model_dump())
    uri = storage.join(recipe.root, "shards", f"{recipe.name}-{whole}")
    return Inputs(
        work=Work(source, how, labels, recipe.data.seconds_per_file, storage.join(recipe.root, "parts", shaped), tuple(names)),
        output=Output(fingerprint=whole, uri=uri, done=_exists(storage.join(uri, "manifest.json"))),
        count=count,
        each=each if isinstance(source, Containers) else None,
        unwritten=unwritten,
    )


def _keep(cache: str, leaf: Leaf) -> None:
    name, table = leaf
    uri = storage.join(cache, f"{name}.parquet")
    if not _exists(uri):
        storage.write_bytes(uri, parquet(table.sort_by("key"), row_group_size=1024))


def _exists(uri: str) -> bool:
    try:
        return storage.exists(uri)
    except Exception as error:  # of whichever filesystem the storage is on
        raise Failed(unreachable(error, uri)) from error


def _csv(data: Data, source: Source) -> str | None:
    if data.label.csv is None:
        return None
    is_relative = "://" not in data.label.csv and not data.label.csv.startswith(("/", "~"))
    beside = source.url_of(data.label.csv) if is_relative else None
    return beside or storage.absolute(data.label.csv)


def _make(recipe: Recipe, inputs: Inputs) -> None:
    where = inputs.output.uri
    with console.stage("prepare", total=inputs.count, unit="inputs") as bar:
        gathered = _gathered(inputs, bar)
        rejected = sorted(tuple(entry) for done in gathered for entry in done["bad"])
        _quarantine(where, rejected)
        rows = sum(done["rows"] for done in gathered)
        _bearable(recipe.data, rejected, inputs.count if inputs.each is None else rows + len(rejected), where)
        cut = _cut(recipe, inputs, gathered)
        work = inputs.work
        filled = sorted(tasks.each(lambda bucket: buckets.fill(work, cut, bucket), range(1 << cut.bits)), key=lambda done: done["bucket"])
    if recipe.data.table:
        tables.check_spread(recipe.data.source, dict(work.settings), filled)
    value: dict[str, Any] = buckets.describe(work, cut, filled) | {"inputs": inputs.count, "quarantined": len(rejected)}
    _clean(where, {file["name"] for file in value["files"]} | {"quarantine.parquet"})
    storage.write_json(storage.join(where, "manifest.json"), value)


def _gathered(inputs: Inputs, bar: console.Bar) -> list[dict[str, Any]]:
    """The first pass: every input in a part."""
    work, known = inputs.work, _names(inputs.work.folder)
    gathered, read, bad = [], 0, 0
    for done in tasks.each(lambda bounds: parts.gather(work, (bounds[0], bounds[1]), known), parts.ranges(inputs.count, inputs.each)):
        gathered.append(done)
        read, bad = read + done["read"], bad + len(done["bad"])
        bar.to(min(inputs.count, read + bad), note=f"{bad} bad" if bad else None)
    return gathered


def _cut(recipe: Recipe, inputs: Inputs, gathered: Sequence[dict[str, Any]]) -> buckets.Cut:
    labels = tuple(ordered([label for done in gathered for label in done["labels"]]))
    rows = sum(done["rows"] for done in gathered)
    if recipe.data.table:
        tables.check(recipe.data.source, dict(inputs.work.settings), rows, labels)
    if not labels and recipe.data.label.by not in ("none", "source"):
        raise Failed(
            f"data.label.by {recipe.data.label.by} labels none of the {inputs.count} inputs; correct it, or set data.label.by=none"
        )
    return buckets.Cut(
        form=schema(event_of(dict(inputs.work.settings), len(labels))),
        labels=labels,
        fractions=recipe.data.split.model_dump(),
        folder=inputs.output.uri,
        fingerprint=inputs.output.fingerprint,
        parts=tuple(sorted({name for done in gathered for name in done["parts"]})),
        bits=buckets.bucket_bits(rows, inputs.work.settings),
    )


def _bearable(data: Data, rejected: Sequence[Bad], count: int, where: str) -> None:
    """Raises Failed where more inputs could not be read than the recipe bears."""
    if not rejected:
        return
    _, source, reason, _ = min(rejected, key=lambda entry: entry[1])
    list_of = f"the first: {source}: {reason} (all of them: {where}/quarantine.parquet)"
    if len(rejected) >= count:
        raise Failed(f"none of the {count} inputs of {data.source} could be read; {list_of}")
    if len(rejected) > (data.max_bad if data.max_bad >= 1 else data.max_bad * count):
        raise Failed(
            f"{len(rejected)} of {count} inputs could not be read, data.max_bad={data.max_bad:g} allows fewer: mend them or raise it; {list_of}"
        )


def _quarantine(where: str, rejected: Sequence[Bad]) -> None:
    form = pa.schema([("source", pa.string()), ("reason", pa.string()), ("size", pa.int64())])
    columns = list(zip(*sorted(entry[1:] for entry in rejected), strict=True)) or [(), (), ()]
    storage.write_bytes(storage.join(where, "quarantine.parquet"), parquet(pa.table([list(column) for column in columns], schema=form)))


def _names(folder: str) -> list[str]:
    """The parts that exist."""
    fs, path = storage.filesystem(folder)
    fs.invalidate_cache()
    found = fs.ls(path, detail=False) if fs.exists(path) else []
    names = [name.rpartition("/")[2] for name in found]
    return sorted(name for name in names if name.endswith(".parquet"))


def _clean(where: str, keep: set[str]) -> None:
    """Takes away what a killed run left half written, and the buckets' notes."""
    fs, path = storage.filesystem(where)
    fs.invalidate_cache()  # the workers have written since it was last listed
    for name in fs.ls(path, detail=False):
        if name.rstrip("/").rpartition("/")[2] not in keep:
            fs.rm(name, recursive=True)
