"""What a trained density compresses to, beside what it says itself, PNG, FLAC and zstd: one Markdown table, and the proof that the likelihood is one.

    GENMODELS_DATA=FOLDER python -m benchmarks.compression MODEL [--data mnist] [--examples 1000] [--threads 1] [--storage ./runs]

MODEL is a folder, a URL or models:/name@alias. Examples are spread evenly over the published test split (fsdd: recordings 0 to 4 of each speaker
and digit) and decoded by the model's own settings. Fails unless every level comes back and the payload is within 1% of the model's own bits.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from benchmarks import datasets
from genmodels import artifact, coding, media
from genmodels.artifact import Artifact
from genmodels.compressed import HEADER, Compressed
from pipelines import compress, files
from pipelines.files import Examples
from pipelines.sources.arrays import read_idx
from serve import catalogue


def examples(name: str, folder: Path, said: Artifact, n: int) -> Examples:
    """n examples of a test split, or all where there are fewer."""
    if name == "fsdd":
        sounds = sorted(path for path in (folder / "fsdd" / "recordings").glob("*.wav") if int(path.stem.rpartition("_")[2]) < 5)
        return files.read(sounds[:: max(1, len(sounds) // n)][:n], said)
    if name == "binarized_mnist":
        x = datasets.read(name).test
    else:
        pixels = read_idx((folder / name / "t10k-images-idx3-ubyte.gz").read_bytes())
        x = torch.from_numpy(media.levels_from_pixels(pixels[:: max(1, len(pixels) // n)][:n], said.prepare))
    x = x[:: max(1, len(x) // n)][:n]
    return Examples(event=said.event, x=x, files=tuple((f"{i:05}.png", 1) for i in range(len(x))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", choices=datasets.SETS, help="in place of mnist, or of fsdd for a model of sounds")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--storage", default="./runs")
    asked = parser.parse_args()
    folder = catalogue.fetch(catalogue.resolve(asked.model, storage=asked.storage))
    said, model = artifact.read(folder), coding.coding(artifact.load(folder))
    name = asked.data or ("fsdd" if said.event.modality == "audio" else "mnist")
    given = examples(name, Path(os.environ.get("GENMODELS_DATA", ".")), said, asked.examples)

    begun = time.perf_counter()
    made, nats, protocol = compress.squeeze(model, given, threads=asked.threads, labels=said.labels)
    middle = time.perf_counter()
    back, _ = coding.decompress(model, Compressed.from_bytes(made.to_bytes()))
    end = time.perf_counter()
    result = compress.report(made, given, nats, protocol)

    print(f"{said.family} ({said.event}); {len(given.files):,} test examples of {name}; {made.equality_class}")
    print(f"compressed in {middle - begun:.0f} s with the model's own score, decompressed in {end - middle:.0f} s\n")
    print("| | bytes | bits/dim |\n|---|---:|---:|")
    print("".join(f"| {what} | {size} | {bits} |\n" for what, size, bits in compress.rows(result)))
    exact = Examples(event=said.event, x=back, lengths=given.lengths, files=given.files)
    same = all((ours == theirs).all() for ours, theirs in zip(exact.wholes, given.wholes, strict=True))
    share = result["bits_per_dim"] / result["model_bits_per_dim"]
    print(f"round trip {'exact' if same else 'NOT exact'}; payload {share:.4f} of the model's own bits; header {HEADER} bytes")
    if not same or share > 1.01:
        sys.exit("the likelihood is no code length: that is a fault")


if __name__ == "__main__":
    main()
