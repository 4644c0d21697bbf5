"""How long each shipped recipe's training waits for its data: the loader's share of a step, of every recipe whose data are at hand."""

import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.line import short
from pipelines import cluster
from pipelines import recipe as recipes
from pipelines.learning import Learning
from pipelines.prepare import prepare
from pipelines.recipe import Recipe
from pipelines.sources import open_source
from pipelines.sources.published import Published

STEPS, SECONDS, WARM = 40, 12.0, 3
"""At most so many steps or seconds a recipe, not counting the first ones, in which caches and threads begin."""


@dataclass(frozen=True)
class Waited:
    """Seconds of a step (median), the share of all steps that went into waiting, and the longest single wait in seconds."""

    step: float
    share: float
    longest: float
    steps: int


def waiting(scratch: Path, names: list[str] | None = None) -> list[str]:
    """A Markdown table, a row a recipe. All are prepared before the first is trained, so that no Ray runs beside a training."""
    asked = [loaded(name, scratch) for name in names or recipes.names()]
    prepared = [(recipe, prepare(recipe)) for recipe in asked if recipe]
    cluster.shutdown()
    lines = ["| waiting for the loader | ms a step | share of a step | longest wait, ms | steps |", "|---|--:|--:|--:|--:|"]
    for recipe, shards in prepared:
        found = waited(Learning(recipe, shards))
        figures = [short(1e3 * found.step), f"{found.share:.2%}", short(1e3 * found.longest), str(found.steps)]
        lines.append(f"| {recipe.name} | {' | '.join(figures)} |")
    return [*lines, ""]


def loaded(name: str, scratch: Path) -> Recipe | None:
    """A shipped recipe that pauses after every step and neither validates nor checkpoints; None where its data would have to be downloaded."""
    never = 10**6
    keys = {"steps": 2 * STEPS, "valid_every": never, "checkpoint_every": never}
    recipe = recipes.load(name, [f"storage={scratch}", *(f"train.{key}={value}" for key, value in keys.items())])
    source = open_source(recipe.data)
    folder = os.environ.get("GENMODELS_DATA")
    return recipe if not isinstance(source, Published) or (folder and Path(folder, source.name).is_dir()) else None


def waited(learning: Learning) -> Waited:
    torch.set_num_threads(learning.recipe.train.threads)
    steps: list[float] = []
    waits: list[float] = []
    for pause in learning.pauses():
        steps.append(pause.seconds)
        waits.append(pause.waited)
        if len(steps) == STEPS + WARM or (len(steps) > 2 * WARM and sum(steps[WARM:]) > SECONDS):
            break
    steps, waits = steps[WARM:], waits[WARM:]
    return Waited(statistics.median(steps), sum(waits) / sum(steps), max(waits), len(steps))
