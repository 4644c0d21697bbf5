"""The recipe: one YAML file that says what to prepare, learn, tune, score, register and serve. Every key is checked; a misspelt one is refused."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from pipelines.errors import Refused
from pipelines.sections import Data, Evaluate, Infer, Model, ObjectiveOptimizer, Register, Section, Serve, Train, Tune
from pipelines.storage import absolute
from serve.names import unknown

SHIPPED = Path(__file__).parent / "recipes"


class Recipe(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    about: str = ""
    """What it makes, its cost on two cores and its expected score, in a sentence or two."""
    storage: str = "./runs"
    data: Data
    model: Model
    train: Train
    tune: Tune | None = None
    infer: Infer | None = None
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
    """The shipped recipes: those that a laptop runs first, then those of the papers' sizes."""
    return [path.stem for path in shipped()]


def shipped() -> list[Path]:
    """Their files; a recipe goes by its file's name, whichever folder that is in."""
    return sorted(SHIPPED.glob("*.yaml")) + sorted(SHIPPED.glob("paper/*.yaml"))


def load(recipe: str, changes: Sequence[str] = ()) -> Recipe:
    """A recipe from a path or a shipped recipe's name, with `a.b=c` changes applied. Raises Refused with one line for whatever is wrong."""
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        if recipe not in names():
            raise Refused(unknown("recipe", recipe, names()) + " (or give a path that ends in .yaml)")
        path = next(file for file in shipped() if file.stem == recipe)
    try:
        values = _read(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise Refused(f"no recipe at {path}; the shipped ones are: {', '.join(names())}") from None
    except IsADirectoryError:
        raise Refused(f"{path} is a folder; wanted the recipe's file") from None
    except UnicodeDecodeError:
        raise Refused(f"{path} is no text in UTF-8; wanted a recipe in YAML") from None
    if not isinstance(values, dict):
        held = "nothing" if values is None else f"a {KINDS.get(type(values).__name__, type(values).__name__)}"
        raise Refused(f"{path} holds {held}; wanted a mapping with name, data, model, train")
    return check(set_keys(values, changes))


KINDS = {"str": "text", "dict": "mapping", "int": "number", "float": "number"}
"""What YAML calls what Python calls otherwise."""


def _read(text: str, where: str) -> Any:
    """The values of a YAML text. Raises Refused with the line and column of what is wrong."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark, way_out = error.problem_mark, ""
        if "'\\t'" in (error.problem or ""):
            way_out = "; indent with spaces, YAML takes no tabs"
        at = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise Refused(f"{where} is no YAML: {error.problem}{at}{way_out}") from None
    except yaml.YAMLError as error:
        raise Refused(f"{where} is no YAML: {' '.join(str(error).split())}") from None


def set_keys(values: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The mapping with each `a.b=c` (c read as YAML) put in its place."""
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise Refused(f"--set {change}: wanted KEY=VALUE, as in --set train.steps=100")
        values = put(values, key, _read(text, f"--set {change}: {text}"))
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
    _check_passes(recipe, title)
    _check_space(recipe, values, title)
    return recipe


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values that `check` takes back; defaults included."""
    return recipe.model_dump(mode="json", by_alias=True, exclude_none=True)


def _check_model(recipe: Recipe, title: str) -> None:
    from genmodels.zoo import MODELS  # torch: only once a recipe is really used

    if recipe.model.family not in MODELS:
        raise Refused(f"{title}: model.family: {unknown('family', recipe.model.family, MODELS)}")
    modalities = MODELS[recipe.model.family].modalities
    if recipe.data.modality not in modalities:
        raise Refused(
            f"{title}: model.family: {recipe.model.family} models {' and '.join(sorted(modalities))}; the recipe's data is {recipe.data.modality}"
        )
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


def _check_passes(recipe: Recipe, title: str) -> None:
    """A family that learns by passes over the data has one worker, and no use for the numbers of descent."""
    from genmodels.core import Iterated
    from genmodels.zoo import MODELS

    if not issubclass(MODELS[recipe.model.family], Iterated):
        return
    workers = {"train.workers": recipe.train.workers, "tune.workers_per_trial": recipe.tune.workers_per_trial if recipe.tune else 1}
    for key, count in workers.items():
        if count > 1:
            raise Refused(f"{title}: {key}: {recipe.model.family} learns by passes over the data, on one worker (got {count}); set it to 1")
    for key in DESCENT:
        if getattr(recipe.train, key) != getattr(Train(steps=1), key):
            raise Refused(f"{title}: train.{key}: {recipe.model.family} learns by passes over the data, not by descent; leave it out")


DESCENT = ("accumulate", "lr", "objectives", "schedule", "ema", "precision", "compile")
"""Keys of train that mean nothing where nothing descends."""


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
    message = SAID.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    got = f" (got {first['input']!r})" if not isinstance(first["input"], dict) else ""
    return f"{where}: {message}{got}"


SAID = {
    "model_type": "wanted a section of keys and values",
    "dict_type": "wanted keys and values",
    "tuple_type": "wanted a list, as [a, b]",
    "list_type": "wanted a list, as [a, b]",
}
"""What pydantic says in Python's words, in YAML's."""


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
