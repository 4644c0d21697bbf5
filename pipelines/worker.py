"""What one Ray Train worker does: learn, and on rank 0 also write the log, the sheets, the checkpoints and in the end the artifact."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genmodels import artifact
from genmodels.compilation import NotCompiled
from genmodels.core import Iterated
from genmodels.machine import equality_class
from genmodels.train import NonFinite
from pipelines import conditions, sheet, storage
from pipelines.errors import Stop
from pipelines.fingerprint import libraries
from pipelines.journal import Journal
from pipelines.learning import Learning, Pause
from pipelines.recipe import Recipe, dump
from pipelines.records import Shards

SHEET_SHARE = 0.05
"""Sheets are drawn as long as they took no more than this share of the time."""


def work(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker."""
    import ray.train
    from ray.train.torch import get_device

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = _prepare(get_device())
    learning, refusal = _begin(config["recipe"], config["shards"], device, rank, workers)
    if _any(refusal is not None, device, workers):
        _tell(config["uri"], rank, refusal or "another worker could not begin")
        return
    assert learning is not None
    _learn(learning, config, device)


def _prepare(device: torch.device) -> str:
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return str(device)


def _begin(recipe: Recipe, shards: Shards, device: str, rank: int, workers: int) -> tuple[Learning | None, str | None]:
    """The learning, from the last checkpoint if there is one; or the line that says why not."""
    import ray.train

    try:
        summing = _sum if workers > 1 else None
        learning = Learning(recipe, shards, device=device, rank=rank, workers=workers, sum_over_workers=summing)
        if checkpoint := ray.train.get_checkpoint():
            with checkpoint.as_directory() as folder:
                learning.restore(Path(folder))
        return learning, None
    except (ValueError, Stop) as error:
        return None, str(error)


def _sum(buffer: Tensor) -> None:
    torch.distributed.all_reduce(buffer)


def _any(mine: bool, device: str, workers: int) -> bool:
    """Whether it is so on any worker: all go on, or none does, and no one is left waiting in a sum."""
    flag = torch.tensor([float(mine)], device=device)
    if workers > 1:
        _sum(flag)
    return bool(flag.item())


def _tell(uri: str, rank: int, message: str) -> None:
    """The last line of a training that cannot go on, where the driver looks for it; raising would only make Ray try again."""
    if rank == 0:
        journal = Journal(storage.join(uri, "log.jsonl"))
        journal.write("stopped", journal.step, message=message)
        journal.flush()


def _learn(learning: Learning, config: dict[str, Any], device: str) -> None:
    scribe = Scribe(learning, config, device) if learning.rank == 0 else None
    try:
        for pause in learning.pauses():
            if scribe:
                scribe.note(pause)
            if learning.checkpoint_due:
                _report(learning)
    except NonFinite as error:
        if scribe:
            scribe.broken(error)
        return
    except (NotCompiled, Stop) as error:
        _tell(config["uri"], learning.rank, str(error))
        return
    if scribe:
        scribe.finish()


def _report(learning: Learning) -> None:
    """Hands Ray the state, from rank 0; every worker takes part."""
    import ray.train

    metrics = {"step": learning.training.step, **({"valid": learning.best["value"]} if learning.best else {})}
    if learning.rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        learning.save(Path(folder))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


class Scribe:
    """Rank 0's log, sheets and artifact."""

    def __init__(self, learning: Learning, config: dict[str, Any], device: str) -> None:
        recipe: Recipe = config["recipe"]
        self.learning, self.uri, self.lineage = learning, config["uri"], config["lineage"]
        backend = "compiled" if recipe.train.compile else "eager"
        self.equality = equality_class(device=device, precision=recipe.train.precision, workers=learning.workers, backend=backend)
        self.journal = Journal(storage.join(self.uri, "log.jsonl"), step=learning.training.step)
        self.journal.write(
            "started", learning.training.step, workers=learning.workers, equality_class=self.equality, code=self.lineage["code"]
        )
        self.journal.flush()
        self._began, self._flushed, self._drawing = time.monotonic(), time.monotonic(), 0.0

    def note(self, pause: Pause) -> None:
        rows = len(pause.records) * self.learning.examples_a_step
        rates = {"examples_per_s": round(rows / pause.seconds, 1), "steps_per_s": round(len(pause.records) / pause.seconds, 2)}
        shares = {"loader_wait": round(pause.waited / pause.seconds, 4), "cores": round(pause.cores, 3)}
        self.journal.write("step", pause.step, **self._means(pause), **rates, **shares)
        if pause.score:
            score = pause.score
            found = {"metric": score.name, "value": score.value, "stderr": score.stderr, "protocol": score.protocol, "n": score.n}
            self.journal.write("valid", pause.step, **found, best=pause.best)
            self._draw(pause.step)
        wait = 0 if storage.is_local(self.uri) else 5
        if pause.score or self.learning.checkpoint_due or time.monotonic() - self._flushed > wait:
            self.journal.flush()
            self._flushed = time.monotonic()

    def _means(self, pause: Pause) -> dict[str, float]:
        """Each metric's mean over the steps that had it; a lone objective's go by their own names (loss, not likelihood.loss)."""
        objectives = self.learning.training.objectives
        means: dict[str, float] = {}
        for name in dict.fromkeys(name for record in pause.records for name in record if name != "step"):
            values = [record[name] for record in pause.records if name in record]
            means[name.removeprefix(f"{objectives[0]}.") if len(objectives) == 1 else name] = sum(values) / len(values)
        rates = {f"{name}.lr": self.learning.training.rate(name) for name in objectives}
        return means | ({"lr": rates[f"{objectives[0]}.lr"]} if len(objectives) == 1 else rates)

    def _draw(self, step: int) -> None:
        """A small sheet of the weights that would be kept now, where drawing pictures costs little beside training."""
        event = self.learning.shards.event
        begun = time.monotonic()
        if event.modality != "image" or not event.levels or self._drawing > SHEET_SHARE * (begun - self._began):
            return
        labels, columns = sheet.layout(event, 16)
        with self.learning.training.averaged() as model:
            n, split = len(labels) if labels else 16, "valid" if self.learning.shards.rows.get("valid") else "train"
            y, c = conditions.asked(model, self.learning.shards, split, n, labels)
            levels = model.sample(n, seed=0, y=y, c=c).cpu().numpy()
        uri = storage.join(self.uri, "sheets", f"step-{step:08d}.png")
        storage.write_bytes(uri, sheet.pictures(levels, event, columns))
        self.journal.write("sheet", step, uri=uri)
        self._drawing += time.monotonic() - begun

    def broken(self, error: NonFinite) -> None:
        """Every step since the last look, the broken ones among them, and why training stopped."""
        for record in error.records:
            self.journal.write("step", int(record["step"]), **{name: value for name, value in record.items() if name != "step"})
        self.journal.write("stopped", int(error.records[-1]["step"]), message=str(error), non_finite=error.count)
        self.journal.flush()

    def finish(self) -> None:
        """Writes the artifact and the log's last line."""
        recipe, shards = self.learning.recipe, self.learning.shards
        with self.learning.kept() as (model, which), tempfile.TemporaryDirectory() as folder:
            best = self.learning.best if which == "best" else {}
            lineage = {
                **self.lineage,
                "equality_class": self.equality,
                "steps": self.learning.training.step,
                "weights": which,
                "best": best,
                **({"inference": dict(found)} if isinstance(model, Iterated) and (found := model.findings()) else {}),
            }
            family, target = recipe.model.family, Path(folder) / "artifact"
            digest = artifact.save(model, target, family=family, prepare=shards.prepare, labels=shards.labels, lineage=lineage)
            storage.upload(target, storage.join(self.uri, "artifact"))
        self.journal.write("finished", self.learning.training.step, digest=digest, weights=which, best=best)
        self.journal.flush()


def lineage(recipe: Recipe, shards: Shards, fingerprint: str, code: str) -> dict[str, Any]:
    """Where a model comes from. Nothing in it depends on when or where it was trained, so equal trainings give equal artifacts."""
    values = {key: value for key, value in dump(recipe).items() if key != "storage"}
    versions = libraries("genmodels", "torch", "numpy")
    return {"fingerprint": fingerprint, "shards": shards.fingerprint, "recipe": values, "code": code, "libraries": versions}
