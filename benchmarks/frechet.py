"""GANs by the Frechet distance of their samples to the test split: one table a set, each model with the same time.

    GENMODELS_DATA=... python -m benchmarks.frechet [--set mnist] [--games "hinge, spectral" wgan-gp] [--seconds 180] [--out results/]
    GENMODELS_DATA=... python -m benchmarks.frechet --set mnist --models FOLDER...

The feature space is the last hidden layer of a small classifier of the same training set (pipelines.features): its hash and accuracy stand above the
table, and the distance is never called FID. Samples have the labels of the test examples. Among the models stand two rows of data: as many training
examples, which is what a perfect model would score, and pixels drawn independently of each other, which have no shape at all. Estimates are biased
upwards for few examples: the second table has the distance between disjoint parts of the training split by their size. One run a figure. --out keeps
each result as JSON, the model as an artifact and a sheet of its samples; a game whose JSON is there already is read, not run again.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.waiting import loaded
from genmodels import artifact, load
from genmodels.core import Event, GenerativeModel, Trained
from genmodels.evaluate import evaluating, frechet
from genmodels.evaluate.histogram import histograms
from genmodels.machine import equality_class
from genmodels.train import TrainConfig, Training
from genmodels.zoo import build
from pipelines import cluster, sheet
from pipelines.features import Classifier, classifier
from pipelines.prepare import prepare
from pipelines.records import Shards
from pipelines.shards import Stream, examples

RECIPES = {"mnist": "mnist-pixelcnn", "fashion_mnist": "fashion-gan"}
"""A shipped recipe that prepares the set at 28x28 and 256 levels."""
SIZES = (250, 500, 1000, 2500, 5000, 10000)
TOGETHER = 500
"""Examples drawn or read at once."""


@dataclass(frozen=True)
class Game:
    """Settings of the family, and of its training where they differ from the defaults here."""

    config: Mapping[str, Any]
    objectives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    batch: int = 32


GAMES: dict[str, Game] = {
    "non-saturating, R1": Game({"hidden": 16}),
    "minimax, R1": Game({"hidden": 16, "loss": "minimax"}),
    "hinge, spectral, projection": Game({"hidden": 16, "loss": "hinge", "spectral": True, "conditioning": "projection"}),
    "wgan-gp": Game({"hidden": 16, "loss": "wgan-gp", "critic_steps": 3}),
}


def learn(model: Trained, game: Game, shards: Shards, seconds: float, threads: int) -> int:
    """Trains a model for that long and leaves it the running mean of its weights -> steps."""
    stream = Stream(shards, seed=0)
    config = TrainConfig(steps=10**6, batch_size=game.batch, ema=0.999, objectives=game.objectives, threads=threads)
    training = Training(model, config)
    begun, chunk = time.perf_counter(), 1
    while (spent := time.perf_counter() - begun) < seconds:
        training.run(lambda step: stream.batch(step, game.batch), until=training.step + chunk)
        chunk = max(1, int(training.step / (spent + 1)))
    with training.averaged():
        mean = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(mean)
    return training.step


def read(shards: Shards, split: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n examples of a split, in the order of their hashes, and their labels."""
    batches, rows = [], 0
    for batch in examples(shards, split, TOGETHER):
        batches.append(batch)
        rows += len(batch)
        if rows >= n:
            break
    x, y = (torch.cat([getattr(batch, name) for batch in batches])[:n] for name in ("x", "y"))
    return x, y


def drawn(model: GenerativeModel, y: Tensor) -> Tensor:
    """One sample a label, of seed 0."""
    with evaluating(model):
        parts = [model.sample(len(part), seed=0, y=part, first=i * TOGETHER) for i, part in enumerate(y.split(TOGETHER))]
    return torch.cat(parts).cpu()


def measure(name: str, shards: Shards, space: Classifier, real: tuple[Tensor, Tensor], asked: argparse.Namespace) -> dict[str, Any]:
    """Trains and scores one game."""
    game = GAMES[name]
    model = build("gan", shards.event, seed=0, **game.config)
    assert isinstance(model, Trained)
    begun = time.perf_counter()
    steps = learn(model, game, shards, asked.seconds, asked.threads)
    spent = time.perf_counter() - begun
    if asked.out:
        artifact.save(model, asked.out / asked.set / slug(name), family="gan", prepare=shards.prepare, labels=shards.labels)
    row = {"model": name, "seconds": round(spent, 1), "steps": steps, **scored(model, space, real)}
    if asked.out:
        keep(model, row, shards.event, asked.out / asked.set)
    return row


def scored(model: GenerativeModel, space: Classifier, real: tuple[Tensor, Tensor]) -> dict[str, Any]:
    fake = space(drawn(model, real[1]))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"distance": frechet(space(real[0]), fake), "n_real": len(real[0]), "n_fake": len(fake), "parameters": parameters}


def keep(model: GenerativeModel, row: Mapping[str, Any], event: Event, place: Path) -> None:
    """The figures, beside the model's folder, and a sheet with a row of samples a label."""
    name = slug(row["model"])
    labels, columns = sheet.layout(event, 10 * event.classes)
    levels = model.sample(len(labels or ()), seed=0, y=labels).numpy()
    (place / f"{name}.png").write_bytes(sheet.pictures(levels, event, columns, scale=2))
    (place / f"{name}.json").write_text(json.dumps({**row, "machine": equality_class()}, indent=2))


def slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def references(shards: Shards, space: Classifier, real: Tensor) -> list[dict[str, Any]]:
    """What data itself comes to: training examples (the floor), and pixels drawn independently of each other (no shape at all)."""
    train = space(read(shards, "train", len(real))[0])
    pixels = histograms(shards.event, examples(shards, "train", TOGETHER))[0]
    noise = space(pixels.sample(len(real), seed=0))
    rows = (("training examples", train), ("independent pixels", noise))
    return [{"model": name, "distance": frechet(space(real), each), "n_real": len(real), "n_fake": len(each)} for name, each in rows]


def bias(shards: Shards, space: Classifier) -> list[tuple[int, float]]:
    """(n, distance of n training examples to n others), for growing n."""
    features = space(read(shards, "train", 2 * SIZES[-1])[0])
    return [(n, frechet(features[:n], features[n : 2 * n])) for n in SIZES if 2 * n <= len(features)]


def table(rows: list[dict[str, Any]], sizes: list[tuple[int, float]], name: str, space: Classifier) -> str:
    """Markdown: the space, the models from the nearest, and what the distance of data to itself comes to by n."""
    lines = [
        f"Frechet distance in {space.title}",
        "",
        f"| {name} | distance | n_real | n_fake | parameters | seconds | steps |",
        "|---" * 7 + "|",
    ]
    for row in sorted(rows, key=lambda row: row["distance"]):
        counts = " | ".join(f"{row[key]:,}" if key in row else "" for key in ("n_real", "n_fake", "parameters", "seconds", "steps"))
        lines.append(f"| {row['model']} | {row['distance']:.2f} | {counts} |")
    lines += [
        "",
        "| n training examples against n others | " + " | ".join(f"{n:,}" for n, _ in sizes) + " |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    return "\n".join([*lines, "| distance | " + " | ".join(f"{value:.3f}" for _, value in sizes) + " |"])


def prepared(name: str, storage: Path) -> tuple[Shards, Classifier]:
    """A set's Shards and its classifier, made where they are not there yet."""
    recipe = loaded(RECIPES[name], storage)
    if recipe is None:
        raise SystemExit(f"no {name}; set GENMODELS_DATA to the folder that holds it")
    shards = prepare(recipe)
    cluster.shutdown()
    space = classifier(recipe.root, shards)
    assert space is not None
    return shards, space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="mnist", choices=RECIPES)
    parser.add_argument("--games", nargs="*", default=list(GAMES), choices=GAMES)
    parser.add_argument("--models", nargs="*", default=[], help="folders of models of this set, scored in place of trainings")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=10000, help="test examples, and samples")
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    shards, space = prepared(asked.set, asked.storage)
    torch.set_num_threads(asked.threads)
    real = read(shards, "test", asked.n)
    rows = references(shards, space, real[0])
    for folder in asked.models:
        rows.append({"model": str(folder), **scored(load(folder), space, real)})
    for name in () if asked.models else asked.games:
        done = asked.out / asked.set / f"{slug(name)}.json" if asked.out else None
        rows.append(json.loads(done.read_text()) if done and done.exists() else measure(name, shards, space, real, asked))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows, bias(shards, space), asked.set, space))


if __name__ == "__main__":
    main()
