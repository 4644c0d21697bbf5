"""Tables inside prepare: a row is its numbers as float32 bytes and its label as text, and becomes an example given its features."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.decoder import columns, content_id
from pipelines.errors import Failed
from pipelines.sources.source import Examples

Moments = dict[str, Any]
"""Of a column: count, mean, squares (the sum of squared distances from the mean), min and max."""


def rows(examples: Examples, settings: Mapping[str, Any]) -> tuple[pa.Table, dict[int, str]]:
    """A table's rows as the decoder makes them, and the reasons of the others. The id is of the numbers and the label."""
    assert examples.values is not None
    good = [i for i in range(len(examples.values)) if i not in examples.bad]
    content = [row.tobytes() for row in examples.values.astype("<f4")[good]]
    labels = [b"" if examples.labels is None else b"\0" + str(examples.labels[i]).encode() for i in good]
    ids = [content_id(row + label) for row, label in zip(content, labels, strict=True)]
    zeros = np.zeros(len(good), np.int32)
    arrays = dict(zip(columns(settings).names, (np.array(good, np.int32), zeros, content, zeros, ids), strict=True))
    return pa.table(arrays, schema=columns(settings)), dict(examples.bad)


def check(source: str, how: Mapping[str, Any], rows: int, labels: Sequence[str]) -> None:
    """Raises Failed for a table without rows, and for a target that cannot be told apart, or too finely."""
    if rows == 0:
        raise Failed(f"data.source {source} holds no rows; wanted at least one with a number in every column")
    if how["kind"] == "classification" and not 2 <= len(labels) <= 256:
        found = f"the one value {labels[0]!r}" if len(labels) == 1 else f"{len(labels)} labels"
        way = "choose another target" if len(labels) < 2 else "wanted 2 to 256; set data.table.kind=regression if it is a number"
        raise Failed(f"data.table.target {how['target']!r} of {source} has {found}; {way}")


def check_spread(source: str, how: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> None:
    """Raises Failed for a regression's target that is one number only."""
    if how["kind"] != "regression":
        return
    found = joined([file["columns"] for bucket in done for file in bucket["files"]])[how["target"]]
    if found["min"] == found["max"]:
        raise Failed(f"data.table.target {how['target']!r} of {source} has the one value {found['min']:g}; choose another target")


def contents(values: NDArray[np.uint8], label: pa.ChunkedArray, how: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """(n, row bytes) uint8 and the labels' numbers -> the columns of Shards by name."""
    numbers = values.view("<f4")
    if how["target"] is None:
        return {"values": numbers}
    if how["kind"] == "regression":
        return {"values": numbers[:, :1], "condition": numbers[:, 1:]}
    return {"levels": label.to_numpy().astype(np.uint8)[:, None], "condition": numbers}


def counted(values: NDArray[np.uint8], label: pa.ChunkedArray, how: Mapping[str, Any], labels: int) -> dict[str, Any]:
    """What the manifest says of a file's rows: moments of each column of numbers, and how often each label of the target comes."""
    names = [how["target"], *how["features"]] if how["kind"] == "regression" else how["features"]
    numbers = values.view("<f4").astype(np.float64)
    moments = {name: _moments(numbers[:, place]) for place, name in enumerate(names)}
    levels = np.bincount(label.to_numpy(), minlength=labels).tolist() if how["kind"] == "classification" else []
    return {"columns": moments, "levels": levels}


def _moments(column: NDArray[np.float64]) -> Moments:
    mean = math.fsum(column) / len(column)
    squares = math.fsum((column - mean) ** 2)
    return {"count": len(column), "mean": mean, "squares": squares, "min": float(column.min()), "max": float(column.max())}


def joined(parts: Sequence[Mapping[str, Moments]]) -> dict[str, Moments]:
    """The moments of all parts together (Chan, Golub, LeVeque, 1983), by column."""
    total: dict[str, Moments] = {}
    for name, other in (entry for part in parts for entry in part.items()):
        one = total.setdefault(name, {"count": 0, "mean": 0.0, "squares": 0.0, "min": math.inf, "max": -math.inf})
        count, apart = one["count"] + other["count"], other["mean"] - one["mean"]
        total[name] = {
            "count": count,
            "mean": one["mean"] + apart * other["count"] / count,
            "squares": one["squares"] + other["squares"] + apart**2 * one["count"] * other["count"] / count,
            "min": min(one["min"], other["min"]),
            "max": max(one["max"], other["max"]),
        }
    return total


def described(parts: Sequence[Mapping[str, Moments]]) -> dict[str, dict[str, Any]]:
    """count, mean, std (of the population), min and max of every column."""
    found = joined(parts)
    return {
        name: {
            "count": one["count"],
            "mean": one["mean"],
            "std": math.sqrt(one["squares"] / one["count"]),
            "min": one["min"],
            "max": one["max"],
        }
        for name, one in found.items()
    }
