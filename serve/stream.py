"""Answers that are written while they are drawn: samples as JSON lines, each as soon as it is done, or one sound from its beginning on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import numpy as np
from fastapi import Response
from fastapi.responses import StreamingResponse

from genmodels import media
from serve import media_types
from serve.directory import Handle
from serve.media_types import JSON, LINES, RECEIPT_HEADER, RECEIPT_KEY, WAV
from serve.messages import Draw, Drawn
from serve.problem import Problem
from serve.schema import Description, Receipt, Settings

T = TypeVar("T")


async def answer(handle: Handle, asked: Draw, known: Description, accept: str | None, limits: Settings) -> Response:
    """In the media type that the client likes best; JSON lines where it does not say."""
    why = " (a line a sample, or one sound while it is drawn)"
    if media_types.choose(accept, [LINES, WAV], why=why) == WAV:
        media_types.check_one_sound(known, asked.n)
        return await sound(handle, asked, limits)
    return await lines(lambda part: in_time(handle.sample(part), limits), asked, block=limits.max_batch)


async def lines(draw: Callable[[Draw], Awaitable[Drawn]], asked: Draw, *, block: int) -> Response:
    """A sample does not depend on how the request is cut. The first block may still be refused; what fails later is the last line."""
    parts = [_part(asked, start, min(start + block, asked.n)) for start in range(0, asked.n, block)]
    first = await draw(parts[0])

    async def written() -> AsyncIterator[bytes]:
        for number, part in enumerate(parts):
            try:
                drawn = first if number == 0 else await draw(part)
            except Problem as error:
                yield error.details("").model_dump_json().encode() + b"\n"
                return
            for row in range(part.n):
                one = _row(drawn, row)
                yield media_types.encode(JSON, one, media_types.receipt(one, _part(part, row, row + 1))) + b"\n"

    return StreamingResponse(written(), media_type=LINES)


async def sound(handle: Handle, asked: Draw, limits: Settings) -> Response:
    """The WAV that the same request is answered with without `stream`, byte for byte. Until the first piece is there it may still be refused;
    what fails later breaks the answer off before its end. The hash of the levels is in the receipt behind the samples, not in the header's."""
    pieces, deadline = handle.listen(asked), asyncio.get_running_loop().time() + limits.timeout_s
    first = await in_time(anext(pieces), limits, deadline)
    event, slip = first.description.event, media_types.receipt(first, asked)
    (steps,), law = event["shape"], (event["levels"], event["companding"])

    async def written() -> AsyncIterator[bytes]:
        head = media.wav_head(steps, sample_rate=event["sample_rate"], behind=len(_end(slip)))
        drawn = [first.levels]
        async with aclosing(pieces):
            yield head + media.wav_samples(first.levels[0], *law)  # in one: a packet so small would be held back until the next
            while (piece := await in_time(anext(pieces, None), limits, deadline)) is not None:
                drawn.append(piece.levels)
                yield media.wav_samples(piece.levels[0], *law)
        whole = Drawn(levels=np.concatenate(drawn, axis=1), labels=first.labels, description=first.description)
        yield _end(media_types.receipt(whole, asked))

    headers = {RECEIPT_HEADER: slip.model_dump_json(exclude={"levels"}), "Vary": "Accept"}
    return StreamingResponse(written(), media_type=WAV, headers=headers)


def _end(slip: Receipt) -> bytes:
    """Of equal length whatever the hash of the levels is."""
    return media.wav_end({RECEIPT_KEY: slip.model_dump_json()})


async def in_time(answer: Awaitable[T], limits: Settings, deadline: float | None = None) -> T:
    """The answer, or Problem 504 when it takes too long, or longer than to a deadline; what is not yet computed of it is dropped then."""
    try:
        async with asyncio.timeout(limits.timeout_s) if deadline is None else asyncio.timeout_at(deadline):
            return await answer
    except TimeoutError:
        raise Problem(
            504, "timeout", f"not done within {limits.timeout_s:g} s; ask for fewer at a time, or raise serve.timeout_s"
        ) from None


def _part(asked: Draw, start: int, stop: int) -> Draw:
    """Rows start..stop of what was asked, as a request of their own."""
    y = None if asked.y is None else asked.y[start:stop]
    return Draw(**{**vars(asked), "first": asked.first + start, "n": stop - start, "y": y})


def _row(drawn: Drawn, row: int) -> Drawn:
    labels = None if drawn.labels is None else drawn.labels[row : row + 1]
    return Drawn(levels=drawn.levels[row : row + 1], labels=labels, description=drawn.description)
