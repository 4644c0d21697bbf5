"""The loop of passes: it can be cut anywhere without a trace, it ends when the model says so, and nothing that breaks is hidden."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genmodels.core import Batch, Event, Iterated, Metrics
from genmodels.iterate import Iteration
from genmodels.noise import Noise
from genmodels.train import NonFinite, Record, TrainConfig

EVENT = Event(modality="table", shape=(3,), levels=4)
PASSES = 9


class Walk(Iterated):
    """Its state walks towards the data's mean, a little at random; every part that must survive a resume is in it."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        breaks_at: int = -1
        enough: float = 0.0

    at: Tensor
    settled: Tensor

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        self.config: Walk.Config = config
        self.register_buffer("at", torch.zeros(event.dims, dtype=torch.float64))
        self.register_buffer("settled", torch.tensor(False))

    def iterate(self, data_pass: Iterable[Batch], noise: Noise) -> Metrics:
        rows, total = 0, torch.zeros_like(self.at)
        for batch in data_pass:
            own = Noise(noise.seeds, position=batch.position, step=noise.step).uniform("row", (self.event.dims,))
            rows, total = rows + len(batch), total + (batch.x + own / 10).sum(0)
        gap = total / rows + noise.shared("all", (self.event.dims,)) / 10 - self.at
        self.at += gap / 2
        self.settled.fill_(float(gap.norm()) < self.config.enough)
        return {"gap": gap.norm() / (0.0 if noise.step == self.config.breaks_at else 1.0)}

    @property
    def converged(self) -> bool:
        return bool(self.settled)

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        return self.at.round().expand(len(noise), -1).to(torch.uint8)


def passes(step: int) -> Iterable[Batch]:
    x = (torch.arange(30).reshape(10, 3) * 7 % 4).to(torch.uint8)
    return (Batch(x=x[i : i + 4], position=torch.arange(i, min(i + 4, 10))) for i in range(0, 10, 4))


def walk(**config: float) -> Iteration:
    return Iteration(Walk(EVENT, Walk.Config(**config)), TrainConfig(steps=PASSES, seed=3))  # type: ignore[arg-type]


def contents(iteration: Iteration, folder: Path) -> dict[str, bytes]:
    iteration.save(folder)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("cut", range(PASSES))
def test_passes_cut_anywhere_are_the_undisturbed_ones(cut: int, tmp_path: Path) -> None:
    whole = walk()
    records = whole.run(passes, until=PASSES)
    first = walk()
    before: list[Record] = first.run(passes, until=cut)
    first.save(tmp_path / "cut")
    torch.manual_seed(cut)  # a resumed process has another global generator; nothing may read it
    second = walk()
    second.restore(tmp_path / "cut")
    assert (second.step, second.done) == (cut, False)
    assert before + second.run(passes, until=PASSES) == records
    assert contents(second, tmp_path / "a") == contents(whole, tmp_path / "b")
    assert second.done and [record["step"] for record in records] == list(range(1, PASSES + 1))


def test_it_ends_when_the_model_has_converged() -> None:
    iteration = walk(enough=0.4)
    records = iteration.run(passes, until=PASSES)
    assert iteration.done and len(records) == iteration.step < PASSES
    assert records[-1]["gap"] < 0.4 <= records[-2]["gap"]
    assert iteration.run(passes, until=PASSES) == []


def test_a_pass_that_is_not_finite_stops_it_and_is_told() -> None:
    with pytest.raises(NonFinite, match=r"^step 3 is not finite \(gap inf; 1 such steps before it was stopped\): ") as stop:
        walk(breaks_at=2).run(passes, until=PASSES)
    assert (stop.value.step, stop.value.records[-1]["gap"]) == (3, float("inf"))


def test_a_state_of_another_one_is_refused(tmp_path: Path) -> None:
    walk().save(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint's config is another: seed 3, here 4$"):
        Iteration(Walk(EVENT, Walk.Config()), TrainConfig(steps=PASSES, seed=4)).restore(tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"state\.safetensors was changed"):
        walk().restore(tmp_path)


@pytest.mark.parametrize("key", ["lr", "ema", "accumulate", "precision", "compile"])
def test_numbers_of_descent_are_refused(key: str) -> None:
    value = {"lr": 0.1, "ema": 0.9, "accumulate": 2, "precision": "bf16", "compile": True}[key]
    with pytest.raises(ValueError, match=f"^{key} for a Walk, which learns by passes over the data, not by descent; leave it out$"):
        Iteration(Walk(EVENT, Walk.Config()), TrainConfig(steps=1, **{key: value}))  # type: ignore[arg-type]
