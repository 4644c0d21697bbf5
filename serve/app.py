"""The endpoint as one ASGI application: what it can be asked, in which media types, and every error as problem+json."""

import asyncio
import hashlib
import hmac
import math
from collections.abc import AsyncIterator, Awaitable
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from serve import documentation, media_types, requests
from serve.directory import Directory, Handle
from serve.media_types import JSON, LINES, NPY
from serve.schema import (
    Description,
    Descriptions,
    Draw,
    Drawn,
    Problem,
    ProblemDetails,
    Receipt,
    SampleRequest,
    SampleScore,
    ScoreAnswer,
    ScoreRequest,
    Settings,
    Weigh,
    Weighed,
)

T = TypeVar("T")
RECEIPT_HEADER = "X-Genmodels-Receipt"


def build(directory: Directory, settings: Settings, *, token: str | None = None) -> FastAPI:
    """The application over a directory of models. token: SHA-256 (hex) of the bearer token that /v1 asks for; None: open."""
    app = FastAPI(title="genmodels", description=documentation.ABOUT, version="1", dependencies=[])
    app.state.directory, app.state.settings, app.state.token = directory, settings, token
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _problem)
    app.add_exception_handler(HTTPException, _problem)
    app.add_exception_handler(Exception, _problem)
    guarded: Any = [Depends(_authorised)]
    app.get("/", include_in_schema=False)(welcome)
    app.get("/healthz", tags=["health"])(healthz)
    app.get("/readyz", tags=["health"], responses=documentation.problems(503))(readyz)
    errors = documentation.problems(401, 404, 503)
    app.get("/v1/models", tags=["models"], dependencies=guarded, responses=errors)(models)
    app.get("/v1/models/{m}", tags=["models"], dependencies=guarded, responses=errors)(model)
    app.post("/v1/models/{m}/samples", tags=["samples"], dependencies=guarded, response_model=None, **documentation.SAMPLES)(samples)
    app.post("/v1/models/{m}/scores", tags=["scores"], dependencies=guarded, **documentation.SCORES)(scores)
    return app


async def _directory(request: Request) -> Directory:
    return request.app.state.directory


async def _settings(request: Request) -> Settings:
    return request.app.state.settings


Models = Annotated[Directory, Depends(_directory)]
Limits = Annotated[Settings, Depends(_settings)]


async def welcome(request: Request, directory: Models) -> Response:
    """What is here, for a person."""
    known = [one for _, one in await directory.all()] if request.app.state.token is None else []
    return PlainTextResponse(documentation.welcome(str(request.base_url).rstrip("/"), known))


async def healthz() -> dict[str, str]:
    """The server is up."""
    return {"status": "ok"}


async def readyz(directory: Models) -> dict[str, Any]:
    """Every model answers."""
    return {"status": "ready", "models": await directory.ready()}


async def models(directory: Models) -> Descriptions:
    """The models that are served."""
    return Descriptions(models=[one for _, one in await directory.all()])


async def model(m: str, directory: Models) -> Description:
    """One model: its event, what it can do, its version and its scores. m: name, name@alias or name:version."""
    return (await directory.find(m))[1]


async def samples(m: str, request: Request, directory: Models, limits: Limits) -> Response:
    """Draws samples. The same seed, index, label and temperature give the same bytes, whoever else is asking.

    Answers by Accept: one PNG (a sheet for n > 1), one WAV, a .npy array, or JSON; the receipt is in X-Genmodels-Receipt and in the file.
    """
    handle, known, version = await directory.find(m)
    wanted = requests.parse(SampleRequest, await _body(request, limits.max_body))
    asked = requests.draw(wanted, known, version=version)
    accept = request.headers.get("accept")
    if wanted.stream:
        media_types.choose(accept, [LINES], why=" (stream answers one JSON line a sample)")
        return await _stream(handle, asked, limits)
    why = " (a WAV holds one sound: n = 1)" if known.event["modality"] == "audio" and asked.n > 1 else ""
    media_type = media_types.choose(accept, media_types.offered(known, asked.n), why=why)
    drawn = await _in_time(handle.sample(asked), limits)
    slip = _receipt(drawn, asked)
    content = await asyncio.to_thread(media_types.encode, media_type, drawn, slip)
    return Response(content, media_type=media_type, headers={RECEIPT_HEADER: slip.model_dump_json(), "Vary": "Accept"})


async def scores(m: str, request: Request, directory: Models, limits: Limits) -> ScoreAnswer:
    """Scores examples: log p in nats and bits/dim, exact or a bound, and says which.

    Takes a picture or sound file (decoded as for training), a .npy array of levels, or JSON. label, seed and k are keys of the JSON, or
    query parameters beside a file or an array.
    """
    handle, known, version = await directory.find(m)
    asked = await asyncio.to_thread(_examples, request, await _body(request, limits.max_body), known, version)
    weighed = await _in_time(handle.score(asked), limits)
    who = weighed.description
    return ScoreAnswer(
        model=who.model,
        version=who.version,
        artifact=who.artifact,
        protocol=weighed.protocol,
        equality_class=who.equality_class,
        scores=_scores(weighed, asked),
    )


def _examples(request: Request, body: bytes, known: Description, version: str | None) -> Weigh:
    """The examples of a body, by its content type."""
    content_type = request.headers.get("content-type", JSON).split(";")[0].strip().lower()
    if content_type in (JSON, "application/x-www-form-urlencoded"):  # the latter: what curl -d says of JSON
        return requests.weigh(requests.parse(ScoreRequest, body), known, version=version)
    beside = requests.beside(request.query_params)
    if content_type in (NPY, "application/octet-stream"):
        return requests.weigh_examples(requests.array(body), known, version=version, **beside)
    modality = known.event["modality"]
    if content_type.split("/")[0] == modality:
        x, lengths = media_types.decode(body, known)
        return requests.weigh_examples(x, known, lengths=lengths, version=version, **beside)
    takes = ", ".join([*([f"{modality}/*"] if modality != "table" else []), NPY, JSON])
    raise Problem(415, "unsupported-media-type", f"Content-Type: {content_type}; {known.model} takes {takes}", {"Accept-Post": takes})


def _scores(weighed: Weighed, asked: Weigh) -> list[SampleScore]:
    sizes = asked.lengths or [asked.x[0].size] * len(asked.x)
    nats = weighed.nats.tolist()
    return [SampleScore(nats=one, bits_per_dim=-one / (size * math.log(2)), dims=size) for one, size in zip(nats, sizes, strict=True)]


async def _stream(handle: Handle, asked: Draw, limits: Settings) -> Response:
    """One JSON line a sample, block after block: a sample does not depend on how the request is cut. The first block may still be refused."""
    blocks = [_part(asked, start, min(start + limits.max_batch, asked.n)) for start in range(0, asked.n, limits.max_batch)]
    first = await _in_time(handle.sample(blocks[0]), limits)

    async def lines() -> AsyncIterator[bytes]:
        for number, block in enumerate(blocks):
            try:
                drawn = first if number == 0 else await _in_time(handle.sample(block), limits)
            except Problem as error:
                yield _details(error, "").model_dump_json().encode() + b"\n"
                return
            for row in range(block.n):
                one = _row(drawn, row)
                yield media_types.encode(JSON, one, _receipt(one, _part(block, row, row + 1))) + b"\n"

    return StreamingResponse(lines(), media_type=LINES)


def _part(asked: Draw, start: int, stop: int) -> Draw:
    """Rows start..stop of what was asked, as a request of their own."""
    y = None if asked.y is None else asked.y[start:stop]
    return Draw(**{**vars(asked), "first": asked.first + start, "n": stop - start, "y": y})


def _row(drawn: Drawn, row: int) -> Drawn:
    labels = None if drawn.labels is None else drawn.labels[row : row + 1]
    return Drawn(levels=drawn.levels[row : row + 1], labels=labels, description=drawn.description)


def _receipt(drawn: Drawn, asked: Draw) -> Receipt:
    return media_types.receipt(drawn, seed=asked.seed, index=asked.first, asked=asked.y, temperature=asked.temperature, c=asked.c)


async def _in_time(answer: Awaitable[T], limits: Settings) -> T:
    """The answer, or Problem 504 when it takes too long; what is not yet computed of it is dropped then."""
    try:
        async with asyncio.timeout(limits.timeout_s):
            return await answer
    except TimeoutError:
        raise Problem(
            504, "timeout", f"not done within {limits.timeout_s:g} s; ask for fewer at a time, or raise serve.timeout_s"
        ) from None


async def _body(request: Request, limit: int) -> bytes:
    """The whole body. Raises Problem 413 as soon as it is known to be too large."""
    size, parts = int(request.headers.get("content-length") or 0), []
    if size <= limit:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                break
            parts.append(part)
    if size > limit:
        raise Problem(413, "too-large", f"the body is larger than {limit} bytes; send less at a time, or raise serve.max_body")
    return b"".join(parts)


async def _authorised(request: Request) -> None:
    wanted = request.app.state.token
    if wanted is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(hashlib.sha256(given.strip().encode()).hexdigest(), wanted):
        said = "a wrong token" if scheme else "no token"
        raise Problem(
            401, "unauthorized", f"{said} was given; wanted the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
        )


async def _problem(request: Request, error: Exception) -> Response:
    """Any error as problem+json; what we did not foresee says so and nothing else."""
    problem = error if isinstance(error, Problem) else _foreseen(request, error)
    details = _details(problem, request.url.path)
    return JSONResponse(details.model_dump(), problem.status, dict(problem.headers), media_type="application/problem+json")


def _foreseen(request: Request, error: Exception) -> Problem:
    if isinstance(error, HTTPException):
        return Problem(error.status_code, *documentation.http_error(error, request), headers=error.headers)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return Problem(422, "invalid-request", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    return Problem(500, "internal", "the server failed at this request; its log says why")


def _details(problem: Problem, path: str) -> ProblemDetails:
    title = HTTPStatus(problem.status).phrase
    return ProblemDetails(type=f"urn:genmodels:{problem.kind}", title=title, status=problem.status, detail=problem.detail, instance=path)
