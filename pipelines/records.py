"""What passes between the stages: frozen records of URIs and numbers, small enough to print and to store."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from genmodels.core import Event
from genmodels.evaluate import Score


@dataclass(frozen=True, kw_only=True)
class Shards:
    """A finished data set: `uri` holds manifest.json and the Parquet files it lists."""

    uri: str
    fingerprint: str
    event: Event
    rows: Mapping[str, int]
    """Examples of each split: train, valid, test."""
    labels: tuple[str, ...] = ()
    """Name of each class, in the order of the label column's numbers."""
    prepare: Mapping[str, Any] = field(default_factory=dict)
    """How a file becomes levels (the settings of genmodels.media), so that serving decodes as training did."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A finished training: `uri` is an artifact folder (genmodels.artifact)."""

    uri: str
    fingerprint: str
    digest: str
    steps: int
    log: str
    """URI of the training's JSONL: steps, losses, throughput."""
    best: Mapping[str, Any] = field(default_factory=dict)
    """Which metric chose the weights, its value and its step; empty where the last step's are kept."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    uri: str
    fingerprint: str
    scores: tuple[Score, ...]
    """The model's own and the baselines', each under its own model name."""
    samples: str
    """URI of the sample sheet (PNG), or of the sounds (WAV)."""
    artifact: str
    """URI of the model folder that carries these scores, the samples and a model card: what is registered and served."""
    digest: str
    """The digest of that artifact."""
    shards: str
    """URI of the shards they were computed on."""

    def score(self, split: str, name: str | None = None) -> Score | None:
        """The first score of a split, or the first of that name: the model's own come before its baselines'."""
        return next((score for score in self.scores if score.split == split and name in (None, score.name)), None)


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered version: models:/<name>/<version>, its artifact and that artifact's digest."""

    name: str
    version: str
    artifact: str
    digest: str
    champion: bool
    reason: str
    """What the gate said."""
    fingerprint: str

    @property
    def uri(self) -> str:
        return f"models:/{self.name}@champion" if self.champion else f"models:/{self.name}/{self.version}"


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """An endpoint that answered: on a cluster it stays up at `url`; on a local Ray it was shut down again, and `answer` is what it said."""

    url: str
    model: str
    version: str
    live: bool
    answer: str
    """URI of the one sample that was asked for."""
    receipt: Mapping[str, Any]
    report: str


def to_json(record: Any) -> dict[str, Any]:
    """A record as plain JSON values."""
    value = asdict(record)
    if isinstance(record, Shards):
        value["event"] = record.event.to_json()
    return value


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a stage's output for these inputs is, or will be, and whether it is complete."""

    fingerprint: str
    uri: str
    done: bool
