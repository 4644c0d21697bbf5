"""What the endpoint says about itself: the page at /, the OpenAPI descriptions, and the words for a wrong path or method."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from serve.media_types import JSON, LINES, NPY, PNG, RECEIPT_HEADER, WAV
from serve.problem import ProblemDetails
from serve.schema import (
    ClassificationAnswer,
    ClassificationRequest,
    CompletionAnswer,
    CompletionRequest,
    Description,
    SampleAnswer,
    SampleRequest,
    ScoreAnswer,
    ScoreRequest,
)

ABOUT = """Generative models that draw samples, fill in what is missing, score and classify examples, encode them and decode what lies between.

Sample `i` of a seed is the same bytes alone or in company; its receipt (header `X-Genmodels-Receipt`, and inside the PNG or WAV) says what it can be
made again from. A score says what it is: an exact likelihood, a named bound or an estimate. Errors are `application/problem+json` (RFC 9457)."""

SHOWN = 64
"""Numbers of a condition that are written out in a line to try."""

_VERBS = ("samples", "completions", "scores", "classifications", "encodings", "decodings", "interpolations")
PATHS = ("/", "/docs", "/healthz", "/readyz", "/v1/models", "/v1/models/{m}", *(f"/v1/models/{{m}}/{verb}" for verb in _VERBS))

_MEANINGS = {
    400: "The body is no JSON.",
    401: "No token, or a wrong one.",
    404: "No such model, alias or version.",
    406: "None of the accepted media types is offered.",
    413: "The body is too large.",
    415: "The body's media type is not taken.",
    422: "The model does not take this: detail says why.",
    429: "Too many requests wait already; Retry-After says when to ask again.",
    503: "A model does not answer just now.",
    504: "Not done in time.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the errors with these statuses."""
    schema = ProblemDetails.model_json_schema()
    return {status: {"description": _MEANINGS[status], "content": {"application/problem+json": {"schema": schema}}} for status in statuses}


BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = ("image/*", "audio/*", NPY)
ERRORS = (400, 401, 404, 406, 413, 415, 422, 429, 503, 504)


def body(kind: type[BaseModel], examples: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """A JSON body, or one of other types."""
    content = {JSON: {"schema": kind.model_json_schema(), "examples": {name: {"value": value} for name, value in examples.items()}}}
    return {"requestBody": {"content": {**content, **others}, "required": False}}


def files(kind: type[BaseModel], examples: Mapping[str, Any], media: Sequence[str] = _FILES, **beside: tuple[str, str]) -> dict[str, Any]:
    """A body that may be a file of these types, with query parameters (type, meaning) beside it."""
    query = [
        {"name": name, "in": "query", "required": False, "schema": {"type": form}, "description": f"{text} Beside a file or an array."}
        for name, (form, text) in beside.items()
    ]
    path = {"name": "m", "in": "path", "required": True, "schema": {"type": "string"}}
    return {**body(kind, examples, **dict.fromkeys(media, BINARY)), "parameters": [path, *query]}


def drawn(answer: type[BaseModel], receipt: str = "", **others: Any) -> dict[str, Any]:
    """What is answered with examples."""
    return {
        "description": "A picture for n = 1, a sheet of them for more; a WAV holds one sound.",
        "content": {JSON: {"schema": answer.model_json_schema()}, PNG: BINARY, WAV: BINARY, NPY: BINARY, **others},
        "headers": {RECEIPT_HEADER: {"description": f"JSON: what this can be made again from.{receipt}", "schema": {"type": "string"}}},
    }


_STREAMED = (
    " Of a sound that is streamed (stream, Accept: audio/wav) all but the hash of the levels, which are not drawn yet: the whole receipt is "
    "the INFO chunk at the end of the WAV. An answer that breaks off before its end has failed."
)
LABEL = ("string", "Class number or name.")
SAMPLES: dict[str, Any] = {
    "responses": {200: drawn(SampleAnswer, _STREAMED, **{LINES: BINARY}), **problems(*(status for status in ERRORS if status != 415))},
    "openapi_extra": body(
        SampleRequest,
        {"one": {"seed": 1}, "four of a class": {"n": 4, "seed": 1, "label": 7}, "as it is drawn": {"seed": 1, "stream": True}},
    ),
}
COMPLETIONS: dict[str, Any] = {
    "responses": {200: drawn(CompletionAnswer), **problems(*ERRORS)},
    "openapi_extra": files(
        CompletionRequest,
        {"below the first row": {"x": [[[0, 1], [0, 0]]], "known": {"first": 1}, "n": 4, "seed": 1}},
        first=("integer", "Rows, steps or columns that are known."),
        n=("integer", "How many futures."),
        seed=("integer", "Left out: the server chooses one."),
        index=("integer", "Index of the first."),
        label=LABEL,
        temperature=("number", "Other than 1 only where the capabilities name tempered."),
    ),
}
SCORES: dict[str, Any] = {
    "responses": {200: {"model": ScoreAnswer, "description": "One score an example."}, **problems(*(s for s in ERRORS if s != 406))},
    "openapi_extra": files(
        ScoreRequest,
        {"levels": {"x": [[[0, 1], [1, 0]]], "label": 0}},
        label=LABEL,
        seed=("integer", "Of the draws behind a bound."),
        k=("integer", "Draws of an IWAE_k bound."),
        map=("boolean", "Also the nats of every value."),
    ),
}
CLASSIFICATIONS: dict[str, Any] = {
    "responses": {
        200: {"model": ClassificationAnswer, "description": "log p(y|x) of every class, an example each."},
        **problems(*(status for status in ERRORS if status != 406)),
    },
    "openapi_extra": files(ClassificationRequest, {"levels": {"x": [[[0, 1], [1, 0]]]}}),
}


def http_error(error: HTTPException, request: Request) -> tuple[str, str]:
    """Kind and detail of an error of the protocol itself: a path or a method that is not here."""
    if error.status_code == 404:
        return "unknown-path", f"nothing at {request.url.path}; known: {', '.join(PATHS)}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return "wrong-method", f"{request.method} {request.url.path}; wanted {allowed}"
    return "http", str(error.detail)


def welcome(url: str, models: Sequence[Description]) -> str:
    """The page at /: what is served and a line to try for each."""
    served = "\n".join(
        f"  {one.model}  version {one.version}: {one.family}, {_event(one)}; {', '.join(one.capabilities)}" for one in models
    )
    tries = "\n".join(f"  {curl(url, one)}" for one in models)
    return (
        f"genmodels\n\nModels:\n{served or '  (GET /v1/models, with your token)'}\n\n"
        + (f"Try:\n{tries}\n\n" if tries else "")
        + f"Documentation: {url}/docs\nModels as JSON: {url}/v1/models\nHealth: {url}/healthz {url}/readyz\n"
    )


def curl(url: str, model: Description) -> str:
    """A line that asks for one sample; under zeros, of a model that draws under few numbers, and in words of one that draws under many."""
    ending = {"image": "png", "audio": "wav"}.get(model.event["modality"], "json")
    asked: dict[str, Any] = {"seed": 1, **({"label": 0} if model.classes else {})}
    if (wanted := model.event.get("condition")) is not None:
        if (condition := zeros(wanted["shape"])) is None:
            return f"POST {url}/v1/models/{model.model}/samples, with a condition of shape {tuple(wanted['shape'])} as nested lists"
        asked["condition"] = condition
    return f"curl -s {url}/v1/models/{model.model}/samples -d {shlex.quote(json.dumps(asked))} -o sample.{ending}"


def zeros(shape: Sequence[int]) -> list[Any] | None:
    """A condition under which any model of this shape can be asked; None where it has too many numbers to show."""
    return None if math.prod(shape) > SHOWN else np.zeros(shape, int).tolist()


def _event(model: Description) -> str:
    size = "x".join(map(str, model.shape))
    return f"{model.event['modality']} {size}" + (f", {model.classes} classes" if model.classes else "")
