"""A linear probe: how much of the labels a linear classifier reads out of a model's codes, beside the same classifier on the values themselves."""

import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from genmodels.core import Batch, Encodes, GenerativeModel
from genmodels.evaluate import Score
from pipelines import console
from pipelines.records import Shards
from pipelines.shards import examples

TRAIN, TEST = 10_000, 10_000
"""Examples of each split, at most."""

BATCH, STEPS = 256, 100

Columns = tuple[NDArray[np.float32], NDArray[np.int64]]
"""x (n, features) and their labels (n,)."""


def scores(model: GenerativeModel, shards: Shards, *, name: str, test: int | None = None) -> list[Score]:
    """Accuracies on the test split (or its first `test`) of probes on the model's codes and on the values.

    Empty where there are no labels to tell; and, which is said, where the model's codes are not to be had without the label: they would hold it.
    """
    if not isinstance(model, Encodes) or shards.event.classes < 2:
        return []
    try:
        model.features(next(examples(shards, "train", 1)).x)
    except ValueError as error:
        console.say(f"[yellow]no linear probe of {name}: its codes would hold the label ({error})[/yellow]")
        return []
    limits = {"train": TRAIN, "test": min(TEST, test or TEST)}
    ways: dict[str, Callable[[Batch], torch.Tensor]] = {
        name: lambda batch: model.features(batch.x).cpu(),
        "pixels" if shards.event.modality == "image" else "values": lambda batch: batch.x.flatten(1).float(),
    }
    found = (_score(who, {split: _read(shards, split, limit, way) for split, limit in limits.items()}, shards) for who, way in ways.items())
    return [score for score in found if score is not None]


def _read(shards: Shards, split: str, limit: int, way: Callable[[Batch], torch.Tensor]) -> Columns:
    """The labelled rows among the first of a split."""

    def rows() -> Iterator[Columns]:
        for batch in examples(shards, split, BATCH, limit=limit):
            assert batch.y is not None
            known = batch.y >= 0
            yield way(batch)[known].numpy(), batch.y[known].numpy()

    x, y = zip(*rows(), strict=True)
    return np.concatenate(x), np.concatenate(y)


def _score(who: str, splits: dict[str, Columns], shards: Shards) -> Score | None:
    """None where too little is labelled to learn from, or to be tried on."""
    (x, y), (_, tried) = splits["train"], splits["test"]
    if len(np.unique(y)) < 2 or not len(tried):
        return None
    right = np.equal(_predicted(x, y, splits["test"][0]), tried)
    accuracy = float(right.mean())
    what = f"linear probe of {x.shape[1]:,} {'values' if who in ('pixels', 'values') else 'features, the label not given'}"
    protocol = f"{what}: multinomial logistic regression on {len(y):,} labelled train examples, standardised"
    if len(tried) < shards.rows["test"]:
        protocol += f"; {len(tried):,} of {shards.rows['test']:,} test examples"
    error = math.sqrt(accuracy * (1 - accuracy) / len(tried))
    return Score(model=who, name="probe accuracy", value=accuracy, unit="", protocol=protocol, split="test", n=len(tried), stderr=error)


def _predicted(x: NDArray[np.float32], y: NDArray[np.int64], tried: NDArray[np.float32]) -> NDArray[np.int64]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # so many steps and no more: a bound on the time, not the optimum to the last digit
        classifier = LogisticRegression(max_iter=STEPS).fit((x - mean) / scale, y)
    return classifier.predict((tried - mean) / scale)
