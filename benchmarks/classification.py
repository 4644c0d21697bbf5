"""Discriminative against generative: a linear SVM beside Bayes' rule, p(y|x) ~ p(x|y) p(y), from every class-conditional density of the zoo.

    GENMODELS_DATA=... python -m benchmarks.classification [--families mixture made] [--seconds 30] [--levels 2] [--out classification.json]

MNIST at 28x28, learnt from all 60,000 labels and from 10, 100 and 1,000 of them (as many of each class; the other pictures are not seen at all).
A family trains for `--seconds` of wall time, half of them with all labels and a sixth with each smaller set, there for at most 100 epochs; its
settings are those of benchmarks.likelihood, but for smaller batches there. Scored on the test pictures in their order, until `--scoring` seconds are
over or all 10,000 are done: n says how many, and what a difference is worth: one standard error is sqrt(p (1 - p) / n). The SVM (scikit-learn's
LinearSVC, its C set once and not searched) sees the same pictures and scores all 10,000.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.svm import LinearSVC
from torch import Tensor

from benchmarks import datasets
from benchmarks.likelihood import descend, iterate
from benchmarks.settings import BINARY, LEVELS, Setting
from genmodels.core import ByBayes, Classifies, Event, Iterated
from genmodels.machine import equality_class
from genmodels.zoo import MODELS, build

CLASSES = 10
LABELS = (10, 100, 1000)
EPOCHS = 100
"""Passes over a small set at most: what more of them teach is the set by heart."""
SMALL: dict[str, Any] = {"warmup": 10, "ema": 0.98}
SMALL_BATCH = 32
"""Other settings of a small set, where 100 epochs are a hundred steps or a few thousand."""
TOGETHER = 20
"""Pictures scored at once, under every label."""


def chosen(y: Tensor, count: int) -> Tensor:
    """(count,) int64: the first pictures of every class, as many of each."""
    return torch.cat([(y == label).nonzero()[: count // CLASSES, 0] for label in range(CLASSES)]).sort().values


def svm(data: datasets.Examples, rows: Tensor) -> dict[str, Any]:
    assert data.train_labels is not None and data.test_labels is not None
    begun = time.perf_counter()
    model = LinearSVC(C=0.01, dual="auto", tol=1e-3, max_iter=2000)
    model.fit(_unit(data.train[rows], data.event).numpy(), data.train_labels[rows].numpy())
    right = np.asarray(model.predict(_unit(data.test, data.event).numpy()) == data.test_labels.numpy())
    return {"accuracy": round(float(right.mean()), 4), "n": len(right), "seconds": round(time.perf_counter() - begun, 1)}


def _unit(x: Tensor, event: Event) -> Tensor:
    return x.flatten(1).float() / (event.levels - 1)


def bayes(family: str, data: datasets.Examples, rows: Tensor, seconds: float, scoring: float, threads: int) -> dict[str, Any]:
    """One family learnt from some of the labels."""
    assert data.train_labels is not None and data.test_labels is not None
    x, y = data.train[rows], data.train_labels[rows]
    setting = (BINARY if data.event.levels == 2 else LEVELS).get(family, Setting({}))
    if len(rows) <= max(LABELS):
        setting = replace(setting, **SMALL, batch=min(setting.batch, SMALL_BATCH, len(rows)))
    model = build(family, data.event, seed=0, **setting.config)
    assert isinstance(model, Classifies)
    model.class_frequencies.copy_(torch.bincount(y, minlength=CLASSES) / len(y))
    epochs = EPOCHS if len(rows) <= max(LABELS) else float("inf")
    learn = iterate if isinstance(model, Iterated) else descend
    _, spent = learn(model, setting, x, seconds, threads, y=y, epochs=epochs)
    right = _scored(model.eval(), data.test, data.test_labels, scoring)
    return {"accuracy": round(float(right.float().mean()), 4), "n": len(right), "seconds": round(spent, 1)}


@torch.no_grad()
def _scored(model: Classifies, x: Tensor, y: Tensor, seconds: float) -> Tensor:
    """(n,) bool: whether each of the pictures that the time allows was labelled rightly."""
    right, begun = [], time.perf_counter()
    for start in range(0, len(x), TOGETHER):
        found = model.classify(x[start : start + TOGETHER]).argmax(1)
        right.append(found == y[start : start + TOGETHER])
        if time.perf_counter() - begun > seconds:
            break
    return torch.cat(right)


def table(rows: Sequence[dict[str, Any]], total: int) -> str:
    """Markdown: accuracy in percent (n scored; seconds of training), a column a number of labels, the best with all labels first."""
    sizes = [*LABELS, total]
    names = list(dict.fromkeys(row["model"] for row in rows))
    cells = {(row["model"], row["labels"]): row for row in rows}
    lines = ["| model | " + " | ".join(f"{size:,} labels" for size in sizes) + " |", "|---" * (1 + len(sizes)) + "|"]
    for name in sorted(names, key=lambda name: -cells[name, total]["accuracy"]):
        found = [cells[name, size] for size in sizes]
        texts = [f"{100 * each['accuracy']:.1f} (n {each['n']:,}; {each['seconds']:g} s)" for each in found]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", default=[name for name, kind in MODELS.items() if _fits(kind)])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--scoring", type=float, default=8)
    parser.add_argument("--levels", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    data = datasets.read("mnist", levels=asked.levels)
    data = replace(data, event=replace(data.event, classes=CLASSES))
    assert data.train_labels is not None
    total, rows = len(data.train), []
    for size in (*LABELS, total):
        picked = chosen(data.train_labels, size) if size < total else torch.arange(total)
        rows.append({"model": "linear SVM", "labels": size, **svm(data, picked)})
        print(json.dumps(rows[-1]), flush=True)
        for family in asked.families:
            seconds = asked.seconds / (2 if size == total else 2 * len(LABELS))
            rows.append({"model": family, "labels": size, **bayes(family, data, picked, seconds, asked.scoring, asked.threads)})
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows, total))
    if asked.out:
        about = {"levels": asked.levels, "seconds": asked.seconds, "machine": equality_class(precision="bf16")}
        asked.out.write_text(json.dumps({**about, "rows": rows}, indent=2))


def _fits(kind: type[Any]) -> bool:
    return issubclass(kind, ByBayes) and "image" in kind.modalities


if __name__ == "__main__":
    main()
