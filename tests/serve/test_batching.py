"""Rows of many requests in one block: the same bytes as alone, one failure harms nobody else, what nobody waits for is not computed."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genmodels import load
from genmodels.core import Autoregressive, Eager
from genmodels.noise import Noise
from serve.batching import Batcher
from serve.draws import Sampling
from serve.messages import Draw
from serve.problem import Problem
from serve.schema import Settings
from tests.serve.conftest import Local, save, target

MIXED = [
    {
        "n": 1 + number % 5,
        "seed": number,
        "index": 7 * number,
        "temperature": 1 + number / 20,
        **({"label": number % 3} if number % 2 else {}),
    }
    for number in range(12)
]


def test_requests_get_the_same_bytes_alone_and_in_company(endpoint: Local) -> None:
    asked = [("POST", "/v1/models/digits/samples", {"json": one, "headers": {"Accept": "application/x-npy"}}) for one in MIXED]
    alone = [endpoint.ask(method, path, **request) for method, path, request in asked]
    scored = ("POST", "/v1/models/digits/scores", {"json": {"x": [[[[0, 1, 2, 3]] * 4]] * 20}})
    score = endpoint.ask(scored[0], scored[1], **scored[2])
    *together, company = endpoint.together(*asked, scored)
    for one, other in zip(alone, together, strict=True):
        assert one.status_code == 200
        assert one.content == other.content
        assert one.headers["X-Genmodels-Receipt"] == other.headers["X-Genmodels-Receipt"]
    assert score.json() == company.json()


@pytest.fixture
def model(digits: Path) -> Autoregressive:
    """One that is drawn in blocks."""
    model = load(digits)
    assert isinstance(model, Autoregressive)
    model.sampler = Eager()
    return model


def sampling(model: Autoregressive, n: int, seed: int) -> Sampling:
    return Sampling(model=model, n=n, seed=seed, first=0, y=torch.zeros(n, dtype=torch.int64), c=None, temperature=1.0)


class Watched:
    """Counts a model's blocks, and makes those fail that hold a given seed."""

    def __init__(self, model: Autoregressive, monkeypatch: pytest.MonkeyPatch, *, poison: int | None = None) -> None:
        self.blocks: list[list[int]] = []
        draw = model.draw

        def watched(noise: Noise, **columns: Any) -> Tensor:
            self.blocks.append(sorted(set(noise.seeds)))
            if poison in noise.seeds:
                raise RuntimeError("poisoned")
            return draw(noise, **columns)

        monkeypatch.setattr(model, "draw", watched)


def test_several_requests_share_a_block(model: Autoregressive, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(model, monkeypatch)

    async def go() -> None:
        batcher = Batcher(threads=1, max_batch=16, wait=0.05)
        await asyncio.gather(*(batcher.rows(sampling(model, 4, seed)) for seed in range(4)))
        await batcher.close()

    asyncio.run(go())
    assert watched.blocks == [[0, 1, 2, 3]]


def test_a_request_that_fails_fails_alone(model: Autoregressive, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [model.sample(3, seed=seed, y=0).numpy() for seed in range(4)]
    Watched(model, monkeypatch, poison=2)

    async def go() -> list[Any]:
        batcher = Batcher(threads=1, max_batch=16, wait=0.05)
        answers = await asyncio.gather(*(batcher.rows(sampling(model, 3, seed)) for seed in range(4)), return_exceptions=True)
        await batcher.close()
        return answers

    answers = asyncio.run(go())
    assert str(answers[2]) == "poisoned"
    assert all(np.array_equal(answers[seed], wanted[seed]) for seed in (0, 1, 3))


def test_what_nobody_waits_for_any_more_is_not_computed(model: Autoregressive, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(model, monkeypatch)

    async def go() -> None:
        batcher = Batcher(threads=1, max_batch=16, wait=0)
        long = asyncio.create_task(batcher.rows(sampling(model, 16 * 500, seed=1)))
        while not watched.blocks:
            await asyncio.sleep(0.001)
        long.cancel()
        await batcher.rows(sampling(model, 1, seed=2))
        await batcher.close()

    asyncio.run(go())
    assert len(watched.blocks) < 20
    assert watched.blocks[-1] == [2]


def test_a_short_request_does_not_wait_for_a_long_one(model: Autoregressive) -> None:
    async def go() -> bool:
        batcher = Batcher(threads=1, max_batch=16, wait=0)
        long = asyncio.create_task(batcher.rows(sampling(model, 16 * 100, seed=1)))
        await asyncio.sleep(0)
        await batcher.rows(sampling(model, 1, seed=2))
        overtook = not long.done()
        long.cancel()
        await batcher.close()
        return overtook

    assert asyncio.run(go())


@pytest.fixture
def served(digits: Path) -> Iterator[Local]:
    local = Local({"digits": digits}, Settings())
    yield local
    local.close()


def test_a_replica_moves_to_another_version_and_answers_as_it(served: Local, tmp_path: Path) -> None:
    replica = served.replicas["digits"]
    before = served.run(replica.sample(Draw(seed=1, first=0, n=2)))
    save(tmp_path / "other", seed=1)
    served.run(replica.reconfigure(target(tmp_path / "other", "digits", "4")))
    after = served.run(replica.sample(Draw(seed=1, first=0, n=2)))
    assert (before.description.version, after.description.version) == ("3", "4")
    assert np.array_equal(after.levels, load(tmp_path / "other").sample(2, seed=1).numpy())
    with pytest.raises(Problem, match="digits is served as version 4; got 3"):
        served.run(replica.sample(Draw(seed=1, first=0, n=1, version="3")))


def test_a_changed_artifact_is_refused_and_the_old_one_goes_on(served: Local, tmp_path: Path) -> None:
    save(tmp_path / "other", seed=1)
    wanted = target(tmp_path / "other", "digits", "4")
    save(tmp_path / "other", seed=2)
    with pytest.raises(ValueError, match=r"has digest .*; wanted .*: it was changed after it was registered"):
        served.run(served.replicas["digits"].reconfigure(wanted))
    assert served.ask("GET", "/v1/models/digits").json()["version"] == "3"


def test_the_replica_refuses_what_the_ingress_would(served: Local) -> None:
    with pytest.raises(Problem, match="label 9; wanted 0 to 2"):
        served.run(served.replicas["digits"].sample(Draw(seed=1, first=0, n=1, y=(9,))))
