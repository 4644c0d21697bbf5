"""What `run` would do, without doing it: each stage's output is looked for by its fingerprint, until one is missing."""

import importlib
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape

from pipelines import console
from pipelines.recipe import Recipe, dump
from pipelines.records import Output
from pipelines.storage import exists, filesystem, join, read_json, write_json

STAGES = ("prepare", "tune", "train", "evaluate", "register", "deploy")


@dataclass(frozen=True, kw_only=True)
class Step:
    stage: str
    state: str
    """done, would run, waits, or not asked for."""
    why: str
    uri: str = ""


def plan(recipe: Recipe) -> list[Step]:
    """The stages in their order. Nothing is run, nothing is written, Ray is not started."""
    steps: list[Step] = []
    made: dict[str, Any] = {}
    asked = recipe
    with console.quiet():
        for name in STAGES:
            if name == "tune" and recipe.tune is None:
                steps.append(Step(stage=name, state="not asked for", why="the recipe has no tune section"))
                continue
            if missing := next((step.stage for step in steps if step.state == "would run"), None):
                steps.append(Step(stage=name, state="waits", why=f"its inputs come from {missing}"))
                continue
            stage = importlib.import_module(f"pipelines.{name}")
            inputs = _inputs(name, recipe, made)
            output: Output = stage.output(*inputs)
            if output.done:
                made[name] = getattr(stage, name)(*inputs)  # reads what is there
                recipe = made[name] if name == "tune" else recipe
            steps.append(_step(name, asked, output))
    return steps


def show(steps: list[Step]) -> None:
    for step in steps:
        colour = {"done": "green", "would run": "yellow"}.get(step.state, "dim")
        where = f"  [dim]{escape(step.uri)}[/]" if step.uri else ""
        console.result(f"[bold]{step.stage:<9}[/] [{colour}]{step.state:<13}[/] {escape(step.why)}{where}", markup=True)
        console.emit(**asdict(step))


def _inputs(name: str, recipe: Recipe, made: dict[str, Any]) -> tuple[Any, ...]:
    wanted = {
        "tune": ("prepare",),
        "train": ("prepare",),
        "evaluate": ("train", "prepare"),
        "register": ("train", "evaluate"),
        "deploy": ("register",),
    }
    return (recipe, *(made[stage] for stage in wanted.get(name, ())))


def remember(recipe: Recipe) -> None:
    """Keeps the settings of the last run, so that a later plan can say what has changed since."""
    if _last(recipe) != dump(recipe):
        write_json(_kept(recipe), dump(recipe))


def _kept(recipe: Recipe) -> str:
    return join(recipe.root, "last", f"{recipe.name}.json")


def _last(recipe: Recipe) -> dict[str, Any]:
    return read_json(_kept(recipe)) if exists(_kept(recipe)) else {}


def _step(name: str, asked: Recipe, output: Output) -> Step:
    if output.done:
        return Step(stage=name, state="done", why=f"complete for these inputs ({output.fingerprint})", uri=output.uri)
    if _entries(output.uri):
        why = "begun and not finished: it goes on from what is there"
    elif last := _last(asked):
        changes = changed(last, dump(asked))
        why = "since the last run: " + (", ".join(changes[:4]) if changes else "the data, the code or the libraries changed")
    else:
        why = "no output yet"
    return Step(stage=name, state="would run", why=why, uri=output.uri)


def changed(old: Any, new: Any, key: str = "") -> list[str]:
    """`train.steps 1500 -> 300` for every value in which two nested mappings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [line for one in keys for line in changed(old.get(one), new.get(one), f"{key}.{one}" if key else one)]
    return [] if old == new else [f"{key} {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _entries(uri: str) -> list[str]:
    """Names inside a folder, none where it does not exist."""
    fs, path = filesystem(uri)
    try:
        return [entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
