"""Training through Ray Train against the bare loop on the same tensors.

Ray's workers are niced, so that a node's own processes answer whatever the workers do: beside anything else that is busy they get less of a core
than a process of ordinary priority. The bare loop runs in a process of the same priority and malloc settings, else a busy machine is what is
measured. Ray's dozen processes take about a tenth of a core while they wait, which is felt where a training has every core to itself, or where two
cores share one's units: on two cores the ratio is 0.95 to 1 with one thread, near 0.9 with two.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from genmodels.core import Trained
from genmodels.train import Training
from pipelines import cluster, journal
from pipelines import recipe as recipes
from pipelines.learning import fresh, numbers
from pipelines.prepare import prepare
from pipelines.recipe import Recipe
from pipelines.records import Shards
from pipelines.shards import Stream
from pipelines.train import MALLOC, train

NICE = 15
"""Of Ray's workers."""


class Look(NamedTuple):
    speed: float
    """Steps a second."""
    cores: float
    """Processors that the process had."""
    wait: float = 0.0
    """The share of its time that the loader held it up."""


def through_ray(name: str, *, steps: int, threads: int, rounds: int = 3) -> list[str]:
    """Each round from fresh weights; the first fifth of a run is warm-up and not counted."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"storage={Path(folder)}", *(f"train.{key}={steps}" for key in ("steps", "valid_every", "checkpoint_every"))]
        settings += ["train.valid_examples=16", f"train.threads={threads}"]
        recipe = recipes.load(name, settings)
        shards = prepare(recipe)
        bare: list[Look] = []
        ray: list[Look] = []
        for round_ in range(rounds):
            for looks, found in ((bare, alone(name, settings)), (ray, trained(recipe, shards, round_))):
                looks += found[len(found) // 5 :]
    cluster.shutdown()
    asked = f"{rounds} rounds of {steps} steps, {threads} thread{'s' * (threads > 1)}"
    names = [asked, "bare loop, steps/s", "Ray Train", "ratio", "bare, ms of processor a step", "Ray Train", "ratio"]
    names += ["waiting for the loader", "worst look"]
    return [f"| {' | '.join(names)} |", f"|---|{'--:|' * (len(names) - 1)}", f"| {name} | {compared(bare, ray)} |", ""]


def compared(bare: list[Look], ray: list[Look]) -> str:
    speeds = [statistics.median(look.speed for look in looks) for looks in (bare, ray)]
    busy = [statistics.median(1e3 * look.cores / look.speed for look in looks) for looks in (bare, ray)]
    waits = [look.wait for look in ray]
    figures = [f"{speeds[0]:.2f}", f"{speeds[1]:.2f}", f"{speeds[1] / speeds[0]:.3f}", f"{busy[0]:.1f}", f"{busy[1]:.1f}"]
    return " | ".join([*figures, f"{busy[0] / busy[1]:.3f}", f"{statistics.median(waits):.2%}", f"{max(waits):.2%}"])


def alone(name: str, settings: list[str]) -> list[Look]:
    """The bare loop in a process such as Ray's workers are."""
    asked = [sys.executable, "-m", "benchmarks.through_ray", name, *settings]
    ran = subprocess.run(asked, stdout=subprocess.PIPE, check=True, text=True, env={"GLIBC_TUNABLES": MALLOC, **os.environ})
    return [Look(*each) for each in json.loads(ran.stdout.splitlines()[-1])]


def bare(recipe: Recipe, shards: Shards) -> list[Look]:
    """Looks as far apart as a pipeline's, at batches that are in memory before the first step."""
    config = numbers(recipe.train)
    stream = Stream(shards, "train", seed=config.seed)
    batches = [stream.batch(step, config.batch_size) for step in range(config.steps)]
    model = fresh(recipe, shards)
    assert isinstance(model, Trained), "the loop that is timed descends"
    training, steps, looks = Training(model, config), max(1, min(50, config.steps // 100)), []
    for until in range(steps, config.steps + 1, steps):
        begun, busy = time.perf_counter(), time.process_time()
        training.run(batches.__getitem__, until=until)
        seconds = time.perf_counter() - begun
        looks.append(Look(steps / seconds, (time.process_time() - busy) / seconds))
    return looks


def trained(recipe: Recipe, shards: Shards, round_: int) -> list[Look]:
    """The looks of a training, from its own log."""
    named = recipe.model_copy(update={"name": f"{recipe.name}-{round_}"})
    lines = [line for line in journal.read(train(named, shards).log) if line["event"] == "step"]
    return [Look(line["steps_per_s"], line["cores"], line["loader_wait"]) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description="The bare loop alone.")
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="*")
    asked = parser.parse_args()
    os.nice(NICE)
    recipe = recipes.load(asked.recipe, asked.settings)
    print(json.dumps(bare(recipe, prepare(recipe))))


if __name__ == "__main__":
    main()
