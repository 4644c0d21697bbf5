"""From what a client wrote to what a replica is asked; whatever does not fit the model is refused here, before anything is batched."""

import base64
import binascii
import json
import secrets
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from serve import media_types
from serve.names import unknown
from serve.schema import DRAWN_SEEDS, Description, Draw, Label, Problem, SampleRequest, ScoreRequest, Weigh

Model = TypeVar("Model", bound=BaseModel)


def parse(kind: type[Model], body: bytes) -> Model:
    """A JSON body as a request; an empty one is all defaults. Raises Problem 400 for no JSON, 422 for a key or value that is none of ours."""
    try:
        values = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise Problem(400, "not-json", f"the body is no JSON: {error}; wanted an object such as {{}}") from None
    if not isinstance(values, dict):
        raise Problem(422, "invalid-request", f"the body is a JSON {type(values).__name__}; wanted an object such as {{}}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise Problem(422, "invalid-request", _say(error, kind)) from None


def draw(request: SampleRequest, model: Description, *, version: str | None = None) -> Draw:
    """The samples that a request means, checked against the model; a missing seed is chosen here."""
    if request.n > model.max_samples:
        raise Problem(
            422, "too-many-samples", f"n = {request.n}; this server draws at most {model.max_samples} a request; ask in parts by index"
        )
    asked = Draw(
        seed=secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed,
        first=request.index,
        n=request.n,
        y=class_numbers(request.label, request.n, model),
        c=_condition(request.condition, model),
        temperature=request.temperature,
        version=version,
    )
    check_draw(asked, model)
    return asked


def check_draw(asked: Draw, model: Description) -> None:
    """Raises Problem 422 for what the model does not take: asked here of the ingress's view, and of the replica's own."""
    _check_classes(asked.y, model)
    if asked.temperature != 1 and "tempered" not in model.capabilities:
        raise Problem(
            422,
            "no-temperature",
            f"temperature {asked.temperature:g} asked of {model.model}; its family {model.family} has none: leave it at 1",
        )
    wanted = model.event.get("condition")
    if (asked.c is not None) != (wanted is not None):
        given = f"a condition was given; {model.model} takes none: leave it out"
        raise Problem(422, "condition", given if wanted is None else f"no condition was given; wanted {json.dumps(wanted)}")
    if asked.c is not None and wanted is not None and asked.c.shape != tuple(wanted["shape"]):
        raise Problem(422, "condition", f"condition of shape {asked.c.shape}; wanted {tuple(wanted['shape'])}")


def weigh(request: ScoreRequest, model: Description, *, version: str | None = None) -> Weigh:
    """The examples that a JSON request means."""
    given = [name for name in ("x", "levels", "media") if getattr(request, name) is not None]
    if len(given) != 1:
        raise Problem(422, "invalid-request", f"got {' and '.join(given) or 'none'} of x, levels, media; wanted one of them")
    x, lengths = _examples(request, model)
    return weigh_examples(x, model, label=request.label, lengths=lengths, seed=request.seed, k=request.k, version=version)


def weigh_examples(
    x: NDArray[Any], model: Description, *, label: Label | list[Label] | None = None, lengths: tuple[int, ...] | None = None, **rest: Any
) -> Weigh:
    """Examples as an array, (n, *shape) or one of (*shape), checked against the model."""
    x = x[None] if x.shape == model.shape else x
    _check_shape(x, model)
    asked = Weigh(x=_levels(x, model), y=class_numbers(label, len(x), model), lengths=lengths, **rest)
    check_weigh(asked, model)
    return asked


def check_weigh(asked: Weigh, model: Description) -> None:
    _check_classes(asked.y, model)
    if not {"density", "bounded"} & set(model.capabilities):
        can = ", ".join(model.capabilities) or "sampling alone"
        raise Problem(422, "no-likelihood", f"{model.model} ({model.family}) has no likelihood and no bound to score by; it can: {can}")
    _check_shape(asked.x, model)
    _levels(asked.x, model)


def _check_shape(x: NDArray[Any], model: Description) -> None:
    if x.shape[1:] != model.shape:
        raise Problem(422, "wrong-shape", f"examples of shape {x.shape}; wanted (n, {', '.join(map(str, model.shape))})")
    if not 1 <= len(x) <= model.max_samples:
        raise Problem(422, "too-many-examples", f"{len(x)} examples; this server scores 1 to {model.max_samples} a request")


def beside(query: Mapping[str, str]) -> dict[str, Any]:
    """label, seed and k of a query string, for a request whose body is a file or an array."""
    values: dict[str, Any] = {key: int(text) if text.isdecimal() else text for key, text in query.items()}
    try:
        checked = ScoreRequest.model_validate(values)
    except ValidationError as error:
        raise Problem(422, "invalid-request", _say(error, ScoreRequest)) from None
    return {key: getattr(checked, key) for key in ("label", "seed", "k")}


def array(body: bytes) -> NDArray[Any]:
    """The array of a .npy file; nothing pickled is ever read."""
    if not body.startswith(b"\x93NUMPY"):
        raise Problem(422, "not-npy", "the body is no .npy array: it does not begin as one; numpy.save writes them")
    try:
        return np.load(BytesIO(body), allow_pickle=False)
    except Exception as error:  # numpy raises whatever its parser meets
        raise Problem(422, "not-npy", f"the .npy array cannot be read: {' '.join(str(error).split())[:120]}") from None


def class_numbers(label: Label | Sequence[Label] | None, n: int, model: Description) -> tuple[int, ...] | None:
    """A label for all, or one for each -> n class numbers. Raises Problem 422 for a name or number that is no class."""
    if label is None:
        return None
    if not model.classes:
        raise Problem(422, "no-labels", f"label {label!r} given; {model.model} was trained without labels: leave it out")
    labels = [label] * n if isinstance(label, int | str) else list(label)
    if len(labels) != n:
        raise Problem(422, "wrong-labels", f"{len(labels)} labels for {n} rows; give one for all, or one for each")
    numbers = tuple(_class_number(one, model) for one in labels)
    _check_classes(numbers, model)
    return numbers


def _class_number(label: Label, model: Description) -> int:
    if isinstance(label, int):
        return label
    if label in model.labels:
        return model.labels.index(label)
    raise Problem(422, "unknown-label", unknown("label", label, model.labels) + f" (or a number, 0 to {model.classes - 1})")


def _check_classes(y: tuple[int, ...] | None, model: Description) -> None:
    if y is not None and not all(0 <= label < model.classes for label in y):
        stray = next(label for label in y if not 0 <= label < model.classes)
        raise Problem(
            422, "unknown-label", f"label {stray}; wanted 0 to {model.classes - 1}" if model.classes else "label given; wanted none"
        )


def _condition(values: list[Any] | None, model: Description) -> NDArray[Any] | None:
    if values is None:
        return None
    levels = (model.event.get("condition") or {}).get("levels", 0)
    return _numbers(values, "condition").astype(np.uint8 if levels else np.float32)


def _examples(request: ScoreRequest, model: Description) -> tuple[NDArray[Any], tuple[int, ...] | None]:
    if request.x is not None:
        return _numbers(request.x, "x"), None
    if request.media is not None:
        decoded = [media_types.decode(_bytes(text, "media"), model) for text in request.media]
        return np.concatenate([x for x, _ in decoded]), _lengths([lengths for _, lengths in decoded])
    content, shape = _bytes(request.levels or "", "levels"), tuple(request.shape or (-1, *model.shape))
    try:
        return np.frombuffer(content, dtype=model.dtype).reshape(shape), None
    except ValueError:
        raise Problem(422, "wrong-shape", f"levels of {len(content)} bytes; they do not fill {shape} of {np.dtype(model.dtype)}") from None


def _lengths(columns: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    return sum((column for column in columns if column), start=()) or None


def _numbers(values: list[Any], what: str) -> NDArray[Any]:
    try:
        found = np.asarray(values)
    except ValueError:
        found = np.empty(0, dtype=object)
    if found.dtype.kind not in "iuf":
        raise Problem(422, "not-numbers", f"{what} is no regular nesting of numbers; wanted lists of equal length")
    return found


def _levels(x: NDArray[Any], model: Description) -> NDArray[Any]:
    """The array in the dtype of the event's levels, if it loses nothing by that."""
    if not model.event["levels"]:
        if not np.isfinite(x).all():
            raise Problem(422, "wrong-levels", "examples with NaN or infinity; wanted finite numbers")
        return x.astype(np.float32)
    if x.dtype.kind not in "iu":
        raise Problem(422, "wrong-levels", f"examples of dtype {x.dtype}; wanted whole levels 0 to {model.event['levels'] - 1}")
    if int(x.min()) < 0 or int(x.max()) >= model.event["levels"]:
        raise Problem(422, "wrong-levels", f"levels from {int(x.min())} to {int(x.max())}; wanted 0 to {model.event['levels'] - 1}")
    return x.astype(np.uint8)


def _bytes(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise Problem(422, "not-base64", f"{what} is no base64: {error}") from None


def _say(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first thing that is wrong, on one line: key, what is wanted, what was got."""
    first: Mapping[str, Any] = error.errors()[0]
    where = str(first["loc"][0]) if first["loc"] else "body"
    if first["type"] == "extra_forbidden":
        return unknown("key", where, kind.model_fields)
    if where == "label":
        return f"label: wanted a class number, a class name, or a list of them (got {_short(first['input'])})"
    return f"{where}: {first['msg']} (got {_short(first['input'])})"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
