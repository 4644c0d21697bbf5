"""The routes about codes: /encodings, /decodings, /interpolations."""

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response

from serve import code_documentation, code_requests, examples, exchange, media_types, requests
from serve.code_schema import DecodingRequest, Encoding, EncodingAnswer, EncodingRequest, InterpolationRequest
from serve.exchange import Limits, Models
from serve.media_types import JSON, NPY
from serve.messages import Encoded
from serve.stream import in_time


def add(app: FastAPI, dependencies: Any) -> None:
    """Puts the routes into the application."""
    beside: Any = {"tags": ["codes"], "dependencies": dependencies, "response_model": None}
    app.post("/v1/models/{m}/encodings", **beside, **code_documentation.ENCODINGS)(encodings)
    app.post("/v1/models/{m}/decodings", **beside, **code_documentation.DECODINGS)(decodings)
    app.post("/v1/models/{m}/interpolations", **beside, **code_documentation.INTERPOLATIONS)(interpolations)


async def encodings(m: str, request: Request, directory: Models, limits: Limits) -> Response:
    """Encodes examples: the distribution q(z|x) over their codes, by its parameters. Takes what scores take.

    Answers by Accept: JSON, or a .npy array of the means alone.
    """
    handle, known, version = await directory.find(m)
    requests.check_can("encodes", known)
    asked = code_requests.encode(*await exchange.sent(EncodingRequest, request, known, limits), known, version=version)
    media_type = media_types.choose(request.headers.get("accept"), [JSON, NPY])
    encoded = await in_time(handle.encode(asked), limits)
    content = await asyncio.to_thread(_written, encoded, media_type)
    return Response(content, media_type=media_type, headers={"Vary": "Accept"})


async def decodings(m: str, request: Request, directory: Models, limits: Limits) -> Response:
    """Decodes codes: the likeliest example of each, or of a generator the only one. Takes JSON, or a .npy array with label as a query parameter.

    Answers as samples do. The receipt has the codes' hash: with the codes at hand it says what to decode them by.
    """
    handle, known, version = await directory.find(m)
    requests.check_can("decodes", known)
    content_type, body = await exchange.typed(request, limits.max_body)
    if content_type in exchange.AS_JSON:
        wanted = requests.parse(DecodingRequest, body)
        z = examples.numbers(wanted.z if wanted.z is not None else [], "z")
    else:
        wanted = requests.beside(DecodingRequest, request.query_params)
        z = examples.array_sent(content_type, body, known)
    asked = code_requests.decode(wanted, z, known, version=version)
    return await exchange.answer(request, known, asked, lambda: in_time(handle.decode(asked), limits))


async def interpolations(m: str, request: Request, directory: Models, limits: Limits) -> Response:
    """The examples between two: steps codes on the great circle from one end to the other, decoded.

    An end is the code that a sample is made of (seed, index), or in a model that encodes the mean code of an example. Answers as samples do; a PNG
    is a row. Between two seeds the receipt says all that it can be made again from.
    """
    handle, known, version = await directory.find(m)
    body = await exchange.body(request, limits.max_body)

    def read() -> Any:
        return code_requests.interpolate(requests.parse(InterpolationRequest, body), known, version=version)

    asked = await asyncio.to_thread(read)
    return await exchange.answer(request, known, asked, lambda: in_time(handle.interpolate(asked), limits))


def _written(encoded: Encoded, media_type: str) -> bytes:
    if media_type == NPY:
        return media_types.array(next(iter(encoded.parameters.values())))
    columns = {name: values.tolist() for name, values in encoded.parameters.items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    answer = EncodingAnswer(
        **exchange.who(encoded),
        distribution=encoded.distribution,
        latent=encoded.description.latent or {},
        encodings=[Encoding(**row) for row in rows],
    )
    return answer.model_dump_json().encode()
