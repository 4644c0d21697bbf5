"""A search as the report shows it: the table of its trials, parallel coordinates, and how much each parameter mattered."""

from collections.abc import Mapping
from typing import Any

from genmodels.evaluate import Score
from pipelines import chart
from pipelines.card import digits
from pipelines.recipe import Recipe
from pipelines.records import Shards
from pipelines.storage import join, read_json


def search(recipe: Recipe, shards: Shards) -> dict[str, Any] | None:
    """The finished search that fixed this recipe; None where it asks for none."""
    from pipelines import tune

    out = tune.output(recipe, shards)
    return read_json(join(out.uri, tune.MARKER)) if recipe.tune and out.done else None


def shown(found: Mapping[str, Any], score: Score | None = None) -> dict[str, Any]:
    """found: what the search left -> what the report's section holds. score: the family's validation score, whose name the metric then goes by."""
    metric = f"valid {score.name}" if score and found["metric"] == "valid" else found["metric"]
    trials = sorted(found["trials"], key=lambda trial: (trial["value"] is None, trial["value"]))
    keys, winner = list(found["space"]), found["winner"]["id"]
    scored = [trial for trial in trials if trial["value"] is not None]
    lines = [[*(trial["params"].get(key) for key in keys), trial["value"]] for trial in scored]
    chosen = next((index for index, trial in enumerate(scored) if trial["id"] == winner), None)
    weights = found["importance"]["values"]
    return {
        "about": _about(found, metric, len(scored)),
        "metric": metric,
        "searched": keys,
        "rows": [_row(trial, keys, winner) for trial in [*trials, *found["reseeds"]]],
        "parallel": chart.parallel([*keys, metric], lines, chosen=chosen),
        "importance": chart.bars([(key.rpartition(".")[2], value, None) for key, value in weights.items()], first=False),
        "method": found["importance"]["method"],
    }


def _about(found: Mapping[str, Any], metric: str, scored: int) -> str:
    text = f"{len(found['trials'])} trials of {found['steps']:,} steps, {scored} with a score ({metric}, lower is better)."
    values = found["winner"]["values"]
    if len(values) > 1:
        text += (
            f" The best ran again with other seeds; the chosen one's mean over {len(values)} seeds is {digits(found['winner']['value'])}."
        )
    return text


def _row(trial: Mapping[str, Any], keys: list[str], winner: str) -> dict[str, Any]:
    return {
        "id": trial["id"] + (f" (seed {trial['seed']})" if "seed" in trial else ""),
        "cells": [_cell(trial["params"].get(key)) for key in keys],
        "value": "" if trial["value"] is None else digits(trial["value"]),
        "steps": trial.get("step", ""),
        "seconds": f"{trial['seconds']:.1f}",
        "state": trial.get("message") or trial["status"],
        "chosen": trial["id"] == winner,
    }


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
