"""Ray Tune: searches a recipe's space with short trainings on the same loop, and fixes the recipe with the winner.

Every finished trial is a small JSON record in storage, written at once; a killed search goes on behind the recorded ones, which its sampler is told
of. The best candidates run again with other seeds, since the best of many noisy trials is partly luck; the mean over seeds decides.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from genmodels.noise import derive
from pipelines import cluster, console, parents, storage
from pipelines.errors import Failed, Refused
from pipelines.fingerprint import fingerprint, libraries
from pipelines.importance import importance
from pipelines.recipe import Recipe, check, dump, put
from pipelines.records import Output, Shards
from pipelines.sections import Tune
from pipelines.train import CPUS, decisive, one_line

VERSION = 1
MARKER = "tune.json"
LOOKS = 4
"""How often a trial is validated; after each but the last, ASHA may stop it."""

FIXED = {"model.family", *(f"train.{key}" for key in ("steps", "seed", "workers", "valid_every", "checkpoint_every", "best"))}

Params = Mapping[str, Any]


def output(recipe: Recipe, shards: Shards) -> Output:
    """The same for the recipe before and after tuning: the searched keys' own values play no part."""
    from genmodels.zoo import MODELS

    if recipe.tune is None:
        return Output(fingerprint="", uri="", done=True)
    family = MODELS[recipe.model.family]
    values = {
        "model": asdict(family.Config(**parents.described(recipe))),
        "train": {key: value for key, value in decisive(recipe).items() if key not in ("steps", "valid_every", "best")},
    }
    for key in recipe.tune.search.space:
        values = put(values, key, "searched")
    names = [recipe.model.family, family.VERSION, shards.fingerprint, libraries("torch", "numpy", "optuna")]
    name = fingerprint("tune", VERSION, values, recipe.tune.model_dump(mode="json"), names)
    uri = storage.join(recipe.root, "tune", f"{recipe.name}-{name}")
    return Output(fingerprint=name, uri=uri, done=storage.exists(storage.join(uri, MARKER)))


def tune(recipe: Recipe, shards: Shards) -> Recipe:
    """The recipe with the winner's values in place; itself where it asks for no search. Raises Failed when no trial came to a score."""
    if recipe.tune is None:
        return recipe
    out = output(recipe, shards)
    if out.done:
        console.done("tune", out.uri)
        return _with(recipe, storage.read_json(storage.join(out.uri, MARKER))["winner"]["params"])
    _check(recipe, recipe.tune, shards)
    total = recipe.tune.trials + recipe.tune.reseed_top * recipe.tune.reseeds
    with console.stage("tune", total=total, unit="trials") as bar:
        trials = _search(recipe, recipe.tune, shards, out.uri, bar)
        again = _reseed(recipe, recipe.tune, shards, out.uri, trials, bar)
        winner = _winner(trials, again, out.uri)
        found = {"trials": trials, "reseeds": again, "importance": importance(trials, recipe.tune.search.space), "winner": winner}
        about = {
            "metric": recipe.tune.metric,
            "steps": recipe.tune.steps,
            "space": recipe.tune.search.space,
            "fingerprint": out.fingerprint,
        }
        storage.write_json(storage.join(out.uri, MARKER), {**about, **found})
    storage.remove(storage.join(out.uri, "ray"))
    return _with(recipe, winner["params"])


def _check(recipe: Recipe, settings: Tune, shards: Shards) -> None:
    if stray := [key for key in settings.search.space if key.split(".")[0] not in ("model", "train")]:
        raise Refused(f"recipe {recipe.name}: tune.search.space.{stray[0]}: only keys of model and train can be searched")
    if fixed := sorted(FIXED & set(settings.search.space)):
        raise Refused(f"recipe {recipe.name}: tune.search.space.{fixed[0]}: a trial sets that key itself; search another")
    if settings.metric == "valid" and not shards.rows.get("valid"):
        raise Refused(f"recipe {recipe.name}: tune.metric valid needs a valid split, and that of {shards.uri} is empty")
    gpus = recipe.train.gpus_per_worker * settings.workers_per_trial
    cluster.need(cpus=CPUS * settings.workers_per_trial, gpus=gpus, what="a trial of tune")


def _with(recipe: Recipe, params: Params) -> Recipe:
    values = dump(recipe)
    for key, value in params.items():
        values = put(values, key, value)
    return check(values)


def _trial_recipe(recipe: Recipe, params: Params, settings: Tune, seed: int) -> Recipe:
    """The short training that judges a candidate."""
    threads = max(1, recipe.train.threads // settings.concurrency)  # trials that share cores with too many threads take ten times as long
    short = {"steps": settings.steps, "valid_every": max(1, settings.steps // LOOKS), "checkpoint_every": settings.steps, "best": False}
    short["threads"] = threads
    changes = {**{f"train.{key}": value for key, value in short.items()}, "train.seed": seed, "train.workers": settings.workers_per_trial}
    return _with(recipe, {**changes, **params})


def looks(recipe: Recipe, shards: Shards, params: Params, seed: int) -> Iterator[dict[str, Any]]:
    """Trains a candidate -> at each look its step, the metric now and the lowest so far."""
    assert recipe.tune is not None
    candidate = _trial_recipe(recipe, params, recipe.tune, seed)
    lowest, begun = math.inf, time.monotonic()
    for step, value in (_alone if recipe.tune.workers_per_trial == 1 else _together)(candidate, shards, recipe.tune.metric):
        lowest = min(lowest, value)
        yield {"step": step, "metric": value, "lowest": lowest, "seconds": round(time.monotonic() - begun, 2)}


def _alone(candidate: Recipe, shards: Shards, metric: str) -> Iterator[tuple[int, float]]:
    """One worker: the loop itself, in this process."""
    from pipelines.learning import Learning

    device = "cuda" if candidate.train.gpus_per_worker else "cpu"
    learning = Learning(candidate, shards, device=device)
    for pause in learning.pauses():
        if pause.score is not None or (metric != "valid" and (pause.step % candidate.train.valid_every == 0 or learning.training.done)):
            values = {"valid": pause.score.value} if pause.score else {}
            yield pause.step, _pick({**values, **pause.records[-1]}, metric)


def _together(candidate: Recipe, shards: Shards, metric: str) -> Iterator[tuple[int, float]]:
    """Several workers: Ray Train, whose log is read when it is done."""
    import ray.tune

    from pipelines import journal
    from pipelines.train import train

    home = storage.join(candidate.root, "tune", "trials", ray.tune.get_context().get_trial_id() or "reseed")
    checkpoint = train(check({**dump(candidate), "storage": home}), shards)
    for line in journal.read(checkpoint.log):
        if line["event"] == ("valid" if metric == "valid" else "step"):
            yield line["step"], _pick({"valid": line.get("value"), **line}, metric)


def _pick(values: Mapping[str, Any], metric: str) -> float:
    if metric not in values:
        raise ValueError(f"tune.metric {metric!r} is not among what a training says: {', '.join(sorted(values))}")
    return float(values[metric])


def trial(params: Params, *, recipe: Recipe, shards: Shards) -> None:
    """The function that Ray Tune runs for each candidate."""
    from ray import tune

    try:
        for look in looks(recipe, shards, params, recipe.train.seed):
            tune.report(look)
    except Exception as error:  # a candidate that cannot be trained is a result; it leaves its process to the next one
        tune.report({"step": 0, "metric": math.inf, "lowest": math.inf, "seconds": 0.0, "failed": one_line(error)})


def _search(recipe: Recipe, settings: Tune, shards: Shards, uri: str, bar: console.Bar) -> list[dict[str, Any]]:
    """All trials' records, those of an earlier, killed search among them."""
    done = _recorded(uri, "trials")
    left = settings.trials - len(done)
    budget = settings.time_budget and settings.time_budget - sum(each["seconds"] for each in done) / settings.concurrency
    if left <= 0 or (budget is not None and budget <= 0):
        return done
    _quiet()
    cluster.connect()
    from ray import tune

    from pipelines.watch import Watch

    gpus = recipe.train.gpus_per_worker if settings.workers_per_trial == 1 else 0
    resources = {"cpu": CPUS if settings.workers_per_trial == 1 else 0.1, **({"gpu": gpus} if gpus else {})}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, recipe=recipe, shards=shards), resources),
        param_space={key: _distribution(kind) for key, kind in settings.search.space.items()},
        tune_config=tune.TuneConfig(
            num_samples=left,
            max_concurrent_trials=settings.concurrency,
            time_budget_s=budget,
            reuse_actors=True,
            metric="metric",
            mode="min",
            search_alg=_sampler(settings, done),
            scheduler=_scheduler(settings),
        ),
        run_config=tune.RunConfig(
            name="ray", storage_path=uri, verbose=0, callbacks=[Watch(uri, bar, first=len(done), steps=settings.steps)]
        ),
    )
    tuner.fit()
    return _recorded(uri, "trials")


def _quiet() -> None:
    """Ray Tune's own files and tables: the records here are enough."""
    for name in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_STRICT_METRIC_CHECKING"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


def _distribution(space: Mapping[str, Sequence[Any]]) -> Any:
    from ray import tune

    ((kind, numbers),) = space.items()
    return tune.choice(list(numbers)) if kind == "choice" else getattr(tune, kind)(*numbers)


def _sampler(settings: Tune, done: Sequence[Mapping[str, Any]]) -> Any:
    """Draws candidates; Optuna's is told how the recorded ones did."""
    import optuna
    from ray.tune.search.basic_variant import BasicVariantGenerator
    from ray.tune.search.optuna import OptunaSearch

    seed = _seed(settings, len(done))
    if settings.search.algorithm == "random":
        return BasicVariantGenerator(random_state=seed)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known = [each for each in done if each["value"] is not None]
    told = {"points_to_evaluate": [dict(each["params"]) for each in known], "evaluated_rewards": [each["value"] for each in known]}
    return OptunaSearch(metric="metric", mode="min", seed=seed, **(told if known else {}))


def _seed(settings: Tune, done: int) -> int:
    """Of a sampler that goes on behind so many trials: another one each time, so that it does not draw the first candidates again."""
    return derive("tune", settings.seed, done) % 2**32


def _scheduler(settings: Tune) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if settings.scheduler == "none" or settings.workers_per_trial > 1:
        return FIFOScheduler()
    return ASHAScheduler(time_attr="step", max_t=settings.steps, grace_period=max(1, settings.steps // LOOKS), reduction_factor=2)


def _reseed(
    recipe: Recipe, settings: Tune, shards: Shards, uri: str, trials: Sequence[Mapping[str, Any]], bar: console.Bar
) -> list[dict[str, Any]]:
    """The best candidates with other seeds, `concurrency` at a time."""
    ray = cluster.connect()
    jobs = [
        (f"{each['id']}-{i}", each["params"], recipe.train.seed + 1 + i)
        for each in _ranked(trials)[: settings.reseed_top]
        for i in range(settings.reseeds)
    ]
    names = {each["id"] for each in _recorded(uri, "reseeds")}
    waiting = [job for job in jobs if job[0] not in names]
    task = ray.remote(num_cpus=CPUS, num_gpus=recipe.train.gpus_per_worker if settings.workers_per_trial == 1 else 0)(_judge)
    running: dict[Any, Any] = {}
    while waiting or running:
        while waiting and len(running) < settings.concurrency:
            job = waiting.pop(0)
            running[task.remote(recipe, shards, *job)] = job
        (ready,), _ = ray.wait(list(running), num_returns=1)
        running.pop(ready)
        record = ray.get(ready)
        storage.write_json(storage.join(uri, "reseeds", f"{record['id']}.json"), record)
        bar.to(len(trials) + len(jobs) - len(waiting) - len(running), note="other seeds")
    return _recorded(uri, "reseeds")


def _judge(recipe: Recipe, shards: Shards, name: str, params: Params, seed: int) -> dict[str, Any]:
    """A candidate's record with another seed; a failure is a record too."""
    record: dict[str, Any] = {"id": name, "params": dict(params), "seed": seed, "value": None, "seconds": 0.0, "status": "failed"}
    try:
        for look in looks(recipe, shards, params, seed):
            record |= {"value": look["lowest"], "seconds": look["seconds"]}
        return record | {"status": "finished"}
    except Exception as error:
        return record | {"value": None, "message": one_line(error)}


def _recorded(uri: str, kind: str) -> list[dict[str, Any]]:
    """The records of trials, or of reseeds, in storage."""
    fs, path = storage.filesystem(storage.join(uri, kind))
    fs.invalidate_cache()
    return [storage.read_json(storage.join(uri, kind, file.rpartition("/")[2])) for file in sorted(fs.glob(f"{path}/*.json"))]


def _ranked(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Trials that came to a number, the lowest first."""
    known = [each for each in trials if each["value"] is not None and math.isfinite(each["value"])]
    return sorted(known, key=lambda each: (each["value"], each["id"]))


def _winner(trials: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]], uri: str) -> dict[str, Any]:
    """The candidate with the lowest mean over its seeds, among those that ran with the most seeds."""
    ranked = _ranked(trials)
    if not ranked:
        why = next((each["message"] for each in trials if each.get("message")), "none ran within the time budget")
        raise Failed(f"none of {len(trials)} trials came to a score; the first says: {why}; remove {uri} to search again")
    values = {each["id"]: [each["value"], *_others(each["id"], again)] for each in ranked}
    most = max(map(len, values.values()))
    means = {name: sum(numbers) / len(numbers) for name, numbers in values.items() if len(numbers) == most}
    name = min(means, key=lambda name: means[name])
    trial = next(each for each in ranked if each["id"] == name)
    return {"id": name, "params": trial["params"], "value": means[name], "values": values[name]}


def _others(name: str, again: Sequence[Mapping[str, Any]]) -> list[float]:
    return [each["value"] for each in again if each["id"].rpartition("-")[0] == name and each["value"] is not None]
