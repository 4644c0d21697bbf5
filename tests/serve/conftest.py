"""A served model without Ray: a real artifact on disk, a real replica in this process, and the endpoint's own ASGI application over it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from genmodels import Event, artifact, build
from serve import app, catalogue
from serve.directory import Directory
from serve.replica import Replica
from serve.schema import Settings

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
    """A replica behind an ASGI application, in the event loop of a test client."""

    def __init__(self, folder: Path, settings: Settings, *, token: str | None = None, name: str = "digits") -> None:
        self.replica = Replica(vars(settings))
        located = catalogue.resolve(str(folder))
        self.target = {**vars(located), "name": name, "version": "3", "aliases": ["champion"]}
        self.app = app.build(Directory({name: self.replica}), settings, token=token)

    def __enter__(self) -> TestClient:
        self.client = TestClient(self.app, raise_server_exceptions=False).__enter__()
        assert self.client.portal is not None
        self.client.portal.call(self.replica.reconfigure, self.target)
        return self.client

    def __exit__(self, *_: object) -> None:
        assert self.client.portal is not None
        self.client.portal.call(self.replica.close)
        self.client.__exit__()


@pytest.fixture(scope="module")
def client(digits: Path) -> Iterator[TestClient]:
    with Local(digits, Settings(batch_wait_ms=0, max_samples=40, max_body=20_000)) as client:
        yield client
