"""The page of a comparison, which needs nothing else: its figures and plots, what of it was registered, and how that is used."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from rich.markup import escape

from pipelines import card, console, report, storage, summary
from pipelines import recipe as recipes
from pipelines.inference_report import TITLES, cells, notes
from pipelines.recipe import Recipe
from pipelines.records import Scores, Shards, Version


def tell(recipe: Recipe, made: Mapping[str, Any], found: Mapping[str, Any], asked: str) -> None:
    """Where the page is, and what to do next."""
    console.result(f"[bold]{'report':<10}[/bold] {escape(found['report'])}", markup=True)
    for line in commands(recipe, made.get("register"), found, asked):
        console.result(line)


def commands(recipe: Recipe, version: Version | None, found: Mapping[str, Any], asked: str) -> list[str]:
    """How the posterior by the recipe's method is served, and how that by another method is registered."""
    sound = [row["method"] for row in found["rows"] if row["role"] == "method" and not row["failed"] and row["converged"] is not False]
    lines = [f"genmodels infer {asked}   # registers this posterior by {found['chosen']}"]
    if version is not None:
        kept = "" if version.champion else ", which the gate did not make champion"
        serve = f"genmodels serve {version.uri}{summary.storage_option(recipe.storage)}"
        lines = [f"{serve}   # its predictive samples, at an endpoint; version {version.version}{kept}"]
    others = [name for name in sound if name != found["chosen"]]
    return [*lines, *(f"genmodels infer {asked} --set model.method={name}   # by another method" for name in others[:1])]


def write(recipe: Recipe, made: Mapping[str, Any], found: Mapping[str, Any], asked: str) -> None:
    """report.html into the comparison's folder, where it does not say the same already, or what was registered before."""
    if "register" not in made and storage.exists(found["report"]):
        return
    page = html(recipe, made, found, asked).encode()
    if not storage.exists(found["report"]) or storage.read_bytes(found["report"]) != page:
        storage.write_bytes(found["report"], page)


def html(recipe: Recipe, made: Mapping[str, Any], found: Mapping[str, Any], asked: str) -> str:
    """The page. Whatever comes from a recipe or a table's columns is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(card.TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    shards: Shards = made["prepare"]
    version: Version | None = made.get("register")
    return environment.get_template("inference.html").render(
        name=recipe.name,
        about=" ".join(recipe.about.split()),
        unknowns=len(found["parameters"]),
        target=recipe.model.config.get("target", "linear"),
        rows=shards.rows["train"],
        event=shards.event,
        titles=TITLES,
        table=[
            {"cells": cells(row), "bad": bool(row["failed"] or row["converged"] is False), "chosen": row["method"] == found["chosen"]}
            for row in found["rows"]
        ],
        notes=notes(found),
        marginals=_picture(found["plots"]["marginals"]),
        chains=[{**chain, **{key: _picture(chain[key]) for key in ("traces", "ranks")}} for chain in found["plots"]["chains"]],
        methods=[row["method"] for row in found["rows"] if row["role"] == "method"],
        version=version,
        chosen=found["chosen"],
        scores=_scores(made.get("evaluate")),
        samples=report.embedded(made["evaluate"].samples) if version else None,
        commands=commands(recipe, version, found, asked),
        recipe=yaml.safe_dump(recipes.dump(recipe), sort_keys=False, allow_unicode=True),
    )


def _picture(uri: str) -> dict[str, str | None]:
    """A plot inside the page, and the name of its file beside it."""
    return {"inside": report.embedded(uri), "file": uri.rpartition("/")[2]}


def _scores(scores: Scores | None) -> Sequence[tuple[str, ...]]:
    """Model, score, value and protocol of the test split."""
    if scores is None:
        return ()
    return [(score.model, score.name, card.figure(score), score.protocol) for score in scores.scores if score.split == "test"]
