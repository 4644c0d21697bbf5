"""The commands that use one model: sample, complete, score, classify, encode, decode, interpolate, compress, decompress. Each is a thin function over
query, codes or compress."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines import console

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="a model folder, its URL, or models:/name@alias")]
Storage = Annotated[str, typer.Option(help="where runs and the local registry are")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object a line on stdout; progress on stderr")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="pictures, sounds, or .npy arrays of levels")]
Count = Annotated[int, typer.Option("-n", min=1, help="how many")]
Seed = Annotated[int, typer.Option(min=0)]
Label = Annotated[str | None, typer.Option(help="a class's name or number; drawn by how likely each is where left out")]
Temperature = Annotated[float, typer.Option(help="below 1 safer, above 1 bolder")]
Given = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="as for `sample`, or a .npy array with a row for each example; derived of each where left out and it can be"
    ),
]
First = Annotated[int, typer.Option(min=0, help="index of the first one of the seed")]
Condition = Annotated[
    Path | None, typer.Option(metavar="FILE", help="what to condition on: a picture or sound, or a .npy array of the condition's shape")
]


def sample(
    model: ModelName,
    n: Count = 16,
    seed: Seed = 0,
    label: Label = None,
    temperature: Temperature = 1.0,
    first: First = 0,
    condition: Condition = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="a .png, .wav or .npy; in place of samples.png or samples.wav")] = None,
    precision: Annotated[
        str, typer.Option(help="f32, or where the processor has it bf16, and int8 of a WaveNet: faster, other samples")
    ] = "f32",
    threads: Annotated[int, typer.Option(min=1, help="a second one also speeds up a single sound of a WaveNet")] = 1,
    storage: Storage = "./runs",
    as_json: AsJson = False,
) -> None:
    """Draw samples into a file that carries its receipt."""
    from pipelines import query

    console.speak_json(as_json)
    drawn = {"n": n, "seed": seed, "label": label, "temperature": temperature, "first": first, "condition": condition}
    query.sample(model, **drawn, out=out, precision=precision, threads=threads, storage=storage)


def complete(
    model: ModelName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a picture, a sound, or a .npy array of levels")],
    known: Annotated[Path | None, typer.Option(metavar="MASK.png", help="a black and white picture: what is white is known")] = None,
    rows: Annotated[int | None, typer.Option(min=0, help="the top rows of the picture are known")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="this much of the sound's beginning is known; a short one is known whole")
    ] = None,
    n: Count = 4,
    seed: Seed = 0,
    label: Label = None,
    temperature: Temperature = 1.0,
    first: First = 0,
    condition: Condition = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="a .png, .wav or .npy; in place of completions.png or .wav")] = None,
    storage: Storage = "./runs",
    as_json: AsJson = False,
) -> None:
    """Fill in what is not known of a file, n different ways; says by which method, and whether that is exact."""
    from pipelines import query

    console.speak_json(as_json)
    drawn = {"n": n, "seed": seed, "label": label, "temperature": temperature, "first": first, "condition": condition}
    query.complete(model, file, mask=known, rows=rows, seconds=seconds, **drawn, out=out, storage=storage)


def score(
    model: ModelName,
    files: Files,
    label: Annotated[str | None, typer.Option(help="a class's name or number; all classes are summed over where left out")] = None,
    condition: Given = None,
    surprise: Annotated[Path | None, typer.Option("--map", metavar="OUT.png", help="draws where the model is surprised, in bits")] = None,
    storage: Storage = "./runs",
    as_json: AsJson = False,
) -> None:
    """Log likelihood of files, in nats and bits/dim."""
    from pipelines import query

    console.speak_json(as_json)
    query.score(model, files, label=label, condition=condition, out=surprise, storage=storage)


def classify(model: ModelName, files: Files, condition: Given = None, storage: Storage = "./runs", as_json: AsJson = False) -> None:
    """The likeliest class of each file, by Bayes' rule or a recognition network; says which."""
    from pipelines import query

    console.speak_json(as_json)
    query.classify(model, files, condition=condition, storage=storage)


def encode(
    model: ModelName,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE...]", help="pictures, sounds, .npy arrays of levels, or folders of them")
    ] = None,
    shards: Annotated[
        str | None, typer.Option(metavar="URI", help="finished Shards in place of files, whose ids and labels are kept")
    ] = None,
    split: Annotated[str, typer.Option(help="of the Shards: train, valid or test")] = "test",
    label: Annotated[str | None, typer.Option(help="encodes all under this class, in a model that needs one")] = None,
    own_labels: Annotated[
        bool, typer.Option("--own-labels", help="encodes each row of the Shards under its own label, which its features then tell")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="a .parquet")] = Path("features.parquet"),
    storage: Storage = "./runs",
    as_json: AsJson = False,
) -> None:
    """Features for other tasks: the mean code of each example into Parquet, with id, source and label."""
    from pipelines import codes

    console.speak_json(as_json)
    codes.encode(model, files or [], shards=shards, split=split, label=label, own_labels=own_labels, out=out, storage=storage)


def decode(
    model: ModelName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="codes: a .npy array, or the features of a .parquet")],
    label: Annotated[str | None, typer.Option(help="a class's name or number, in a model of classes")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="a .png, .wav or .npy; in place of decodings.png or .wav")] = None,
    storage: Storage = "./runs",
    as_json: AsJson = False,
) -> None:
    """Examples of codes: the likeliest of each, or of a generator the only one."""
    from pipelines import codes

    console.speak_json(as_json)
    codes.decode(model, file, label=label, out=out, storage=storage)


def interpolate(
    model: ModelName,
    files: Annotated[list[Path] | None, typer.Argument(metavar="[A B]", help="two files, in a model that encodes")] = None,
    seeds: Annotated[tuple[int, int] | None, typer.Option(metavar="A B", help="two samples by their seeds, in place of files")] = None,
    steps: Annotated[int, typer.Option(min=2, help="how many, both ends included")] = 9,
    label: Annotated[str | None, typer.Option(help="a class's name or number, in a model of classes")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="a .png or .npy; in place of interpolation.png")] = None,
    storage: Storage = "./runs",
    as_json: AsJson = False,
) -> None:
    """The examples between two, along a great circle of codes, in a row."""
    from pipelines import codes

    console.speak_json(as_json)
    codes.interpolate(model, files or [], seeds=seeds, steps=steps, label=label, out=out, storage=storage)


def compress(
    model: ModelName,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="pictures, sounds, or .npy arrays of rows")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the compressed file")],
    label: Annotated[str | None, typer.Option(help="a class's name or number for all; the likeliest of each where left out")] = None,
    threads: Annotated[int, typer.Option(min=1, help="of torch, on both sides")] = 1,
    storage: Storage = "./runs",
    as_json: AsJson = False,
) -> None:
    """Files into one, without loss, by the model's likelihood; beside PNG, FLAC and zstd."""
    from pipelines import compress as compression

    console.speak_json(as_json)
    compression.compress(model, files, out=out, label=label, threads=threads, storage=storage)


def decompress(
    model: ModelName,
    file: Annotated[Path, typer.Argument(metavar="IN", help="what `compress` wrote")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="a new folder")],
    storage: Storage = "./runs",
    as_json: AsJson = False,
) -> None:
    """The files back, as PNG, WAV or .npy of the same levels; with the same model on a machine of the same equality class."""
    from pipelines import compress as compression

    console.speak_json(as_json)
    compression.decompress(model, file, out=out, storage=storage)


ALL = (sample, complete, score, classify, encode, decode, interpolate, compress, decompress)
