"""What a model answers without a server, by the very replica that a server runs: the same bytes, the same checks, the same receipt."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genmodels.core import Event
from genmodels.sampling.packing import Precision
from pipelines import console, inputs, surprise
from pipelines.errors import Refused
from pipelines.storage import write_bytes
from serve import catalogue, media_types, requests
from serve.messages import Draw, Drawn, Filled
from serve.problem import Problem
from serve.replica import Replica
from serve.schema import ClassificationRequest, CompletionRequest, Description, Receipt, SampleRequest, ScoreRequest, Target

SUFFIXES = {media_types.PNG: ".png", media_types.WAV: ".wav", media_types.NPY: ".npy", media_types.JSON: ".json"}
Answer = TypeVar("Answer")
Made = tuple[Path, bytes, Receipt, Drawn]
"""A file that is to be written, and what is in it."""


def sample(
    model: str,
    *,
    n: int,
    seed: int,
    label: str | None,
    temperature: float,
    first: int,
    condition: Path | None,
    out: Path | None,
    storage: str,
    precision: str = "f32",
    threads: int = 1,
    max_samples: int = 4096,
) -> None:
    """Draws samples into one file, or for sounds one file each, with the receipt inside."""
    if precision not in get_args(Precision):
        raise Refused(f"--precision {precision}; wanted {' or '.join(get_args(Precision))}")
    values = {"n": n, "seed": seed, "label": _label(label), "temperature": temperature, "index": first}

    async def work(replica: Replica, description: Description) -> list[Made]:
        asked = requests.valid(SampleRequest, {**values, "condition": await inputs.condition(condition, description, replica)})

        async def draw(start: int, count: int) -> tuple[Draw, Drawn]:
            part = requests.draw(asked.model_copy(update={"index": start, "n": count}), description)
            return part, await replica.sample(part)

        return await _files(description, first, n, _format(description, out, "samples"), draw)

    _save(_ask(model, storage, {"max_samples": max_samples, "precision": precision, "threads": threads}, work), "samples")


def complete(
    model: str,
    file: Path,
    *,
    mask: Path | None,
    rows: int | None,
    seconds: float | None,
    n: int,
    seed: int,
    label: str | None,
    temperature: float,
    first: int,
    condition: Path | None,
    out: Path | None,
    storage: str,
    max_samples: int = 4096,
) -> None:
    """Fills in what is not known of a file, n times, into one file, or for sounds one file each, with the receipt inside."""
    values = {"n": n, "seed": seed, "label": _label(label), "temperature": temperature, "index": first}

    async def work(replica: Replica, description: Description) -> list[Made]:
        requests.check_can("completes", description)
        known = inputs.known(description, mask=mask, rows=rows, seconds=seconds)
        x, lengths = inputs.example(file, description, resample=False)
        c = await inputs.condition(condition, description, replica)
        asked = requests.valid(CompletionRequest, {**values, "known": known, "condition": c})

        async def draw(start: int, count: int) -> tuple[Draw, Drawn]:
            part = requests.fill(asked.model_copy(update={"index": start, "n": count}), x, lengths, description)
            return part, await replica.complete(part)

        return await _files(description, first, n, _format(description, out, "completions"), draw)

    _save(_ask(model, storage, {"max_samples": max_samples}, work), "completions")


def score(model: str, files: Sequence[Path], *, label: str | None, out: Path | None, storage: str) -> None:
    """Scores files one by one; a sound longer than the event counts as its windows together. out: a PNG of where the model is surprised."""
    if out is not None and out.suffix != ".png":
        raise Refused(f"--map {out}: the map is a picture; give a name that ends in .png")
    request = requests.valid(ScoreRequest, {"label": _label(label), "map": out is not None})

    async def work(replica: Replica, description: Description) -> tuple[list[dict[str, Any]], bytes]:
        if out is not None and description.event["modality"] == "table":
            raise Refused(f"--map {out}: {description.model} models rows of a table; maps are drawn of pictures and sounds")
        rows, found = [], []
        for file in files:
            x, lengths = inputs.example(file, description)
            weighed = await replica.score(requests.weigh(request, x, lengths, description))
            dims = sum(lengths) if lengths else x.size
            nats = float(weighed.nats.sum())
            rows.append({"file": str(file), "nats": nats, "bits_per_dim": -nats / dims / math.log(2), "protocol": weighed.protocol})
            if weighed.map is not None:
                found += surprise.found(file.name, x, lengths, weighed.map)
        return rows, surprise.png(found, Event.from_json(description.event)) if found else b""

    rows, picture = _ask(model, storage, {}, work)
    table = Table("file", "nats", "bits/dim", "protocol", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(row["file"], f"{row['nats']:.2f}", f"{row['bits_per_dim']:.4f}", row["protocol"])
    if out is not None:
        write_bytes(str(out), picture)
    _tell(table, [{**row, "map": str(out)} if out else row for row in rows])
    if out is not None:
        console.result(f"{out}  (where the model is surprised, in bits)")


def classify(model: str, files: Sequence[Path], *, storage: str) -> None:
    """The likeliest class of each file by Bayes' rule, and of each window of a longer sound."""

    async def work(replica: Replica, description: Description) -> list[dict[str, Any]]:
        requests.check_labels(description)
        rows = []
        for file in files:
            x, lengths = inputs.example(file, description)
            asked = requests.classify(requests.valid(ClassificationRequest, {}), x, lengths, description)
            said = await replica.classify(asked)
            names = description.labels or [str(number) for number in range(description.classes)]
            for number, log_probs in enumerate(said.log_probs.tolist()):
                which = {} if len(x) == 1 else {"window" if lengths else "row": number}
                best = int(np.argmax(log_probs))
                found = {
                    "best": best,
                    "label": names[best],
                    "log_probs": dict(zip(names, log_probs, strict=True)),
                    "protocol": said.protocol,
                }
                rows.append({"file": str(file), **which, **found})
        return rows

    rows = _ask(model, storage, {}, work)
    table = Table("file", "class", "p(y|x)", "then", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        part = next((f" [{row[key]}]" for key in ("window", "row") if key in row), "")
        likely = sorted(row["log_probs"].items(), key=lambda pair: -pair[1])
        then = ", ".join(f"{name} {_share(log_prob)}" for name, log_prob in likely[1:3])
        table.add_row(escape(row["file"] + part), escape(row["label"]), _share(likely[0][1]), escape(then))
    _tell(table, rows)
    console.result(rows[0]["protocol"])


def _share(log_prob: float) -> str:
    """A probability, small ones by their order of magnitude."""
    p = math.exp(log_prob)
    return f"{p:.4f}" if p >= 5e-5 else f"1e{round(log_prob / math.log(10))}"


def _tell(table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Rows for machines, or their table for a person."""
    for row in rows:
        console.emit(**row)
    if not console.speaks_json():
        page = Console()
        page.width = max(page.width, page.measure(table, options=page.options.update(width=10_000)).maximum)  # names are not cut
        page.print(table)


async def _files(
    description: Description, first: int, n: int, format_: tuple[str, Path], draw: Callable[[int, int], Awaitable[tuple[Draw, Drawn]]]
) -> list[Made]:
    """n draws in one file, or of sounds one file each: a request of its own, so that each has its own receipt."""
    media_type, path = format_
    parts = [(first + i, 1) for i in range(n)] if media_type == media_types.WAV else [(first, n)]
    made = []
    for start, count in parts:
        asked, drawn = await draw(start, count)
        slip = media_types.receipt(drawn, asked)
        name = path if len(parts) == 1 else path.with_stem(f"{path.stem}-{start}")
        made.append((name, media_types.encode(media_type, drawn, slip), slip, drawn))
    return made


def _save(made: Sequence[Made], what: str) -> None:
    for path, content, slip, drawn in made:
        write_bytes(str(path), content)
        last = slip.index + slip.n - 1
        console.result(f"{path}  (seed {slip.seed}, {what} {slip.index} to {last} of {slip.model} {slip.version})")
        how = {"method": drawn.method, "exact": drawn.exact, "ess": drawn.ess} if isinstance(drawn, Filled) else {}
        if isinstance(drawn, Filled):
            how["ess"] = None if drawn.ess is None else drawn.ess.tolist()
        console.emit(file=str(path), receipt=slip.model_dump(), **how)
    for line in dict.fromkeys(_how(drawn) for *_, drawn in made if isinstance(drawn, Filled)):
        console.result(line)


def _how(drawn: Filled) -> str:
    """By which method, whether exactly, and of how many draws' worth."""
    if drawn.ess is None:
        return f"{'exact' if drawn.exact else 'approximate'}: {drawn.method}"
    low, high = float(drawn.ess.min()), float(drawn.ess.max())
    return f"approximate: {drawn.method}; effective sample size {low:.1f}" + (f" to {high:.1f}" if high > low else "")


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


def _format(model: Description, out: Path | None, stem: str) -> tuple[str, Path]:
    """The media type and the path of what samples or completions are written to."""
    offers = media_types.offered(model, 1)
    if out is None:
        return offers[0], Path(stem + SUFFIXES[offers[0]])
    known = [media_type for media_type, suffix in SUFFIXES.items() if suffix == out.suffix and media_type in offers]
    if not known:
        raise Refused(f"--out {out}: {stem} of {model.model} can be written as {', '.join(SUFFIXES[offer] for offer in offers)}")
    return known[0], out
