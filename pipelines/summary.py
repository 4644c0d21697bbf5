"""What the command says when it is done: scores beside their baselines, where things are, and what to do next."""

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pipelines import console
from pipelines.records import Checkpoint, Deployment, Scores, Shards, Version, to_json

KEYS = {"prepare": "shards", "train": "checkpoint", "evaluate": "scores", "register": "version", "deploy": "endpoint", "run": "report"}


def show(made: Mapping[str, Any]) -> None:
    """made: a record by stage. One JSON object for machines, a few lines and a table for people."""
    console.emit(**machine(made))
    if console.speaks_json():
        return
    tell(made.values())
    if "run" in made:
        _line("report", made["run"])
        version = made["register"]
        kept = "" if version.champion else "   (the gate kept the present champion)"
        _line("keep it up", f"genmodels serve {version.uri}{storage_option(made['tune'].storage)}{kept}")


def storage_option(storage: str) -> str:
    """What a command that takes a registered model is told besides its name: the registry is in the storage, unless that is the usual one."""
    return "" if storage == "./runs" else f" --storage {shlex.quote(storage)}"


def tell(records: Iterable[Any]) -> None:
    """A few lines for people of each record."""
    for record in records:
        for kind, write in _WRITERS.items():
            if isinstance(record, kind):
                write(record)


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
    """The tree of generative models and what each leaf can do."""
    from pipelines import taxonomy

    root, branches = Tree("[bold]generative models[/bold]"), dict[tuple[str, ...], Tree]()
    for group, path, names in taxonomy.tree():
        for depth in range(len(path)):
            if path[: depth + 1] not in branches:
                branches[path[: depth + 1]] = branches.get(path[:depth], root).add(path[depth])
        leaves = [_family(name, group, path) for name in names]
        shared = [word for word in leaves[0]["can"] if all(word in leaf["can"] for leaf in leaves)]
        if len(leaves) > 1:
            branches[path].label = Text.assemble(path[-1] + "\n", ("each: " + ", ".join(shared), "green"))
        for leaf, before in zip(leaves, [None, *leaves], strict=False):
            about = "" if before is not None and before["about"] == leaf["about"] else leaf["about"]
            can = [word for word in leaf["can"] if word not in shared or len(leaves) == 1]
            branches[path].add(_leaf(leaf, about, can))
            console.emit(**{key: value for key, value in leaf.items() if key != "can"})
    if not console.speaks_json():
        Console().print(root)


def _family(name: str, group: str, path: Sequence[str]) -> dict[str, Any]:
    """What is to be said of a family; `can` is the same as `capabilities`, in words."""
    from genmodels.core import capabilities
    from genmodels.zoo import MODELS
    from pipelines import taxonomy

    kind = MODELS[name]
    return {
        "family": name,
        "group": group,
        "branches": list(path),
        "modalities": sorted(kind.modalities),
        "capabilities": capabilities(kind),
        "temperature": taxonomy.temperature(kind),
        "about": _first_line(sys.modules[kind.__module__].__doc__),
        "can": taxonomy.can(kind),
    }


def _leaf(leaf: Mapping[str, Any], about: str, can: Sequence[str]) -> Text:
    """A name, what it models, a sentence that its neighbour has not said, and what it can do beyond its neighbours."""
    lines = [("\n" + line, style) for line, style in ((about, "dim"), (", ".join(can), "green")) if line]
    return Text.assemble((leaf["family"], "bold cyan"), "  " + " · ".join(leaf["modalities"]), *lines)


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
    has_bits = any(score.unit == "bits/dim" for score in scores.scores)
    for score in scores.scores:
        if score.split != "test" or (score.unit == "nats" and has_bits):
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
    console.result(f"[bold]{name:<{16 if wide else 10}}[/bold] {escape(text)}", markup=True)


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]
