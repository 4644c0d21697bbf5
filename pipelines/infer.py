"""`genmodels infer`: several ways of inference on the same posterior, in parallel, beside a long reference run that says how far off each is; then
the posterior by the recipe's own method, registered as `genmodels run` registers it."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipelines import cluster, comparison, console, inference_page, inference_report, parents, plan, storage, summary
from pipelines import run as stages
from pipelines.comparison import Evidence, Found
from pipelines.errors import Failed, Refused
from pipelines.fingerprint import fingerprint, libraries
from pipelines.recipe import Recipe
from pipelines.records import Output, Shards
from pipelines.sections import Infer

VERSION = 3
"""Raised when the same recipe and shards would give another comparison than before, times aside."""

FIGURES = "comparison.json"
KEPT = 5000
"""Draws a method that are kept beside the figures, evenly taken."""


def infer(recipe: Recipe, *, register: bool = True, asked: str = "") -> dict[str, Any]:
    """Prints the comparison, then what was registered; `asked` are the arguments that gave the recipe, for the commands that go on from here.

    The result: rows, log p(data), the names of what is unknown, URIs of report and plots; beside them, unless it was not to be registered, what
    `run` says of checkpoint, scores and version. Raises Refused for another family, Failed where the reference run came to nothing, or the recipe's
    own method, of which there is then nothing to register.
    """
    if recipe.model.family != "posterior":
        raise Refused(
            f"recipe {recipe.name}: infer compares methods on a posterior; model.family is {recipe.model.family}, wanted posterior"
        )
    rest = stages.run(recipe)
    made = stages.reach("prepare", rest)
    found = compare(recipe, made["prepare"])
    inference_report.show(found)
    if register:
        _check(recipe, found)
        made |= stages.reach("register", rest)
        plan.remember(recipe)
    inference_page.write(recipe, made, found, asked or recipe.name)
    summary.tell(made.values())
    inference_page.tell(recipe, made, found, asked or recipe.name)
    result = {**summary.machine(made), **found}
    console.emit(**result)
    return result


def compare(recipe: Recipe, shards: Shards) -> dict[str, Any]:
    """The comparison, and its draws and pictures in its folder. Raises Failed where the reference run came to nothing."""
    recipe = recipe if recipe.infer else recipe.model_copy(update={"infer": Infer()})
    out = output(recipe, shards)
    if out.done:
        console.done("infer", out.uri)
        return storage.read_json(storage.join(out.uri, FIGURES))
    reference, found, evidence = _run(recipe, shards)
    if reference.failed:
        raise Failed(f"recipe {recipe.name}: the reference run by {reference.method} came to nothing: {reference.failed}")
    result = {
        "rows": comparison.rows(reference, found, evidence),
        "evidence": asdict(evidence) if evidence else None,
        "parameters": list(reference.names),
        "chosen": recipe.model.config.get("method", "hmc"),
        "uri": out.uri,
        "report": storage.join(out.uri, "report.html"),
    }
    for each, role in ((reference, "reference"), *((one, one.method) for one in found)):
        storage.write_bytes(storage.join(out.uri, "draws", f"{role}.npz"), _draws(each))
    result["plots"] = inference_report.pictures(result, reference, found)
    storage.write_json(storage.join(out.uri, FIGURES), result)
    return result


def _check(recipe: Recipe, found: dict[str, Any]) -> None:
    """Raises Failed where the recipe's own method came to nothing."""
    for row in found["rows"]:
        if row["role"] == "method" and row["method"] == found["chosen"] and row["failed"]:
            raise Failed(
                f"recipe {recipe.name}: nothing is registered, as {row['method']} came to nothing: {row['failed']}; "
                "choose another with --set model.method=..., or leave this out with --no-register"
            )


def output(recipe: Recipe, shards: Shards) -> Output:
    from genmodels.zoo import MODELS
    from pipelines.train import decisive

    assert recipe.infer is not None
    family = MODELS["posterior"]
    model = [family.VERSION, asdict(family.Config(**parents.described(recipe)))]
    name = fingerprint(
        "infer", VERSION, model, decisive(recipe), recipe.infer.model_dump(mode="json"), shards.fingerprint, libraries("torch")
    )
    uri = storage.join(recipe.root, "infer", f"{recipe.name}-{name}")
    return Output(fingerprint=name, uri=uri, done=storage.exists(storage.join(uri, FIGURES)))


def _run(recipe: Recipe, shards: Shards) -> tuple[Found, list[Found], Evidence | None]:
    """The reference run and every method's, a Ray task each; log p(data) as the reference run finds it."""
    from pipelines import inference

    model = inference.fresh(recipe, shards)
    methods = inference.methods(model, recipe.infer.methods if recipe.infer else ())
    tasks = [inference.reference_recipe(recipe, model), *(inference.changed(recipe, model__method=method) for method in methods)]
    found: list[Any] = [None] * len(tasks)
    with console.stage("infer", total=len(tasks), unit="runs") as bar:
        for done, (index, result) in enumerate(_each(tasks, shards), start=1):
            found[index] = result
            bar.to(done, note=f"{result[0].method}{' (reference)' if index == 0 else ''} {result[0].seconds:.1f} s")
    reference, evidence = found[0]
    return reference, [each for each, _ in found[1:]], evidence


def _each(tasks: Sequence[Recipe], shards: Shards) -> Iterator[tuple[int, tuple[Found, Evidence | None]]]:
    """What every task found, as they end, with its number."""
    ray = cluster.connect()
    remote = ray.remote(num_cpus=cluster.core())(_task)
    waiting = {remote.remote(task, shards): index for index, task in enumerate(tasks)}
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        yield waiting.pop(ready), ray.get(ready)


def _task(recipe: Recipe, shards: Shards) -> tuple[Found, Evidence | None]:
    from pipelines import inference

    return inference.found(recipe, shards)


def _draws(found: Found) -> bytes:
    """An .npz of draws (chains, n, d), the unknowns' names and the method."""
    file = io.BytesIO()
    step = max(1, found.draws.shape[1] // KEPT) if found.draws.size else 1
    np.savez_compressed(file, draws=found.draws[:, ::step], names=np.array(found.names), method=np.array(found.method))
    return file.getvalue()
