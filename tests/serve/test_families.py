"""Every kind of family behind the same endpoint: a bound is called one, what a family cannot do is refused with the reason, sounds are sounds."""

import io
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genmodels import Event, load, media
from genmodels.core import Bounded, Density
from genmodels.noise import Noise
from serve.schema import Settings
from tests.serve.conftest import LABELS, Local, save

PICTURES = Event(modality="image", shape=(1, 8, 8), levels=5, classes=3)
PICTURE = {"modality": "image", "height": 8, "width": 8, "channels": 1, "levels": 5, "fit": "crop"}
SOUNDS = Event(modality="audio", shape=(64,), levels=256, sample_rate=8000, companding="mu-law", classes=3)
SOUND = {"modality": "audio", "sample_rate": 8000, "seconds": 0.008, "levels": 256, "companding": "mu-law", "window": "all", "hop": None}
NPY = {"Accept": "application/x-npy"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    for family, event, prepare in (("vae", PICTURES, PICTURE), ("gan", PICTURES, PICTURE), ("wavenet", SOUNDS, SOUND)):
        save(root / family, family=family, event=event, prepare=prepare)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="module")
def endpoint(folders: dict[str, Path]) -> Iterator[Local]:
    local = Local(folders, Settings(batch_wait_ms=1))
    yield local
    local.close()


@pytest.mark.parametrize("family", ["vae", "gan", "wavenet"])
def test_every_family_answers_with_its_own_samples(endpoint: Local, folders: dict[str, Path], family: str) -> None:
    answer = endpoint.ask("POST", f"/v1/models/{family}/samples", json={"n": 3, "seed": 1, "label": "one"}, headers=NPY)
    assert answer.content.endswith(load(folders[family]).sample(3, seed=1, y=1).numpy().tobytes())


def test_a_bound_is_called_one_and_names_its_k(endpoint: Local, folders: dict[str, Path]) -> None:
    model = load(folders["vae"])
    assert isinstance(model, Bounded)
    x = model.sample(3, seed=1, y=1)
    said = endpoint.ask("POST", "/v1/models/vae/scores", json={"x": x.tolist(), "label": 1, "k": 5, "seed": 3}).json()
    with torch.no_grad():
        wanted = model.iwae(x, torch.full((3,), 1), 5, Noise(3, position=range(3)))
    assert said["protocol"] == "IWAE_5 lower bound of p(x|y)"
    torch.testing.assert_close(torch.tensor([score["nats"] for score in said["scores"]]), wanted, rtol=1e-4, atol=1e-4)


REFUSED = [
    ("gan", "scores", {"x": [[[0] * 8] * 8]}, "no-likelihood", "gan (gan) has no likelihood and no bound to score by; it can: "),
    ("vae", "classifications", {"x": [[[0] * 8] * 8]}, "no-classification",
     "vae (vae) cannot say p(y|x): it was trained without model.semi_supervised, so it has no q(y|x); it can: bounded, encodes, "),
    ("gan", "samples", {"temperature": 0.5}, "no-temperature", "temperature 0.5 asked of gan; its family gan has none: leave it at 1"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "what", "body", "kind", "detail"), REFUSED)
def test_what_a_family_cannot_do_is_refused_with_the_reason(
    endpoint: Local, family: str, what: str, body: dict[str, Any], kind: str, detail: str
) -> None:
    answer = endpoint.ask("POST", f"/v1/models/{family}/{what}", json=body)
    assert (answer.status_code, answer.json()["type"]) == (422, f"urn:genmodels:{kind}")
    assert answer.json()["detail"].startswith(detail)


def test_a_sound_is_a_wav_with_its_receipt_and_scores_as_its_levels_do(endpoint: Local, folders: dict[str, Path]) -> None:
    sound = endpoint.ask("POST", "/v1/models/wavenet/samples", json={"seed": 2, "label": 0})
    array = endpoint.ask("POST", "/v1/models/wavenet/samples", json={"seed": 2, "label": 0}, headers=NPY)
    assert sound.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(sound.content)) as file:
        assert (file.getframerate(), file.getnframes(), file.getnchannels()) == (8000, 64, 1)
    assert json.loads(media.wav_info(sound.content)["genmodels-receipt"]) == json.loads(sound.headers["X-Genmodels-Receipt"])
    drawn = np.load(io.BytesIO(array.content))
    by_file = endpoint.ask(
        "POST", "/v1/models/wavenet/scores", content=sound.content, headers={"Content-Type": "audio/wav"}, params={"label": "zero"}
    ).json()
    by_levels = endpoint.ask("POST", "/v1/models/wavenet/scores", json={"x": drawn.tolist(), "label": 0}).json()
    assert by_file == by_levels
    assert by_file["scores"][0]["dims"] == 64


def test_padding_of_a_short_sound_is_not_scored(endpoint: Local, folders: dict[str, Path]) -> None:
    levels = np.arange(100, 140, dtype=np.uint8)
    short = media.wav(levels, sample_rate=8000, levels_count=256, companding="mu-law")
    said = endpoint.ask(
        "POST", "/v1/models/wavenet/scores", content=short, headers={"Content-Type": "audio/wav"}, params={"label": 0}
    ).json()
    model = load(folders["wavenet"])
    assert isinstance(model, Density)
    padded = torch.zeros(1, 64, dtype=torch.uint8)
    padded[0, :40] = torch.from_numpy(levels)
    wanted = model.log_prob(padded, torch.zeros(1, dtype=torch.int64), length=torch.tensor([40])).item()
    assert (said["scores"][0]["dims"], said["scores"][0]["nats"]) == (40, pytest.approx(wanted, abs=1e-3))


def test_several_sounds_are_json_or_an_array_but_no_wav(endpoint: Local) -> None:
    said = endpoint.ask("POST", "/v1/models/wavenet/samples", json={"n": 2, "seed": 2}).json()
    assert (said["media_type"], len(said["media"]), said["shape"]) == ("audio/wav", 2, [2, 64])
    refused = endpoint.ask("POST", "/v1/models/wavenet/samples", json={"n": 2}, headers={"Accept": "audio/wav"})
    assert refused.status_code == 406
    assert refused.json()["detail"] == "Accept: audio/wav; offered here: application/json, application/x-npy (a WAV holds one sound: n = 1)"


def test_label_names_are_the_artifacts(endpoint: Local) -> None:
    assert endpoint.ask("GET", "/v1/models/wavenet").json()["labels"] == list(LABELS)
