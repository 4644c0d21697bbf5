"""Samples and scores without a server, by the very replica that a server runs: the same bytes, the same checks, the same receipt."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from pipelines import console
from pipelines.errors import Failed, Refused
from pipelines.storage import write_bytes
from serve import catalogue, media_types, requests
from serve.problem import Problem
from serve.replica import Replica
from serve.schema import Description, SampleRequest, ScoreRequest, Target

SUFFIXES = {media_types.PNG: ".png", media_types.WAV: ".wav", media_types.NPY: ".npy", media_types.JSON: ".json"}
Answer = TypeVar("Answer")


def sample(
    model: str,
    *,
    n: int,
    seed: int,
    label: str | None,
    temperature: float,
    first: int,
    out: Path | None,
    storage: str,
    max_samples: int = 4096,
) -> None:
    """Draws samples into one file, or for sounds one file each, with the receipt inside."""
    request = SampleRequest(n=n, seed=seed, label=_label(label), temperature=temperature, index=first, condition=None, stream=False)

    async def work(replica: Replica, description: Description) -> list[tuple[Path, bytes, Any]]:
        media_type, path = _format(description, n, out)
        parts = [(first + i, 1) for i in range(n)] if media_type == media_types.WAV else [(first, n)]
        files = []
        for start, count in parts:
            asked = requests.draw(request.model_copy(update={"index": start, "n": count}), description)
            drawn = await replica.sample(asked)
            slip = media_types.receipt(drawn, asked)
            name = path if len(parts) == 1 else path.with_stem(f"{path.stem}-{start}")
            files.append((name, media_types.encode(media_type, drawn, slip), slip))
        return files

    for path, content, slip in _ask(model, storage, {"max_samples": max_samples}, work):
        write_bytes(str(path), content)
        console.result(f"{path}  (seed {slip.seed}, samples {slip.index} to {slip.index + slip.n - 1} of {slip.model} {slip.version})")
        console.emit(file=str(path), receipt=slip.model_dump())


def score(model: str, files: Sequence[Path], *, label: str | None, storage: str) -> None:
    """Scores files one by one; a sound longer than the event counts as its windows together."""

    async def work(replica: Replica, description: Description) -> list[dict[str, Any]]:
        rows = []
        for file in files:
            x, lengths = media_types.decode(_read(file), description)
            asked = requests.weigh(ScoreRequest.model_validate({"label": _label(label)}), x, lengths, description)
            weighed = await replica.score(asked)
            dims = sum(lengths) if lengths else x.size
            nats = float(weighed.nats.sum())
            rows.append({"file": str(file), "nats": nats, "bits_per_dim": -nats / dims / math.log(2), "protocol": weighed.protocol})
        return rows

    table = Table("file", "nats", "bits/dim", "protocol", box=None, header_style="bold", pad_edge=False)
    for row in _ask(model, storage, {}, work):
        table.add_row(row["file"], f"{row['nats']:.2f}", f"{row['bits_per_dim']:.4f}", row["protocol"])
        console.emit(**row)
    if not console.speaks_json():
        Console(soft_wrap=True).print(table)


def _ask(model: str, storage: str, settings: dict[str, Any], work: Callable[[Replica, Description], Awaitable[Answer]]) -> Answer:
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


def _label(label: str | None) -> int | str | None:
    return int(label) if label is not None and label.isdecimal() else label


def _format(model: Description, n: int, out: Path | None) -> tuple[str, Path]:
    """The media type and the path of what n samples are written to."""
    native = media_types.offered(model, 1)[0]
    if out is None:
        return native, Path(f"samples{SUFFIXES[native]}")
    known = [media_type for media_type, suffix in SUFFIXES.items() if suffix == out.suffix and media_type in media_types.offered(model, 1)]
    if not known:
        wanted = ", ".join(SUFFIXES[media_type] for media_type in media_types.offered(model, 1))
        raise Refused(f"--out {out}: samples of {model.model} can be written as {wanted}")
    return known[0], out


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Failed(f"cannot read {file}: {error.strerror}") from None
