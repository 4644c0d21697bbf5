"""The sections of a recipe: every key, its default, its bounds and its meaning. Unknown keys are refused."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ImageData(Section):
    """How a picture becomes levels (C, height, width)."""

    height: Annotated[int, Field(ge=1, le=4096)]
    width: Annotated[int, Field(ge=1, le=4096)]
    channels: Literal[1, 3] = 1
    levels: Annotated[int, Field(ge=2, le=256)] = 256
    fit: Literal["crop", "pad", "stretch"] = "crop"


class AudioData(Section):
    """How a sound becomes levels (T,): resampled to sample_rate Hz, cut into windows of `seconds`, quantised (256 levels: mu-law)."""

    sample_rate: Annotated[int, Field(ge=1000, le=192_000)]
    seconds: Annotated[float, Field(gt=0, le=600)]
    levels: Annotated[int, Field(ge=2, le=256)] = 256
    window: Literal["all", "first"] = "all"
    hop: Annotated[float, Field(gt=0)] | None = None
    """Seconds from one window's start to the next; the window itself where left out."""


class TableData(Section):
    """Which columns of a table are modelled: the target given the features, or without a target the features themselves."""

    features: tuple[str, ...] = ()
    """Columns of numbers; left out: every column but the target, and of a named source but its own target too."""
    target: str | None = None
    kind: Literal["regression", "classification"] | None = None
    """What the target is: a number, or one of 2 to 256 labels."""

    @model_validator(mode="after")
    def _consistent(self) -> "TableData":
        if (self.target is None) != (self.kind is None):
            raise ValueError(
                "a target needs its kind: regression (a number) or classification (a label)"
                if self.kind is None
                else f"kind {self.kind} without a target; name the target's column, or leave kind out"
            )
        if twice := sorted({name for name in self.features if self.features.count(name) > 1}):
            raise ValueError(f"features name {twice[0]!r} twice; once is enough")
        if self.target in self.features:
            raise ValueError(f"{self.target!r} is both a feature and the target; leave it out of the features")
        return self


class Label(Section):
    """Where an example's label comes from: its folder's name, a regular expression's first group on its path, or a CSV with a row a file."""

    by: Literal["none", "source", "folder", "pattern", "csv"] = "source"
    """source: what the source itself gives (a named source, IDX, npz, Parquet); none: unlabelled."""
    pattern: str | None = None
    csv: str | None = None
    """URL of the CSV; a relative one starts at the data's root."""
    file_column: str = "file"
    label_column: str = "label"

    @model_validator(mode="after")
    def _complete(self) -> "Label":
        if (self.by == "pattern") != (self.pattern is not None):
            raise ValueError("by: pattern and a pattern go together")
        if (self.by == "csv") != (self.csv is not None):
            raise ValueError("by: csv and the csv's URL go together")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"pattern {self.pattern!r} has {groups} groups; wanted one, around the label")
        return self


class Fractions(Section):
    """Shares of the splits, by hash of an example's content."""

    train: Annotated[float, Field(gt=0, lt=1)] = 0.8
    valid: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _whole(self) -> "Fractions":
        if abs(self.train + self.valid + self.test - 1) > 1e-9:
            raise ValueError(f"train + valid + test = {self.train + self.valid + self.test:g}; wanted 1")
        return self


class Data(Section):
    source: str
    """A named source (digits, tones, mnist, fashion_mnist, binarized_mnist, fsdd; tables: diabetes, breast_cancer, wine, iris), or the URL of a
    folder, zip, IDX, npz or Parquet file; of a table: of a CSV or Parquet file, or a folder of them."""
    image: ImageData | None = None
    audio: AudioData | None = None
    table: TableData | None = None
    label: Label = Label()
    split: Fractions = Fractions()
    """Used where the source has no official split."""
    max_bad: Annotated[float, Field(ge=0)] = 0.01
    """Inputs that may be unreadable before prepare stops: a share below 1, a count from 1 on."""
    seconds_per_file: Annotated[float, Field(gt=0)] = 30.0
    """A file that takes longer to decode goes to quarantine."""

    @property
    def modality(self) -> Literal["image", "audio", "table"]:
        return "image" if self.image else "audio" if self.audio else "table"

    @model_validator(mode="after")
    def _one_modality(self) -> "Data":
        given = [name for name in ("image", "audio", "table") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"got {' and '.join(given) or 'none'} of image, audio, table; wanted one of them")
        if self.table and self.label != Label():
            raise ValueError("label is for pictures and sounds; a row's label is its target: leave label out and set table.target")
        return self


class Model(BaseModel):
    """The family and its Config's keys; the Config itself is checked against the family's dataclass."""

    model_config = ConfigDict(extra="allow", frozen=True)
    family: str

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class ObjectiveOptimizer(Section):
    """Overrides of one objective's optimiser defaults."""

    algorithm: Literal["adamw", "sgd"] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    betas: tuple[float, float] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    clip: Annotated[float, Field(ge=0)] | None = None


class Schedule(Section):
    """Linear warm-up over `warmup` steps, then constant, or a half cosine down to `final` of the learning rate at the last step."""

    warmup: Annotated[int, Field(ge=0)] = 0
    decay: Literal["constant", "cosine"] = "constant"
    final: Annotated[float, Field(ge=0, le=1)] = 0.0


class Train(Section):
    steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Examples of a step, over all workers together."""
    labels: Annotated[int, Field(ge=1)] | None = None
    """Show only so many labels of the train split, the same number of each class, the first in hash order; left out: all of them."""
    labelled_every: Annotated[int, Field(ge=1)] | None = None
    """With labels: every so manieth example is one that shows its label, taken again and again; left out: as rarely as they come."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of every objective that names none of its own."""
    objectives: dict[str, ObjectiveOptimizer] = {}
    schedule: Schedule = Schedule()
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["f32", "bf16"] = "f32"
    compile: bool = False
    """torch.compile of the losses. A gated PixelCNN's step takes a fifth to a third less, a plain one's more. It costs a C++ compiler where the
    workers run (Triton on a GPU) and half a minute or more at a worker's start, seconds where that machine has compiled the same before. Families
    that differentiate or branch inside a loss (gan, made) are refused at their first step."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    threads: Annotated[int, Field(ge=1)] = 1
    """torch threads of each CPU worker."""
    workers: Annotated[int, Field(ge=1)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    valid_every: Annotated[int, Field(ge=1)] = 500
    valid_examples: Annotated[int, Field(ge=1)] = 1000
    """Examples of the valid split looked at each time; the whole split where it is smaller."""
    best: bool = True
    """Keep the weights with the best validation score, where the family has one; else the last step's."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    max_failures: Annotated[int, Field(ge=0)] = 3

    @model_validator(mode="after")
    def _labels_to_repeat(self) -> "Train":
        if self.labelled_every and not self.labels:
            raise ValueError(f"labelled_every {self.labelled_every} without labels; say in labels how many are shown, or leave it out")
        return self


class Search(Section):
    """The space (a recipe key: a distribution such as {loguniform: [1e-4, 1e-2]}, {choice: [32, 64]}, {randint: [1, 9]}) and who walks it."""

    algorithm: Literal["optuna", "random"] = "optuna"
    space: dict[str, dict[str, Any]]


class Tune(Section):
    trials: Annotated[int, Field(ge=1)] = 8
    search: Search
    scheduler: Literal["asha", "none"] = "asha"
    metric: str = "valid"
    """The validation score of the family (its name is in the trials' table); lower is better."""
    seed: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(ge=1)] = 500
    concurrency: Annotated[int, Field(ge=1)] = 2
    """Trials at once; each takes its share of train.threads."""
    workers_per_trial: Annotated[int, Field(ge=1)] = 1
    time_budget: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which no further trial starts and running ones stop."""
    reseed_top: Annotated[int, Field(ge=0)] = 0
    """How many of the best candidates run again with other seeds before one is chosen."""
    reseeds: Annotated[int, Field(ge=1)] = 1
    """With how many other seeds."""


class Infer(Section):
    """What `genmodels infer` compares on a posterior."""

    methods: tuple[Literal["hmc", "mala", "metropolis", "gibbs", "vi-diagonal", "vi-full", "vi-mean-field"], ...] = ()
    """Left out: all that the target takes."""
    reference: Literal["hmc", "gibbs", "mala", "metropolis"] | None = None
    """Of the long run; left out: gibbs where the conditionals are known, else hmc, else metropolis."""
    reference_draws: Annotated[int, Field(ge=400)] = 20_000
    """Kept draws of the long run, over all its chains."""


class Evaluate(Section):
    batch_size: Annotated[int, Field(ge=1)] = 128
    iwae: Annotated[int, Field(ge=1)] = 64
    """k of the IWAE bound, for families that have bounds in place of a likelihood."""
    max_examples: Annotated[int, Field(ge=1)] | None = None
    """Score only that many examples of the test split, and of the valid one for the gate, in hash order; said in the protocol."""
    samples: Annotated[int, Field(ge=1)] = 64
    """Samples on the sheet."""
    generated: Annotated[int, Field(ge=16)] = 2048
    """Samples drawn for the Frechet distance."""
    seed: Annotated[int, Field(ge=0)] = 0


class Gate(Section):
    rule: Literal["better", "always", "never"] = "better"
    """better: champion moves when the valid score beats the present champion's, re-scored on the same data, by at least `margin`."""
    margin: float = 0.0


class Register(Section):
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] | None = None
    """Name in the registry; the recipe's own where left out."""
    gate: Gate = Gate()


class Serve(Section):
    replicas: Annotated[int, Field(ge=1)] = 1
    cpus_per_replica: Annotated[float, Field(gt=0)] = 0.1
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=1)] = 1
    precision: Literal["f32", "bf16", "int8"] = "f32"
    """Of the weights that samples are drawn with: bf16, or int8 for WaveNet, where the processor has it; faster, an equality class of its own."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    max_batch: Annotated[int, Field(ge=1)] = 16
    batch_wait_ms: Annotated[float, Field(ge=0)] = 5.0
    max_queue: Annotated[int, Field(ge=1)] = 64
    max_samples: Annotated[int, Field(ge=1)] = 256
    """Samples one request may ask for."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
