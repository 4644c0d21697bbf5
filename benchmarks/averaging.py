"""What averaging gradients costs: two gloo workers on this machine, and how much of a step goes into the sum over them.

Were the sum begun while the backward pass still runs, it could hide what it waits for (the other worker, the wire), not what its processors do:
those are the ones that the backward pass computes on. That difference is the most that overlapping could gain.
"""

import multiprocessing
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from genmodels.core import Batch, Event, Trained
from genmodels.noise import Noise
from genmodels.train import TrainConfig, Training
from genmodels.zoo import build
from pipelines import recipe as recipes

EVENTS = {
    "digits-pixelcnn": Event(modality="image", shape=(1, 8, 8), levels=17, classes=10),
    "mnist-pixelcnn": Event(modality="image", shape=(1, 28, 28), levels=256, classes=10),
}
WARM = 2


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """Medians of rank 0, in seconds a step: all of it, waiting until the other worker is there, and the sum itself of `megabytes`; busy: processor
    time of that sum."""

    recipe: str
    step: float
    wait: float
    sum: float
    busy: float
    megabytes: float

    @property
    def hidden(self) -> float:
        """The most of a step that overlapping could hide."""
        return max(0.0, self.sum - self.busy) / self.step


def averaged(recipe: str, steps: int) -> Averaged:
    """Two processes of one thread each train the recipe's model for some steps, each on its half of the batch."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        found = context.Queue()
        ranks = [context.Process(target=_work, args=(recipe, steps, rank, folder, found)) for rank in range(2)]
        for rank in ranks:
            rank.start()
        result = found.get(timeout=240)
        for rank in ranks:
            rank.join()
    return result


def _work(recipe: str, steps: int, rank: int, folder: str, found: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{Path(folder) / 'meet'}", rank=rank, world_size=2)
    waits, sums, busy, sizes = [], [], [], []

    def add(buffer: Tensor) -> None:
        begun = time.perf_counter()
        distributed.barrier()
        met, used = time.perf_counter(), time.process_time()
        distributed.all_reduce(buffer)
        sums.append(time.perf_counter() - met)
        busy.append(time.process_time() - used)
        waits.append(met - begun)
        sizes.append(buffer.nbytes / 1e6)

    asked, event, took = recipes.load(recipe), EVENTS[recipe], []
    model = build(asked.model.family, event, seed=0, **asked.model.config)
    assert isinstance(model, Trained)
    training = Training(model, TrainConfig(steps=WARM + steps, batch_size=asked.train.batch_size, precision=asked.train.precision))
    rows = asked.train.batch_size // 2
    for step in range(WARM + steps):
        batch = _batch(event, step, rank * rows, rows)
        begun = time.perf_counter()
        training.run(lambda _, batch=batch: batch, until=step + 1, sum_over_workers=add)
        took.append(time.perf_counter() - begun)
    if rank == 0:
        step, wait, sum_, used = (statistics.median(times[WARM:]) for times in (took, waits, sums, busy))
        found.put(Averaged(recipe=recipe, step=step, wait=wait, sum=sum_, busy=used, megabytes=sizes[0]))
    distributed.destroy_process_group()


def _batch(event: Event, step: int, first: int, rows: int) -> Batch:
    position = torch.arange(first, first + rows) + 2 * rows * step
    x = Noise(0, position=position).uniform("x", event.shape) * event.levels
    return Batch(x=x.to(torch.uint8), y=position % event.classes, position=position, step=step)
