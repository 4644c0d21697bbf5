"""Files to finished Shards, against bare Pillow or soundfile that decodes the same files on the same cores; and the memory it takes."""

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from benchmarks import footprint, generated
from benchmarks.generated import CORES
from benchmarks.line import Line, alone
from pipelines import cluster, recipe
from pipelines.prepare import prepare
from pipelines.records import Shards
from pipelines.shards import manifest

DIGIT = {"image": {"height": 28, "width": 28}, "label": {"by": "folder"}}
PHOTO = {"image": {"height": 64, "width": 64, "channels": 3}}
LARGE_PHOTO = {"image": {"height": 256, "width": 256, "channels": 3}}
SOUND = {"audio": {"sample_rate": generated.RATE, "seconds": generated.SECONDS}}


def full(content: bytes) -> None:
    np.asarray(Image.open(io.BytesIO(content)))


def reduced(content: bytes) -> None:
    """A JPEG at the scale that 64x64 needs, and down to it: what prepare makes of it."""
    picture = Image.open(io.BytesIO(content))
    picture.draft(None, (128, 128))
    np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC))


def sound(content: bytes) -> None:
    soundfile.read(io.BytesIO(content))


def companded(content: bytes) -> None:
    """A sound as mu-law codes, by the formula: what prepare makes of it."""
    wave = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    bent = np.sign(wave) * np.log1p(255 * np.abs(wave)) / np.log1p(255)
    np.floor((bent + 1) * 127.5 + 0.5).astype(np.uint8)


def _decode(paths: Sequence[str], decoder: Callable[[bytes], None]) -> None:
    for path in paths:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - once a file
            decoder(file.read())


def bare(folder: Path, decoder: Callable[[bytes], None]) -> float:
    """Files a second in a process a core, all there before the clock starts."""
    paths = [str(path) for path in folder.rglob("*.*")]
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(_decode, [paths[:1]] * CORES, [decoder] * CORES))
        begun = time.perf_counter()
        list(pool.map(_decode, [paths[i::CORES] for i in range(CORES)], [decoder] * CORES))
    return len(paths) / (time.perf_counter() - begun)


def prepared(folder: Path, data: dict[str, Any], storage: Path) -> tuple[float, Shards]:
    """Files a second from files to finished Shards, and the Shards."""
    said = {"name": "bench", "storage": str(storage), "model": {"family": "gated_pixelcnn" if "image" in data else "wavenet"}}
    asked = recipe.check({**said, "data": {"source": str(folder), **data}, "train": {"steps": 1}})
    begun = time.perf_counter()
    done = prepare(asked)
    return manifest(done)["inputs"] / (time.perf_counter() - begun), done


def against(
    what: str, folder: Path, data: dict[str, Any], decoders: dict[str, Callable[[bytes], None]], rounds: int
) -> tuple[list[Line], Shards]:
    """Prepare and each bare decoder in turn over the same files."""
    ours: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in decoders}
    for i in range(rounds + 1):
        for name, decoder in decoders.items():
            theirs[name].append(bare(folder, decoder))
        speed, done = prepared(folder, data, folder.parent / f"{folder.name}-{i}")
        ours.append(speed)
    speed = statistics.median(ours[1:])
    lines = [Line(f"{what} to Shards", speed, "files/s", name, statistics.median(each[1:])) for name, each in theirs.items()]
    return [*lines, Line("the same, where worker processes have to start", ours[0], "files/s")], done


def pictures(scratch: Path, asked: argparse.Namespace) -> tuple[list[Line], Shards]:
    folder = generated.digits(scratch / "digits", asked.files, asked.data)
    return against(f"{asked.files:,} PNGs of 28x28", folder, DIGIT, {"bare Pillow": full}, asked.rounds)


def photos(scratch: Path, asked: argparse.Namespace) -> list[Line]:
    folder = _photos(scratch, asked)
    size = statistics.mean(path.stat().st_size for path in folder.iterdir()) / 1000
    decoders = {"bare Pillow": full, "bare Pillow, at a reduced scale and resized": reduced}
    return against(f"{asked.photos:,} JPEGs of {size:.0f} kB, 512x512 to 64x64,", folder, PHOTO, decoders, asked.rounds)[0]


def _photos(scratch: Path, asked: argparse.Namespace) -> Path:
    folder = scratch / "photos"
    return folder if folder.exists() else generated.photos(folder, asked.photos)


def sounds(scratch: Path, asked: argparse.Namespace) -> list[Line]:
    lines: list[Line] = []
    for form in ("wav", "flac"):
        folder = generated.sounds(scratch / form, asked.sounds, form)
        what = f"{asked.sounds:,} {form.upper()}s of {generated.SECONDS} s at {generated.RATE // 1000} kHz"
        lines += against(what, folder, SOUND, {"bare soundfile": sound, "bare soundfile and numpy's mu-law": companded}, asked.rounds)[0]
    return lines


def memory(scratch: Path, asked: argparse.Namespace) -> list[Line]:
    """The peak of prepare for a tenth of the photos, for all of them, and for all of them ten times over, each in a Ray of its own: so large that
    all of them fill parts and buckets to their full size, from where on nothing grows."""
    whole = _photos(scratch, asked)
    sets = {
        asked.photos // 10: generated.part(scratch / "few", whole, asked.photos // 10),
        asked.photos: whole,
        10 * asked.photos: generated.repeated(scratch / "many", whole, 10),
    }
    seen = {count: alone("benchmarks.preparing", folder) for count, folder in sets.items()}
    lines = [Line("memory of Ray and its idle processes", seen[asked.photos]["base"] / 2**20, "MiB")]
    for few, many in pairwise(seen):
        what = f"peak memory of prepare, {many:,} JPEGs to 256x256 ({3 * 256**2 * many / 1e9:.3g} GB of levels)"
        other = f"{few:,} JPEGs"
        lines.append(Line(what, seen[many]["peak"] / 2**20, "MiB", other, seen[few]["peak"] / 2**20))
    return lines


def main(folder: Path) -> None:
    """Prepares photos while their process tree is watched; prints what Ray alone holds, and the peak."""
    cluster.connect()
    base = footprint.held()
    with footprint.watched() as seen:
        prepared(folder, LARGE_PHOTO, folder.parent / f"{folder.name}-alone")
    cluster.shutdown()
    print(json.dumps({"base": base, "peak": max(seen)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
