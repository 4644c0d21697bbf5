"""The recipe: one YAML file that says what to prepare, learn, tune, score, register and serve. Every key is checked; a misspelt one is refused."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model, model_validator

from pipelines.errors import Refused, unknown
from pipelines.storage import absolute

SHIPPED = Path(__file__).parent / "recipes"


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
    features: tuple[str, ...]
    target: str | None = None


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
    """A named source (digits, tones, mnist, fashion_mnist, binarized_mnist, fsdd), or the URL of a folder, zip, IDX, npz or Parquet file."""
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
    accumulate: Annotated[int, Field(ge=1)] = 1
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of every objective that names none of its own."""
    objectives: dict[str, ObjectiveOptimizer] = {}
    schedule: Schedule = Schedule()
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["f32", "bf16"] = "f32"
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
    workers_per_trial: Annotated[int, Field(ge=1)] = 1
    time_budget: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which no further trial starts and running ones stop."""
    reseed_top: Annotated[int, Field(ge=0)] = 0
    """How many of the best candidates run again with other seeds before one is chosen."""
    reseeds: Annotated[int, Field(ge=1)] = 1
    """With how many other seeds."""


class Evaluate(Section):
    batch_size: Annotated[int, Field(ge=1)] = 128
    iwae: Annotated[int, Field(ge=1)] = 64
    """k of the IWAE bound, for families that have bounds in place of a likelihood."""
    max_examples: Annotated[int, Field(ge=1)] | None = None
    """Score only that many test examples, taken in hash order; said in the protocol."""
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
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    max_batch: Annotated[int, Field(ge=1)] = 16
    batch_wait_ms: Annotated[float, Field(ge=0)] = 5.0
    max_queue: Annotated[int, Field(ge=1)] = 64
    max_samples: Annotated[int, Field(ge=1)] = 256
    """Samples one request may ask for."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0


class Recipe(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    about: str = ""
    """What it makes, its cost on two cores and its expected score, in a sentence or two."""
    storage: str = "./runs"
    data: Data
    model: Model
    train: Train
    tune: Tune | None = None
    evaluate: Evaluate = Evaluate()
    register_: Register = Field(default=Register(), alias="register")
    serve: Serve = Serve()

    @property
    def root(self) -> str:
        """The storage as an absolute URL."""
        return absolute(self.storage)

    @property
    def registered_name(self) -> str:
        return self.register_.model or self.name


def names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load(recipe: str, changes: Sequence[str] = ()) -> Recipe:
    """A recipe from a path or a shipped recipe's name, with `a.b=c` changes applied. Raises Refused with one line for whatever is wrong."""
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        if recipe not in names():
            raise Refused(unknown("recipe", recipe, names()) + " (or give a path that ends in .yaml)")
        path = SHIPPED / f"{recipe}.yaml"
    try:
        values = yaml.load(path.read_text(), Loader=_Loader)
    except FileNotFoundError:
        raise Refused(f"no recipe at {path}; the shipped ones are: {', '.join(names())}") from None
    except yaml.YAMLError as error:
        raise Refused(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise Refused(f"{path} holds {type(values).__name__}; wanted a mapping with name, data, model, train")
    return check(set_keys(values, changes))


def set_keys(values: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The mapping with each `a.b=c` (c read as YAML) put in its place."""
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise Refused(f"--set {change}: wanted KEY=VALUE, as in --set train.steps=100")
        values = put(values, key, yaml.load(text, Loader=_Loader))
    return values


def put(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The mapping with a dotted key set; the given one is left as it was."""
    head, _, rest = key.partition(".")
    if not rest:
        return {**values, head: value}
    inner = values.get(head)
    return {**values, head: put(inner if isinstance(inner, dict) else {}, rest, value)}


def check(values: dict[str, Any]) -> Recipe:
    """Values -> a Recipe whose every key is known. Raises Refused naming the key, what was got and what is wanted."""
    title = f"recipe {values.get('name', '?')}"
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise Refused(f"{title}: {_say(error, Recipe)}") from None
    _check_model(recipe, title)
    _check_space(recipe, values, title)
    return recipe


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values that `check` takes back; defaults included."""
    return recipe.model_dump(mode="json", by_alias=True, exclude_none=True)


def _check_model(recipe: Recipe, title: str) -> None:
    from genmodels.zoo import MODELS  # torch: only once a recipe is really used

    if recipe.model.family not in MODELS:
        raise Refused(f"{title}: model.family: {unknown('family', recipe.model.family, MODELS)}")
    config = MODELS[recipe.model.family].Config
    fields: dict[str, Any] = {field.name: (field.type, None) for field in dataclasses.fields(config)}
    strict = create_model("Config", __config__=ConfigDict(extra="forbid"), **fields)
    try:
        strict.model_validate(recipe.model.config)
        TypeAdapter(config).validate_python(recipe.model.config)
    except ValidationError as error:
        raise Refused(f"{title}: {_say(error, strict, 'model')}") from None
    except ValueError as error:
        raise Refused(f"{title}: model: {error}") from None


def _check_space(recipe: Recipe, values: dict[str, Any], title: str) -> None:
    """Every searched key must be a key of the recipe: one value of each distribution is tried in its place."""
    for key, distribution in recipe.tune.search.space.items() if recipe.tune else ():
        kind, *more = distribution
        if more or kind not in DISTRIBUTIONS:
            raise Refused(f"{title}: tune.search.space.{key}: {unknown('distribution', kind, DISTRIBUTIONS)}")
        given = distribution[kind]
        if not isinstance(given, list) or (kind != "choice" and len(given) != DISTRIBUTIONS[kind]) or not given:
            raise Refused(f"{title}: tune.search.space.{key}: {kind} of {given}; wanted a list of {DISTRIBUTIONS[kind] or 'the choices'}")
        check(put({**values, "tune": None}, key, given[0]))


DISTRIBUTIONS = {"choice": 0, "uniform": 2, "loguniform": 2, "quniform": 3, "randint": 2, "qrandint": 3}
"""Distributions of a search space and how many numbers each takes (Ray Tune's own names)."""


def _say(error: ValidationError, model: type[BaseModel], *prefix: str) -> str:
    """The first thing that is wrong, on one line: key, what is wanted, what was got."""
    first = error.errors()[0]
    where = ".".join([*prefix, *map(str, first["loc"])])
    if first["type"] == "extra_forbidden":
        known = _keys(model, [str(part) for part in first["loc"][:-1]])
        return f"{where}: {unknown('key', str(first['loc'][-1]), known)}"
    if first["type"] == "missing":
        return f"{where}: missing"
    message = first["msg"].removeprefix("Value error, ")
    got = f" (got {first['input']!r})" if not isinstance(first["input"], dict) else ""
    return f"{where}: {message}{got}"


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that a section of the recipe takes."""
    for part in path:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        inner = fields[part].annotation if part in fields else None
        found = [kind for kind in (inner, *getattr(inner, "__args__", ())) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not found:
            return list(ObjectiveOptimizer.model_fields)
        model = found[0]
    return [field.alias or name for name, field in model.model_fields.items()]


class _Loader(yaml.SafeLoader):
    """YAML that also reads 1e-3 as a number, as people write it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
