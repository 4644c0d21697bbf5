"""The twin of genmodels.train for families that learn by passes over the data or by chains: the same face, steps being passes.

A pass is a function of the model, the data and the number of the pass, so `run`, `save` and `restore` may cut it between any two passes without
a trace in the bits, as they may a training between two steps.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from genmodels import checkpoint
from genmodels.checkpoint import NonFinite, Record, TrainConfig
from genmodels.core import Batch, Iterated
from genmodels.noise import Noise, derive

Passes = Callable[[int], Iterable[Batch]]
"""The examples of a pass, each of them once, in batches."""

MEANT = {"steps", "batch_size", "seed", "threads"}
"""What of TrainConfig says something to a model that learns by passes."""


class Iteration:
    """A model that learns by passes: its state and how many are done. Raises ValueError for numbers of a training that mean nothing here."""

    def __init__(self, model: Iterated, config: TrainConfig) -> None:
        plain = TrainConfig(steps=config.steps)
        stray = [each.name for each in fields(config) if each.name not in MEANT and getattr(config, each.name) != getattr(plain, each.name)]
        if stray:
            raise ValueError(f"{stray[0]} for a {type(model).__name__}, which learns by passes over the data, not by descent; leave it out")
        torch.set_num_threads(config.threads)
        self.model, self.config, self.step = model, config, 0

    @property
    def done(self) -> bool:
        """Whether all passes are done, or no further one would change anything."""
        return self.step >= self.config.steps or self.model.converged

    @property
    def objectives(self) -> list[str]:
        """None: nothing is descended, and metrics go by their own names."""
        return []

    def rate(self, objective: str) -> float:
        raise ValueError(f"learning rate of {objective!r}: a model that learns by passes has none")

    @torch.no_grad()
    def run(self, passes: Passes, *, until: int) -> list[Record]:
        """Passes up to `until`, or until the model has converged -> one record a pass.

        Raises NonFinite when a metric of one was not finite; the state is then of no use, the last saved one is.
        """
        records: list[Record] = []
        self.model.train()
        while self.step < until and not self.model.converged:
            noise = Noise(derive(self.config.seed, "iterate"), position=torch.empty(0, dtype=torch.int64), step=self.step)
            batches = (batch.to(self.model.device) for batch in passes(self.step))
            found = self.model.iterate(batches, noise.to(self.model.device))
            self.step += 1
            records.append({"step": self.step, **{name: float(value) for name, value in found.items()}})
            if not all(map(math.isfinite, records[-1].values())):
                raise NonFinite(records, "its data or settings are beyond what it can count with")
        return records

    @contextmanager
    def averaged(self) -> Iterator[Iterated]:
        """The model as it is: there is no running mean here."""
        yield self.model

    def save(self, folder: Path) -> None:
        """Writes the whole state: state.safetensors, and state.json that vouches for it."""
        checkpoint.save(folder, step=self.step, tensors=checkpoint.of_model(self.model), identity=self._identity())

    def restore(self, folder: Path) -> None:
        """Goes on from a saved state. Raises ValueError when it is damaged, or is that of another model or config."""
        self.step, tensors = checkpoint.load(folder, self._identity())
        checkpoint.into_model(self.model, tensors)

    def _identity(self) -> dict[str, Any]:
        layout = [(name, list(value.shape)) for name, value in self.model.state_dict().items()]
        return {"config": asdict(self.config), "layout": layout}
