"""A served model without Ray: a real artifact on disk, a real replica in this process, and the endpoint's own ASGI application over it."""

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import torch
import uvicorn

from genmodels import Event, artifact, build
from serve import app, catalogue
from serve.directory import Directory
from serve.replica import Replica
from serve.schema import Settings

T = TypeVar("T")
DIGITS = Event(modality="image", shape=(1, 4, 4), levels=5, classes=3)
PREPARE = {"modality": "image", "height": 4, "width": 4, "channels": 1, "levels": 5, "fit": "crop"}
LABELS = ("zero", "one", "two")


def save(folder: Path, *, seed: int = 0, event: Event = DIGITS, family: str = "gated_pixelcnn", prepare: Any = None, **config: Any) -> str:
    """An artifact with weights of a seed, spread so that samples differ -> its digest."""
    model = build(family, event, seed=seed, **config)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(1000 * seed + number)
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return artifact.save(model, folder, family=family, prepare=PREPARE if prepare is None else prepare, labels=LABELS[: event.classes])


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "digits"
    save(folder)
    return folder


class Local:
    """Replicas behind the ASGI application, in an event loop of their own."""

    def __init__(self, folders: dict[str, Path], settings: Settings, *, token: str | None = None) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.replicas = {name: Replica(vars(settings)) for name in folders}
        for name, folder in folders.items():
            self.run(self.replicas[name].reconfigure(target(folder, name)))
        self.app = app.build(Directory(self.replicas), settings, token=token)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.begin(work).result(60)

    def begin(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        return self.together((method, path, request))[0]

    def together(self, *requests: tuple[str, str, dict[str, Any]]) -> list[httpx.Response]:
        """The answers to requests that are asked at the same time."""

        async def go() -> list[httpx.Response]:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await asyncio.gather(*(client.request(method, path, **request) for method, path, request in requests))

        return self.run(go())

    def close(self) -> None:
        for replica in self.replicas.values():
            self.run(replica.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def listening(local: Local, app: Any) -> Iterator[str]:
    """The URL of an application over a real socket, in the loop of its replicas."""
    with socket.socket(proto=socket.IPPROTO_TCP) as door:  # asyncio sends small packets at once only where it is told that this is TCP
        door.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        door.listen()
        ended = local.begin(running.serve(sockets=[door]))
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
        running.should_exit = True
        ended.result(10)


def target(folder: Path, name: str, version: str = "3") -> dict[str, Any]:
    """What a replica is told to serve: this folder as champion."""
    return {**vars(catalogue.resolve(str(folder))), "name": name, "version": version, "aliases": ["champion"]}


@pytest.fixture(scope="module")
def endpoint(digits: Path) -> Iterator[Local]:
    local = Local({"digits": digits}, Settings(batch_wait_ms=1, max_samples=40, max_body=20_000))
    yield local
    local.close()
