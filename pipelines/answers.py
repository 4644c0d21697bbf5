"""What the commands that ask a model share: a replica in this process, and its answers as files, tables or lines."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from pipelines import console
from pipelines.errors import Refused
from pipelines.storage import write_bytes
from serve import catalogue, media_types
from serve.messages import Asked, Drawn, Filled
from serve.problem import Problem
from serve.receipt import Receipt
from serve.replica import Replica
from serve.schema import Description, Target

SUFFIXES = {media_types.PNG: ".png", media_types.WAV: ".wav", media_types.NPY: ".npy", media_types.JSON: ".json"}
Answer = TypeVar("Answer")
Made = tuple[Path, bytes, Receipt, Drawn]
"""A file that is to be written, and what is in it."""


def tell(table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Rows for machines, or their table for a person."""
    for row in rows:
        console.emit(**row)
    if not console.speaks_json():
        page = Console(markup=False)
        page.width = max(page.width, page.measure(table, options=page.options.update(width=10_000)).maximum)  # names are not cut
        page.print(table)


async def files(
    description: Description, first: int, n: int, format_: tuple[str, Path], draw: Callable[[int, int], Awaitable[tuple[Asked, Drawn]]]
) -> list[Made]:
    """n draws in one file, or of sounds one file each: a request of its own, so that each has its own receipt."""
    media_type, path = format_
    parts = [(first + i, 1) for i in range(n)] if media_type == media_types.WAV else [(first, n)]
    found = []
    for start, count in parts:
        asked, drawn = await draw(start, count)
        found.append(made(path if len(parts) == 1 else path.with_stem(f"{path.stem}-{start}"), media_type, drawn, asked))
    return found


def made(path: Path, media_type: str, drawn: Drawn, asked: Asked) -> Made:
    """A file of what was drawn, with its receipt."""
    slip = media_types.receipt(drawn, asked)
    return path, media_types.encode(media_type, drawn, slip), slip, drawn


def save(made: Sequence[Made], what: str) -> None:
    """Writes the files and says what is in them."""
    for path, content, slip, drawn in made:
        write_bytes(str(path), content)
        last = slip.index + slip.n - 1
        which = f"{slip.n} {what}" if slip.seed is None else f"seed {slip.seed}, {what} {slip.index} to {last}"
        console.result(f"{path}  ({which} of {slip.model} {slip.version})")
        how = {"method": drawn.method, "exact": drawn.exact, "ess": drawn.ess} if isinstance(drawn, Filled) else {}
        if isinstance(drawn, Filled):
            how["ess"] = None if drawn.ess is None else drawn.ess.tolist()
        console.emit(file=str(path), receipt=slip.model_dump(), **how)
    lines = [_how(drawn) if isinstance(drawn, Filled) else slip.approximate for _, _, slip, drawn in made]
    for line in dict.fromkeys(filter(None, lines)):
        console.result(line)


def _how(drawn: Filled) -> str:
    """By which method, whether exactly, and of how many draws' worth."""
    if drawn.ess is None:
        return f"{'exact' if drawn.exact else 'approximate'}: {drawn.method}"
    low, high = float(drawn.ess.min()), float(drawn.ess.max())
    return f"approximate: {drawn.method}; effective sample size {low:.1f}" + (f" to {high:.1f}" if high > low else "")


def ask(model: str, storage: str, settings: dict[str, Any], work: Callable[[Replica, Description], Awaitable[Answer]]) -> Answer:
    """Work with a replica of the model in this process."""
    located = catalogue.resolve(model, storage=storage)
    target = Target(name=located.name, version=located.version, artifact=located.artifact, digest=located.digest, aliases=located.aliases)

    async def session() -> Answer:
        replica = Replica(settings)
        try:
            await replica.reconfigure(vars(target))
            return await work(replica, await replica.describe())
        finally:
            await replica.close()

    try:
        return asyncio.run(session())
    except Problem as problem:
        raise Refused(problem.detail) from None


def class_of(label: str | None) -> int | str | None:
    """A class by its number or its name."""
    return int(label) if label is not None and label.isdecimal() else label


def written_as(model: Description, out: Path | None, stem: str, *, n: int = 1) -> tuple[str, Path]:
    """The media type and the path of the file that examples are written to, n in one."""
    offers = media_types.offered(model, n)
    if out is None:
        return offers[0], Path(stem + SUFFIXES[offers[0]])
    known = [media_type for media_type, suffix in SUFFIXES.items() if suffix == out.suffix and media_type in offers]
    if not known:
        raise Refused(f"--out {out}: {stem} of {model.model} can be written as {', '.join(SUFFIXES[offer] for offer in offers)}")
    return known[0], out
