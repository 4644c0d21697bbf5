"""What the command says when it is done: scores beside their baselines, where things are, and what to do next."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines import console
from pipelines.records import Checkpoint, Deployment, Scores, Shards, Version, to_json

KEYS = {"prepare": "shards", "train": "checkpoint", "evaluate": "scores", "register": "version", "deploy": "endpoint", "run": "report"}


def show(made: Mapping[str, Any]) -> None:
    """made: a record by stage. One JSON object for machines, a few lines and a table for people."""
    console.emit(**machine(made))
    if console.speaks_json():
        return
    for record in made.values():
        for kind, write in _WRITERS.items():
            if isinstance(record, kind):
                write(record)
    if "run" in made:
        _line("report", made["run"])
        version = made["register"]
        _line("keep it up", f"genmodels serve {version.uri}" + ("" if version.champion else "   (the gate kept the present champion)"))


def machine(made: Mapping[str, Any]) -> dict[str, Any]:
    """The result for machines: shards, checkpoint, scores, version, endpoint, report, as far as the stages went."""
    values: dict[str, Any] = {}
    for stage, record in made.items():
        if stage == "evaluate":
            scores = to_json(record)
            values |= {"scores": scores.pop("scores"), "evaluation": scores}
        elif stage == "tune":
            values["train"] = record.train.model_dump(mode="json", exclude_none=True)
            values["model"] = {"family": record.model.family, **record.model.config}
        elif stage in KEYS:
            values[KEYS[stage]] = record if isinstance(record, str) else to_json(record)
    return values


def families() -> None:
    """The families and what each can do."""
    from genmodels.core import capabilities
    from genmodels.zoo import MODELS

    table = Table("family", "learns", "can", "models", "paper", box=None, header_style="bold")
    for name, family in sorted(MODELS.items()):
        title = _first_line(__import__(family.__module__, fromlist=["_"]).__doc__)
        learns = next((base.__name__.lower() for base in family.__mro__ if base.__name__ in ("Trained", "Iterated")), "")
        able = capabilities(family)
        table.add_row(name, learns, ", ".join(able), ", ".join(sorted(family.modalities)), title)
        console.emit(family=name, learns=learns, capabilities=able, modalities=sorted(family.modalities), about=title)
    if not console.speaks_json():
        Console().print(table)


def recipes() -> None:
    """The shipped recipes, their cost and expected score."""
    from pipelines.recipe import load, names

    table = Table("recipe", "family", "about", box=None, header_style="bold")
    for name in names():
        recipe = load(name)
        about = " ".join(recipe.about.split())
        table.add_row(name, recipe.model.family, about)
        console.emit(recipe=name, family=recipe.model.family, about=about)
    if not console.speaks_json():
        Console().print(table)


def _shards(shards: Shards) -> None:
    rows = ", ".join(f"{count:,} {split}" for split, count in shards.rows.items())
    _line("shards", f"{shards.uri}  ({shards.event}; {rows})")


def _checkpoint(checkpoint: Checkpoint) -> None:
    best = f", best {checkpoint.best['metric']} at step {checkpoint.best['step']:,}" if checkpoint.best else ""
    _line("model", f"{checkpoint.uri}  ({checkpoint.steps:,} steps{best})")


def _scores(scores: Scores) -> None:
    """The figures that decide, one line each; all of them are in the report, and in --json."""
    for score in scores.scores:
        if score.split != "test" or score.unit == "nats":
            continue
        error = f" ± {score.stderr:.3f}" if score.stderr is not None else ""
        unit = f" {score.unit}" if score.unit else ""
        what = score.protocol if score.name == score.unit or score.protocol.startswith(score.name) else f"{score.name}: {score.protocol}"
        _line(score.model, f"{score.value:.3f}{error}{unit}  ({what}; {score.n:,} {score.split})", wide=True)
    _line("samples", scores.samples)


def _version(version: Version) -> None:
    _line("version", f"{version.uri}  (version {version.version}; {version.reason})")


def _deployment(deployment: Deployment) -> None:
    state = "live at" if deployment.live else "answered at"
    _line("endpoint", f"{state} {deployment.url}; its answer: {deployment.answer}")


_WRITERS = {Shards: _shards, Checkpoint: _checkpoint, Scores: _scores, Version: _version, Deployment: _deployment}


def _line(name: str, text: str, *, wide: bool = False) -> None:
    console.result(f"[bold]{name:<{16 if wide else 10}}[/bold] {text}")


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]
