"""What examples without a label are worth: M2 beside the same classifier on the labels alone, from few labels of MNIST.

    GENMODELS_DATA=... python -m benchmarks.semi_supervised [--labels 100 600 3000] [--seconds 120] [--out semi_supervised.json]

MNIST at 28x28 brought to two levels by rounding. Of the 60,000 training pictures the first of each class show their label, as many of each; M2
sees the others too, without. Both are the same nets from the same first weights with the same settings and 64 labelled pictures a step, beside
which M2's steps hold 64 others. (A labelled picture reaches q(y|x) by its alpha term alone, so a step of labelled pictures is one of the
classifier.) Each trains for `--seconds` of wall time, the labels alone for about 1,000 steps at most: what more of them teach is the labels by heart.
Scored on all 10,000 test pictures; the weights are the last ones' running mean, nothing is chosen by looking at them. One standard error is
sqrt(p (1 - p) / n).
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import datasets
from benchmarks.classification import CLASSES, chosen
from benchmarks.likelihood import Setting, descend
from genmodels import media
from genmodels.core import Batch
from genmodels.evaluate import accuracy
from genmodels.machine import equality_class
from genmodels.models.vae import VAE
from genmodels.zoo import build

CONFIG: dict[str, Any] = {
    "network": "dense",
    "hidden": 256,
    "layers": 2,
    "latent": 8,
    "likelihood": "bernoulli",
    "semi_supervised": True,
    "alpha": 300.0,
}
BATCH, STEPS = 64, 1000
"""Labelled pictures of a step, and steps at most of the classifier on them alone."""

SHEET = 40


def mixed(x: Tensor, y: Tensor, labelled: Tensor, *, others: bool) -> tuple[Tensor, Tensor]:
    """What is trained on: the labelled pictures again and again, one in two where others come between them -> x, y with -1 for no label."""
    if not others:
        return x[labelled], y[labelled]
    unseen = torch.ones(len(x), dtype=torch.bool)
    unseen[labelled] = False
    again = labelled[torch.arange(int(unseen.sum())) % len(labelled)]
    rows = torch.cat([again, unseen.nonzero()[:, 0]])
    return x[rows], torch.cat([y[again], torch.full((int(unseen.sum()),), -1)])


def learnt(data: datasets.Examples, labels: int, seconds: float, threads: int, *, others: bool) -> tuple[VAE, dict[str, Any]]:
    """A model trained on that many labels, with or without the other pictures, and how it went."""
    assert data.train_labels is not None and data.test_labels is not None
    x, y = mixed(data.train, data.train_labels, chosen(data.train_labels, labels), others=others)
    model = build("vae", data.event, seed=0, **CONFIG)
    assert isinstance(model, VAE)
    setting = Setting(CONFIG, batch=BATCH * (2 if others else 1), lr=3e-3, ema=0.995, precision="f32", warmup=50)
    seen, spent = descend(model, setting, x, seconds, threads, y=y, epochs=math.inf if others else STEPS * BATCH / len(x))
    test = Batch(x=data.test, y=data.test_labels, position=torch.arange(len(data.test)))
    score = accuracy(model, [test.rows(start, start + 1000) for start in range(0, len(test), 1000)], split="test", name="vae")
    assert score is not None
    error = 1 - score.value
    return model, {
        "model": "M2" if others else "its classifier alone",
        "labels": labels,
        "others": len(data.train) - labels if others else 0,
        "error": error,
        "stderr": math.sqrt(error * (1 - error) / score.n),
        "protocol": score.protocol,
        "n": score.n,
        "steps": seen // setting.batch,
        "seconds": round(spent, 1),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| labels | model | pictures without a label | test error, % | +- | protocol | n | steps | seconds |", "|---" * 9 + "|"]
    for row in rows:
        lines.append(
            f"| {row['labels']:,} | {row['model']} | {row['others']:,} | {100 * row['error']:.2f} | {100 * row['stderr']:.2f} | {row['protocol']} "
            f"| {row['n']:,} | {row['steps']:,} | {row['seconds']:g} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="*", type=int, default=[100, 600, 3000])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    data = datasets.read("mnist", levels=2)
    data = replace(data, event=replace(data.event, classes=CLASSES))
    rows: list[dict[str, Any]] = []
    for labels in asked.labels:
        for others in (False, True):
            model, row = learnt(data, labels, asked.seconds, asked.threads, others=others)
            rows.append(row)
            print(json.dumps(row), flush=True)
            if asked.out and others:
                keep(model, asked.out.with_name(f"{asked.out.stem}-{labels}.png"))
    print(table(rows))
    if asked.out:
        asked.out.write_text(json.dumps({"config": CONFIG, "machine": equality_class(), "rows": rows}, indent=2))


def keep(model: VAE, file: Path) -> None:
    """A sheet of samples, a column a class."""
    levels = model.sample(SHEET, seed=0, y=[i % CLASSES for i in range(SHEET)]).numpy()
    file.write_bytes(media.sheet(levels, model.event.levels, columns=CLASSES, scale=2))


if __name__ == "__main__":
    main()
