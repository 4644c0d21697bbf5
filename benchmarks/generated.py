"""Files and Shards to measure on: small pictures, photos, sounds, and a set of Shards larger than memory."""

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
from PIL import Image

from genmodels.core import Event
from pipelines.buckets import BUCKET_BYTES, group_rows
from pipelines.parquet import packing, parquet, schema
from pipelines.records import Shards
from pipelines.shards import open_shards
from pipelines.sources.arrays import read_idx

PHOTO, RATE, SECONDS = 512, 16000, 3
CORES = len(os.sched_getaffinity(0))
EVENT = Event(modality="image", shape=(3, 64, 64), levels=256)


def digits(folder: Path, count: int, data: str | None) -> Path:
    """PNGs of 28x28 in ten folders: MNIST's from `data`, or noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    if data:
        pixels = read_idx((Path(data) / "mnist" / "train-images-idx3-ubyte.gz").read_bytes())[:count]
    for i, picture in enumerate(pixels):
        path = folder / str(i % 10) / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return folder


def photos(folder: Path, count: int) -> Path:
    """JPEGs of about 90 kB: soft shapes under fine grain."""
    folder.mkdir()
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(_photo, [folder] * count, range(count), chunksize=64))
    return folder


def _photo(folder: Path, i: int) -> None:
    draw = np.random.default_rng(i)
    soft = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((PHOTO, PHOTO), Image.Resampling.BICUBIC)
    grain = np.asarray(soft, np.int16) + draw.integers(-16, 17, (PHOTO, PHOTO, 1), dtype=np.int16)
    Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(folder / f"{i:06d}.jpg", quality=86)


def sounds(folder: Path, count: int, form: str) -> Path:
    """Mono files of 16 bits: a tone that wavers, and a little noise."""
    folder.mkdir()
    time = np.arange(RATE * SECONDS) / RATE
    for i in range(count):
        draw = np.random.default_rng(i)
        tone = 0.4 * np.sin(2 * np.pi * (100 + i % 400) * time + 3 * np.sin(2 * np.pi * 5 * time))
        wave = tone + 0.01 * draw.standard_normal(len(time), np.float32)
        soundfile.write(folder / f"{i:06d}.{form}", wave, RATE, "PCM_16")
    return folder


def part(folder: Path, whole: Path, count: int) -> Path:
    """The first so many files of a folder, as links."""
    folder.mkdir()
    for path in sorted(whole.iterdir())[:count]:
        os.link(path, folder / path.name)
    return folder


def repeated(folder: Path, whole: Path, times: int) -> Path:
    """Every file of a folder so many times, as links."""
    folder.mkdir()
    for path in sorted(whole.iterdir()):
        for i in range(times):
            os.link(path, folder / f"{path.stem}-{i}{path.suffix}")
    return folder


def large(folder: Path, gigabytes: float) -> Shards:
    """Colour pictures of 64x64 under the names and in the row groups that prepare gives them; one bucket is written, the others are its copies."""
    folder.mkdir()
    rows, each = BUCKET_BYTES // EVENT.dims, group_rows(EVENT.dims)
    count = max(1, round(gigabytes * 2**30 / (rows * EVENT.dims)))
    groups = [min(each, rows - start) for start in range(0, rows, each)]
    first = folder / "train-00000.parquet"
    first.write_bytes(_bucket(rows, each))
    for i in range(1, count):
        shutil.copyfile(first, folder / f"train-{i:05d}.parquet")
    files = [{"name": f"train-{i:05d}.parquet", "split": "train", "rows": rows, "row_groups": groups} for i in range(count)]
    value = {"event": EVENT.to_json(), "files": files, "fingerprint": "0" * 12, "labels": [], "prepare": {}}
    (folder / "manifest.json").write_text(json.dumps(value))
    return open_shards(str(folder))


def _bucket(rows: int, each: int) -> bytes:
    levels = np.random.default_rng(0).integers(0, 200, (rows, *EVENT.shape), dtype=np.uint8)
    columns = {
        "id": [f"{i:032x}" for i in range(rows)],
        "levels": pa.FixedShapeTensorArray.from_numpy_ndarray(levels),
        "label": pa.nulls(rows, pa.int32()),
        "source": [f"{i}.jpg" for i in range(rows)],
    }
    form = schema(EVENT)
    table = pa.table([columns[name] for name in form.names], schema=form)
    return parquet(table, row_group_size=each, **packing(form))


def forget(shards: Shards) -> None:
    """Its files out of the page cache, so that they are read from the disk again."""
    for path in Path(shards.uri).iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
