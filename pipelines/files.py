"""Files to the levels of a model and back: pictures and sounds of the model's own size and rate, sounds whole, names that do not collide."""

import io
import itertools
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from genmodels import media
from genmodels.artifact import Artifact
from genmodels.core import Event
from pipelines.errors import Failed, Refused

SUFFIXES = {"image": ".png", "audio": ".wav", "table": ".npy"}
Levels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """x (n, *shape) uint8 levels, lengths (n,) int64 of sounds, and how many of the n each file has, by the file's name."""

    event: Event
    x: Tensor
    lengths: Tensor | None = None
    files: tuple[tuple[str, int], ...]

    @property
    def wholes(self) -> list[Levels]:
        """The levels of each file: a (C, H, W) picture, a sound of all its windows without padding, or the (n, D) rows of an array."""
        x, ends = self.x.numpy(), np.cumsum([0, *(count for _, count in self.files)])
        spans = [range(start, end) for start, end in itertools.pairwise(ends.tolist())]
        if self.lengths is not None:
            valid = self.lengths.tolist()
            return [np.concatenate([x[i, : valid[i]] for i in span]) for span in spans]
        return [x[span.start] if self.event.modality == "image" else x[span.start : span.stop] for span in spans]


def read(files: Sequence[Path], said: Artifact) -> Examples:
    """Decodes files by the model's own settings. Raises Failed naming the first that cannot be read, or would not come back the same size."""
    parts: list[Levels] = []
    lengths: list[int] = []
    for file in files:
        try:
            x, valid = _decoded(content(file), said)
        except ValueError as error:
            raise Failed(f"{file}: {error}") from None
        parts.append(x)
        lengths += valid
    return Examples(
        event=said.event,
        x=torch.from_numpy(np.concatenate(parts)),
        lengths=torch.tensor(lengths) if said.event.modality == "audio" else None,
        files=tuple((file.name, len(part)) for file, part in zip(files, parts, strict=True)),
    )


def content(file: Path) -> bytes:
    """Raises Refused: a file that was named on the command line and is not there is wrong use."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise Refused(f"cannot read {file}: {error.strerror}") from None


def write(folder: Path, examples: Examples) -> list[Path]:
    """A PNG, WAV or .npy for each file into a new folder, all of them or none; each is decoded to the same levels."""
    names = unique([Path(Path(name).name).stem for name, _ in examples.files], SUFFIXES[examples.event.modality])
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    part.mkdir(parents=True)
    try:
        for name, levels in zip(names, examples.wholes, strict=True):
            (part / name).write_bytes(_encoded(levels, examples.event))
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return [folder / name for name in names]


def unique(stems: Sequence[str], suffix: str) -> list[str]:
    """File names of which no two are one on a file system that ignores case: a.png, A-2.png."""
    names: list[str] = []
    taken: set[str] = set()
    for stem in stems:
        name, number = f"{stem}{suffix}", 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}{suffix}"
        taken.add(name.lower())
        names.append(name)
    return names


def _decoded(data: bytes, said: Artifact) -> tuple[Levels, list[int]]:
    if said.event.modality == "table":
        return _rows(data, said.event), []
    if not said.prepare:
        raise ValueError(f"this model has no settings to decode an {said.event.modality} by; compress levels with genmodels.coding")
    if said.event.modality == "image":
        levels = media.levels_from_image(data, said.prepare)
        _check_size(data, said.event)
        return levels[None], []
    windows = media.levels_from_sound(data, {**said.prepare, "window": "all", "hop": None})
    rate, channels = media.sound_format(data)
    if rate != said.event.sample_rate:
        raise ValueError(f"a sound of {rate} Hz; this model's have {said.event.sample_rate} Hz, and resampling would lose what is in it")
    if channels > 1:
        raise ValueError(f"a sound of {channels} channels; this model's have one, and mixing them would lose what sets them apart")
    return np.stack([levels for levels, _ in windows]), [length for _, length in windows]


def _check_size(data: bytes, event: Event) -> None:
    """Raises ValueError for a picture that would be cut or scaled to the model's size: that does not come back."""
    channels, height, width = event.shape
    with Image.open(io.BytesIO(data)) as file:
        upright = ImageOps.exif_transpose(file)
    if upright.size != (width, height):
        found = f"{upright.width} x {upright.height}"
        raise ValueError(f"a picture of {found} pixels; this model's have {width} x {height}, and resizing would lose what is in it")
    if channels == 1 and len({band.tobytes() for band in upright.convert("RGB").split()}) > 1:
        raise ValueError("a picture in colour; this model's are grey, and its colours would be lost")


def _rows(data: bytes, event: Event) -> Levels:
    try:
        rows = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception:  # numpy raises whatever its parser meets
        raise ValueError("no array of rows; numpy.save writes one") from None
    if rows.shape[1:] != event.shape or len(rows) == 0 or rows.dtype.kind not in "iu" or not 0 <= rows.min() <= rows.max() < event.levels:
        raise ValueError(f"{rows.dtype} of shape {rows.shape}; wanted whole levels 0 to {event.levels - 1} of shape (n, {event.dims})")
    return rows.astype(np.uint8)


def _encoded(levels: Levels, event: Event) -> bytes:
    if event.modality == "image":
        return media.png(levels, levels_count=event.levels)
    if event.sample_rate is not None:
        return media.wav(levels, sample_rate=event.sample_rate, levels_count=event.levels, companding=event.companding)
    file = io.BytesIO()
    np.save(file, levels)
    return file.getvalue()
