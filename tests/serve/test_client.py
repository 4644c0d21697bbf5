"""The client over real sockets: arrays and receipts, patience with a server that fails or is full, none with a refusal."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from starlette.types import Receive, Scope, Send

from genmodels import load
from genmodels.core import Autoregressive
from serve.client import Client, Refused, values
from serve.schema import Settings
from tests.serve.conftest import Local, listening


class Faulty:
    """The endpoint behind a fault: the next `times` requests are answered with `status`, or cut off (0)."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app, self.times, self.status, self.seen = app, 0, 500, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.seen += 1
        if self.times:
            self.times -= 1
            if not self.status:
                raise ConnectionError
            await send(
                {"type": "http.response.start", "status": self.status, "headers": [(b"retry-after", b"1")] if self.status == 429 else []}
            )
            await send({"type": "http.response.body", "body": b"Internal Server Error"})
            return
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def server(digits: Path) -> Iterator[tuple[str, Faulty]]:
    local = Local({"digits": digits}, Settings())
    faulty = Faulty(local.app)
    with listening(local, faulty) as url:
        yield url, faulty
    local.close()


def test_samples_scores_and_models_as_arrays(server: tuple[str, Faulty], digits: Path) -> None:
    with Client(server[0]) as client:
        drawn = client.sample("digits", n=3, seed=6, label="one")
        scored = client.score("digits", drawn.levels, label=1)
        assert np.array_equal(drawn.levels, load(digits).sample(3, seed=6, y=1).numpy())
        assert (drawn.receipt.seed, drawn.receipt.label) == (6, 1)
        assert (scored.protocol, len(scored.scores)) == ("exact p(x|y)", 3)
        assert [one.model for one in client.models()] == ["digits"]
        assert client.file("digits", seed=6)[0] == "image/png"


def test_completions_labels_and_maps_as_arrays(server: tuple[str, Faulty], digits: Path) -> None:
    x, model = np.arange(16, dtype=np.uint8).reshape(1, 4, 4) % 5, load(digits)
    known = np.zeros((1, 4, 4), bool)
    known[:, :2] = True
    assert isinstance(model, Autoregressive)
    with Client(server[0]) as client, torch.no_grad():
        rows = client.complete("digits", x, 2, n=3, seed=6, label="one")
        same = client.complete("digits", x, known, n=3, seed=6, label=1)
        wanted = model.complete(torch.from_numpy(x).expand(3, 1, 4, 4), torch.from_numpy(known), seed=6, y=torch.ones(3))
        assert np.array_equal(rows.levels, wanted.x.numpy()) and np.array_equal(same.levels, rows.levels)
        assert (rows.exact, rows.ess, rows.method) == (True, None, wanted.method)
        assert rows.receipt == same.receipt
        weighed = client.complete("digits", x, known[..., ::-1, :].copy(), seed=6)
        assert weighed.ess is not None and not weighed.exact and len(weighed.ess) == 1
        assert client.classify("digits", x).classifications[0].best == int(model.classify(torch.from_numpy(x)[None]).argmax())
        mapped = values(client.score("digits", x[None], label=1, map=True))
        np.testing.assert_allclose(mapped, model.log_probs(torch.from_numpy(x)[None], torch.tensor([1])), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("status", [500, 503, 0])
def test_a_request_lost_by_the_server_is_asked_again_and_is_the_same(server: tuple[str, Faulty], status: int) -> None:
    url, fault = server
    with Client(url) as client:
        first = client.sample("digits", seed=1, n=2)
        fault.times, fault.status = 3, status
        again = client.sample("digits", seed=1, n=2)
    assert fault.times == 0
    assert np.array_equal(first.levels, again.levels)


def test_a_full_server_is_given_the_time_it_asks_for(server: tuple[str, Faulty]) -> None:
    url, fault = server
    fault.times, fault.status = 1, 429
    began = time.monotonic()
    with Client(url) as client:
        client.sample("digits", seed=1)
    assert time.monotonic() - began >= 1


def test_a_refusal_is_not_asked_again(server: tuple[str, Faulty]) -> None:
    url, fault = server
    before = fault.seen
    with Client(url) as client, pytest.raises(Refused, match=r"unknown label 'tow'; did you mean 'two'\?"):
        client.sample("digits", label="tow")
    assert fault.seen == before + 1


def test_patience_ends(server: tuple[str, Faulty]) -> None:
    url, fault = server
    fault.times, fault.status = 10, 503
    with Client(url, retries=1) as client, pytest.raises(Refused, match=f"HTTP 503 from {url}/v1/models"):
        client.models()
    fault.times = 0
    with Client("http://127.0.0.1:1", retries=1) as client, pytest.raises(httpx.ConnectError):
        client.models()
