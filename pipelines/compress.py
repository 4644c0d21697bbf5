"""Files into one compressed file and back, by the likelihood of a model; beside it what PNG, FLAC and zstd make of the same levels."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from genmodels import artifact, coding
from genmodels.artifact import Artifact
from genmodels.compressed import Compressed
from genmodels.core import Autoregressive, blocks
from pipelines import codecs, console, files
from pipelines.errors import Failed, Refused
from pipelines.files import Examples
from pipelines.storage import write_bytes
from serve import catalogue
from serve.names import unknown

UNITS = {"image": "pictures", "audio": "windows", "table": "rows"}


def compress(
    model: str, inputs: Sequence[Path], *, out: Path, label: str | None = None, threads: int = 1, storage: str = "./runs"
) -> dict[str, Any]:
    """Writes the compressed file, whole or not at all, and says what became of it; the same as a mapping."""
    if out.is_dir() or out.resolve() in [file.resolve() for file in inputs]:
        raise Refused(f"--out {out} is {'a folder' if out.is_dir() else 'one of the files to compress'}; give the name of a new file")
    coder, said = _load(model, storage)
    given = None if label is None else _class_number(label, said)
    examples = files.read(inputs, said)
    with console.stage("compress", total=len(examples.x), unit=UNITS[said.event.modality]) as bar:
        made, nats, protocol = squeeze(coder, examples, label=given, threads=threads, labels=said.labels, step=_moving(bar))
    write_bytes(str(out), made.to_bytes())
    result = {"file": str(out), **report(made, examples, nats, protocol)}
    show(result)
    if said.event.modality != "table":
        console.result(f"the model's {said.event.levels} levels of every value come back exactly; what was finer in a file is not kept")
    console.emit(**result)
    return result


def decompress(model: str, file: Path, *, out: Path, storage: str = "./runs") -> list[Path]:
    """Writes what was compressed into a new folder, all of it or nothing -> the files."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"--out {out} is there already; give the name of a new folder")
    try:
        made = Compressed.from_bytes(files.content(file))
    except ValueError as error:
        raise Failed(f"{file}: {error}") from None
    held = tuple((name, count) for name, count in made.names.get("files", []))
    if sum(count for _, count in held) != made.examples:
        raise Failed(f"{file}: has no names of files in it; genmodels.coding.decompress gives its levels")
    coder, said = _load(model, storage)
    with console.stage("decompress", total=made.examples, unit=UNITS[said.event.modality]) as bar:
        x, y = coding.decompress(coder, made, step=_moving(bar))
    lengths = None if made.lengths is None else torch.tensor(made.lengths)
    written = files.write(out, Examples(event=said.event, x=x, lengths=lengths, files=held))
    console.result(f"{out}  ({len(written)} file{'s' * (len(written) != 1)})")
    console.emit(folder=str(out), files=[path.name for path in written], labels=None if y is None else _named(y, made))
    return written


def squeeze(
    model: Autoregressive,
    examples: Examples,
    *,
    label: int | None = None,
    threads: int = 1,
    labels: Sequence[str] = (),
    step: coding.Step = lambda done, total: None,
) -> tuple[Compressed, float, str]:
    """The examples compressed, what the model itself says of them (nats, all together), and which probability that is."""
    x, lengths, event = examples.x, examples.lengths, examples.event
    if event.classes and label is None:
        y, each = coding.likeliest(model, x, lengths)
        nats, protocol = float(each.sum()), "p(x)"
    else:
        y = None if label is None else torch.full((len(x),), label)
        nats, protocol = _nats(model, x, y, lengths), "p(x)" if y is None else "p(x, y)"
    names = {"files": examples.files, **({"labels": labels} if labels else {})}
    return coding.compress(model, x, y, lengths, threads=threads, names=names, step=step), nats, protocol


def report(made: Compressed, examples: Examples, nats: float, protocol: str) -> dict[str, Any]:
    """Bytes of the parts, bits/dim of the payload and of others; ratio: how many times smaller the file is than plain levels."""
    others = codecs.sizes(examples)
    size = sum(made.sizes.values())
    dims = codecs.dims(examples)
    return {
        "examples": made.examples,
        **made.sizes,
        "bits_per_dim": 8 * len(made.payload) / dims,
        "model_bits_per_dim": -nats / dims / codecs.LN2,
        "protocol": protocol,
        "ratio": others["plain levels"] / size,
        "codecs": {name: {"bytes": other, "bits_per_dim": 8 * other / dims} for name, other in others.items()},
    }


def rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A report as rows of what, bytes and bits/dim."""
    ours = [
        (f"the model itself, exact {result['protocol']}", "", f"{result['model_bits_per_dim']:.4f}"),
        ("payload", f"{result['payload']:,}", f"{result['bits_per_dim']:.4f}"),
        ("header", f"{result['header']:,}", ""),
        ("names and lengths", f"{result['names']:,}", ""),
    ]
    return ours + [(name, f"{other['bytes']:,}", f"{other['bits_per_dim']:.4f}") for name, other in result["codecs"].items()]


def show(result: Mapping[str, Any]) -> None:
    console.result(f"{result['file']}  ({result['examples']:,} examples, {result['ratio']:.2f} times smaller than plain levels)")
    table = Table("", "bytes", "bits/dim", box=None, header_style="bold", pad_edge=False)
    for row in rows(result):
        table.add_row(*row)
    if not console.speaks_json():
        Console(soft_wrap=True, markup=False).print(table)


@torch.no_grad()
def _nats(model: Autoregressive, x: Tensor, y: Tensor | None, lengths: Tensor | None) -> float:
    """Of all rows, and of their labels where given; a label that training lacked has 2^-24, as the coder has it."""
    total = 0.0 if y is None else float(model.class_frequencies[y].double().clamp(min=1 / coding.TOTAL).log().sum())
    for numbers, count in blocks(len(x)):
        nats = model.log_prob(x[numbers], None if y is None else y[numbers], length=None if lengths is None else lengths[numbers])
        total += float(nats[:count].double().sum())
    return total


def _load(model: str, storage: str) -> tuple[Autoregressive, Artifact]:
    folder = catalogue.fetch(catalogue.resolve(model, storage=storage))
    return coding.coding(artifact.load(folder)), artifact.read(folder)


def _class_number(label: str, said: Artifact) -> int:
    classes = said.event.classes
    if not classes:
        raise Refused(f"--label {label}: this model was trained without labels; leave it out")
    number = int(label) if label.isdecimal() else said.labels.index(label) if label in said.labels else None
    if number is None:
        raise Refused(unknown("label", label, said.labels) + f" (or a number, 0 to {classes - 1})")
    if number >= classes:
        raise Refused(f"--label {label}; wanted 0 to {classes - 1}")
    return number


def _named(y: Tensor, made: Compressed) -> list[str] | list[int]:
    names = made.names.get("labels")
    return [names[label] for label in y.tolist()] if names else y.tolist()


def _moving(bar: console.Bar) -> Callable[[float, int], None]:
    return lambda done, total: bar.to(done, total=total)
