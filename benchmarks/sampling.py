"""How fast autoregressive models draw: plain full forward, windowed, eager with kept activations, compiled.

    python -m benchmarks.sampling [--rounds 5] [--write FOLDER] [--models wavenet-3x10 wavenet-2x8 gated-pixelcnn families calls]

Prints Markdown: medians over interleaved rounds in one process, the ratio to eager at the same batch and threads, and how much of the machine's limit
is reached, the limit being its measured rate of multiply-adds or, where that takes longer, of reading all weights once a step from the cache that
holds them. Quote the ratios: absolute figures drift on a shared machine. Under ten minutes on two cores.
"""

import argparse
import os
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import calls, drawing, peaks
from benchmarks.drawing import Workload
from genmodels.machine import equality_class
from genmodels.sampling import library

BATCHES = (1, 16, 64)
MODELS = [*drawing.REFERENCES, "families", "calls"]


@dataclass(frozen=True, order=True)
class Way:
    """One way to draw, at a batch and a number of threads."""

    batch: int
    threads: int
    name: str


Times = dict[Way, float]
"""Median seconds of a step of the whole batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="keep the tables as sampling.md and a plot as sampling.png")
    asked = parser.parse_args()
    lines = [f"{equality_class()}, copy {library.chosen()}, {os.cpu_count()} cores; {peaks.described()}.", ""]
    print("\n".join(lines), flush=True)
    found: dict[str, Times] = {}
    for name in asked.models:
        if name == "families":
            said = families(asked.rounds)
        elif name == "calls":
            said = calls.table(asked.rounds)
        else:
            workload = drawing.REFERENCES[name]()
            found[workload.title] = measured(workload, ways(workload), asked.rounds)
            said = table(workload, found[workload.title])
        print("\n".join(said), flush=True)
        lines += said
    if asked.write:
        asked.write.mkdir(parents=True, exist_ok=True)
        (asked.write / "sampling.md").write_text("\n".join(lines))
        plot(found, asked.write / "sampling.png")


def ways(workload: Workload) -> list[Way]:
    threads = [1, 2] if len(os.sched_getaffinity(0)) > 1 else [1]
    compiled = ["f32", *(workload.narrow if library.chosen() in library.NARROW else [])]
    plain = [Way(1, 1, name) for name in ("full forward", "windowed")]
    return plain + [Way(batch, n, name) for batch in BATCHES for n in threads for name in ("eager", *compiled)]


def measured(workload: Workload, wanted: list[Way], rounds: int) -> Times:
    """The first round is warm-up."""
    times: dict[Way, list[float]] = defaultdict(list)
    for turn in range(rounds + 1):
        for way in wanted:
            torch.set_num_threads(way.threads)
            seconds = workload.seconds(way.name, way.batch, way.threads)
            if turn:
                times[way].append(seconds)
    torch.set_num_threads(1)
    return {way: statistics.median(values) for way, values in times.items()}


def table(workload: Workload, times: Times) -> list[str]:
    lines = [f"**{workload.title}**, {workload.macs / 1e6:.2f} M multiply-adds a {workload.unit}", ""]
    lines += [
        f"| batch | threads | sampler | µs a {workload.unit} | {workload.rate_name} | to eager | of the limit |",
        "|--:|--:|---|--:|--:|--:|--:|",
    ]
    for way in sorted(times, key=lambda way: (way.batch, way.threads, list(times).index(way))):
        seconds, eager = times[way], times[Way(way.batch, way.threads, "eager")]
        limit = ""
        if way.name in drawing.PRECISIONS and way.threads == 1:
            limit = f"{peaks.measured().seconds(way.name, way.batch * workload.macs, workload.weights) / seconds:.0%}"
        figures = [f"{1e6 * seconds:,.1f}", workload.rate(seconds / way.batch), f"{eager / seconds:.3g}x", limit]
        lines.append(f"| {way.batch} | {way.threads} | {way.name} | {' | '.join(figures)} |")
    return [*lines, ""]


def families(rounds: int) -> list[str]:
    """Every family at its defaults, eager against compiled, on one thread."""
    lines = ["**Every family at its defaults**, one thread, ms a whole example: eager, compiled in f32, their ratio", ""]
    lines += ["| family | event | batch 1 | | | batch 16 | | |", "|---|---|--:|--:|--:|--:|--:|--:|"]
    for workload in drawing.families():
        figures: list[str] = []
        times = measured(workload, [Way(batch, 1, name) for batch in (1, 16) for name in workload.samplers], max(2, rounds // 2))
        for batch in (1, 16):
            eager = times[Way(batch, 1, "eager")] * workload.units
            compiled = times.get(Way(batch, 1, "f32"))
            figures.append(f"{1e3 * eager:.1f}")
            figures += (
                ["", ""] if compiled is None else [f"{1e3 * compiled * workload.units:.2f}", f"{eager / compiled / workload.units:.1f}x"]
            )
        lines.append(f"| {workload.title} | {' | '.join(figures)} |")
    return [*lines, ""]


def plot(found: dict[str, Times], path: Path) -> None:
    """Seconds an example's step takes, a panel a model."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, max(1, len(found)), figsize=(4.6 * max(1, len(found)), 3.6), squeeze=False)
    colours = {"full forward": "#b0b0b0", "windowed": "#8a8a8a", "eager": "#d98c5f", "f32": "#2f6f9f", "bf16": "#7fb2d6", "int8": "#a9cfa0"}
    for panel, (title, times) in zip(panels[0], found.items(), strict=False):
        shown = [way for way in times if way.threads == 1]
        labels = [f"{way.name}, batch {way.batch}" for way in shown]
        values = [1e6 * times[way] / way.batch for way in shown]
        panel.barh(labels, values, color=[colours[way.name] for way in shown])
        panel.set_xscale("log")
        panel.invert_yaxis()
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("µs for each of the batch, one thread", fontsize=8)
        panel.tick_params(labelsize=7)
        for place, value in enumerate(values):
            panel.text(value * 1.1, place, f"{value:,.0f}" if value >= 100 else f"{value:.3g}", va="center", fontsize=6)
        panel.set_xlim(min(values) / 2, max(values) * 8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
