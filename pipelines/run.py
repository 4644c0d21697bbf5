"""From files to an answering endpoint: the stages in one sentence. What exists for these inputs is not made again."""

from collections.abc import Iterator
from typing import Any

from pipelines import plan
from pipelines.deploy import deploy
from pipelines.evaluate import evaluate
from pipelines.prepare import prepare
from pipelines.recipe import Recipe
from pipelines.register import register
from pipelines.report import write
from pipelines.train import train
from pipelines.tune import tune


def run(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """The stages in their order, each with what it made; nothing happens until the next one is asked for."""
    yield "prepare", (shards := prepare(recipe))
    yield "tune", (recipe := tune(recipe, shards))  # the same recipe where it asks for no search
    yield "train", (checkpoint := train(recipe, shards))
    yield "evaluate", (scores := evaluate(recipe, checkpoint, shards))
    yield "register", (version := register(recipe, checkpoint, scores))
    yield "deploy", (deployment := deploy(recipe, version))
    yield "run", write(recipe, shards, checkpoint, scores, version, deployment)


def until(last: str, recipe: Recipe) -> dict[str, Any]:
    """What every stage up to and with `last` made, by the stage's name; "run" is the report's URI."""
    made = reach(last, run(recipe))
    plan.remember(recipe)
    return made


def reach(last: str, stages: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    """What the stages from here up to and with `last` made."""
    made: dict[str, Any] = {}
    for name, record in stages:
        made[name] = record
        if name == last:
            break
    return made
