"""Samples as JSON lines, block after block, each written as soon as it is drawn."""

from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import Response
from fastapi.responses import StreamingResponse

from serve import media_types
from serve.media_types import JSON, LINES
from serve.messages import Draw, Drawn
from serve.problem import Problem


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


def _part(asked: Draw, start: int, stop: int) -> Draw:
    """Rows start..stop of what was asked, as a request of their own."""
    y = None if asked.y is None else asked.y[start:stop]
    return Draw(**{**vars(asked), "first": asked.first + start, "n": stop - start, "y": y})


def _row(drawn: Drawn, row: int) -> Drawn:
    labels = None if drawn.labels is None else drawn.labels[row : row + 1]
    return Drawn(levels=drawn.levels[row : row + 1], labels=labels, description=drawn.description)
