"""Every family of the zoo that has a likelihood, a bound or an estimate of one, on the same pictures with the same budget: one table.

    GENMODELS_DATA=... python -m benchmarks.likelihood [--set binarized_mnist] [--families made fvbn] [--seconds 120] [--iwae 500] [--out results/]

Each family trains for exactly `--seconds` on `--threads` threads from its first weights (the learning rate's cosine ends when the time does; looking
at data, building the model and scoring are not counted), then scores X[::5] of the test split (2,000 pictures at most; the published test file of
the static binarization is sorted by digit) and as many training pictures. One run a figure: quote differences above a nat, not below. --out keeps
each result as JSON, the model as an artifact and a sheet of samples; a family whose JSON is there already is read, not run again.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import datasets
from benchmarks.settings import BINARY, LEVELS, SOUND, Setting
from genmodels import artifact, media
from genmodels.core import Autoregressive, Batch, Bounded, Energy, Event, GenerativeModel, Iterated
from genmodels.descent import Precision
from genmodels.evaluate import Likelihoods, likelihoods
from genmodels.iterate import Iteration
from genmodels.machine import equality_class
from genmodels.noise import permuted
from genmodels.train import Schedule, TrainConfig, Training
from genmodels.zoo import MODELS, build
from pipelines import sheet

SCORED = 2000
SHEET = 32


def batches_of(x: Tensor, size: int, seed: int, y: Tensor | None = None) -> Callable[[int], Batch]:
    """Step -> batch: epochs of the whole set, each in an order of its own."""
    orders: dict[int, Tensor] = {}

    def read(step: int) -> Batch:
        positions = torch.arange(step * size, (step + 1) * size)
        epochs = positions // len(x)
        for epoch in set(epochs.tolist()) - set(orders):
            orders[epoch] = permuted(len(x), seed=seed + epoch)
        rows = torch.stack([orders[epoch][place] for epoch, place in zip(epochs.tolist(), (positions % len(x)).tolist(), strict=True)])
        return Batch(x=x[rows], y=None if y is None else y[rows], position=positions, step=step)

    return read


def descend(
    model: Any, setting: Setting, x: Tensor, seconds: float, threads: int, *, y: Tensor | None = None, epochs: float = math.inf
) -> tuple[int, float]:
    """Trains a model for that long, or that many epochs -> (examples seen, seconds). The schedule's length is estimated anew as time goes by."""
    config = TrainConfig(
        steps=10**6,
        batch_size=setting.batch,
        lr=setting.lr,
        ema=setting.ema,
        precision=precision_here(setting.precision),
        schedule=Schedule(warmup=setting.warmup, decay="cosine"),
        objectives={objective.name: {"weight_decay": setting.weight_decay} for objective in model.objectives()},
        threads=threads,
    )
    read = batches_of(x, setting.batch, config.seed, y)
    last = epochs * len(x) / setting.batch
    training = Training(model, config)
    begun, chunk = time.perf_counter(), 1
    while (spent := time.perf_counter() - begun) < seconds and training.step < last:
        if training.step > 2:
            pace = spent / training.step
            training.config = replace(config, steps=max(training.step + 1, int(min(seconds / pace, last))))
            chunk = max(1, min(int(1.0 / pace), int((seconds - spent) / pace)))
        training.run(read, until=training.step + chunk)
    with training.averaged():
        mean = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(mean)
    return training.step * setting.batch, spent


def precision_here(wanted: str) -> Precision:
    """bf16 where this machine computes it, else f32: the figure then is this machine's."""
    able = any(present is True for name, present in torch.cpu.get_capabilities().items() if "bf16" in name)
    return "bf16" if wanted == "bf16" and able else "f32"


def iterate(
    model: Any, setting: Setting, x: Tensor, seconds: float, threads: int, *, y: Tensor | None = None, epochs: float = math.inf
) -> tuple[int, float]:
    """Passes over the data until the model says it has converged or the time is over -> (examples seen, seconds)."""
    torch.set_num_threads(threads)
    iteration = Iteration(model, TrainConfig(steps=10**6, batch_size=512, threads=threads))
    whole = Batch(x=x, y=y, position=torch.arange(len(x)))
    parts = [whole.rows(start, min(start + 512, len(x))) for start in range(0, len(x), 512)]
    begun = time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds and not model.converged and iteration.step < epochs:
        iteration.run(lambda _: iter(parts), until=iteration.step + 1)
    return iteration.step * len(x), spent


def measure(family: str, data: datasets.Examples, seconds: float, threads: int, iwae: int, out: Path | None) -> dict[str, Any]:
    """Trains and scores one family, a row of the table."""
    settings = SOUND if data.event.modality == "audio" else BINARY if data.event.levels == 2 else LEVELS
    setting = settings.get(family, Setting({}))
    model = build(setting.family or family, data.event, seed=0, **setting.config)
    learn = iterate if isinstance(model, Iterated) else descend
    seen, spent = learn(model, setting, data.train, seconds, threads)
    test, train = (scored(model, x, iwae) for x in (data.test[::5][:SCORED], data.train[:SCORED]))
    result = {
        "family": family,
        "set": data.name,
        "levels": data.event.levels,
        "dims": data.event.dims,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(spent, 1),
        "images_per_s": round(seen / spent),
        "test_nats": -test.nats.mean().item(),
        "test_stderr": (test.nats.std() / math.sqrt(len(test.nats))).item(),
        "train_nats": -train.nats.mean().item(),
        "protocol": test.protocol,
        "config": dict(setting.config),
        "batch": setting.batch,
        "machine": equality_class(precision=precision_here(setting.precision)),
    }
    if out:
        keep(model, family, setting.family or family, data, result, out)
    return result


def scored(model: GenerativeModel, x: Tensor, iwae: int) -> Likelihoods:
    """Each picture once: exact, by the bound of `iwae` draws, or by an energy and an estimate of log Z, as the protocol says."""
    batches = (Batch(x=part, position=torch.arange(i * 50, i * 50 + len(part))) for i, part in enumerate(x.split(50)))
    return likelihoods([model], batches, iwae=iwae)[0]


def keep(model: GenerativeModel, row: str, family: str, data: datasets.Examples, result: Mapping[str, Any], out: Path) -> None:
    """The model's folder, a sheet of its samples and the figures."""
    place = out / data.name
    place.mkdir(parents=True, exist_ok=True)
    artifact.save(model, place / row, family=family, prepare=settings_of(data.event), labels=())
    torch.set_num_threads(1)
    if data.event.modality == "image":
        levels = model.sample(SHEET, seed=0).numpy()
        (place / f"{row}.png").write_bytes(media.sheet(levels, data.event.levels, columns=8, scale=2))
    else:
        levels = model.sample(4, seed=0).numpy()
        (place / f"{row}.png").write_bytes(sheet.sounds(levels, data.event, [family] * len(levels)))
        (place / f"{row}.wav").write_bytes(sheet.wav(sheet.joined(levels, data.event), data.event))
    (place / f"{row}.json").write_text(json.dumps(result, indent=2))


def settings_of(event: Event) -> dict[str, Any]:
    """How a file becomes such an event: what genmodels.media takes."""
    if event.modality == "audio":
        return datasets.SOUND
    _, height, width = event.shape
    return {"modality": "image", "height": height, "width": width, "channels": 1, "levels": event.levels, "fit": "crop"}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, exact ones first, then bounds and estimates, which have a column of their own; nats where the pictures are binary, bits/dim where
    they have more levels."""
    binary = rows[0]["levels"] == 2
    unit = "nats" if binary else "bits/dim"

    def figure(nats: float) -> str:
        return f"{nats:.2f}" if binary else f"{nats / math.log(2) / rows[0]['dims']:.3f}"

    lines = [
        f"| {rows[0]['set']} | test {unit}, exact | bounded or estimated | +- | train {unit} | protocol | parameters | seconds | images/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (not _exact(row), row["test_nats"])):
        columns = [figure(row["test_nats"]), ""] if _exact(row) else ["", figure(row["test_nats"])]
        lines.append(
            f"| {row['family']} | {' | '.join(columns)} | {figure(row['test_stderr'])} | {figure(row['train_nats'])} | {row['protocol']} "
            f"| {row['parameters']:,} | {row['seconds']:g} | {row['images_per_s']:,} |"
        )
    return "\n".join(lines)


def _exact(row: Mapping[str, Any]) -> bool:
    return row["protocol"].startswith("exact")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="binarized_mnist", choices=datasets.SETS)
    parser.add_argument("--families", nargs="*", help="all that model such data where left out")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iwae", type=int, default=500, help="k of the bound of families that have bounds")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    data = datasets.read(asked.set)
    rows = []
    for family in asked.families or _rows(data.event):
        done = asked.out / data.name / f"{family}.json" if asked.out else None
        if done and done.exists():
            rows.append(json.loads(done.read_text()))
            continue
        try:
            rows.append(measure(family, data, asked.seconds, asked.threads, asked.iwae, asked.out))
            print(json.dumps(rows[-1]), flush=True)
        except ValueError as error:
            print(f"{family}: {error}", flush=True)
    print(table(rows))


def _rows(event: Event) -> list[str]:
    """The families that have something to say of such an event, and the settings beside them that are rows of their own."""
    able = [
        name for name, kind in MODELS.items() if issubclass(kind, Autoregressive | Bounded | Energy) and event.modality in kind.modalities
    ]
    return able + [name for name, setting in BINARY.items() if setting.family in able and event.levels == 2]


if __name__ == "__main__":
    main()
