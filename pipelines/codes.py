"""The commands about codes: features of files or Shards into Parquet, codes into examples, and the way between two."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genmodels.core import Event
from pipelines import answers, console, inputs, storage
from pipelines.decoder import content_id
from pipelines.errors import Refused
from pipelines.files import content
from pipelines.parquet import SPLITS, parquet
from pipelines.shards import manifest, open_shards
from pipelines.storage import write_bytes
from serve import code_requests, examples, requests
from serve.code_schema import DecodingRequest, EncodingRequest, InterpolationRequest
from serve.fields import Label
from serve.messages import Asked, Decode, Drawn, Encoded
from serve.problem import Problem
from serve.replica import Replica
from serve.schema import Description

ROWS = 1024
"""Rows of Shards that are encoded at once."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some examples with their names: x (n, *shape) levels, id and source each, label each or -1."""

    x: NDArray[Any]
    id: list[str]
    source: list[str]
    label: list[int]


def encode(
    model: str,
    files: Sequence[Path],
    *,
    shards: str | None,
    split: str,
    label: str | None,
    own_labels: bool,
    out: Path,
    storage: str,
) -> None:
    """Writes the mean code of each example of files, folders or a split of Shards to Parquet: id, source, label, features."""
    if bool(files) == (shards is not None):
        raise Refused("encode takes files or --shards URI, one of them")
    if out.suffix != ".parquet":
        raise Refused(f"--out {out}: features are written to Parquet; give a name that ends in .parquet")
    if own_labels and (shards is None or label is not None):
        raise Refused("--own-labels goes with --shards, whose rows have labels, and not with --label")

    async def work(replica: Replica, description: Description) -> pa.Table:
        requests.check_can("encodes", description)
        found = _from_files(files, description) if shards is None else _from_shards(shards, split, description)
        tables = [await _encoded(rows, replica, description, answers.class_of(label), own_labels) for rows in found]
        if not tables:
            raise Refused("nothing to encode: the folder holds no files")
        return pa.concat_tables(tables)

    table = answers.ask(model, storage, {"max_samples": 2**31}, work)
    write_bytes(str(out), parquet(table, compression="zstd"))
    about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    dims = table.schema.field("features").type.list_size
    console.result(f"{out}  ({len(table):,} rows of {dims} features: means of {about['distribution']} codes, {about['protocol']})")
    console.emit(file=str(out), rows=len(table), features=dims, **about)


async def _encoded(rows: Rows, replica: Replica, description: Description, label: Label | None, own_labels: bool) -> pa.Table:
    if own_labels and -1 in rows.label:
        raise Refused(f"--own-labels: {rows.source[rows.label.index(-1)]} has no label")
    given = rows.label if own_labels else label
    asked = code_requests.encode(requests.valid(EncodingRequest, {"label": given}), rows.x, None, description)
    try:
        said = await replica.encode(asked)
    except Problem as problem:
        raise Refused(problem.detail + ("" if given is not None or not description.classes else ": --label, or --own-labels")) from None
    return _table(rows, said)


def _table(rows: Rows, said: Encoded) -> pa.Table:
    means = next(iter(said.parameters.values())).reshape(len(rows.id), -1)
    who = said.description
    about = {"model": who.model, "version": who.version, "artifact": who.artifact, "equality_class": who.equality_class}
    columns = {
        "id": pa.array(rows.id),
        "source": pa.array(rows.source),
        "label": pa.array([None if label < 0 else label for label in rows.label], pa.int32()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(means.reshape(-1)), means.shape[1]),
    }
    return pa.table(columns, metadata={**about, "distribution": said.distribution, "protocol": said.protocol})


def _from_files(files: Sequence[Path], model: Description) -> Iterator[Rows]:
    """A file at a time; of a longer sound or an array of several rows, each of them under the file's name."""
    for file in _listed(files):
        x, lengths = inputs.example(file, model)
        ends = lengths or [0] * len(x)
        ids = [content_id(one.tobytes(), length) for one, length in zip(x, ends, strict=True)]
        yield Rows(x=x, id=ids, source=[str(file)] * len(x), label=[-1] * len(x))


def _listed(files: Sequence[Path]) -> Iterator[Path]:
    """Files, and all that lie in folders, in the order of their names; hidden ones are left out."""
    for file in files:
        if not file.is_dir():
            yield file
            continue
        inside = [path for path in file.rglob("*") if path.is_file()]
        yield from sorted(path for path in inside if not any(part.startswith(".") for part in path.relative_to(file).parts))


def _from_shards(uri: str, split: str, model: Description) -> Iterator[Rows]:
    """A split in disk order. Raises Refused for a split that is none, or shards of other events than the model's."""
    if split not in SPLITS:
        raise Refused(f"--split {split}; wanted one of {', '.join(SPLITS)}")
    shards = open_shards(uri)
    wanted = Event.from_json(model.event)
    if (shards.event.modality, shards.event.shape, shards.event.levels) != (wanted.modality, wanted.shape, wanted.levels):
        raise Refused(f"{uri} holds {shards.event}; {model.model} models {wanted}")
    if not shards.rows.get(split):
        raise Refused(f"the {split} split of {uri} is empty")
    levels = "levels" if shards.event.levels else "values"
    for file in (file["name"] for file in manifest(shards)["files"] if file["split"] == split):
        with storage.open_read(storage.join(uri, file)) as source, pq.ParquetFile(source) as opened:
            for batch in opened.iter_batches(ROWS, columns=["id", "source", "label", levels]):
                x, label = batch.column(levels).to_numpy_ndarray(), batch.column("label").fill_null(-1)
                yield Rows(x=x, id=batch.column("id").to_pylist(), source=batch.column("source").to_pylist(), label=label.to_pylist())


def decode(model: str, file: Path, *, label: str | None, out: Path | None, storage: str, max_samples: int = 4096) -> None:
    """Makes examples of codes, a .npy array or the features of a Parquet file, into one file, or for sounds one file each."""
    z, request = _codes(file), requests.valid(DecodingRequest, {"label": answers.class_of(label)})

    async def work(replica: Replica, description: Description) -> list[answers.Made]:
        requests.check_can("decodes", description)
        whole = code_requests.decode(request, z, description)

        async def draw(start: int, count: int) -> tuple[Asked, Drawn]:
            rows = slice(start, start + count)
            part = Decode(z=whole.z[rows], y=None if whole.y is None else whole.y[rows])
            return part, await replica.decode(part)

        return await answers.files(description, 0, whole.n, answers.written_as(description, out, "decodings"), draw)

    answers.save(answers.ask(model, storage, {"max_samples": max_samples}, work), "decodings")


def _codes(file: Path) -> NDArray[Any]:
    if file.suffix != ".parquet":
        try:
            return examples.array(content(file))
        except Problem as problem:
            raise Refused(f"{file}: {problem.detail}") from None
    try:
        table = pq.read_table(pa.BufferReader(content(file)))
    except pa.ArrowException as error:
        raise Refused(f"{file}: no Parquet can be read from it: {' '.join(str(error).split())[:120]}") from None
    if "features" not in table.column_names:
        raise Refused(f"{file} has columns {', '.join(table.column_names)}; wanted one named features, as `genmodels encode` writes it")
    return np.array(table["features"].to_pylist(), np.float32)


def interpolate(
    model: str,
    files: Sequence[Path],
    *,
    seeds: tuple[int, int] | None,
    steps: int,
    label: str | None,
    out: Path | None,
    storage: str,
    max_samples: int = 4096,
) -> None:
    """The examples between two samples or two files, in a row."""
    if (len(files), seeds is None) not in ((2, True), (0, False)):
        raise Refused(f"{len(files)} files and {'no' if seeds is None else 'two'} --seeds; interpolate takes two files, or --seeds A B")

    async def work(replica: Replica, description: Description) -> list[answers.Made]:
        code_requests.check_path(description)
        ends = [{"seed": seed} for seed in seeds] if seeds else [{"x": _one(file, description).tolist()} for file in files]
        values = {"a": ends[0], "b": ends[1], "steps": steps, "label": answers.class_of(label)}
        asked = code_requests.interpolate(requests.valid(InterpolationRequest, values), description)
        drawn = await replica.interpolate(asked)
        media_type, path = answers.written_as(description, out, "interpolation", n=steps)
        return [answers.made(path, media_type, drawn, asked)]

    answers.save(answers.ask(model, storage, {"max_samples": max_samples}, work), "steps")


def _one(file: Path, model: Description) -> NDArray[Any]:
    code_requests.check_encodes(model)
    x, _ = inputs.example(file, model)
    return x[0]
