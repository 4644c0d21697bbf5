"""What every route does: the body and its examples in, the answer out in the media type that the client likes best."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Response
from numpy.typing import NDArray

from serve import examples, media_types, requests
from serve.directory import Directory
from serve.media_types import JSON, RECEIPT_HEADER
from serve.messages import Asked, Classified, Drawn, Encoded, Weighed
from serve.problem import Problem
from serve.schema import Description, ExamplesRequest, Settings

Kind = TypeVar("Kind", bound=ExamplesRequest)
AS_JSON = (JSON, "application/x-www-form-urlencoded")
"""Content types of a JSON body; the latter is what curl -d says."""


async def _directory(request: Request) -> Directory:
    return request.app.state.directory


async def _settings(request: Request) -> Settings:
    return request.app.state.settings


Models = Annotated[Directory, Depends(_directory)]
Limits = Annotated[Settings, Depends(_settings)]


async def sent(
    kind: type[Kind], request: Request, known: Description, limits: Settings, *, resample: bool = True
) -> tuple[Kind, NDArray[Any], tuple[int, ...] | None]:
    """The keys and the examples of a body, by its content type."""
    content_type, content = await typed(request, limits.max_body)

    def read() -> tuple[Kind, NDArray[Any], tuple[int, ...] | None]:
        if content_type in AS_JSON:
            wanted = requests.parse(kind, content)
            return wanted, *examples.named(wanted, known, resample=resample)
        wanted = requests.beside(kind, request.query_params)
        return wanted, *examples.sent(content_type, content, known, resample=resample)

    return await asyncio.to_thread(read)


async def answer(request: Request, known: Description, asked: Asked, draw: Callable[[], Awaitable[Drawn]]) -> Response:
    """What was drawn in the media type that the client likes best; a type that is not offered is refused before anything is drawn."""
    why = " (a WAV holds one sound: n = 1)" if known.event["modality"] == "audio" and asked.n > 1 else ""
    media_type = media_types.choose(request.headers.get("accept"), media_types.offered(known, asked.n), why=why)
    drawn = await draw()
    slip = media_types.receipt(drawn, asked)
    content = await asyncio.to_thread(media_types.encode, media_type, drawn, slip)
    return Response(content, media_type=media_type, headers={RECEIPT_HEADER: slip.model_dump_json(), "Vary": "Accept"})


def who(said: Weighed | Classified | Encoded) -> dict[str, str]:
    """The keys that every answer in numbers has."""
    by = said.description
    keys = {"model": by.model, "version": by.version, "artifact": by.artifact, "equality_class": by.equality_class}
    return {**keys, "protocol": said.protocol}


async def typed(request: Request, limit: int) -> tuple[str, bytes]:
    """The content type, JSON where there is none, and the body. Raises Problem as `body`."""
    content_type = request.headers.get("content-type", JSON).split(";")[0].strip().lower()
    return content_type, await body(request, limit)


async def body(request: Request, limit: int) -> bytes:
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
