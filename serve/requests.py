"""From what a client wrote to what a replica is asked; whatever does not fit the model is refused here, before anything is batched."""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from serve import examples, mask
from serve.fields import DRAWN_SEEDS, Label
from serve.messages import Draw, Examples, Fill, Weigh
from serve.names import unknown
from serve.problem import Problem
from serve.schema import (
    ClassificationRequest,
    CompletionRequest,
    Description,
    DrawRequest,
    SampleRequest,
    ScoreRequest,
)

Model = TypeVar("Model", bound=BaseModel)


def parse(kind: type[Model], body: bytes) -> Model:
    """A JSON body as a request; an empty one is all defaults. Raises Problem 400 for no JSON, 422 for a key or value that is none of ours."""
    try:
        values = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise Problem(400, "not-json", f"the body is no JSON: {error}; wanted an object such as {{}}") from None
    if not isinstance(values, dict):
        raise Problem(422, "invalid-request", f"the body is a JSON {type(values).__name__}; wanted an object such as {{}}")
    return valid(kind, values)


def valid(kind: type[Model], values: Mapping[str, Any]) -> Model:
    """Keys and values as a request. Raises Problem 422 naming the first that is none of ours."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise Problem(422, "invalid-request", _say(error, kind)) from None


def beside(kind: type[Model], query: Mapping[str, str]) -> Model:
    """The keys of a query string, for a request whose body is a file or an array; first=14 is known={"first": 14}."""
    values = {key: _plain(key, text) for key, text in query.items()}
    if kind is CompletionRequest and "first" in values:
        values["known"] = {"first": values.pop("first")}
    return valid(kind, values)


def _plain(key: str, text: str) -> Any:
    if text.isdecimal():
        return int(text)
    if key != "label" and text in ("true", "false"):
        return text == "true"
    try:
        return float(text) if key == "temperature" else text
    except ValueError:
        return text


def draw(request: SampleRequest, model: Description, *, version: str | None = None) -> Draw:
    """The samples that a request means, checked against the model; a missing seed is chosen here."""
    asked = Draw(**_drawn(request, model), version=version)
    check_draw(asked, model)
    return asked


def fill(
    request: CompletionRequest, x: NDArray[Any], lengths: tuple[int, ...] | None, model: Description, *, version: str | None = None
) -> Fill:
    """The completions that a request means of an example (*shape) or (1, *shape); of a longer sound, those of its first window."""
    check_can("completes", model)
    if lengths is not None:
        x, lengths = x[:1], lengths[:1]
    x = x[None] if x.shape == model.shape else x
    if x.shape != (1, *model.shape):
        raise Problem(
            422, "wrong-shape", f"examples of shape {x.shape}; wanted one of shape {model.shape} (n says how many futures it gets)"
        )
    known = mask.of(request.known, model, length=None if lengths is None else lengths[0])
    given = examples.levels(np.where(known, x[0], 0).astype(x.dtype), model.event["levels"])
    asked = Fill(**_drawn(request, model), x=given, known=known, version=version)
    check_fill(asked, model)
    return asked


def _drawn(request: DrawRequest, model: Description) -> dict[str, Any]:
    """The keys that samples and completions share."""
    if request.n > model.max_samples:
        raise Problem(
            422, "too-many-samples", f"n = {request.n}; this server draws at most {model.max_samples} a request; ask in parts by index"
        )
    return {
        "seed": secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed,
        "first": request.index,
        "n": request.n,
        "y": class_numbers(request.label, request.n, model),
        "c": _condition(request.condition, model),
        "temperature": request.temperature,
    }


def check_draw(asked: Draw, model: Description) -> None:
    """Raises Problem 422 for what the model does not take: asked here of the ingress's view, and of the replica's own."""
    check_classes(asked.y, model)
    if asked.temperature != 1 and "tempered" not in model.capabilities:
        raise Problem(
            422,
            "no-temperature",
            f"temperature {asked.temperature:g} asked of {model.model}; its family {model.family} has none: leave it at 1",
        )
    wanted = model.event.get("condition")
    if asked.c is None and wanted is not None:
        raise Problem(422, "condition", f"no condition was given; wanted {json.dumps(wanted)}")
    _check_condition(asked.c, model)


def check_fill(asked: Fill, model: Description) -> None:
    check_can("completes", model)
    check_draw(asked, model)
    mask.check(asked.known, model)
    examples.many(asked.x, model)


def weigh(
    request: ScoreRequest, x: NDArray[Any], lengths: tuple[int, ...] | None, model: Description, *, version: str | None = None
) -> Weigh:
    """The scores that a request means of examples (n, *shape) or (*shape), checked against the model."""
    x = examples.many(x, model)
    asked = Weigh(
        x=x,
        y=class_numbers(request.label, len(x), model),
        lengths=lengths,
        c=_condition(request.condition, model),
        seed=request.seed,
        k=request.k,
        map=request.map,
        version=version,
    )
    check_weigh(asked, model)
    return asked


def check_weigh(asked: Weigh, model: Description) -> None:
    check_classes(asked.y, model)
    if not {"density", "bounded", "energy"} & set(model.capabilities):
        raise Problem(422, "no-likelihood", f"{model.model} ({model.family}) has no likelihood and no bound to score by; {can(model)}")
    if asked.y is not None and not {"density", "bounded"} & set(model.capabilities):
        raise Problem(
            422,
            "no-conditional",
            f"{model.model} ({model.family}) has an energy of examples, not of examples given a label: leave label out",
        )
    if asked.map and "autoregressive" not in model.capabilities:
        raise Problem(422, "no-map", f"{model.model} ({model.family}) has no likelihood value by value, so no map of it; {can(model)}")
    check_examples(asked, model)


def classify(
    request: ClassificationRequest, x: NDArray[Any], lengths: tuple[int, ...] | None, model: Description, *, version: str | None = None
) -> Examples:
    """The examples (n, *shape) or (*shape) that are to be classified, checked against the model."""
    asked = Examples(x=examples.many(x, model), lengths=lengths, c=_condition(request.condition, model), version=version)
    check_classify(asked, model)
    return asked


def check_classify(asked: Examples, model: Description) -> None:
    check_labels(model)
    check_examples(asked, model)


def check_labels(model: Description) -> None:
    """Raises Problem 422 where there is no p(y|x): the family has none, or the model no labels."""
    check_can("classifies", model)
    if not model.classes:
        raise Problem(422, "no-labels", f"{model.model} was trained without labels: there are no classes to choose from")


def check_examples(asked: Examples, model: Description) -> None:
    """Raises Problem 422 for examples or a condition of another shape, or values that are no levels."""
    examples.many(asked.x, model)
    _check_condition(asked.c, model, rows=len(asked.x))


def _check_condition(c: NDArray[Any] | None, model: Description, rows: int | None = None) -> None:
    """rows: of examples, which may have a condition each."""
    wanted = model.event.get("condition")
    if c is None:
        return
    if wanted is None:
        raise Problem(422, "condition", f"a condition was given; {model.model} takes none: leave it out")
    shape = tuple(wanted["shape"])
    if c.shape != shape and (rows is None or c.shape != (rows, *shape)):
        each = "" if rows is None else f", or one for each of {rows}"
        raise Problem(422, "condition", f"condition of shape {c.shape}; wanted {shape}{each}")


def check_can(capability: str, model: Description) -> None:
    """Raises Problem 422 where the model's family has not got the capability."""
    kind, what = {
        "completes": ("completion", "fill in what is missing"),
        "classifies": ("classification", "say p(y|x)"),
        "encodes": ("encoding", "encode examples"),
        "decodes": ("decoding", "decode codes"),
    }[capability]
    if capability not in model.capabilities:
        reason = f": {model.withheld[capability]}" if capability in model.withheld else ""
        raise Problem(422, f"no-{kind}", f"{model.model} ({model.family}) cannot {what}{reason}; {can(model)}")


def can(model: Description) -> str:
    """What the model's family has got."""
    return f"it can: {', '.join(model.capabilities) or 'sampling alone'}"


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
    check_classes(numbers, model)
    return numbers


def _class_number(label: Label, model: Description) -> int:
    if isinstance(label, int):
        return label
    if label in model.labels:
        return model.labels.index(label)
    raise Problem(422, "unknown-label", unknown("label", label, model.labels) + f" (or a number, 0 to {model.classes - 1})")


def check_classes(y: tuple[int, ...] | None, model: Description) -> None:
    """Raises Problem 422 for a number that is no class."""
    if y is not None and not all(0 <= label < model.classes for label in y):
        stray = next(label for label in y if not 0 <= label < model.classes)
        raise Problem(
            422, "unknown-label", f"label {stray}; wanted 0 to {model.classes - 1}" if model.classes else "label given; wanted none"
        )


def _condition(values: list[Any] | None, model: Description) -> NDArray[Any] | None:
    if values is None:
        return None
    wanted = model.event.get("condition") or {"levels": 0}
    return examples.levels(examples.numbers(values, "condition"), wanted["levels"], "condition")


def _say(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first thing that is wrong, on one line: key, what is wanted, what was got."""
    first: Mapping[str, Any] = error.errors()[0]
    where = str(first["loc"][0]) if first["loc"] else "body"
    if first["type"] == "extra_forbidden":
        return _stray(first["loc"], kind)
    if where == "label":
        return f"label: wanted a class number, a class name, or a list of them (got {_short(first['input'])})"
    if where == "known":
        return f'known: wanted lists of true and false of the event\'s shape, or {{"first": n}} (got {_short(first["input"])})'
    return f"{where}: {first['msg']} (got {_short(first['input'])})"


def _stray(place: Sequence[Any], kind: type[BaseModel]) -> str:
    """The key that is none of ours, of the request or of a part of it."""
    outer, *inner = map(str, place)
    part = kind.model_fields[outer].annotation if inner else kind
    if not inner or not (isinstance(part, type) and issubclass(part, BaseModel)):
        return unknown("key", outer, kind.model_fields)
    return f"{outer}: {unknown('key', inner[0], part.model_fields)}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
