"""How fast files become Shards, and Shards batches.

    python benchmarks/data.py [--data FOLDER] [--files 20000] [--photos 600] [--rounds 3]

Small PNGs (28x28, from MNIST in --data or $GENMODELS_DATA, else noise) and JPEGs of about 100 kB: prepare through Ray Data, from files to finished
Shards, against bare Pillow that decodes the same files in as many processes as there are cores. Then one epoch in shuffled order, batch 128. Rounds
are interleaved; medians; quote the ratios, since absolute figures drift on a shared machine. Ray is started before the clock.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from genmodels.machine import equality_class
from pipelines import cluster, recipe
from pipelines.prepare import prepare
from pipelines.records import Shards
from pipelines.shards import Stream
from pipelines.sources.arrays import read_idx

PHOTO = 512


def digits(folder: Path, count: int, data: str | None) -> Path:
    """PNGs of 28x28 in ten folders."""
    if data:
        pixels = read_idx((Path(data) / "mnist" / "train-images-idx3-ubyte.gz").read_bytes())[:count]
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        path = folder / str(i % 10) / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return folder


def photos(folder: Path, count: int) -> Path:
    """JPEGs of about 100 kB: soft shapes under fine grain."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(count):
        soft = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((PHOTO, PHOTO), Image.Resampling.BICUBIC)
        grain = np.asarray(soft, np.int16) + draw.integers(-16, 17, (PHOTO, PHOTO, 1))
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=86)
    return folder


def decode(paths: Sequence[str]) -> int:
    """Bare Pillow: open, read, decode."""
    for path in paths:
        np.asarray(Image.open(io.BytesIO(Path(path).read_bytes())))
    return len(paths)


def bare(folder: Path, workers: int) -> float:
    """Files a second in `workers` processes that are already there."""
    paths = sorted(str(path) for path in folder.rglob("*.*"))
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(decode, [paths[:1]] * workers))
        begun = time.perf_counter()
        list(pool.map(decode, [paths[i::workers] for i in range(workers)]))
    return len(paths) / (time.perf_counter() - begun)


def prepared(folder: Path, image: dict[str, int], storage: Path) -> tuple[float, Shards]:
    """Files a second from files to finished Shards, and the Shards."""
    values = {
        "name": "bench",
        "storage": str(storage),
        "data": {"source": str(folder), "image": image, "label": {"by": "folder" if image["height"] == 28 else "none"}},
        "model": {"family": "gated_pixelcnn"},
        "train": {"steps": 1},
    }
    asked = recipe.check(values)
    begun = time.perf_counter()
    done = prepare(asked)
    return sum(1 for _ in folder.rglob("*.*")) / (time.perf_counter() - begun), done


def streamed(done: Shards, window: int | None = None, batch: int = 128) -> float:
    """Examples a second of the second epoch in shuffled order."""
    stream = Stream(done, seed=0, window=window)
    steps = stream.rows // batch
    for step in range(steps):
        stream.batch(step, batch)
    begun = time.perf_counter()
    for step in range(steps, 2 * steps):
        stream.batch(step, batch)
    return steps * batch / (time.perf_counter() - begun)


def against(name: str, folder: Path, image: dict[str, int], rounds: int, workers: int, scratch: Path) -> Shards:
    """Interleaved rounds of both on the same files, printed."""
    ours, theirs = [], []
    for i in range(rounds + 1):  # the first is warm-up: worker processes start, files come into memory
        theirs.append(bare(folder, workers))
        speed, done = prepared(folder, image, scratch / f"{name}-{i}")
        ours.append(speed)
    a, b = statistics.median(ours[1:]), statistics.median(theirs[1:])
    print(f"{name:28} prepare {a:9.0f} files/s   bare Pillow, {workers} processes {b:9.0f} files/s   ratio {a / b:.2f}")
    return done


def median(measure: Callable[[], float], rounds: int) -> float:
    return statistics.median(measure() for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("GENMODELS_DATA"))
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    print(equality_class(), f"{workers} cores")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        small, large = digits(scratch / "small", asked.files, asked.data), photos(scratch / "large", asked.photos)
        size = statistics.mean(path.stat().st_size for path in large.iterdir())
        cluster.connect()
        done = against("PNG 28x28", small, {"height": 28, "width": 28}, asked.rounds, workers, scratch)
        against(
            f"JPEG {PHOTO}x{PHOTO}, {size / 1000:.0f} kB", large, {"height": 64, "width": 64, "channels": 3}, asked.rounds, workers, scratch
        )
        cluster.shutdown()
        print(f"stream, all in memory        {median(lambda: streamed(done), asked.rounds):9.0f} examples/s")
        print(f"stream, windows of 4 groups  {median(lambda: streamed(done, window=4), asked.rounds):9.0f} examples/s")


if __name__ == "__main__":
    main()
