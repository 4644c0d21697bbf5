"""A recipe's training on one worker, without Ray: the model, its stream, its validation and the best weights so far.

Ray Train (pipelines.train) and Ray Tune (pipelines.tune) both drive this one class; so does anything that measures it.
"""

import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from genmodels import zoo
from genmodels.checkpoint import copies
from genmodels.core import Batch, GenerativeModel, Iterated, Trained
from genmodels.descent import Sum
from genmodels.evaluate import Score, has_likelihood, validation
from genmodels.iterate import Iteration
from genmodels.models.posterior import Posterior
from genmodels.train import Record, Schedule, TrainConfig, Training
from pipelines import features, parents
from pipelines.errors import Refused
from pipelines.few_labels import shares
from pipelines.labelled_stream import Repeated
from pipelines.recipe import Recipe
from pipelines.records import Shards
from pipelines.sections import Train
from pipelines.shards import WHOLE_BYTES, Stream, examples, manifest, row_bytes

VALIDATION_SEED, VALIDATION_BATCH = 0, 128
AHEAD = 8
"""Batches that the loader reads before they are asked for."""


def numbers(train: Train) -> TrainConfig:
    """The part of the recipe's section that the loop itself reads."""
    names = {each.name for each in fields(TrainConfig)} - {"schedule", "objectives"}
    overrides = {name: each.model_dump(exclude_none=True) for name, each in train.objectives.items()}
    return TrainConfig(
        **{name: getattr(train, name) for name in names}, schedule=Schedule(**train.schedule.model_dump()), objectives=overrides
    )


def fresh(recipe: Recipe, shards: Shards) -> Trained | Iterated:
    """The recipe's model before its first step, with the training set's label frequencies, and with its parent's weights where it has one."""
    config, parent = parents.embedded(recipe)
    model = zoo.build(recipe.model.family, shards.event, seed=recipe.train.seed, **config)
    if parent is not None:
        assert isinstance(model, Posterior)
        model.inherit(parent)
    if not isinstance(model, Trained | Iterated):
        raise Refused(f"recipe {recipe.name}: model.family {recipe.model.family} learns neither by descent nor by passes over the data")
    if shards.labels or recipe.train.labels:
        count = torch.as_tensor(_label_counts(recipe, shards), dtype=torch.float64)
        model.class_frequencies.copy_(count / count.sum().clamp(min=1))
    return model


def _label_counts(recipe: Recipe, shards: Shards) -> Any:
    """How often the model is shown each label."""
    if recipe.train.labels:
        return shares(recipe.train.labels, shards.event.classes)
    counts = manifest(shards)["splits"]["train"]["labels"]
    return [counts[name] for name in shards.labels]


class Loader:
    """Batches by step, read ahead in a thread. `waited`: seconds that whoever asked had to wait."""

    def __init__(self, read: Callable[[int], Batch], stop: int) -> None:
        self._read, self._stop = read, stop
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(AHEAD)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.waited = 0.0

    def __call__(self, step: int) -> Batch:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(step,), name="loader", daemon=True)
            self._thread.start()
        start = time.perf_counter()
        batch = self._ready.get()
        self.waited += time.perf_counter() - start
        if isinstance(batch, BaseException):
            raise batch
        assert batch.step == step, f"batch of step {batch.step} where {step} was asked for"
        return batch

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        while self._thread is not None and self._thread.is_alive():
            with_room = not self._ready.empty()
            if with_room:
                self._ready.get_nowait()
            self._thread.join(0.01)

    def _run(self, first: int) -> None:
        try:
            for step in range(first, self._stop):
                self._ready.put(self._read(step))
                if self._over.is_set():
                    return
        except BaseException as error:
            self._ready.put(error)


class Passes:
    """Every example once a pass, in disk order, a batch ahead; `keep`: read once and held. `waited`: seconds that whoever asked had to wait."""

    def __init__(self, read: Callable[[], Iterator[Batch]], *, keep: bool) -> None:
        self._read, self._keep = read, keep
        self._kept: list[Batch] = []
        self.waited = 0.0

    def __call__(self, step: int) -> Iterable[Batch]:
        if self._kept:
            yield from self._kept
            return
        batches, held = self._read(), []
        with ThreadPoolExecutor(1, "loader") as thread:
            ahead = thread.submit(next, batches, None)
            while (batch := self._next(ahead)) is not None:
                ahead = thread.submit(next, batches, None)
                held += [batch] if self._keep else []
                yield batch
        self._kept = held

    def _next(self, ahead: Future[Batch | None]) -> Batch | None:
        start = time.perf_counter()
        batch = ahead.result()
        self.waited += time.perf_counter() - start
        return batch


@dataclass(frozen=True, kw_only=True)
class Pause:
    """A place where training paused to look: its steps' records, what they cost in seconds, and the validation score where one was due."""

    step: int
    records: list[Record]
    seconds: float
    waited: float
    cores: float
    """Processors that this worker's process had, on average."""
    score: Score | None = None
    best: bool = False
    """Whether that score is the lowest so far."""


class Learning:
    """One worker's share of a training. Its whole state goes to a folder and back; what it comes to does not depend on where it was cut."""

    def __init__(
        self, recipe: Recipe, shards: Shards, *, device: str = "cpu", rank: int = 0, workers: int = 1, sum_over_workers: Sum | None = None
    ) -> None:
        self.recipe, self.shards, self.rank, self.workers, self.device = recipe, shards, rank, workers, device
        self._sum = sum_over_workers
        model, config = fresh(recipe, shards).to(device), numbers(recipe.train)
        self.training = Training(model, config) if isinstance(model, Trained) else Iteration(model, config)
        self.best: dict[str, Any] = {}
        """metric, value, protocol and step of the lowest validation score so far."""
        self._weights: dict[str, Tensor] = {}
        self._valid: list[Batch] | None = None
        self._features: Any = None

    @property
    def steps(self) -> int:
        """How many there are at most; a model that learns by passes may have converged before."""
        return self.recipe.train.steps

    @property
    def examples_a_step(self) -> int:
        """Over all workers."""
        return self.recipe.train.batch_size if isinstance(self.training, Training) else self.shards.rows["train"]

    def pauses(self) -> Iterator[Pause]:
        """Trains to the end, pausing wherever a look, a validation or a checkpoint is due."""
        with self._loader() if isinstance(self.training, Training) else nullcontext(self._passes()) as loader:
            while not self.training.done:
                start, busy, waited = time.perf_counter(), time.process_time(), loader.waited
                records = self._run(loader)
                seconds, waited = time.perf_counter() - start, loader.waited - waited
                cores = (time.process_time() - busy) / seconds
                score = self._validate() if self._due(self.recipe.train.valid_every) else None
                best = score is not None and self._remember(score)
                yield Pause(step=self.training.step, records=records, seconds=seconds, waited=waited, cores=cores, score=score, best=best)

    def _loader(self) -> Loader:
        """The batches of descent: an endless stream, shuffled, of which each worker reads its slices."""
        train = self.recipe.train
        stream = Stream(self.shards, "train", seed=train.seed, labels=train.labels)
        if train.labelled_every:
            stream = Repeated(stream, self.shards, labels=train.labels, every=train.labelled_every)

        def read(step: int) -> Batch:
            batch = stream.batch(step, train.batch_size, rank=self.rank, workers=self.workers)
            return batch if self.device == "cpu" else batch.to(self.device)

        return Loader(read, self.steps)

    def _passes(self) -> Passes:
        train, size = self.recipe.train, self.shards.rows["train"] * row_bytes(self.shards.event)
        return Passes(lambda: examples(self.shards, "train", train.batch_size, labels=train.labels), keep=size <= WHOLE_BYTES)

    def _run(self, loader: Any) -> list[Record]:
        if isinstance(self.training, Training):
            return self.training.run(loader, until=self._next(), sum_over_workers=self._sum)
        try:
            return self.training.run(loader, until=self._next())
        except ValueError as error:  # what a pass met in the data
            raise Refused(f"recipe {self.recipe.name}: {error}") from error

    def _next(self) -> int:
        """The step of the next pause: whatever is due first."""
        step, train = self.training.step, self.recipe.train
        look = max(1, min(50, self.steps // 100))
        return min(self.steps, *((step // every + 1) * every for every in (look, train.valid_every, train.checkpoint_every)))

    def _due(self, every: int) -> bool:
        return self.training.step % every == 0 or self.training.done

    @property
    def checkpoint_due(self) -> bool:
        return self._due(self.recipe.train.checkpoint_every)

    def _validate(self) -> Score | None:
        """The validation score of the weights that would be kept, on rank 0 (None on the others); the first `valid_examples` in disk order."""
        train = self.recipe.train
        if self.rank != 0 or not self.shards.rows.get("valid"):
            return None
        if self._valid is None:
            self._valid = list(examples(self.shards, "valid", VALIDATION_BATCH, limit=train.valid_examples))
            self._features = None if has_likelihood(self.training.model) else _components(self.recipe, self.shards)
        with self.training.averaged() as model:
            return validation(model, self._valid, seed=VALIDATION_SEED, features=self._features, name=self.recipe.model.family)

    def _remember(self, score: Score) -> bool:
        """Keeps the weights where the score is the lowest so far; one that is no number never is."""
        if not score.value < self.best.get("value", math.inf):
            return False
        self.best = {"metric": score.name, "value": score.value, "unit": score.unit, "protocol": score.protocol, "step": self.training.step}
        if self.recipe.train.best:
            with self.training.averaged() as model:
                self._weights = copies(model.state_dict())
        return True

    @contextmanager
    def kept(self) -> Iterator[tuple[GenerativeModel, str]]:
        """Inside, the model has the weights that are to be kept; and which those are: best, ema or last."""
        with self.training.averaged() as model:
            if not self._weights:
                yield model, "ema" if self.recipe.train.ema else "last"
                return
            present = copies(model.state_dict())
            model.load_state_dict(self._weights)
            try:
                yield model, "best"
            finally:
                model.load_state_dict(present)

    def save(self, folder: Path) -> None:
        self.training.save(folder)
        safetensors.torch.save_file(self._weights, folder / "best.safetensors")
        (folder / "best.json").write_text(json.dumps(self.best))

    def restore(self, folder: Path) -> None:
        """Raises ValueError when the state is damaged, or another recipe's."""
        self.training.restore(folder)
        self._weights = safetensors.torch.load_file(folder / "best.safetensors")
        self.best = json.loads((folder / "best.json").read_text())


def _components(recipe: Recipe, shards: Shards) -> Any:
    """The principal components of the training set; None where the events are too large for them, and validation then says nothing."""
    try:
        return features.components(recipe.root, shards)
    except ValueError:
        return None
