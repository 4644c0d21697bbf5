"""Ray Train: a recipe's model from its first step to an artifact folder; a rerun, or Ray itself, goes on from the last checkpoint."""

import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines import cluster, console, journal, parents, storage
from pipelines.errors import Failed, Refused
from pipelines.fingerprint import fingerprint, libraries
from pipelines.recipe import Recipe
from pipelines.records import Checkpoint, Output, Shards, to_json

VERSION = 2
"""Raised when the same recipe and shards would give other weights than before."""

MARKER = "checkpoint.json"
OTHER_CODE = "GENMODELS_RESUME_OTHER_CODE"
CPUS = 0.5
"""Of each CPU worker, logical: two of them, a trial and the replicas fit a two-core machine together."""

TAIL = 2**14
"""Bytes of the log that the bar looks at."""

MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"
"""Of a worker: large pages where the kernel gives them to who asks, and one heap for all threads. Ray calls the loop in a thread, and the heaps that
glibc makes for threads are handed back as soon as they are empty, for the next step to map anew. A twentieth of a step."""

_INDIFFERENT = {"workers", "gpus_per_worker", "checkpoint_every", "max_failures"}
"""Keys that decide where and how safely it runs, not what it comes to (beyond the equality class)."""


def output(recipe: Recipe, shards: Shards) -> Output:
    from genmodels.zoo import MODELS

    family = MODELS[recipe.model.family]
    model = [recipe.model.family, family.VERSION, asdict(family.Config(**parents.described(recipe)))]
    name = fingerprint("train", VERSION, model, decisive(recipe), shards.fingerprint, libraries("torch", "numpy"))
    uri = storage.join(recipe.root, "train", f"{recipe.name}-{name}")
    return Output(fingerprint=name, uri=uri, done=storage.exists(storage.join(uri, MARKER)))


def decisive(recipe: Recipe) -> dict[str, Any]:
    """The keys of the recipe's train section that affect the result."""
    values = {key: value for key, value in recipe.train.model_dump(mode="json").items() if key not in _INDIFFERENT}
    return {key: value for key, value in values.items() if value is not None or key not in ("labels", "labelled_every")}


def train(recipe: Recipe, shards: Shards) -> Checkpoint:
    """The trained model's artifact. Raises Failed when training broke off, Refused for what the recipe asks and this Ray or family cannot do."""
    out = output(recipe, shards)
    if out.done:
        console.done("train", out.uri)
        return read(out.uri)
    _check(recipe, shards)
    log = storage.join(out.uri, "log.jsonl")
    code = _claim(out.uri)
    with console.stage("train", total=recipe.train.steps, unit="steps") as bar, _following(log, bar):
        _fit(recipe, shards, out, code)
        checkpoint = _conclude(out, recipe, log)
    storage.write_json(storage.join(out.uri, MARKER), to_json(checkpoint))
    _clear(out.uri)
    return checkpoint


def read(uri: str) -> Checkpoint:
    """The record of a finished training."""
    return Checkpoint(**storage.read_json(storage.join(uri, MARKER)))


def code() -> str:
    """The code that decides a training's bits: a hash of the sources of models, loop, noise and order."""
    import genmodels

    here, models = Path(__file__).parent, Path(genmodels.__file__).parent
    files = [models / f"{name}.py" for name in ("checkpoint", "compilation", "descent", "iterate", "noise", "train")]
    files += [file for folder in ("core", "mcmc", "models", "nn", "vi") for file in models.glob(f"{folder}/*.py")]
    files += [
        here / f"{name}.py" for name in ("few_labels", "labelled_stream", "learning", "parents", "shards", "stored", "windows", "worker")
    ]
    total = hashlib.blake2b(digest_size=6)
    for file in sorted(files, key=lambda file: (file.parent.name, file.name)):
        total.update(file.name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


def _check(recipe: Recipe, shards: Shards) -> None:
    train = recipe.train
    if train.workers > train.batch_size:
        raise Refused(f"train.workers {train.workers} of a batch of {train.batch_size}; give each worker at least one example")
    if not shards.rows.get("train"):
        raise Failed(f"{shards.uri} has no training examples; wanted at least one")
    cluster.need(cpus=train.workers * CPUS, gpus=train.workers * train.gpus_per_worker, what=f"train with {train.workers} workers")


def _claim(uri: str) -> str:
    """Notes the code that a training is begun by. Raises Refused where a half-finished one was begun by other code, unless told to go on."""
    note, mine = storage.join(uri, "run.json"), code()
    try:
        begun = storage.read_json(note)["code"]
    except FileNotFoundError:
        begun = []
    if begun and begun[-1] != mine and _checkpoints(uri) and not os.environ.get(OTHER_CODE):
        raise Refused(
            f"{uri} holds a training begun by other code ({begun[-1]}, this is {mine}): remove that folder to begin again, or set {OTHER_CODE}=1 "
            "to go on from its checkpoint all the same, which is recorded"
        )
    history = begun if begun and begun[-1] == mine else [*(begun if _checkpoints(uri) else []), mine]
    storage.write_json(note, {"code": history})
    return "+".join(history)


def _fit(recipe: Recipe, shards: Shards, out: Output, begun: str) -> None:
    """Runs the workers until they are done, resuming after failures up to max_failures times."""
    cluster.connect()
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipelines.worker import lineage, work

    train, gpus = recipe.train, recipe.train.gpus_per_worker
    resources = {"CPU": CPUS, **({"GPU": gpus} if gpus else {})}
    folder, _, name = out.uri.rpartition("/")
    trainer = TorchTrainer(
        work,
        train_loop_config={
            "recipe": parents.pinned(recipe),
            "shards": shards,
            "uri": out.uri,
            "lineage": lineage(recipe, shards, out.fingerprint, begun) | parents.lineage(recipe),
        },
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=train.workers, use_gpu=bool(gpus), resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=folder,
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", MALLOC)}},
        ),
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit:
        raise KeyboardInterrupt from None  # how Ray Train, without a word, ends at Ctrl-C
    except TrainingFailedError as error:
        raise Failed(
            f"training stopped after {train.max_failures} retries: {one_line(error)}; run again to go on from its last checkpoint"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)  # Ray Train takes it and does not give it back


def one_line(error: object) -> str:
    """The last line of an error, or of a worker's whole traceback, which is what Ray gives."""
    failures = getattr(error, "worker_failures", None) or {}
    text = str(next(iter(failures.values()), error)).strip()
    return " ".join(text.splitlines()[-1].split())[:300] if text else type(error).__name__


def _conclude(out: Output, recipe: Recipe, log: str) -> Checkpoint:
    last: dict[str, Any] = next(iter(journal.read(log)[::-1]), {"event": "missing"})
    if last["event"] == "stopped":
        raise Failed(f"recipe {recipe.name}: training stopped: {last['message']}")
    if last["event"] != "finished":
        raise Failed(f"training ended without an artifact; its log is {log}; run again to go on from its last checkpoint")
    artifact = storage.join(out.uri, "artifact")
    best = last["best"]
    return Checkpoint(uri=artifact, fingerprint=out.fingerprint, digest=last["digest"], steps=last["step"], log=log, best=best)


def _checkpoints(uri: str) -> list[str]:
    """Ray's checkpoints in a training's folder."""
    fs, path = storage.filesystem(uri)
    fs.invalidate_cache()
    return sorted(fs.glob(f"{path}/checkpoint_*/state.json"))


def _clear(uri: str) -> None:
    """A finished training needs its checkpoints no more."""
    fs, path = storage.filesystem(uri)
    fs.invalidate_cache()
    for entry in fs.glob(f"{path}/checkpoint_*"):
        if not entry.endswith(MARKER):
            fs.rm(entry, recursive=True)


@contextmanager
def _following(log: str, bar: console.Bar) -> Iterator[None]:
    """Meanwhile the bar follows the log: the workers may be anywhere, and their log is where everyone can read it."""
    over, seen = threading.Event(), dict[str, dict[str, Any]]()

    def follow() -> None:
        while not over.wait(0.5 if storage.is_local(log) else 5):
            _show(log, seen, bar)

    thread = threading.Thread(target=follow, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _show(log, seen, bar)


def _show(log: str, seen: dict[str, dict[str, Any]], bar: console.Bar) -> None:
    """Steps done, and behind the bar the last loss, validation score and speed. Only the end of the log is read: beside a long training its
    thousands of lines would be read twice a second. seen: the last line of each event."""
    lines = journal.read(log, last=TAIL)
    seen |= {line["event"]: line for line in lines if line["event"] == "valid" or "examples_per_s" in line}
    step, valid = seen.get("step"), seen.get("valid")
    if step:
        losses = [f"{name} {value:.4g}" for name, value in step.items() if name.endswith("loss") and isinstance(value, float)]
        found = [f"{valid['metric']} {valid['value']:.4g}"] if valid and isinstance(valid["value"], float) else []
        bar.to(step["step"], note=", ".join([*losses, *found, f"{step['examples_per_s']:.0f} examples/s"]))
