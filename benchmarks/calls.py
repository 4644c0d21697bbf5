"""What it costs to draw by calls of 64 steps where one call could draw all: of one row, on one thread, part of benchmarks/sampling.py."""

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks import drawing
from benchmarks.drawing import Workload
from genmodels.core import Drawing
from genmodels.noise import Noise
from genmodels.sampling import library
from genmodels.sampling.native import Native

K = 64
FLAT = ("pixelcnn", "fvbn", "nade", "made")
"""Families at their defaults, beside the reference models."""


def table(rounds: int) -> list[str]:
    if library.chosen() is None:
        return []
    empty = empty_call()
    lines = [
        f"**Calls of {K} steps in place of one for all**, one row in f32 on one thread, processor time. A call through ctypes that does nothing",
        f"takes {1e6 * empty:.2f} µs. `without Python`: the same calls made by hand, nothing around them; `an empty call`: the least there can be.",
        "",
        f"| model | {K} steps, µs | a call, µs | in all | without Python | an empty call |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for workload in workloads():
        whole, parts, bare = measured(workload, rounds)
        steps = whole / drawn_steps(workload) * K
        shares = [f"{parts:.1%}", f"{bare:.1%}", f"{empty / steps:.1%}"]
        cost = parts * whole / (calls(workload) - 1)
        lines.append(f"| {workload.title.replace('|', 'of')} | {1e6 * steps:.1f} | {1e6 * cost:.2f} | {' | '.join(shares)} |")
    return [*lines, ""]


def workloads() -> Iterator[Workload]:
    yield from (make() for make in drawing.REFERENCES.values())
    yield from (workload for workload in drawing.families() if workload.title.split()[0] in FLAT)


def drawn_steps(workload: Workload) -> int:
    return min(workload.model.steps - 1, 25 * K)


def calls(workload: Workload) -> int:
    return -(-drawn_steps(workload) // K)


def measured(workload: Workload, rounds: int) -> tuple[float, float, float]:
    """Median seconds of a drawing by one call, and by how much of that calls of 64 steps take longer, and those calls without Python around them:
    medians too, of what the same turn gave."""
    ways = (whole, in_parts, bare)
    times: list[list[float]] = [[] for _ in ways]
    workload.model.sampler = Native(threads=1)
    begun, turn = time.monotonic(), 0
    while turn <= rounds or time.monotonic() - begun < rounds:
        for i in range(len(ways)):
            which = (i + turn) % len(ways)
            seconds = spent(ways[which], workload)
            if turn:
                times[which].append(seconds)
        turn += 1
    by_parts, by_hand = (statistics.median(b / a for a, b in zip(times[0], each, strict=True)) - 1 for each in times[1:])
    return statistics.median(times[0]), by_parts, by_hand


def spent(way: Callable[[Workload, Drawing], None], workload: Workload) -> float:
    """Of the processor, by this thread: another process on a busy machine does not show."""
    state = workload.model.begin(Noise(0, position=[0]), y=None, c=None, temperature=torch.ones(1))
    workload.model.advance(state, 1)
    begun = time.thread_time()
    way(workload, state)
    return time.thread_time() - begun


def whole(workload: Workload, state: Drawing) -> None:
    workload.model.advance(state, drawn_steps(workload))


def in_parts(workload: Workload, state: Drawing) -> None:
    advance, last = workload.model.advance, 1 + drawn_steps(workload)
    while state.step < last:
        advance(state, K)


def bare(workload: Workload, state: Drawing) -> None:
    rows, left = state.memory.found(state), drawn_steps(workload)
    function, call = state.memory.fixed.function, rows.call
    call.k = K
    for _ in range(left // K):
        function(call)
    call.k = left % K
    function(call)


def empty_call(n: int = 20_000) -> float:
    """Seconds of a call that says which version a library has: the least of several rounds."""
    loaded = library.load(library.chosen() or "")
    assert loaded is not None
    function, found = loaded.genmodels_abi, []
    for _ in range(9):
        begun = time.thread_time()
        for _ in range(n):
            function()
        found.append((time.thread_time() - begun) / n)
    return min(found)
