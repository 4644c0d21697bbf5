"""How fast a PixelCNN trains and why, what averaging over workers costs, and training through Ray Train against the bare loop.

    python -m benchmarks.training [--write FOLDER] [--threads 1] [--recipe digits-pixelcnn] [--parts ladder averaging ray]

Prints Markdown. The ladder: one step of 8 layers and 64 channels on 28x28 pixels of 256 levels, gated and plain, from masks multiplied at every
forward to one compiled graph, beside the machine's own rate of arithmetic. Rounds of what is compared are interleaved; medians; quote the ratios,
since absolute figures drift on a shared machine. Under five minutes on two cores.
"""

import argparse
import os
from pathlib import Path

import torch

from benchmarks.averaging import EVENTS, averaged
from benchmarks.ladder import LADDER, Climbed, climb, flops, peak
from benchmarks.through_ray import through_ray
from genmodels.compilation import check_compiler
from genmodels.machine import equality_class

FAMILIES = {"gated_pixelcnn": "Gated PixelCNN", "pixelcnn": "PixelCNN"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", nargs="+", choices=["ladder", "averaging", "ray"], default=["ladder", "averaging", "ray"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16, help="pictures of a step of the ladder")
    parser.add_argument("--rounds", type=int, default=9, help="steps of every rung of the ladder")
    parser.add_argument("--recipe", default="digits-pixelcnn", help="what is trained through Ray Train")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="keep the table as training.md and the ladder as training.png")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    climbed: dict[str, list[Climbed]] = {}
    lines: list[str] = []
    for part in ("machine", *asked.parts):
        if part == "ladder":
            climbed, said = ladder(asked)
        else:
            said = (
                [f"{equality_class()}, {os.cpu_count()} cores", ""]
                if part == "machine"
                else averaging()
                if part == "averaging"
                else through_ray(asked.recipe, steps=asked.steps, threads=asked.threads)
            )
        print("\n".join(said), flush=True)
        lines += said
    if asked.write:
        asked.write.mkdir(parents=True, exist_ok=True)
        (asked.write / "training.md").write_text("\n".join(lines) + "\n")
        if climbed:
            plot(climbed, asked.write / "training.png")


def ladder(asked: argparse.Namespace) -> tuple[dict[str, list[Climbed]], list[str]]:
    rungs = tuple(rung for rung in LADDER if possible(rung.precision, rung.compile))
    peaks = {rung.precision: peak(rung.precision) for rung in rungs}
    found = {family: climb(family, rows=asked.batch, threads=asked.threads, rounds=asked.rounds, rungs=rungs) for family in FAMILIES}
    # Once more at the end: on a busy machine one look at the rate of arithmetic may find half of it.
    peaks = {rung.precision: max(peaks[rung.precision], peak(rung.precision)) for rung in (rungs[0], rungs[-1])}
    said = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in peaks.items())
    threads = f"{asked.threads} thread{'s' * (asked.threads > 1)}"
    lines = [f"Batch {asked.batch}, {threads}, medians of {asked.rounds} interleaved steps. Measured peaks: {said}.", ""]
    for family, title in FAMILIES.items():
        work = flops(family, asked.batch)
        lines += [
            f"| {title}, {work / 1e9:.0f} GFLOP a step | ms a step | pictures/s | ratio | of the peak | s at start |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for each in found[family]:
            share, ratio = work / each.seconds / peaks[each.rung.precision], found[family][0].seconds / each.seconds
            figures = [
                f"{1e3 * each.seconds:.0f}",
                f"{asked.batch / each.seconds:.0f}",
                f"{ratio:.2f}",
                f"{share:.0%}",
                f"{each.start:.0f}",
            ]
            lines.append(f"| {each.rung.name} | {' | '.join(figures)} |")
        lines.append("")
    return found, lines


def possible(precision: str, compiled: bool) -> bool:
    able = any(present is True for name, present in torch.cpu.get_capabilities().items() if "bf16" in name)
    if compiled:
        try:
            check_compiler(torch.device("cpu"))
        except ValueError:
            return False
    return able or precision == "f32"


def averaging() -> list[str]:
    names = [
        "two gloo workers, one thread each",
        "ms a step",
        "summed, MB",
        "ms in the sum",
        "of a step",
        "overlap could hide",
        "waiting for the other",
    ]
    lines, hidden = [f"| {' | '.join(names)} |", f"|---|{'--:|' * (len(names) - 1)}"], []
    for recipe in EVENTS:
        found = averaged(recipe, steps=40 if recipe.startswith("digits") else 12)
        figures = [f"{1e3 * found.step:.1f}", f"{found.megabytes:.2f}", f"{1e3 * found.sum:.2f}"]
        figures += [f"{share:.1%}" for share in (found.sum / found.step, found.hidden, found.wait / found.step)]
        lines.append(f"| {recipe} | {' | '.join(figures)} |")
        hidden.append(f"{found.hidden:.1%} of a step of {recipe}")
    most = "What is waiting in the sum, and not work of the processors that backward needs, is the most that overlapping could hide"
    return [*lines, "", f"{most}: {', '.join(hidden)}.", ""]


def plot(climbed: dict[str, list[Climbed]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    height = 0.38
    for index, (family, found) in enumerate(climbed.items()):
        ratios = [found[0].seconds / each.seconds for each in found]
        places = [row + (index - 0.5) * height for row in range(len(found))]
        axes.bar_label(axes.barh(places, ratios, height, label=FAMILIES[family]), fmt="%.1f", padding=3)
    axes.set_yticks(range(len(next(iter(climbed.values())))), [each.rung.name for each in next(iter(climbed.values()))])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("steps a second, masks at every forward = 1")
    axes.legend(loc="upper right", frameon=False)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
