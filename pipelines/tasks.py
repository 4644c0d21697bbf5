"""Ray Data tasks over a list. What they run is imported in each worker process, so nothing here loads torch."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from genmodels import allocator, media
from pipelines import cluster, parquet
from pipelines.errors import Failed, Stop


def each(function: Callable[[Any], dict[str, Any]], items: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """function of every item, a Ray Data task each; results as they come. A Stop or an OSError inside a task is raised here as itself."""
    cluster.connect()
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Reservations begin at nothing, and one task at a time runs until the first of them comes: a second a pass, and some more in a new Ray.
    context.op_resource_reservation_enabled = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"item": json.dumps(item)} for item in items]
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        lambda row: {"result": _guarded(function, row["item"])}, num_cpus=cluster.core()
    )
    for row in data.iter_rows():
        result = json.loads(row["result"])
        if "failed" in result:
            raise OSError(result["errno"], result["failed"]) if result["errno"] else Failed(result["failed"])
        yield result


def _guarded(function: Callable[[Any], dict[str, Any]], item: str) -> str:
    """function(item) as JSON; errors that a user can mend travel as values, since Ray would wrap them in its own."""
    parquet.keep_memory()
    allocator.give_back()
    try:
        return json.dumps(function(json.loads(item)))
    except Stop as stop:
        return json.dumps({"failed": str(stop), "errno": None})
    except OSError as error:
        return json.dumps({"failed": error.strerror or media.reason(error), "errno": error.errno or 5})
