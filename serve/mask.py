"""Which values of an example are known: a mask as it was sent, or a beginning."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.problem import Problem
from serve.schema import Description, First

_ALONG = {"image": (1, "rows"), "audio": (0, "steps"), "table": (0, "columns")}
"""By modality the axis of the event's shape that a beginning is counted along, and what it counts."""


def of(known: First | list[Any] | None, model: Description, *, length: int | None) -> NDArray[np.bool_]:
    """(*shape) bool. length: of a sound file, how many of its steps are sound; nothing behind them is known."""
    axis, unit = _ALONG[model.event["modality"]]
    size = model.shape[axis]
    there = size if length is None else length
    if isinstance(known, list):
        found = _nested(known)
        check(found, model)
        if found[(slice(None),) * axis + (slice(there, None),)].any():
            raise Problem(422, "wrong-mask", f"known goes on behind the sound's end; it has {there} of {size} steps")
        return found
    if known is None and there == size:
        raise Problem(422, "wrong-mask", f'known is missing: wanted a mask, or {{"first": n}} for the first n of {size} {unit}')
    first = there if known is None else known.first
    if first > there:
        raise Problem(422, "wrong-mask", f"known: the first {first} {unit}; there are {there}")
    found = np.zeros(model.shape, bool)
    found[(slice(None),) * axis + (slice(first),)] = True
    return found


def check(found: NDArray[np.bool_], model: Description) -> None:
    """Raises Problem 422 for a mask of another shape."""
    if found.shape != model.shape:
        raise Problem(422, "wrong-mask", f"known of shape {found.shape}; wanted the event's, {model.shape}")


def _nested(known: list[Any]) -> NDArray[np.bool_]:
    try:
        found = np.asarray(known)
    except ValueError:
        found = np.empty(0, dtype=object)
    if found.dtype.kind not in "biu" or not np.isin(found, (0, 1)).all():
        raise Problem(422, "wrong-mask", "known is no regular nesting of true and false, or of 1 and 0")
    return found.astype(bool)
