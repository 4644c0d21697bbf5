"""A sound over HTTP while it is drawn: the same bytes as when it is asked for at once, the first of them before the last are drawn."""

import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile

from genmodels import Event, media
from genmodels.core import Autoregressive, Drawing, Eager
from serve import running
from serve.client import Client, Refused
from serve.schema import Settings
from tests.serve.conftest import Local, listening, save

STEPS = 500
SOUND = Event(modality="audio", shape=(STEPS,), levels=256, sample_rate=8000, companding="mu-law", classes=3)
PATH, HEARD = "/v1/models/wavenet/samples", {"Accept": "audio/wav"}
ASKED = {"seed": 3, "index": 2, "label": 1, "temperature": 0.9}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Local]:
    folder = tmp_path_factory.mktemp("models") / "wavenet"
    save(folder, family="wavenet", event=SOUND, prepare={})
    local = Local({"wavenet": folder, "digits": digits}, Settings(batch_wait_ms=1))
    yield local
    local.close()


@pytest.fixture(scope="module")
def url(local: Local) -> Iterator[str]:
    with listening(local, local.app) as url:
        yield url


@pytest.fixture
def model(local: Local) -> Autoregressive:
    loaded = local.replicas["wavenet"]._loaded
    assert loaded is not None and isinstance(loaded.model, Autoregressive)
    return loaded.model


@pytest.mark.parametrize("asked", [ASKED, {"seed": 5}])
def test_the_pieces_joined_are_the_wav_of_the_same_request(local: Local, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "TURN", 1e-3)
    whole = local.ask("POST", PATH, json=asked, headers=HEARD)
    streamed = local.ask("POST", PATH, json={**asked, "stream": True}, headers=HEARD)
    assert streamed.content == whole.content and streamed.headers["content-type"] == "audio/wav"
    slip = json.loads(whole.headers["X-Genmodels-Receipt"])
    assert json.loads(streamed.headers["X-Genmodels-Receipt"]) == {key: value for key, value in slip.items() if key != "levels"}
    assert json.loads(media.wav_info(streamed.content)["genmodels-receipt"]) == slip
    with soundfile.SoundFile(io.BytesIO(streamed.content)) as file:
        assert (file.frames, file.samplerate, file.channels) == (STEPS, 8000, 1)


def test_a_model_that_is_drawn_in_blocks_is_heard_at_once(local: Local, model: Autoregressive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "sampler", Eager())
    whole = local.ask("POST", PATH, json=ASKED, headers=HEARD)
    assert local.ask("POST", PATH, json={**ASKED, "stream": True}, headers=HEARD).content == whole.content


class Held:
    """Stops the models' thread behind its third turn until it is let go."""

    def __init__(self, model: Autoregressive, monkeypatch: pytest.MonkeyPatch) -> None:
        if model.sampler.padded(model):
            pytest.skip("no compiled sampler in this installation")
        self.turns, self.go, advance = 0, threading.Event(), running.advance_together

        def held(states: list[Drawing], k: int) -> None:
            advance(states, 1)
            self.turns += 1
            if self.turns == 3:
                assert self.go.wait(20)

        monkeypatch.setattr(running, "advance_together", held)


def test_the_first_pieces_come_before_the_last_are_drawn(
    local: Local, url: str, model: Autoregressive, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, held = local.ask("POST", PATH, json=ASKED, headers=HEARD).content, Held(model, monkeypatch)
    with Client(url) as client:
        pieces = client.listen("wavenet", **ASKED)
        heard = next(pieces)
        while len(heard) < 44 + 2 * 2:
            heard += next(pieces)
        assert held.turns <= 3
        held.go.set()
        assert heard + b"".join(pieces) == whole


def test_who_stops_listening_is_drawn_no_further(local: Local, url: str, model: Autoregressive, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(model, monkeypatch)
    with httpx.Client(base_url=url) as client, client.stream("POST", PATH, json={**ASKED, "stream": True}, headers=HEARD) as answer:
        next(answer.iter_bytes())
    held.go.set()
    batcher = local.replicas["wavenet"]._batcher
    assert batcher is not None
    deadline = time.monotonic() + 20
    while batcher._running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not batcher._running and held.turns < STEPS


REFUSED = [
    ("wavenet", {"n": 2}, "audio/wav", 422, "several-sounds",
     "n = 2; a stream of audio/wav is one sound: ask for n = 1, or accept application/x-ndjson"),
    ("digits", {}, "audio/wav", 422, "no-sound",
     "digits models images; a stream of audio/wav is one sound: accept application/x-ndjson, or leave stream out"),
    ("wavenet", {}, "application/json", 406, "not-acceptable",
     "Accept: application/json; offered here: application/x-ndjson, audio/wav (a line a sample, or one sound while it is drawn)"),
    ("wavenet", {"label": 7}, "audio/wav", 422, "unknown-label", "label 7; wanted 0 to 2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "asked", "accept", "status", "kind", "detail"), REFUSED)
def test_what_cannot_be_heard_is_refused(
    local: Local, name: str, asked: dict[str, Any], accept: str, status: int, kind: str, detail: str
) -> None:
    answer = local.ask("POST", f"/v1/models/{name}/samples", json={**asked, "stream": True}, headers={"Accept": accept})
    assert (answer.status_code, answer.json()["type"], answer.json()["detail"]) == (status, f"urn:genmodels:{kind}", detail)


def test_lines_are_what_a_stream_is_where_nothing_is_said(local: Local) -> None:
    answer = local.ask("POST", PATH, json={"seed": 1, "n": 2, "stream": True})
    assert answer.headers["content-type"] == "application/x-ndjson" and len(answer.text.splitlines()) == 2


def test_the_client_is_told_why_a_sound_is_not_streamed(url: str) -> None:
    with Client(url) as client, pytest.raises(Refused, match="digits models images"):
        next(client.listen("digits"))


def test_a_sound_that_takes_too_long_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "wavenet", family="wavenet", event=SOUND, prepare={})
    local = Local({"wavenet": tmp_path / "wavenet"}, Settings(timeout_s=1))
    loaded = local.replicas["wavenet"]._loaded
    assert loaded is not None and isinstance(loaded.model, Autoregressive)
    held = Held(loaded.model, monkeypatch)
    with listening(local, local.app) as url, Client(url) as client, pytest.raises(httpx.RemoteProtocolError):
        list(client.listen("wavenet", **ASKED))
    held.go.set()
    local.close()
