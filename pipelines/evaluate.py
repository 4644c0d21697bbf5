"""From a checkpoint to its scores, its samples and the model folder that carries both."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from genmodels import artifact
from genmodels import evaluate as scoring
from genmodels.core import BLOCK, Batch, Encodes, GenerativeModel
from genmodels.evaluate import Score
from genmodels.evaluate.gaussian import baselines
from genmodels.zoo import MODELS
from pipelines import card, cluster, conditions, console, features, latents, marginals, probe, sheet
from pipelines.fingerprint import fingerprint, libraries
from pipelines.memory import Neighbours, nearest
from pipelines.recipe import Recipe
from pipelines.records import Checkpoint, Output, Scores, Shards, to_json
from pipelines.shards import examples, manifest
from pipelines.storage import exists, join, local, read_json, upload, write_bytes, write_json

VERSION = 2
MARKER = "scores.json"
PAIRS = 10
"""Samples shown beside their nearest training examples."""

Watch = Callable[[Iterable[Batch], str, int], Iterator[Batch]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one pass over a model found: its scores, samples (n, *shape) levels with their labels, and where they lie nearest the training set."""

    scores: list[Score]
    samples: np.ndarray
    labels: list[int] | None
    columns: int
    neighbours: Neighbours
    data: np.ndarray
    """(m, *shape) levels of the test split's first examples, as many as samples."""


def output(recipe: Recipe, checkpoint: Checkpoint, shards: Shards) -> Output:
    used = ["torch", "numpy", "matplotlib", *(["scikit-learn"] if issubclass(MODELS[recipe.model.family], Encodes) else [])]
    name = fingerprint("evaluate", VERSION, recipe.evaluate.model_dump(), checkpoint.digest, shards.fingerprint, libraries(*used))
    uri = join(recipe.root, "scores", f"{recipe.name}-{name}")
    return Output(fingerprint=name, uri=uri, done=exists(join(uri, MARKER)))


def evaluate(recipe: Recipe, checkpoint: Checkpoint, shards: Shards) -> Scores:
    """Scores the test split, and the valid split for the gate; draws samples; writes the model folder that is registered and served."""
    out = output(recipe, checkpoint, shards)
    if out.done:
        console.done("evaluate", out.uri)
        return read(out.uri)
    with console.stage("evaluate", unit="examples") as bar:
        measured = _measure(recipe, checkpoint, shards, bar)
        return _publish(recipe, checkpoint, shards, out, measured)


def read(uri: str) -> Scores:
    """The record of a finished evaluation."""
    value = read_json(join(uri, MARKER))
    return Scores(**{**value, "scores": tuple(Score(**score) for score in value["scores"])})


def _measure(recipe: Recipe, checkpoint: Checkpoint, shards: Shards, bar: console.Bar) -> Measured:
    """In this process, or on one of the cluster's GPUs where the recipe trains on them."""
    gpus = min(1.0, recipe.train.gpus_per_worker)
    if not gpus:
        return measure(recipe, checkpoint, shards, device="cpu", bar=bar)
    ray = cluster.connect()
    cluster.need(gpus=gpus, what="evaluate")
    bar.to(0, note="on a GPU")
    return ray.get(ray.remote(num_gpus=gpus)(measure).remote(recipe, checkpoint, shards, device="cuda"))


def measure(recipe: Recipe, checkpoint: Checkpoint, shards: Shards, *, device: str, bar: console.Bar | None = None) -> Measured:
    """Everything that needs the model itself, on one device, with the recipe's number of threads."""
    settings = recipe.evaluate
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.train.threads)
    try:
        with local(checkpoint.uri) as folder:
            model = artifact.load(folder, device=device)
        watch = _watcher(bar)
        labels, columns = sheet.layout(shards.event, settings.samples)
        samples = _draw(model, shards, len(labels) if labels else settings.samples, settings.seed, labels, bar)
        scores = _likelihoods(recipe, model, shards, watch) if scoring.has_likelihood(model) else _distances(recipe, model, shards, bar)
        scores += latents.scores(model, shards, name=recipe.model.family, limit=settings.max_examples)
        scores += probe.scores(model, shards, name=recipe.model.family, test=settings.max_examples)
        train = watch(examples(shards, "train", 1024), "nearest neighbours", shards.rows["train"])
        test = next(examples(shards, "test", len(samples), limit=len(samples)))
        found = _neighbours(recipe.model.family, samples, test, train, shards)
        data, scores = test.x.numpy(), scores + found.scores
        return Measured(scores=scores, samples=samples, labels=labels, columns=columns, neighbours=found, data=data)
    finally:
        torch.set_num_threads(threads)


def _neighbours(family: str, samples: np.ndarray, test: Batch, train: Iterable[Batch], shards: Shards) -> Neighbours:
    """A target given its features says nothing by lying near another's, so there such a table has none."""
    if shards.event.modality != "table":
        return nearest(family, samples, test, train, shards.event, pairs=PAIRS)
    if shards.event.condition is not None:
        return Neighbours(scores=[], samples=[], examples=samples[:0])
    columns = manifest(shards)["splits"]["train"]["columns"]
    spread = [columns[name]["std"] or 1.0 for name in shards.prepare["features"]]
    return nearest(family, samples, test, train, shards.event, pairs=PAIRS, spread=spread)


def _likelihoods(recipe: Recipe, model: GenerativeModel, shards: Shards, watch: Watch) -> list[Score]:
    """Bits/dim on test beside the baselines on the same examples; then on valid, for the gate."""
    settings, name = recipe.evaluate, recipe.model.family
    beaten = baselines(shards.event, watch(examples(shards, "train", 1024), "baselines", shards.rows["train"]))
    batches = watch(examples(shards, "test", settings.batch_size, limit=settings.max_examples), "test", _rows(recipe, shards))
    scores = scoring.evaluate(model, batches, split="test", iwae=settings.iwae, seed=settings.seed, name=name, baselines=beaten)
    return [*(_limited(score, shards) for score in scores), *validate(recipe, model, shards, watch=watch)]


def _distances(recipe: Recipe, model: GenerativeModel, shards: Shards, bar: console.Bar | None) -> list[Score]:
    """For a model without a likelihood: Frechet distances to test, and how near as many training examples come; then the valid one for the gate."""
    settings, name, watch = recipe.evaluate, recipe.model.family, _watcher(bar)
    net = features.classifier(recipe.root, shards, lambda done, total: bar.to(done, total=total, note="classifier") if bar else None)
    spaces = [space for space in (_components(recipe, shards), net) if space is not None]
    drawn = torch.from_numpy(_draw(model, shards, settings.generated, settings.seed, None, bar))
    test = _values(watch(examples(shards, "test", 1024, limit=settings.max_examples), "test", _rows(recipe, shards)))
    train = _values(examples(shards, "train", 1024, limit=settings.generated))
    scores = []
    for space in spaces:
        real = space(test)
        scores += [
            _limited(scoring.frechet_score(real, space(fake), model=who, space=space.title, split="test"), shards)
            for who, fake in ((name, drawn), ("training examples", train))
        ]
    if net:
        protocol = f"features' own classifier {net.digest}, trained on train"
        scores.append(Score(model="classifier", name="accuracy", value=net.accuracy, unit="", protocol=protocol, split="test", n=net.n))
    return [*scores, *validate(recipe, model, shards, watch=watch)]


def validate(recipe: Recipe, model: GenerativeModel, shards: Shards, *, watch: Watch | None = None) -> list[Score]:
    """The one number of the gate, on the valid split or as much of it as of the test split (a list, empty where the model has none there)."""
    settings = recipe.evaluate
    if not shards.rows.get("valid"):
        return []
    rows = min(shards.rows["valid"], settings.max_examples or shards.rows["valid"])
    batches = (watch or _watcher(None))(examples(shards, "valid", settings.batch_size, limit=rows), "valid", rows)
    space = None if scoring.has_likelihood(model) else _components(recipe, shards)
    score = scoring.validation(model, batches, seed=settings.seed, features=space, iwae=settings.iwae, name=recipe.model.family)
    return [] if score is None else [score]


def _components(recipe: Recipe, shards: Shards) -> scoring.Features | None:
    try:
        return features.components(recipe.root, shards)
    except ValueError as error:
        console.say(f"[yellow]no Frechet distance in principal components: {error}[/yellow]")
        return None


def _draw(model: GenerativeModel, shards: Shards, n: int, seed: int, labels: list[int] | None, bar: console.Bar | None) -> np.ndarray:
    """Samples 0..n-1 of a seed, some blocks at a time so that progress shows; the bytes do not depend on the grouping."""
    parts, (y, c) = [], conditions.asked(model, shards, "test", n, labels)
    for first in range(0, n, 4 * BLOCK):
        rows = slice(first, min(n, first + 4 * BLOCK))
        stop, given = rows.stop, None if c is None else c[rows]
        parts.append(model.sample(stop - first, seed=seed, y=y[rows] if y else None, c=given, first=first).cpu())
        if bar:
            bar.to(stop, total=n, note="samples")
    return torch.cat(parts).numpy()


def _rows(recipe: Recipe, shards: Shards) -> int:
    return min(shards.rows["test"], recipe.evaluate.max_examples or shards.rows["test"])


def _values(batches: Iterable[Batch]) -> torch.Tensor:
    return torch.cat([batch.x for batch in batches])


def _limited(score: Score, shards: Shards) -> Score:
    """Says so where not the whole split was scored."""
    rows = shards.rows[score.split]
    return score if score.n == rows else replace(score, protocol=f"{score.protocol}, the first {score.n} of {rows} in hash order")


def _watcher(bar: console.Bar | None) -> Watch:
    """Passes batches on and moves the bar by them."""

    def watch(batches: Iterable[Batch], note: str, total: int) -> Iterator[Batch]:
        seen = 0
        for batch in batches:
            yield batch
            seen += len(batch)
            if bar:
                bar.to(seen, total=total, note=note)

    return watch


def _publish(recipe: Recipe, checkpoint: Checkpoint, shards: Shards, out: Output, measured: Measured) -> Scores:
    """The model folder first, then the pictures, last the record whose presence means complete."""
    kind = "samples.png" if shards.event.modality != "audio" else "samples.wav"
    scores = Scores(
        uri=out.uri,
        fingerprint=out.fingerprint,
        scores=tuple(measured.scores),
        samples=join(out.uri, kind),
        artifact=join(recipe.root, "models", f"{recipe.name}-{out.fingerprint}"),
        digest="",
        shards=shards.uri,
    )
    pictures = _pictures(measured, shards)
    with tempfile.TemporaryDirectory() as temporary, local(checkpoint.uri) as trained:
        folder = Path(shutil.copytree(trained, Path(temporary) / "model"))
        digest = artifact.annotate(
            folder,
            scores=[to_json(score) for score in measured.scores],
            lineage={"evaluation": out.fingerprint, "trained": checkpoint.digest},
        )
        scores = replace(scores, digest=digest)
        for name in (kind, "samples.png"):
            (folder / name).write_bytes(pictures[name])
        (folder / "README.md").write_text(card.text(recipe, artifact.read(folder), scores.scores))
        upload(folder, scores.artifact)
    for name, content in pictures.items():
        write_bytes(join(out.uri, name), content)
    write_json(join(out.uri, MARKER), to_json(scores))
    return scores


def _pictures(measured: Measured, shards: Shards) -> dict[str, bytes]:
    """File name -> content: the samples, and the nearest training examples of those that lie nearest."""
    event, names = shards.event, shards.labels
    if event.modality == "table":
        return {"samples.png": marginals.figure(measured.samples, measured.data, shards.prepare)}
    if event.modality == "audio":
        titles = [names[label] for label in measured.labels] if names and measured.labels else []
        whole = sheet.joined(measured.samples, event)
        return {"samples.wav": sheet.wav(whole, event), "samples.png": sheet.sounds(measured.samples, event, titles)}
    found = measured.neighbours
    pairs = np.concatenate([measured.samples[found.samples], found.examples])
    rows = sheet.row_names(measured.labels, measured.columns, names)
    return {
        "samples.png": sheet.pictures(measured.samples, event, measured.columns, names=rows),
        "neighbours.png": sheet.pictures(pairs, event, len(found.samples), names=["sample", "nearest"]),
    }
