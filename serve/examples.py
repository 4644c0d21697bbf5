"""Examples as they are sent (nested lists, base64, a .npy array, a picture or sound file) into levels of the model's event."""

import base64
import binascii
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve import media_types
from serve.media_types import JSON, NPY
from serve.problem import Problem
from serve.schema import Description, ExamplesRequest

ARRAYS = (NPY, "application/octet-stream")
Found = tuple[NDArray[Any], tuple[int, ...] | None]
"""Examples, and where they are sounds from a file how many steps of each are sound."""


def named(request: ExamplesRequest, model: Description, *, resample: bool = True) -> Found:
    """The examples inside a JSON request. Raises Problem 422, for a sound of another rate too unless it may be resampled."""
    given = [name for name in ("x", "levels", "media") if getattr(request, name) is not None]
    if len(given) != 1:
        raise Problem(422, "invalid-request", f"got {' and '.join(given) or 'none'} of x, levels, media; wanted one of them")
    if request.x is not None:
        return numbers(request.x, "x"), None
    if request.media is not None:
        files = [request.media] if isinstance(request.media, str) else request.media
        decoded = [media_types.decode(_bytes(text, "media"), model, resample=resample) for text in files]
        if not decoded:
            raise Problem(422, "invalid-request", "media: an empty list; wanted at least one file")
        return np.concatenate([x for x, _ in decoded]), _lengths([lengths for _, lengths in decoded])
    content, shape = _bytes(request.levels or "", "levels"), tuple(request.shape or (-1, *model.shape))
    try:
        return np.frombuffer(content, dtype=model.dtype).reshape(shape), None
    except ValueError:
        raise Problem(422, "wrong-shape", f"levels of {len(content)} bytes; they do not fill {shape} of {np.dtype(model.dtype)}") from None


def sent(content_type: str, body: bytes, model: Description, *, resample: bool = True) -> Found:
    """The examples that are a request's whole body: a file of the model's modality, or an array. Raises Problem 415 for another type."""
    if content_type in ARRAYS:
        return array(body), None
    modality = model.event["modality"]
    if content_type.split("/")[0] == modality:
        return media_types.decode(body, model, resample=resample)
    takes = ", ".join([*([f"{modality}/*"] if modality != "table" else []), NPY, JSON])
    raise Problem(415, "unsupported-media-type", f"Content-Type: {content_type}; {model.model} takes {takes}", {"Accept-Post": takes})


def array_sent(content_type: str, body: bytes, model: Description) -> NDArray[Any]:
    """The array that is a request's whole body. Raises Problem 415 for another type."""
    if content_type in ARRAYS:
        return array(body)
    takes = f"{NPY}, {JSON}"
    raise Problem(415, "unsupported-media-type", f"Content-Type: {content_type}; {model.model} takes {takes} here", {"Accept-Post": takes})


def array(body: bytes) -> NDArray[Any]:
    """The array of a .npy file; nothing pickled is ever read."""
    if not body.startswith(b"\x93NUMPY"):
        raise Problem(422, "not-npy", "the body is no .npy array: it does not begin as one; numpy.save writes them")
    try:
        return np.load(BytesIO(body), allow_pickle=False)
    except Exception as error:  # numpy raises whatever its parser meets
        raise Problem(422, "not-npy", f"the .npy array cannot be read: {' '.join(str(error).split())[:120]}") from None


def numbers(values: list[Any], what: str) -> NDArray[Any]:
    try:
        found = np.asarray(values)
    except ValueError:
        found = np.empty(0, dtype=object)
    if found.dtype.kind not in "iuf":
        raise Problem(422, "not-numbers", f"{what} is no regular nesting of numbers; wanted lists of equal length")
    return found


def levels(x: NDArray[Any], count: int, what: str = "examples") -> NDArray[Any]:
    """The array as uint8 levels, or float32 where count = 0, if it loses nothing by that."""
    if not count:
        if not np.isfinite(x).all():
            raise Problem(422, "wrong-levels", f"{what} with NaN or infinity; wanted finite numbers")
        return x.astype(np.float32)
    if x.dtype.kind not in "iu":
        raise Problem(422, "wrong-levels", f"{what} of dtype {x.dtype}; wanted whole levels 0 to {count - 1}")
    if x.size and (int(x.min()) < 0 or int(x.max()) >= count):
        levels = "levels" if what == "examples" else f"{what}: levels"
        raise Problem(422, "wrong-levels", f"{levels} from {int(x.min())} to {int(x.max())}; wanted 0 to {count - 1}")
    return x.astype(np.uint8)


def many(x: NDArray[Any], model: Description) -> NDArray[Any]:
    """Examples (n, *shape) or one (*shape) -> (n, *shape), checked."""
    x = _rows(x, model.shape, "examples")
    if not 1 <= len(x) <= model.max_samples:
        raise Problem(422, "too-many-examples", f"{len(x)} examples; this server scores 1 to {model.max_samples} a request")
    return levels(x, model.event["levels"])


def codes(z: NDArray[Any], model: Description) -> NDArray[Any]:
    """Codes (n, *shape of the latent event) or one -> (n, *shape), checked."""
    assert model.latent is not None
    z = _rows(z, model.codes, "codes")
    if not 1 <= len(z) <= model.max_samples:
        raise Problem(422, "too-many-codes", f"{len(z)} codes; this server decodes 1 to {model.max_samples} a request")
    count = model.latent["levels"]
    if count and z.dtype.kind == "f":
        if not (z == np.rint(z)).all():
            raise Problem(422, "wrong-levels", f"codes of dtype {z.dtype}; wanted whole levels 0 to {count - 1}: round a mean")
        z = z.astype(np.int64)
    return levels(z, count, "codes")


def _rows(x: NDArray[Any], shape: tuple[int, ...], what: str) -> NDArray[Any]:
    x = x[None] if x.shape == shape else x
    if x.shape[1:] != shape:
        raise Problem(422, "wrong-shape", f"{what} of shape {x.shape}; wanted (n, {', '.join(map(str, shape))})")
    return x


def _lengths(columns: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    return sum((column for column in columns if column), start=()) or None


def _bytes(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise Problem(422, "not-base64", f"{what} is no base64: {error}") from None
