"""What a file costs on its way into Shards, step by step: processor time, of the functions that prepare calls, in this one process.

What bare decoding takes is the first line; the others are what a Shard is beyond decoded samples: a name by content, parts that a later run goes on
from, rows in hash order, and columns that plain Parquet readers read.
"""

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from benchmarks import generated
from genmodels import media
from pipelines import decoder, parquet, parts, storage
from pipelines.buckets import group_rows
from pipelines.prepare import event_of

SETTINGS: dict[str, Any] = {
    "modality": "audio",
    "sample_rate": generated.RATE,
    "seconds": generated.SECONDS,
    "levels": 256,
    "companding": "mu-law",
    "window": "all",
    "hop": None,
}


def costs(scratch: Path, form: str, count: int = 512) -> list[str]:
    """A Markdown table: microseconds a sound of this form, and each step's share of their sum."""
    parquet.keep_memory()
    paths = [str(path) for path in sorted(generated.sounds(scratch / f"costs-{form}", count, form).iterdir())]
    contents = [Path(path).read_bytes() for path in paths]
    bare = _busy(lambda: [soundfile.read(io.BytesIO(content)) for content in contents]) / count
    found = {name: _busy(step) / count for name, step in _steps(paths, contents, scratch)}
    total = sum(found.values())
    head = [f"| a {form.upper()} of {generated.SECONDS} s at {generated.RATE // 1000} kHz | us | share |", "|---|---|---|"]
    lines = [f"| {name} | {1e6 * took:.0f} | {took / total:.2f} |" for name, took in found.items()]
    least = f"| together, and how often bare soundfile.read ({1e6 * bare:.0f} us) goes into it | {1e6 * total:.0f} | {total / bare:.1f} |"
    return [*head, *lines, least]


def _steps(paths: Sequence[str], contents: Sequence[bytes], scratch: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and work of each step, all files at once, in the order in which prepare takes them."""
    yield "read the file", lambda: [Path(path).read_bytes() for path in paths]
    yield "decode it and look its levels up", lambda: [media.levels_from_sound(content, SETTINGS) for content in contents]
    levels = [media.levels_from_sound(content, SETTINGS)[0][0] for content in contents]
    raw = [each.tobytes() for each in levels]
    yield "name it by its content (BLAKE2b)", lambda: [decoder.content_id(each) for each in raw]
    made = decoder.decode_files(contents, SETTINGS)[0].append_column("source", pa.array(paths)).drop_columns(["index", "window"])
    yield "sort its batch, and write it into a part", lambda: parts.write_groups(scratch / "part", made.sort_by("id"), len(raw[0]))
    yield "read it from the part", lambda: pq.read_table(scratch / "part", use_threads=False)
    x = np.stack(levels)
    order = np.random.default_rng(0).permutation(len(x))
    yield "put it in its place", lambda: x.take(order, axis=0)
    yield "write it into Shards: Parquet, a list of numbers", lambda: _shard(scratch / "shard", x)
    yield "SHA-256 of the file", lambda: storage.sha256(str(scratch / "shard"))


def _shard(file: Path, x: np.ndarray[Any, Any]) -> None:
    form = parquet.schema(event_of(SETTINGS, 0))
    kept = pa.schema([form.field("levels")])
    table = pa.table([pa.FixedShapeTensorArray.from_numpy_ndarray(x)], schema=kept)
    packing: dict[str, Any] = {**parquet.packing(kept), "use_dictionary": False}
    with file.open("wb") as sink, pq.ParquetWriter(sink, kept, **packing) as writer:
        writer.write_table(table, row_group_size=group_rows(x.shape[1]))


def _busy(work: Callable[[], Any], rounds: int = 3) -> float:
    """Seconds of processor time, the least of some rounds after one of warm-up."""
    took = []
    for _ in range(rounds + 1):
        begun = time.process_time()
        work()
        took.append(time.process_time() - begun)
    return min(took[1:])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join([line for form in ("wav", "flac") for line in [*costs(Path(folder), form), ""]]))
