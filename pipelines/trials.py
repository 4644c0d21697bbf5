"""The trials of a search as the report shows them: a table, parallel coordinates, and how much each parameter mattered."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines import chart
from pipelines.card import digits
from pipelines.recipe import Recipe
from pipelines.records import Shards
from pipelines.storage import exists, join, read_json

ENOUGH = 4
"""Finished trials below which nothing is said of importance."""


def table(recipe: Recipe, shards: Shards) -> dict[str, Any] | None:
    """What the report's section on the search holds; None where there was none."""
    uri = None
    if uri is None or not exists(join(uri, "tune.json")):
        return None
    return shown(read_json(join(uri, "tune.json")))


def shown(found: Mapping[str, Any]) -> dict[str, Any]:
    trials = sorted(found["trials"], key=lambda trial: (trial["value"] is None, trial["value"]))
    keys = sorted({key for trial in trials for key in trial["values"]})
    scored = [trial for trial in trials if trial["value"] is not None]
    chosen = next((index for index, trial in enumerate(scored) if trial["id"] == found["chosen"]), None)
    lines = [[*(trial["values"].get(key) for key in keys), trial["value"]] for trial in scored]
    weights = importance(keys, scored)
    return {
        "about": f"{len(trials)} trials, {len(scored)} with a score; {found['metric']} on valid, lower is better.",
        "metric": found["metric"],
        "keys": keys,
        "rows": [_row(trial, keys, found["chosen"]) for trial in trials],
        "parallel": chart.parallel([*keys, found["metric"]], lines, chosen=chosen),
        "importance": chart.bars([(key.rpartition(".")[2], value, None) for key, value in weights], first=False) if weights else None,
        "importance_note": f"Squared rank correlation with the score over {len(scored)} trials; few trials say little.",
    }


def importance(keys: Sequence[str], trials: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """The share of the ranks' variance that each parameter explains alone (for choices: between their groups), largest first."""
    if len(trials) < ENOUGH:
        return []
    result = _ranks([trial["value"] for trial in trials])
    found = []
    for key in keys:
        values = [trial["values"].get(key) for trial in trials]
        explained = (
            _between(values, result) if any(not isinstance(value, int | float) for value in values) else _squared(_ranks(values), result)
        )
        found.append((key, explained))
    return sorted(found, key=lambda pair: -pair[1])


def _ranks(values: Sequence[Any]) -> np.ndarray:
    """Ranks from 0, the mean rank for equal values."""
    array = np.asarray(values, dtype=np.float64)
    return ((array[:, None] > array).sum(1) + (array[:, None] >= array).sum(1) - 1) / 2


def _squared(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1] ** 2)


def _between(groups: Sequence[Any], result: np.ndarray) -> float:
    if result.std() == 0:
        return 0.0
    names = [str(group) for group in groups]
    means = {name: result[[other == name for other in names]].mean() for name in set(names)}
    return float(np.var([means[name] for name in names]) / result.var())


def _row(trial: Mapping[str, Any], keys: Sequence[str], chosen: Any) -> dict[str, Any]:
    return {
        "id": trial["id"],
        "cells": [_cell(trial["values"].get(key)) for key in keys],
        "value": "" if trial["value"] is None else digits(trial["value"]),
        "steps": trial.get("steps", ""),
        "state": trial.get("state", ""),
        "chosen": trial["id"] == chosen,
    }


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
