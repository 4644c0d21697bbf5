"""The published splits of the small picture and sound sets, whole and in memory, for benchmarks that train without Shards."""

import gzip
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor

from genmodels import media
from genmodels.core import Event
from pipelines.sources.arrays import read_idx


@dataclass(frozen=True)
class Examples:
    """x (n, *shape) uint8 levels of both splits, and labels (n,) int64 where the set has them."""

    name: str
    event: Event
    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None


SETS = ("binarized_mnist", "mnist", "fashion_mnist", "fsdd")
SOUND = {"modality": "audio", "sample_rate": 8000, "seconds": 0.1, "levels": 256, "companding": "mu-law", "window": "all", "hop": None}


def read(name: str, *, levels: int = 256) -> Examples:
    """A set from $GENMODELS_DATA. The static binarization has 2 levels and no labels; the others are brought to `levels` by rounding."""
    folder = Path(os.environ.get("GENMODELS_DATA", ".")) / name
    if not folder.is_dir():
        raise SystemExit(f"no {folder}; set GENMODELS_DATA to the folder that holds {name}")
    if name == "binarized_mnist":
        train, test = (_bits(folder / f"binarized_mnist_{split}.amat") for split in ("train", "test"))
        return Examples(name, Event(modality="image", shape=(1, 28, 28), levels=2), train, test)
    if name == "fsdd":
        return Examples(name, Event(modality="audio", shape=(800,), levels=256, sample_rate=8000, companding="mu-law"), *_sounds(folder))
    train, test = (_pixels(folder, f"{split}-images-idx3-ubyte.gz", levels) for split in ("train", "t10k"))
    y_train, y_test = (torch.from_numpy(_idx(folder / f"{split}-labels-idx1-ubyte.gz").astype(np.int64)) for split in ("train", "t10k"))
    return Examples(name, Event(modality="image", shape=(1, 28, 28), levels=levels), train, test, y_train, y_test)


def _sounds(folder: Path) -> tuple[Tensor, Tensor]:
    """Whole windows of a tenth of a second; recordings 0 to 4 of each digit and speaker are the test split."""
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for file in sorted((folder / "recordings").glob("*.wav")):
        test = int(file.stem.rpartition("_")[2]) < 5
        sides[test].extend(levels for levels, length in media.levels_from_sound(file.read_bytes(), SOUND) if length == len(levels))
    train, test = (torch.from_numpy(np.stack(side)) for side in sides)
    return train, test


def _bits(file: Path) -> Tensor:
    return torch.from_numpy(loadmat(BytesIO(file.read_bytes()))["X"].astype(np.uint8)).reshape(-1, 1, 28, 28)


def _pixels(folder: Path, name: str, levels: int) -> Tensor:
    return torch.from_numpy(np.rint(_idx(folder / name) * ((levels - 1) / 255)).astype(np.uint8))[:, None]


def _idx(file: Path) -> np.ndarray:
    return read_idx(gzip.decompress(file.read_bytes())).copy()
