"""What goes over the wire: requests, answers and receipts; of codes in serve.code_schema."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from serve.fields import SEEDS, Json, Label, Whole
from serve.names import unknown
from serve.receipt import Receipt


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an endpoint runs. A recipe's `serve` section has the same keys."""

    replicas: int = 1
    cpus_per_replica: float = 0.1
    gpus_per_replica: float = 0
    threads: int = 1
    precision: Literal["f32", "bf16", "int8"] = "f32"
    """Of the weights that samples are drawn with: bf16, or int8 for WaveNet, where the processor has it; faster, an equality class of its own."""
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 16
    batch_wait_ms: float = 5.0
    max_queue: int = 64
    max_samples: int = 256
    timeout_s: float = 120.0
    max_body: int = 32 * 2**20
    """Bytes of a request's body."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Settings":
        """Settings from plain values. Raises ValueError for a key that is none of ours."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"serve.{key}: {unknown('key', key, known)}")
        return cls(**values)


class DrawRequest(Json):
    """Which draws are meant. Draw i of a seed is the same picture or sound however many are asked for and whoever else is asking."""

    n: Annotated[Whole, Field(ge=1)] = Field(1, description="How many.")
    seed: Annotated[Whole, Field(ge=0, lt=SEEDS)] | None = Field(
        None, description="Left out: the server chooses one and the receipt names it."
    )
    index: Annotated[Whole, Field(ge=0, lt=2**62)] = Field(0, description="Index of the first; asks for index..index+n-1 of the seed.")
    label: Label | list[Label] | None = Field(
        None, description="A class (number or name) for all, or one for each; left out: drawn by how likely each is."
    )
    condition: list[Any] | None = Field(
        None, description="What to condition on, nested lists of the shape of event.condition, for all of them."
    )
    temperature: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = Field(
        1.0, description="Other than 1 only where the capabilities name tempered."
    )


class SampleRequest(DrawRequest):
    """Which samples to draw."""

    stream: Annotated[bool, Field(strict=True)] = Field(
        False,
        description="Answer application/x-ndjson, one line a sample when it is drawn; or for Accept: audio/wav and n = 1 the sound itself while "
        "it is drawn.",
    )


class ExamplesRequest(Json):
    """Examples: one of x, levels (with shape) and media."""

    x: list[Any] | None = Field(None, description="Nested lists of levels, one example or a list of them.")
    levels: str | None = Field(None, description="base64 of the levels' bytes in C order (uint8; float32 for real-valued events).")
    shape: list[Whole] | None = Field(None, description="Shape of `levels`: (n, *event.shape).")
    media: str | list[str] | None = Field(
        None, description="base64 of a picture or sound file, or a list of them, decoded as for training."
    )


class ScoreRequest(ExamplesRequest):
    """What to score."""

    label: Label | list[Label] | None = Field(None, description="Score p(x|label); left out: p(x).")
    condition: list[Any] | None = Field(
        None, description="As for samples, for all examples, or a list of one for each; left out: derived from each, where it can be."
    )
    seed: Annotated[Whole, Field(ge=0, lt=SEEDS)] = Field(0, description="Of the draws behind a bound; an exact density has none.")
    k: Annotated[Whole, Field(ge=1, le=4096)] = Field(64, description="Draws of an IWAE_k bound.")
    map: Annotated[bool, Field(strict=True)] = Field(False, description="Also the nats of every value, where the model is autoregressive.")


class ClassificationRequest(ExamplesRequest):
    """What to classify."""

    condition: list[Any] | None = Field(None, description="As for scores.")


class First(Json):
    """A beginning: rows of a picture, steps of a sound, columns of a table."""

    first: Annotated[Whole, Field(ge=0)]


class CompletionRequest(DrawRequest, ExamplesRequest):
    """One example of which a part is known, and how many different ways of filling in the rest are wanted."""

    known: First | list[Any] | None = Field(
        None,
        description='Nested lists of true and false (or 1 and 0) of event.shape; or {"first": n}, the first n rows of a picture, steps of a '
        "sound or columns of a table. Left out: a sound file shorter than the event is continued from its end.",
    )


class SampleAnswer(Json):
    receipt: Receipt
    shape: list[int]
    dtype: str
    levels: str = Field(description="base64 of the levels' bytes in C order.")
    labels: list[int] | None = Field(description="The class of each sample, asked for or drawn.")
    media_type: str | None
    media: list[str] = Field(description="base64 of one PNG or WAV a sample.")


class CompletionAnswer(SampleAnswer):
    method: str
    exact: bool
    ess: list[float] | None = Field(description="Effective sample size of each, where draws were weighted; else null.")


class ValueMap(Json):
    """Nats of each value of one example given those before it; they add up to the example's."""

    shape: list[int]
    dtype: str
    nats: str = Field(description="base64 of the numbers' bytes in C order.")


class SampleScore(Json):
    nats: float = Field(description="log p of the example, its lower bound, or an estimate of it: see protocol.")
    bits_per_dim: float | None = Field(
        description="-nats / (dims ln 2): lower is better; null where values are real and nats those of a density."
    )
    dims: int
    map: ValueMap | None = Field(None, description="Where it was asked for.")


class Answer(Json):
    model: str
    version: str
    artifact: str
    protocol: str = Field(
        description="What the numbers are: exact p(x|y), exact p(x), p(y|x) and by what, q(z|x), a named bound, or an estimate and by what. "
        "Neither of the last two is ever called exact."
    )
    equality_class: str


class LogPartition(Json):
    """log Z of an unnormalised density: added to all scores of an answer alike."""

    value: float = Field(description="Nats.")
    interval: tuple[float, float] = Field(description="Holds it with 95 %; what it is off by, every score is off by.")
    method: str
    exact: bool


class ScoreAnswer(Answer):
    scores: list[SampleScore]
    log_partition: LogPartition | None = Field(None, description="Of models with an energy: what turned it into log p.")


class Classification(Json):
    best: int = Field(description="The most likely class.")
    label: str | None = Field(description="Its name, where classes have names.")
    log_probs: list[float] = Field(description="log p(y|x) of every class, nats.")


class ClassificationAnswer(Answer):
    labels: list[str] = Field(description="Name of each class, by number.")
    classifications: list[Classification]


class Description(Json):
    """A model that is served."""

    model: str
    version: str
    aliases: list[str]
    artifact: str = Field(description="Digest of the artifact folder.")
    family: str
    event: dict[str, Any]
    labels: list[str] = Field(description="Name of each class, by number.")
    capabilities: list[str]
    withheld: dict[str, str] = Field({}, description="What other settings of its family could do beside that, and why these cannot.")
    latent: dict[str, Any] | None = Field(None, description="The event of its codes, where it encodes or decodes.")
    chain: str | None = Field(
        None,
        description="By what its samples are approximate: the chain that draws them, or a posterior's draws, with their R-hat; null: drawn exactly.",
    )
    classifies_by: str | None = Field(None, description="What p(y|x) is found by, where it classifies.")
    prepare: dict[str, Any] = Field(description="How a picture or sound becomes levels.")
    scores: list[dict[str, Any]]
    lineage: dict[str, Any]
    equality_class: str
    max_samples: int

    @property
    def classes(self) -> int:
        return int(self.event.get("classes", 0))

    @property
    def codes(self) -> tuple[int, ...]:
        """The shape of a code."""
        return tuple(self.latent["shape"]) if self.latent else ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.event["shape"])

    @property
    def dtype(self) -> Any:
        """Of the levels: uint8, float32 for real-valued events."""
        return np.uint8 if self.event["levels"] else np.float32


class Descriptions(Json):
    models: list[Description]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a replica is told to serve: where it is and what it must hash to."""

    name: str
    version: str
    artifact: str
    digest: str
    aliases: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Target":
        return cls(**{**values, "aliases": tuple(values.get("aliases", ()))})
