"""Rows drawn some steps at a time: who joins, leaves or fails does not show in anyone's bytes, and nobody waits for the end of another."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from genmodels import Event, load
from genmodels.core import Autoregressive, Drawing
from serve import running
from serve.batching import Batcher
from serve.draws import Completing, Listening, Sampling
from serve.jobs import Part
from tests.serve.conftest import DIGITS, save

T = TypeVar("T")
SOUND = Event(modality="audio", shape=(400,), levels=256, sample_rate=8000, companding="mu-law", classes=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Autoregressive:
    folder = tmp_path_factory.mktemp("models") / "wavenet"
    save(folder, family="wavenet", event=SOUND, prepare={})
    return of(folder)


def of(folder: Path) -> Autoregressive:
    model = load(folder)
    assert isinstance(model, Autoregressive)
    if model.sampler.padded(model):
        pytest.skip("no compiled sampler in this installation")
    return model


def sampling(model: Autoregressive, n: int, seed: int, kind: type[Sampling] = Sampling) -> Sampling:
    y = torch.arange(seed, seed + n) % 3 if model.event.classes else None
    return kind(model=model, n=n, seed=seed, first=seed, y=y, c=None, temperature=0.7 + seed / 10)


def completing(model: Autoregressive, n: int, seed: int, *, given: int = 100, known: torch.Tensor | None = None) -> Completing:
    x = torch.arange(model.event.dims).remainder(model.event.levels).to(torch.uint8).reshape(model.event.shape)
    known = (torch.arange(model.event.dims) < given).reshape(model.event.shape) if known is None else known
    return Completing(model=model, n=n, seed=seed, first=seed, y=None, c=None, temperature=1.0, x=x, known=known)


def alone(model: Autoregressive, n: int, seed: int) -> np.ndarray:
    """What `sampling` of the same numbers must come to."""
    y = torch.arange(seed, seed + n) % 3 if model.event.classes else None
    return model.sample(n, seed=seed, y=y, first=seed, temperature=0.7 + seed / 10).numpy()


class Turns:
    """Counts the turns, with the jobs that each took part of, and makes those of some seeds fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, turn: float = 0.0, broken: int | None = None) -> None:
        self.seeds: list[set[int]] = []
        advance = running.advance_together

        def watched(states: list[Drawing], k: int) -> None:
            self.seeds.append({int(state.temperature[0] * 10 - 6.99) for state in states})
            advance(states, k)

        def begin(parts: Sequence[Part]) -> Drawing:
            if broken in [part.job.seed for part in parts]:
                raise RuntimeError("poisoned")
            return original(parts)

        original = Sampling.begin
        monkeypatch.setattr(Sampling, "begin", staticmethod(begin))
        monkeypatch.setattr(running, "advance_together", watched)
        monkeypatch.setattr(running, "TURN", turn)

    async def until(self, count: int) -> None:
        while len(self.seeds) < count:
            await asyncio.sleep(0.0005)


def run(work: Callable[[Batcher], Awaitable[T]], *, max_batch: int = 8) -> T:
    async def go() -> T:
        batcher = Batcher(threads=1, max_batch=max_batch, wait=60)  # nobody who is drawn in steps waits for company
        try:
            return await work(batcher)
        finally:
            await batcher.close()

    return asyncio.run(go())


def test_joining_leaving_and_giving_up_do_not_show(model: Autoregressive, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch)

    async def go(batcher: Batcher) -> dict[int, Any]:
        tasks = {}
        for seed in range(12):
            tasks[seed] = asyncio.create_task(batcher.rows(sampling(model, 1 + seed % 5, seed)))
            await turns.until(len(turns.seeds) + 5)
            if seed % 3 == 2:
                tasks[seed].cancel()
        answers = await asyncio.gather(*tasks.values(), return_exceptions=True)
        return dict(zip(tasks, answers, strict=True))

    answers = run(go)
    kept = [seed for seed in range(12) if seed % 3 != 2]
    assert all(np.array_equal(answers[seed], alone(model, 1 + seed % 5, seed)) for seed in kept)
    assert max(map(len, turns.seeds)) > 2


def test_completions_and_samples_of_a_model_go_on_together(model: Autoregressive) -> None:
    async def go(batcher: Batcher) -> list[Any]:
        jobs = [sampling(model, 2, 1), completing(model, 3, 2), completing(model, 1, 3, given=0), sampling(model, 3, 4)]
        assert all(job.in_steps for job in jobs)
        return [jobs, await asyncio.gather(*map(batcher.rows, jobs))]

    jobs, (first, second, third, last) = run(go)
    assert np.array_equal(first, alone(model, 2, 1)) and np.array_equal(last, alone(model, 3, 4))
    for job, rows in ((jobs[1], second), (jobs[2], third)):
        wanted = model.complete(job.x.expand(job.n, 400), job.known, seed=job.seed, first=job.first)
        assert np.array_equal(rows["levels"], wanted.x.numpy()) and np.isnan(rows["ess"]).all()
        assert (job.method, job.exact) == (wanted.method, wanted.exact)


def test_what_must_be_weighed_is_no_matter_of_steps(digits: Path) -> None:
    model, scattered = of(digits), torch.arange(16).reshape(DIGITS.shape) % 2 == 1

    async def go(_: Batcher) -> tuple[bool, bool]:
        return completing(model, 1, 0, known=scattered).in_steps, completing(model, 1, 0, given=7).in_steps

    assert run(go) == (False, True)


def test_what_nobody_waits_for_is_dropped_before_the_next_turn(model: Autoregressive, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch)

    async def go(batcher: Batcher) -> tuple[int, Any]:
        given_up = asyncio.create_task(batcher.rows(sampling(model, 500, seed=1)))
        await turns.until(3)
        given_up.cancel()
        await asyncio.sleep(0)
        seen = len(turns.seeds)
        return seen, await batcher.rows(sampling(model, 1, seed=2))

    seen, rows = run(go)
    assert all(seeds == {2} for seeds in turns.seeds[seen + 1 :]) and len(turns.seeds) > seen + 1
    assert np.array_equal(rows, alone(model, 1, 2))


def test_a_short_request_joins_a_long_one_and_leaves_first(model: Autoregressive, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch)

    async def go(batcher: Batcher) -> bool:
        long = asyncio.create_task(batcher.rows(sampling(model, 80, seed=1)))
        await turns.until(2)
        await batcher.rows(sampling(model, 1, seed=2))
        overtook = not long.done()
        long.cancel()
        return overtook

    assert run(go)
    assert {1, 2} in turns.seeds


def test_a_request_that_fails_fails_alone(model: Autoregressive, monkeypatch: pytest.MonkeyPatch) -> None:
    Turns(monkeypatch, broken=2)

    async def go(batcher: Batcher) -> list[Any]:
        return await asyncio.gather(*(batcher.rows(sampling(model, 2, seed)) for seed in range(4)), return_exceptions=True)

    answers = run(go)
    assert str(answers[2]) == "poisoned"
    assert all(np.array_equal(answers[seed], alone(model, 2, seed)) for seed in (0, 1, 3))


def test_logits_that_are_not_finite_fail_their_request_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "fvbn", family="fvbn", prepare={})
    model, begin = of(tmp_path / "fvbn"), Sampling.begin

    def broken(parts: Sequence[Part]) -> Drawing:
        state = begin(parts)
        for row, job in enumerate(part.job for part in parts for _ in range(len(part))):
            if job.seed == 2:
                state.memory.kept[row] = torch.nan
        return state

    monkeypatch.setattr(Sampling, "begin", staticmethod(broken))

    async def go(batcher: Batcher) -> list[Any]:
        return await asyncio.gather(*(batcher.rows(sampling(model, 2, seed)) for seed in range(4)), return_exceptions=True)

    answers = run(go)
    assert "are not all finite numbers" in str(answers[2])
    assert all(np.array_equal(answers[seed], alone(model, 2, seed)) for seed in (0, 1, 3))


def test_a_sound_is_heard_while_it_is_drawn(model: Autoregressive, monkeypatch: pytest.MonkeyPatch) -> None:
    Turns(monkeypatch)

    async def go(batcher: Batcher) -> tuple[list[np.ndarray], np.ndarray]:
        job = sampling(model, 1, 3, Listening)
        assert isinstance(job, Listening)
        task = asyncio.create_task(batcher.rows(job))
        pieces = []
        while (piece := await job.pieces.get()) is not None:
            assert not job.future.done() or pieces
            pieces.append(piece)
        return pieces, await task

    pieces, rows = run(go)
    assert len(pieces) > 10
    assert np.array_equal(rows, alone(model, 1, 3))
    heard = np.concatenate(pieces)
    assert np.array_equal(heard, rows[0, : len(heard)])
