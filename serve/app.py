"""The endpoint as one ASGI application: what it can be asked, in which media types, and every error as problem+json."""

import hashlib
import hmac
import math
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from serve import code_routes, documentation, exchange, media_types, requests, stream
from serve.directory import Directory
from serve.exchange import Limits, Models
from serve.messages import Weigh, Weighed
from serve.problem import Problem
from serve.schema import (
    Classification,
    ClassificationAnswer,
    ClassificationRequest,
    CompletionRequest,
    Description,
    Descriptions,
    SampleRequest,
    SampleScore,
    ScoreAnswer,
    ScoreRequest,
    Settings,
)
from serve.stream import in_time


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
    completes: Any = {"response_model": None, **documentation.COMPLETIONS}
    app.post("/v1/models/{m}/completions", tags=["samples"], dependencies=guarded, **completes)(completions)
    app.post("/v1/models/{m}/scores", tags=["scores"], dependencies=guarded, **documentation.SCORES)(scores)
    app.post("/v1/models/{m}/classifications", tags=["scores"], dependencies=guarded, **documentation.CLASSIFICATIONS)(classifications)
    code_routes.add(app, guarded)
    return app


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
    With stream: JSON lines, or for Accept: audio/wav one sound while it is drawn.
    """
    handle, known, version = await directory.find(m)
    wanted = requests.parse(SampleRequest, await exchange.body(request, limits.max_body))
    asked = requests.draw(wanted, known, version=version)
    if wanted.stream:
        return await stream.answer(handle, asked, known, request.headers.get("accept"), limits)
    return await exchange.answer(request, known, asked, lambda: in_time(handle.sample(asked), limits))


async def completions(m: str, request: Request, directory: Models, limits: Limits) -> Response:
    """Fills in what is missing of an example, n times: several different futures of one beginning.

    The example comes as for scores; known says which of its values are given, and the rest of it is not looked at. Answers as samples do; JSON
    also says by which method, whether that is exact, and the effective sample size where draws were weighted.
    """
    handle, known, version = await directory.find(m)
    wanted, x, lengths = await exchange.sent(CompletionRequest, request, known, limits, resample=False)
    asked = requests.fill(wanted, x, lengths, known, version=version)
    return await exchange.answer(request, known, asked, lambda: in_time(handle.complete(asked), limits))


async def scores(m: str, request: Request, directory: Models, limits: Limits) -> ScoreAnswer:
    """Scores examples: log p in nats and bits/dim, exact, a bound or an estimate, and says which.

    Takes a picture or sound file (decoded as for training), a .npy array of levels, or JSON. label, seed, k and map are keys of the JSON, or
    query parameters beside a file or an array.
    """
    handle, known, version = await directory.find(m)
    asked = requests.weigh(*await exchange.sent(ScoreRequest, request, known, limits), known, version=version)
    weighed = await in_time(handle.score(asked), limits)
    return ScoreAnswer(**exchange.who(weighed), scores=_scores(weighed, asked), log_partition=weighed.partition)


async def classifications(m: str, request: Request, directory: Models, limits: Limits) -> ClassificationAnswer:
    """Labels examples: p(y|x) by Bayes' rule, exactly, or by a recognition network; protocol says which. Takes what scores take."""
    handle, known, version = await directory.find(m)
    asked = requests.classify(*await exchange.sent(ClassificationRequest, request, known, limits), known, version=version)
    classified = await in_time(handle.classify(asked), limits)
    names, rows = classified.description.labels, classified.log_probs.tolist()
    best = [row.index(max(row)) for row in rows]
    found = [Classification(best=y, label=names[y] if names else None, log_probs=row) for y, row in zip(best, rows, strict=True)]
    return ClassificationAnswer(**exchange.who(classified), labels=names, classifications=found)


def _scores(weighed: Weighed, asked: Weigh) -> list[SampleScore]:
    sizes = asked.lengths or [asked.x[0].size] * len(asked.x)
    maps = [None] * len(asked.x) if weighed.map is None else [media_types.value_map(one) for one in weighed.map]
    has_bits = weighed.description.event["levels"] > 0
    return [
        SampleScore(nats=nats, bits_per_dim=-nats / (size * math.log(2)) if has_bits else None, dims=size, map=each)
        for nats, size, each in zip(weighed.nats.tolist(), sizes, maps, strict=True)
    ]


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
    details = problem.details(request.url.path)
    return JSONResponse(details.model_dump(), problem.status, dict(problem.headers), media_type="application/problem+json")


def _foreseen(request: Request, error: Exception) -> Problem:
    if isinstance(error, HTTPException):
        return Problem(error.status_code, *documentation.http_error(error, request), headers=error.headers)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return Problem(422, "invalid-request", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    return Problem(500, "internal", "the server failed at this request; its log says why")
