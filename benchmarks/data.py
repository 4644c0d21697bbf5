"""How fast files become Shards and Shards become batches, and in how much memory: one Markdown table.

    python -m benchmarks.data [--write FOLDER] [--parts pictures photos sounds memory loader costs] [--large GB] [--scratch FOLDER]
    python -m benchmarks.data --waits [RECIPE ...]

Files to finished Shards by `prepare` in a Ray that is already there, against bare Pillow or soundfile that decodes the same files in as many
processes as there are cores; then an epoch of batches of 128, in memory and in windows, shuffled and in disk order. Rounds of both sides are
interleaved after one of warm-up, files are in the page cache; medians; quote the ratios, absolute figures drift on a shared machine. Memory is
the whole process tree's, shared pages counted once. Below it, what one sound costs step by step. --large generates Shards larger than a window:
each order in a fresh process, from disk.
--waits trains every shipped recipe whose data are at hand ($GENMODELS_DATA) for some steps and says how long they waited for their batches.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import loading, preparing
from benchmarks.costs import costs
from benchmarks.line import Line, short
from benchmarks.waiting import waiting
from genmodels.machine import equality_class
from pipelines import cluster

PARTS = ("memory", "pictures", "photos", "sounds", "loader", "costs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="keep the table as data.md and its ratios as data.png")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--large", type=float, default=0.0, metavar="GB", help="also generate so many gigabytes of Shards and read them")
    parser.add_argument("--scratch", type=Path, help="where to put what is generated; by default the temporary folder")
    parser.add_argument("--data", default=os.environ.get("GENMODELS_DATA"), help="folder that holds mnist; without it PNGs are noise")
    parser.add_argument("--files", type=int, default=60_000)
    parser.add_argument("--photos", type=int, default=6_000)
    parser.add_argument("--sounds", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--waits", nargs="*", metavar="RECIPE", help="only the loader's share of a step, of these or all shipped recipes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.scratch) as folder:
        if asked.waits is not None:
            print("\n".join(waiting(Path(folder), asked.waits)))
            return
        lines = measured(Path(folder), asked)
        steps = [line for form in ("wav", "flac") for line in ["", *costs(Path(folder), form)]] if "costs" in asked.parts else []
    head = [f"{equality_class()}, {os.cpu_count()} cores", "", "| | | against | ratio |", "|---|---|---|---|"]
    table = "\n".join([*head, *map(str, lines), *steps]) + "\n"
    print(table)
    if asked.write:
        asked.write.mkdir(parents=True, exist_ok=True)
        (asked.write / "data.md").write_text(table)
        plot(lines, asked.write / "data.png")


def measured(scratch: Path, asked: argparse.Namespace) -> list[Line]:
    lines: list[Line] = []
    if "memory" in asked.parts:
        lines += preparing.memory(scratch, asked)
    if {"pictures", "loader"} & set(asked.parts):
        cluster.connect()
        found, shards = preparing.pictures(scratch, asked)
        lines += found
        if "loader" in asked.parts:
            lines += loading.loader(shards, asked.rounds)
    if "photos" in asked.parts:
        cluster.connect()
        lines += preparing.photos(scratch, asked)
    if "sounds" in asked.parts:
        cluster.connect()
        lines += preparing.sounds(scratch, asked)
    cluster.shutdown()
    return lines + (loading.larger(scratch, asked.large) if asked.large else [])


def plot(lines: Sequence[Line], file: Path) -> None:
    """The ratios, a bar each."""
    from matplotlib.figure import Figure

    shown = [line for line in lines if line.theirs][::-1]
    figure = Figure(figsize=(9, 0.45 * len(shown) + 1), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([f"{line.what}\nagainst {line.other}" for line in shown], [line.ours / line.theirs for line in shown], log=True)
    axes.bar_label(bars, [f" {short(line.ours)} {line.unit}" for line in shown], fontsize=7)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("ratio, ours to the other")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
