"""The endpoint on the real Ray Serve, over real sockets: company, overload, a new version, and a replica killed, under load."""

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from genmodels import Event, load
from genmodels.core import Completes
from serve.client import Client, Refused
from serve.schema import Settings, Target
from tests.serve.conftest import save, target
from tests.services import free_port, wait_for

pytestmark = pytest.mark.ray
LARGE = Event(modality="image", shape=(1, 28, 28), levels=2)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "other"
    save(folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def url(ray_session: object, digits: Path) -> Iterator[str]:
    from serve import cluster

    settings = Settings(port=free_port(), replicas=2, max_queue=200)
    cluster.start(settings)
    cluster.put([Target.of(target(digits, "digits"))], settings)
    yield f"http://127.0.0.1:{settings.port}"
    cluster.stop()


def settings_of(url: str, **changes: Any) -> Settings:
    return Settings(port=int(url.rpartition(":")[2]), **{"replicas": 2, "max_queue": 200, **changes})


def ask_all(url: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """The answers to requests that are asked at the same time."""

    async def go() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            asked = [client.post("/v1/models/digits/samples", json=body, headers={"Accept": "application/x-npy"}) for body in bodies]
            return await asyncio.gather(*asked)

    return asyncio.run(go())


class Load:
    """Threads that go on asking until the block ends; what failed, and how many answers came as each version."""

    def __init__(self, ask: Callable[[int], str], threads: int = 4) -> None:
        self._ask, self._threads, self._stop = ask, ThreadPoolExecutor(threads), threading.Event()
        self.answers: list[str] = []
        self.failures: list[str] = []

    def __enter__(self) -> "Load":
        for number in range(4):
            self._threads.submit(self._go, number)
        return self

    def _go(self, seed: int) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(self._ask(seed))
            except Exception as error:
                self.failures.append(repr(error))
            seed += 4

    def until(self, count: int) -> None:
        deadline = time.monotonic() + 60
        wanted = len(self.answers) + count
        while len(self.answers) < wanted and time.monotonic() < deadline:
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._threads.shutdown()


def test_twelve_mixed_requests_at_once_get_the_bytes_they_get_alone(url: str, digits: Path) -> None:
    bodies: list[dict[str, Any]] = [
        {"n": 1 + number % 4, "seed": number, "index": number, "temperature": 1 + number / 10} for number in range(12)
    ]
    for body in bodies[::2]:
        body["label"] = body["seed"] % 3
    alone = [ask_all(url, [body])[0] for body in bodies]
    together = ask_all(url, bodies)
    model = load(digits)
    for body, one, other in zip(bodies, alone, together, strict=True):
        assert one.status_code == 200
        assert one.content == other.content
        assert one.headers["X-Genmodels-Receipt"] == other.headers["X-Genmodels-Receipt"]
        wanted = model.sample(body["n"], seed=body["seed"], first=body["index"], y=body.get("label"), temperature=body["temperature"])
        assert one.content.endswith(wanted.numpy().tobytes())


def test_completions_classes_and_maps_come_through_the_router(url: str, digits: Path) -> None:
    model, x = load(digits), np.zeros((1, 4, 4), np.uint8)
    assert isinstance(model, Completes)
    known = torch.arange(16).reshape(1, 4, 4) < 8
    with Client(url) as client:
        drawn = client.complete("digits", x, 2, n=3, seed=1)
        assert np.array_equal(drawn.levels, model.complete(torch.from_numpy(x).expand(3, 1, 4, 4), known, seed=1).x.numpy())
        assert len(client.classify("digits", x).classifications[0].log_probs) == 3
        assert client.score("digits", x, map=True).scores[0].map is not None
        with pytest.raises(Refused, match=r"^temperature 0\.5 for values that are not first"):
            client.complete("digits", x, known.numpy()[..., ::-1, :].copy(), seed=1, temperature=0.5)


@pytest.fixture(scope="module")
def sound(url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sound that takes seconds."""
    from serve import cluster

    folder = tmp_path_factory.mktemp("models") / "sound"
    event = Event(modality="audio", shape=(200_000,), levels=256, sample_rate=8000, companding="mu-law")
    save(folder, family="wavenet", event=event, prepare={})
    cluster.put([Target.of(target(folder, "sound"))], settings_of(url))
    return "sound"


def test_a_sound_comes_through_the_router_while_it_is_drawn(url: str, sound: str) -> None:
    with Client(url) as client:
        pieces = list(client.listen(sound, seed=1))
        assert b"".join(pieces) == client.file(sound, seed=1)[1]
        assert len(pieces) > 5
        with pytest.raises(Refused, match="n = 2; a stream of audio/wav is one sound"):
            next(client.listen(sound, n=2))
        cut_off = client.listen(sound, seed=2)
        next(cut_off)
        cut_off.close()
        idle = {pid: ticks(pid) for pid in two_replicas(sound)}
        pieces = [*itertools.islice(others := client.listen(sound, seed=1), 8)]
        os.kill(max(idle, key=lambda pid: ticks(pid) - idle[pid]), signal.SIGKILL)  # the other one goes on where it was
        assert b"".join([*pieces, *others]) == client.file(sound, seed=1)[1]


def test_errors_are_problems_here_too(url: str) -> None:
    for path, status in (("/v1/models/digit", 404), ("/v2", 404), ("/v1/models/digits/samples", 405)):
        answer = httpx.get(url + path)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_a_new_version_under_load_fails_no_request(url: str, digits: Path, other: Path) -> None:
    from serve import cluster

    wanted = {"3": load(digits).sample(1, seed=0).numpy(), "4": load(other).sample(1, seed=0).numpy()}
    running = two_replicas()
    with httpx.Client(base_url=url, timeout=60) as client:

        def ask(_: int) -> str:
            answer = client.post("/v1/models/digits/samples", json={"seed": 0}, headers={"Accept": "application/x-npy"})
            answer.raise_for_status()
            version = str(httpx.Response(200, content=answer.headers["X-Genmodels-Receipt"]).json()["version"])
            assert answer.content.endswith(wanted[version].tobytes())
            return version

        with Load(ask) as load_:
            load_.until(10)
            cluster.put([Target.of(target(other, "digits", "4"))], settings_of(url))
            load_.until(20)
        assert not load_.failures
        assert set(load_.answers) == {"3", "4"}
        assert [ask(0) for _ in range(4)] == ["4"] * 4
        assert all(Path(f"/proc/{pid}").exists() for pid in running)  # told the new version, not started anew
        cluster.put([Target.of(target(digits, "digits", "3"))], settings_of(url))


def replicas(model: str = "digits") -> list[int]:
    """Process ids of a model's replicas of this test's own Ray."""
    found, parents = [], {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(f"ray::ServeReplica:genmodels.{model}:Replica".encode()):
                found.append(int(folder.name))
    return [pid for pid in sorted(found) if os.getpid() in ancestors(pid, parents)]


def ticks(pid: int) -> int:
    """What it has computed so far."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def two_replicas(model: str = "digits") -> list[int]:
    """Once no title is being rewritten."""
    found: list[int] = []

    def both() -> bool:
        found[:] = replicas(model)
        return len(found) == 2

    wait_for(both, seconds=20, what="two replicas")
    return found


def ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    line = []
    while pid := parents.get(pid, 0):
        line.append(pid)
    return line


def test_a_killed_replica_loses_no_request_of_the_client(url: str, digits: Path) -> None:
    wanted = load(digits).sample(2, seed=8).numpy()
    victim, _ = two_replicas()
    with Client(url) as client:

        def ask(_: int) -> str:
            assert np.array_equal(client.sample("digits", n=2, seed=8).levels, wanted)
            return "ok"

        with Load(ask) as load_:
            load_.until(10)
            os.kill(victim, signal.SIGKILL)
            load_.until(40)
        assert not load_.failures
        assert len(load_.answers) >= 50


@pytest.fixture(scope="module")
def large(url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A slow model with little room: two requests are worked on, one waits."""
    from serve import cluster

    folder = tmp_path_factory.mktemp("models") / "large"
    save(folder, event=LARGE, prepare={})
    cluster.put([Target.of(target(folder, "large"))], settings_of(url, replicas=1, max_batch=1, max_queue=1))
    return "/v1/models/large/samples"


def test_more_than_the_queue_holds_is_turned_away_with_429(url: str, large: str) -> None:
    async def go() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return await asyncio.gather(*(client.post(large, json={"n": 4, "seed": seed}) for seed in range(16)))

    answers = asyncio.run(go())
    turned_away = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert turned_away[0].headers["Retry-After"] == "1"
    assert turned_away[0].json()["type"] == "urn:genmodels:overloaded"
    with Client(url) as client, ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda seed: client.sample("large", seed=seed).receipt.seed, range(4))) == list(range(4))
        assert {"digits", "large"} <= {one.model for one in client.models()}


def test_requests_whose_client_has_gone_make_room(url: str, large: str) -> None:
    def give_up(seed: int) -> None:
        with pytest.raises(httpx.ReadTimeout):
            while True:  # turned away until what came before has left the queue
                answer = httpx.post(url + large, json={"n": 256, "seed": seed}, timeout=2)
                assert answer.status_code == 429
                time.sleep(0.2)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(give_up, range(2)))
    began = time.monotonic()
    with Client(url) as client:
        client.sample("large", seed=1)
    assert time.monotonic() - began < 20  # the two that were given up would take minutes
