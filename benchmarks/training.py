"""Training through Ray Train against the bare loop on the same tensors, and how long the loader is waited for.

    python benchmarks/training.py [--recipe digits-pixelcnn] [--steps 300] [--rounds 3]

Rounds of both are interleaved, each of them from fresh weights; the first fifth of a run is warm-up and not counted. Medians over all looks of all
rounds; quote the ratio, since absolute figures drift on a shared machine.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from genmodels.core import Trained
from genmodels.machine import equality_class
from genmodels.train import Training
from pipelines import cluster, journal
from pipelines import recipe as recipes
from pipelines.learning import fresh, numbers
from pipelines.prepare import prepare
from pipelines.recipe import Recipe
from pipelines.records import Shards
from pipelines.shards import Stream
from pipelines.train import train

LOOK = 10


def bare(recipe: Recipe, shards: Shards) -> list[float]:
    """Steps a second between looks, from batches that are in memory before the first step."""
    config = numbers(recipe.train)
    stream = Stream(shards, "train", seed=config.seed)
    batches = [stream.batch(step, config.batch_size) for step in range(config.steps)]
    model = fresh(recipe, shards)
    assert isinstance(model, Trained), "the loop that is timed descends"
    training = Training(model, config)
    speeds = []
    for until in range(LOOK, config.steps + 1, LOOK):
        begun = time.perf_counter()
        training.run(batches.__getitem__, until=until)
        speeds.append(LOOK / (time.perf_counter() - begun))
    return warm(speeds)


def through_ray(recipe: Recipe, shards: Shards, round_: int) -> tuple[list[float], list[float]]:
    """Steps a second and the loader's share of the time at each look, from the training's own log."""
    named = recipe.model_copy(update={"name": f"{recipe.name}-{round_}"})
    lines = [line for line in journal.read(train(named, shards).log) if line["event"] == "step"]
    return warm([line["steps_per_s"] for line in lines]), warm([line["loader_wait"] for line in lines])


def warm(values: list[float]) -> list[float]:
    return values[len(values) // 5 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--recipe", default="digits-pixelcnn")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole = asked.steps
        keys = {"steps": whole, "valid_every": whole, "checkpoint_every": whole, "valid_examples": 16}
        recipe = recipes.load(asked.recipe, [f"storage={Path(folder)}", *(f"train.{key}={value}" for key, value in keys.items())])
        shards = prepare(recipe)
        alone, ray, waits = [], [], []
        for round_ in range(asked.rounds):
            alone += bare(recipe, shards)
            speeds, waited = through_ray(recipe, shards, round_)
            ray, waits = ray + speeds, waits + waited
    cluster.shutdown()
    print(f"machine      {equality_class()}, {torch.get_num_threads()} of {os.cpu_count()} cores")
    print(f"recipe       {asked.recipe}: batches of {recipe.train.batch_size}, {asked.rounds} rounds of {asked.steps} steps")
    print(f"bare loop    {statistics.median(alone):8.2f} steps/s")
    print(f"Ray Train    {statistics.median(ray):8.2f} steps/s, {statistics.median(ray) / statistics.median(alone):.3f} of the bare loop")
    print(f"loader wait  {100 * statistics.median(waits):8.2f} % of a step (worst look {100 * max(waits):.2f} %)")


if __name__ == "__main__":
    main()
