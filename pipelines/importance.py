"""Which of the searched keys mattered: by fANOVA over the trials where it can be computed, else by rank correlation; the record says which."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FEWEST = 4
"""Scored trials below which no importance is given."""


def importance(trials: Sequence[Mapping[str, Any]], space: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, Any]:
    """{"method", "values": {key: share}}; shares add up to one.

    An efficient approach for assessing hyperparameter importance (Hutter, Hoos, Leyton-Brown, 2014)."""
    scored = [trial for trial in trials if trial["value"] is not None]
    if len(scored) < FEWEST or len({trial["value"] for trial in scored}) < 2:
        return {"method": f"none: {len(scored)} scored trials, fewer than {FEWEST}", "values": {}}
    try:
        return {"method": f"fANOVA over {len(scored)} trials", "values": _fanova(scored, space)}
    except (ValueError, RuntimeError):
        return {"method": f"absolute rank correlation over {len(scored)} trials", "values": _correlation(scored, space)}


def _fanova(scored: Sequence[Mapping[str, Any]], space: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, float]:
    import optuna

    study = optuna.create_study()
    kinds = {key: _kind(distribution) for key, distribution in space.items()}
    for trial in scored:
        study.add_trial(optuna.trial.create_trial(params=_known(trial["params"], space), distributions=kinds, value=trial["value"]))
    found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
    return {key: float(value) for key, value in found.items()}


def _known(params: Mapping[str, Any], space: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, Any]:
    """A choice stands for its place among the choices, which need not be numbers."""
    return {key: list(space[key]["choice"]).index(value) if "choice" in space[key] else value for key, value in params.items()}


def _kind(distribution: Mapping[str, Sequence[Any]]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    ((kind, numbers),) = distribution.items()
    if kind == "choice":
        return CategoricalDistribution(range(len(numbers)))
    if kind in ("randint", "qrandint"):
        return IntDistribution(numbers[0], numbers[1])
    return FloatDistribution(numbers[0], numbers[1], log=kind == "loguniform")


def _correlation(scored: Sequence[Mapping[str, Any]], space: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, float]:
    values = _ranks([trial["value"] for trial in scored])
    found = {}
    for key in space:
        places = _ranks([_known(trial["params"], space)[key] for trial in scored])
        spread = places.std() * values.std()
        found[key] = float(abs(((places - places.mean()) * (values - values.mean())).mean()) / spread) if spread else 0.0
    total = sum(found.values())
    return {key: value / total if total else 0.0 for key, value in sorted(found.items(), key=lambda each: -each[1])}


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks; equal values share their mean rank."""
    column = np.asarray(values, dtype=np.float64)
    return np.array([(column < value).sum() + ((column == value).sum() - 1) / 2 for value in column])
