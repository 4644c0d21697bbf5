"""What a model answers without a server, by the very replica that a server runs: the same bytes, the same checks, the same receipt."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.table import Table

from genmodels.core import Event
from genmodels.sampling.packing import Precision
from pipelines import answers, console, inputs, surprise
from pipelines.errors import Refused
from pipelines.storage import write_bytes
from serve import requests
from serve.messages import Draw, Drawn
from serve.replica import Replica
from serve.schema import ClassificationRequest, CompletionRequest, Description, SampleRequest, ScoreRequest


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
    values = {"n": n, "seed": seed, "label": answers.class_of(label), "temperature": temperature, "index": first}

    async def work(replica: Replica, description: Description) -> list[answers.Made]:
        asked = requests.valid(SampleRequest, {**values, "condition": await inputs.condition(condition, description, replica)})

        async def draw(start: int, count: int) -> tuple[Draw, Drawn]:
            part = requests.draw(asked.model_copy(update={"index": start, "n": count}), description)
            return part, await replica.sample(part)

        return await answers.files(description, first, n, answers.written_as(description, out, "samples"), draw)

    answers.save(answers.ask(model, storage, {"max_samples": max_samples, "precision": precision, "threads": threads}, work), "samples")


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
    values = {"n": n, "seed": seed, "label": answers.class_of(label), "temperature": temperature, "index": first}

    async def work(replica: Replica, description: Description) -> list[answers.Made]:
        requests.check_can("completes", description)
        known = inputs.known(description, mask=mask, rows=rows, seconds=seconds)
        x, lengths = inputs.example(file, description, resample=False)
        c = await inputs.condition(condition, description, replica)
        asked = requests.valid(CompletionRequest, {**values, "known": known, "condition": c})

        async def draw(start: int, count: int) -> tuple[Draw, Drawn]:
            part = requests.fill(asked.model_copy(update={"index": start, "n": count}), x, lengths, description)
            return part, await replica.complete(part)

        return await answers.files(description, first, n, answers.written_as(description, out, "completions"), draw)

    answers.save(answers.ask(model, storage, {"max_samples": max_samples}, work), "completions")


def score(model: str, files: Sequence[Path], *, label: str | None, condition: Path | None, out: Path | None, storage: str) -> None:
    """Scores files one by one; a sound longer than the event counts as its windows together. out: a PNG of where the model is surprised."""
    if out is not None and out.suffix != ".png":
        raise Refused(f"--map {out}: the map is a picture; give a name that ends in .png")
    values = {"label": answers.class_of(label), "map": out is not None}

    async def work(replica: Replica, description: Description) -> tuple[list[dict[str, Any]], bytes]:
        if out is not None and description.event["modality"] == "table":
            raise Refused(f"--map {out}: {description.model} models rows of a table; maps are drawn of pictures and sounds")
        rows, found = [], []
        for file in files:
            x, lengths = inputs.example(file, description)
            c = await inputs.condition_of(condition, x, description, replica)
            request = requests.valid(ScoreRequest, {**values, "condition": c})
            weighed = await replica.score(requests.weigh(request, x, lengths, description))
            dims = sum(lengths) if lengths else x.size
            nats = float(weighed.nats.sum())
            bits = -nats / dims / math.log(2) if description.event["levels"] else None
            rows.append({"file": str(file), "nats": nats, "bits_per_dim": bits, "protocol": weighed.protocol})
            if weighed.map is not None:
                found += surprise.found(file.name, x, lengths, weighed.map)
        return rows, surprise.png(found, Event.from_json(description.event)) if found else b""

    rows, picture = answers.ask(model, storage, {}, work)
    table = Table("file", "nats", "bits/dim", "protocol", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(
            row["file"], f"{row['nats']:.2f}", "" if row["bits_per_dim"] is None else f"{row['bits_per_dim']:.4f}", row["protocol"]
        )
    if out is not None:
        write_bytes(str(out), picture)
    answers.tell(table, [{**row, "map": str(out)} if out else row for row in rows])
    if out is not None:
        console.result(f"{out}  (where the model is surprised, in bits)")


def classify(model: str, files: Sequence[Path], *, condition: Path | None, storage: str) -> None:
    """The likeliest class of each file, and of each window of a longer sound; by what is said below them."""

    async def work(replica: Replica, description: Description) -> list[dict[str, Any]]:
        requests.check_labels(description)
        rows = []
        for file in files:
            x, lengths = inputs.example(file, description)
            c = await inputs.condition_of(condition, x, description, replica)
            asked = requests.classify(requests.valid(ClassificationRequest, {"condition": c}), x, lengths, description)
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

    rows = answers.ask(model, storage, {}, work)
    table = Table("file", "class", "p(y|x)", "then", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        part = next((f" [{row[key]}]" for key in ("window", "row") if key in row), "")
        likely = sorted(row["log_probs"].items(), key=lambda pair: -pair[1])
        then = ", ".join(f"{name} {_share(log_prob)}" for name, log_prob in likely[1:3])
        table.add_row(row["file"] + part, row["label"], _share(likely[0][1]), then)
    answers.tell(table, rows)
    console.result(rows[0]["protocol"])


def _share(log_prob: float) -> str:
    """A probability, small ones by their order of magnitude."""
    p = math.exp(log_prob)
    return f"{p:.4f}" if p >= 5e-5 else f"1e{round(log_prob / math.log(10))}"
