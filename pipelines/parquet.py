"""The format of the Parquet files of Shards. Loads no torch: the tasks that write them live in processes that need none.

Rows lie in the order of their id, a hash of the decoded content; plain pyarrow, pandas and DuckDB read them.
"""

import io
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from genmodels import allocator

if TYPE_CHECKING:
    from genmodels.core import Event

SPLITS = ("train", "valid", "test")


def schema(event: "Event") -> pa.Schema:
    """Columns of a Parquet file of Shards; the event itself is in the metadata."""
    content = ("levels", pa.fixed_shape_tensor(pa.uint8(), event.shape))
    if not event.levels:
        content = ("values", pa.fixed_shape_tensor(pa.float32(), event.shape))
    columns = [("id", pa.string()), content, ("label", pa.int32())]
    if event.condition is not None:
        kind = pa.uint8() if event.condition.levels else pa.float32()
        columns.append(("condition", pa.fixed_shape_tensor(kind, event.condition.shape)))
    columns += [("length", pa.int32())] if event.modality == "audio" else []
    return pa.schema([*columns, ("source", pa.string())], metadata={"genmodels.event": json.dumps(event.to_json(), sort_keys=True)})


def packing(form: pa.Schema) -> dict[str, Any]:
    """How a Parquet file of Shards is written. Parquet has no bytes: levels go as int32, whose four byte streams apart cost nothing but the first."""
    contents = [name for name in ("levels", "values", "condition") if name in form.names]
    return {
        "use_dictionary": ["label", "length"],
        "column_encoding": {f"{content}.list.element": "BYTE_STREAM_SPLIT" for content in contents},
        "write_statistics": ["id"],
        "compression": "zstd",
        "compression_level": 1,  # 3 takes a tenth longer and saves nothing of pictures, 2 in a hundred of speech
    }


def keep_memory() -> None:
    """As genmodels.allocator, and Arrow too: its own pool gives back what it frees."""
    allocator.keep_memory()
    pa.set_memory_pool(pa.system_memory_pool())


def parquet(table: pa.Table, **options: Any) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()
