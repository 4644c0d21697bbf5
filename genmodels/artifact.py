"""A model as a folder: model.json says what it is, model.safetensors holds its weights, SHA256SUMS vouches for both.

It is the contract between training and serving: to load one takes torch and safetensors, and nothing in it can run code.
`sha256sum -c SHA256SUMS` checks it without us.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from genmodels import zoo
from genmodels.core import Energy, Event, GenerativeModel, Partition, capabilities

FORMAT = 1
"""Raised when a folder is laid out otherwise than before."""

DESCRIPTION, WEIGHTS, SUMS = "model.json", "model.safetensors", "SHA256SUMS"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a model folder says about itself. prepare: the settings of genmodels.media by which its event's levels were made;
    labels: the classes' names; digest: SHA-256 of SHA256SUMS, hex, which names description and weights together."""

    family: str
    version: int
    """The family's VERSION when it was saved."""
    config: Mapping[str, Any]
    event: Event
    prepare: Mapping[str, Any]
    labels: tuple[str, ...]
    capabilities: tuple[str, ...]
    scores: tuple[Mapping[str, Any], ...]
    lineage: Mapping[str, Any]
    log_partition: Mapping[str, Any] | None
    """Of a model with an energy log Z: value and interval in nats, method, whether exact, and the SHA-256 of the weights it is of."""
    digest: str


def save(
    model: GenerativeModel,
    folder: Path,
    *,
    family: str,
    prepare: Mapping[str, Any],
    labels: Sequence[str],
    scores: Sequence[Mapping[str, Any]] = (),
    lineage: Mapping[str, Any] = {},
) -> str:
    """Writes the folder, whole or not at all, in place of any that was there -> its digest. Of a model with an energy log Z is found for it, where
    the model does not know it yet. Raises ValueError for labels that are not the event's."""
    if labels and len(labels) != model.event.classes:
        raise ValueError(f"{len(labels)} label names for {model.event.classes} classes; give one for each, or none")
    if type(model) is not zoo.MODELS.get(family):
        raise ValueError(f"a {type(model).__name__} saved as family {family!r}; the zoo has it otherwise: {', '.join(sorted(zoo.MODELS))}")
    description = {
        "format": FORMAT,
        "family": family,
        "version": type(model).VERSION,
        "config": asdict(model.config),
        "event": model.event.to_json(),
        "prepare": dict(prepare),
        "labels": list(labels),
        "capabilities": capabilities(model),
        "scores": [dict(score) for score in scores],
        "lineage": dict(lineage),
        **({"log_partition": _partition(model)} if isinstance(model, Energy) else {}),
    }
    # Clones, since tensors that share memory (tied weights, a trainer's flat buffer) are refused by safetensors.
    weights = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in model.state_dict().items()}
    with _replacing(folder) as part:
        safetensors.torch.save_file(weights, part / WEIGHTS)
        return _seal(part, description)


def annotate(folder: Path, *, scores: Sequence[Mapping[str, Any]], lineage: Mapping[str, Any]) -> str:
    """Puts scores in place of the folder's and adds keys to its lineage; the weights and all other files stay -> the new digest."""
    description = _description(folder)
    description |= {"scores": [dict(score) for score in scores], "lineage": {**description["lineage"], **lineage}}
    with _replacing(folder) as part:
        for file in folder.iterdir():
            if file.name not in (DESCRIPTION, SUMS):
                _share(file, part / file.name)
        return _seal(part, description)


def read(folder: Path) -> Artifact:
    """What the folder says, without its weights. Raises ValueError where there is no artifact or model.json was changed."""
    folder = Path(folder)
    value = _description(folder)
    return Artifact(
        family=value["family"],
        version=value["version"],
        config=_frozen(value["config"]),
        event=Event.from_json(value["event"]),
        prepare=value["prepare"],
        labels=tuple(value["labels"]),
        capabilities=tuple(value["capabilities"]),
        scores=tuple(value["scores"]),
        lineage=value["lineage"],
        log_partition=value.get("log_partition"),
        digest=_sha256(folder / SUMS),
    )


def verify(folder: Path) -> str:
    """Checks every file that SHA256SUMS lists -> the digest. Raises ValueError naming the first that is missing or changed."""
    folder = Path(folder)
    sums = _sums(folder)
    for name in sums:
        _check(folder, name, sums)
    return _sha256(folder / SUMS)


def load(folder: Path | str, *, device: torch.device | str = "cpu") -> GenerativeModel:
    """The model of a folder, in eval mode. Raises ValueError in one line: a file missing or changed, a family or setting that is not known here."""
    folder = Path(folder)
    verify(folder)
    artifact = read(folder)
    try:
        model = zoo.build(artifact.family, artifact.event, **artifact.config)
        model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: {' '.join(str(error).split())}") from None
    if isinstance(model, Energy) and artifact.log_partition is not None:
        model.known = _known(artifact.log_partition)
    return model.to(device).eval()


def _partition(model: Energy) -> dict[str, Any]:
    """log Z of these weights, which it names: beside others it counts for nothing."""
    return {**asdict(model.partition()), "weights": model.weights_sha256}


def _known(found: Mapping[str, Any]) -> tuple[str, Partition]:
    values = {name: value for name, value in found.items() if name != "weights"}
    return found["weights"], Partition(**{**values, "interval": tuple(found["interval"])})


def _description(folder: Path) -> dict[str, Any]:
    sums = _sums(Path(folder))
    value = json.loads(_check(Path(folder), DESCRIPTION, sums))
    if value.get("format") != FORMAT:
        raise ValueError(f"{folder}: artifact format {value.get('format')}; this version reads format {FORMAT}")
    return value


def _sums(folder: Path) -> dict[str, str]:
    """SHA256SUMS as a mapping of file name -> hex digest."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder}: no {SUMS}, so no model; wanted a folder with {DESCRIPTION}, {WEIGHTS} and {SUMS}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{folder}: {SUMS} was changed since it was written; fetch the folder again") from None
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if set(sums) != {DESCRIPTION, WEIGHTS}:
        raise ValueError(f"{folder}: {SUMS} lists {', '.join(sorted(sums)) or 'nothing'}; wanted {DESCRIPTION} and {WEIGHTS}")
    return sums


def _check(folder: Path, name: str, sums: Mapping[str, str]) -> bytes:
    """The bytes of a listed file, once they are known to be those that were written."""
    try:
        content = (folder / name).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{folder}: {name} is missing; fetch the folder again") from None
    if hashlib.sha256(content).hexdigest() != sums[name]:
        raise ValueError(f"{folder}: {name} was changed since it was written (its SHA-256 is not the listed one); fetch the folder again")
    return content


def _seal(part: Path, description: Mapping[str, Any]) -> str:
    """Writes the description and the sums of it and of the weights -> the digest."""
    (part / DESCRIPTION).write_text(json.dumps(description, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    (part / SUMS).write_text("".join(f"{_sha256(part / name)}  {name}\n" for name in (DESCRIPTION, WEIGHTS)))
    return _sha256(part / SUMS)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place when the block ends well, and leaves no trace when it does not."""
    folder = Path(folder)
    part, old = (folder.with_name(f".{folder.name}.{kind}-{uuid.uuid4().hex}") for kind in ("part", "old"))
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _share(file: Path, target: Path) -> None:
    """The same file in another folder: linked where the disk can, copied where it cannot."""
    try:
        os.link(file, target)
    except OSError:
        (shutil.copytree if file.is_dir() else shutil.copy2)(file, target)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that a Config holds."""
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value
