"""Shards to batches: in memory and in windows, shuffled and in disk order; and of Shards larger than memory."""

import json
import statistics
import sys
import time
from pathlib import Path

from benchmarks import footprint, generated
from benchmarks.line import Line, alone
from pipelines.records import Shards
from pipelines.shards import Stream, examples, open_shards

BATCH = 128


def loader(shards: Shards, rounds: int) -> list[Line]:
    def speed(window: int | None) -> float:
        stream = Stream(shards, seed=0, window=window)
        steps = stream.rows // BATCH
        stream.batch(steps - 1, BATCH)
        begun = time.perf_counter()
        for step in range(steps, 2 * steps):
            stream.batch(step, BATCH)
        return steps * BATCH / (time.perf_counter() - begun)

    def ordered() -> float:
        begun = time.perf_counter()
        return sum(len(batch) for batch in examples(shards, "train", BATCH)) / (time.perf_counter() - begun)

    runs = [(speed(None), speed(8), ordered()) for _ in range(rounds)]
    memory, windows, sequential = (statistics.median(each) for each in zip(*runs, strict=True))
    pixels = "x".join(map(str, shards.event.shape[1:]))
    return [
        Line(f"batches of {pixels}, all in memory, shuffled", memory, "images/s", "in disk order, from files", sequential),
        Line(f"batches of {pixels}, windows of 8 row groups, shuffled", windows, "images/s", "in disk order, from files", sequential),
    ]


def larger(scratch: Path, gigabytes: float) -> list[Line]:
    """Shards larger than a window, and four times as many: peak memory, time to the first batch, shuffled against sequential."""
    lines: list[Line] = []
    for size in (gigabytes / 4, gigabytes):
        shards = generated.large(scratch / f"large-{size:g}", size)
        found = {}
        for order in ("sequential", "shuffled"):
            generated.forget(shards)
            found[order] = alone("benchmarks.loading", order, shards.uri)
        mixed, straight = found["shuffled"], found["sequential"]
        lines.append(Line(f"{size:g} GB of Shards, shuffled", mixed["speed"], "images/s", "in disk order", straight["speed"]))
        lines.append(Line(f"{size:g} GB of Shards, time to the first batch", mixed["first"], "s", "in disk order", straight["first"]))
        peaks = [each["peak"] / 2**20 for each in (mixed, straight)]
        lines.append(Line(f"{size:g} GB of Shards, peak memory of the process", peaks[0], "MiB", "in disk order", peaks[1]))
    return lines


def main(order: str, uri: str) -> None:
    """One epoch in a process of its own; prints images a second, seconds to the first batch, and the most memory it held."""
    shards = open_shards(uri)
    begun, count, first = time.perf_counter(), 0, 0.0
    stream = Stream(shards, seed=0) if order == "shuffled" else None
    steps = shards.rows["train"] // BATCH
    batches = (stream.batch(step, BATCH) for step in range(steps)) if stream else examples(shards, "train", BATCH)
    for batch in batches:
        first = first or time.perf_counter() - begun
        count += len(batch)
    print(json.dumps({"first": first, "speed": count / (time.perf_counter() - begun), "peak": footprint.peak()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
