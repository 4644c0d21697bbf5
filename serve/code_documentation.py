"""OpenAPI's descriptions of the routes about codes."""

from typing import Any

from serve.code_schema import DecodingRequest, EncodingAnswer, EncodingRequest, InterpolationRequest
from serve.documentation import BINARY, ERRORS, LABEL, body, drawn, files, problems
from serve.media_types import JSON, NPY
from serve.schema import SampleAnswer

_SAMPLES = drawn(SampleAnswer)
ENCODINGS: dict[str, Any] = {
    "responses": {
        200: {
            "description": "The distribution of each example's code; an array has the means alone.",
            "content": {JSON: {"schema": EncodingAnswer.model_json_schema()}, NPY: BINARY},
        },
        **problems(*ERRORS),
    },
    "openapi_extra": files(EncodingRequest, {"levels": {"x": [[[0, 1], [1, 0]]]}}, label=LABEL),
}
DECODINGS: dict[str, Any] = {
    "responses": {200: _SAMPLES, **problems(*ERRORS)},
    "openapi_extra": files(DecodingRequest, {"a code": {"z": [0.5, -1.0]}}, media=(NPY,), label=LABEL),
}
INTERPOLATIONS: dict[str, Any] = {
    "responses": {200: _SAMPLES, **problems(*(status for status in ERRORS if status != 415))},
    "openapi_extra": body(
        InterpolationRequest,
        {
            "between two samples": {"a": {"seed": 1}, "b": {"seed": 2}, "steps": 9},
            "between two examples": {"a": {"x": [[[0, 1], [1, 0]]]}, "b": {"x": [[[1, 1], [1, 1]]]}, "label": 7},
        },
    ),
}
