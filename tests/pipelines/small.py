"""Small finished inputs of the later stages, made without Ray: the digits as Shards, and a trained-looking checkpoint with its log."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

from genmodels import artifact, media
from genmodels.core import Event
from genmodels.zoo import MODELS, build
from pipelines import recipe as recipes
from pipelines.recipe import Recipe
from pipelines.records import Checkpoint, Shards
from pipelines.shards import open_shards, schema

LABELS = tuple("0123456789")
PREPARE = {"modality": "image", "height": 8, "width": 8, "channels": 1, "levels": 17, "fit": "crop"}

PICTURES = {"source": "digits", "image": {"height": 8, "width": 8, "levels": 17}}
SOUNDS = {"source": "tones", "audio": {"sample_rate": 4000, "seconds": 0.1}}


def recipe(root: Path, *changes: str, name: str = "small", family: str = "gated_pixelcnn", **model: Any) -> Recipe:
    values = {
        "name": name,
        "storage": str(root),
        "data": PICTURES if "image" in MODELS[family].modalities else SOUNDS,
        "model": {"family": family, **model},
        "train": {"steps": 4},
        "evaluate": {"samples": 20, "generated": 32},
    }
    return recipes.check(recipes.set_keys(values, changes))


def digits(root: Path, *, rows: Mapping[str, int] | None = None, seed: int = 0, labels: tuple[str, ...] = LABELS) -> Shards:
    """scikit-learn's digits, shuffled by a seed, as finished Shards."""
    rows = rows or {"train": 600, "valid": 100, "test": 150}
    data: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    event = Event(modality="image", shape=(1, 8, 8), levels=17, classes=10)
    folder = root / "shards" / f"digits-{seed}-{sum(rows.values())}"
    folder.mkdir(parents=True, exist_ok=True)
    files, start = [], 0
    for split, count in rows.items():
        index = order[start : start + count]
        files.append(_write(folder, split, event, data.images[index].astype(np.uint8), data.target[index]))
        start += count
    manifest = {"files": files, "fingerprint": f"f{seed:011d}", "event": event.to_json(), "labels": labels, "prepare": PREPARE}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_shards(str(folder))


def sounds(root: Path) -> Shards:
    """Sine waves of three pitches, some of them shorter than the event, as finished Shards."""
    event = Event(modality="audio", shape=(400,), levels=256, sample_rate=4000, companding="mu-law", classes=3)
    folder = root / "shards" / "sounds"
    folder.mkdir(parents=True)
    files = []
    for split, count in {"train": 24, "valid": 9, "test": 12}.items():
        index = np.arange(count)
        length = np.where(index % 4 == 0, 300, 400)
        phase = index[:, None] + 2 * np.pi * 200 * (index[:, None] % 3 + 1) * np.arange(400) / 4000
        wave = np.sin(phase) * (np.arange(400) < length[:, None])
        files.append(_write(folder, split, event, media.encode(wave, 256, "mu-law"), index % 3, length))
    prepare = {
        "modality": "audio",
        "sample_rate": 4000,
        "seconds": 0.1,
        "levels": 256,
        "companding": "mu-law",
        "window": "all",
        "hop": None,
    }
    manifest = {
        "files": files,
        "fingerprint": "s00000000000",
        "event": event.to_json(),
        "labels": ["low", "mid", "high"],
        "prepare": prepare,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_shards(str(folder))


def _write(folder: Path, split: str, event: Event, x: np.ndarray, label: np.ndarray, length: np.ndarray | None = None) -> dict[str, Any]:
    form = schema(event)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), event.dims)
    columns = {
        "id": pa.array([f"{split}{i:06d}" for i in range(len(x))]),
        "levels": pa.ExtensionArray.from_storage(form.field("levels").type, flat),
        "label": pa.array(label, pa.int32()),
        "source": pa.array([f"{i}" for i in range(len(x))]),
        **({} if length is None else {"length": pa.array(length, pa.int32())}),
    }
    name = f"{split}-00000.parquet"
    pq.write_table(pa.table([columns[key] for key in form.names], schema=form), folder / name)
    return {"name": name, "split": split, "rows": len(x), "row_groups": [len(x)]}


def checkpoint(root: Path, shards: Shards, *, seed: int = 0, family: str = "gated_pixelcnn", **config: Any) -> Checkpoint:
    """A model with fresh weights of a seed as if four steps had been trained."""
    folder = root / "train" / f"small-{family}-{seed}"
    model = build(family, shards.event, seed=seed, **config)
    digest = artifact.save(
        model, folder / "model", family=family, prepare=shards.prepare, labels=shards.labels, lineage={"recipe": "small"}
    )
    log = folder / "log.jsonl"
    lines: list[dict[str, Any]] = [
        {"event": "step", "step": step, "loss": 3.0 - step / 10, "examples_per_s": 6400.0, "lr": 1e-3} for step in range(1, 5)
    ]
    lines.append({"event": "valid", "step": 4, "metric": "bits/dim", "value": 2.5, "best": True})
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Checkpoint(uri=str(folder / "model"), fingerprint=f"c{seed:011d}", digest=digest, steps=4, log=str(log))
