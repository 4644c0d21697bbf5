"""Completions, labels and scores value by value over HTTP: the model's own, the same in company, and refused with the reason where it has none."""

import base64
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
from genmodels.core import Autoregressive, Classifies, Completes, GenerativeModel, Tempered, capabilities
from genmodels.zoo import MODELS, build
from serve.media_types import levels_hash
from serve.schema import Settings
from tests.genmodels.conftest import TINY
from tests.serve.conftest import DIGITS, PREPARE, Local, save

SOUND = {"modality": "audio", "sample_rate": 8000, "seconds": 0.003, "levels": 256, "companding": "mu-law", "window": "all", "hop": None}
EVENTS = {
    "image": DIGITS,
    "audio": Event(modality="audio", shape=(24,), levels=256, sample_rate=8000, companding="mu-law", classes=3),
    "table": Event(modality="table", shape=(6,), levels=3, classes=3),
    "bits": Event(modality="table", shape=(6,), levels=2, classes=3),
}
SETTINGS = {"image": PREPARE, "audio": SOUND, "table": {}}
JSON, NPY = {"Accept": "application/json"}, {"Accept": "application/x-npy"}


def event_of(family: str) -> Event:
    """The first that the family takes."""
    return next(event for event in EVENTS.values() if takes(family, event))


def takes(family: str, event: Event) -> bool:
    if event.modality not in MODELS[family].modalities:
        return False
    try:
        build(family, event)
    except ValueError:
        return False
    return True


def able(capability: type[GenerativeModel]) -> list[str]:
    return [family for family, kind in MODELS.items() if issubclass(kind, capability)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("able")
    for family in MODELS:
        if not any(takes(family, event) for event in EVENTS.values()):
            continue  # it models what other settings say
        event = event_of(family)
        save(root / family, family=family, event=event, prepare=SETTINGS[event.modality], **TINY.get(family, {}))
    save(root / "unlabelled", event=Event(modality="image", shape=(1, 4, 4), levels=5))
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="module")
def endpoint(folders: dict[str, Path]) -> Iterator[Local]:
    local = Local(folders, Settings(batch_wait_ms=1, max_samples=40))
    yield local
    local.close()


def levels(answer: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(answer["levels"]), answer["dtype"]).reshape(answer["shape"])


def example(event: Event) -> np.ndarray:
    return (np.arange(event.dims) * 3 % event.levels).astype(np.uint8).reshape(event.shape)


def halves(event: Event) -> dict[str, np.ndarray]:
    """A beginning and every other value."""
    beginning, scattered = np.zeros(event.shape, bool), np.zeros(event.shape, bool)
    beginning.reshape(-1)[: event.dims // 2] = True
    scattered.reshape(-1)[1::2] = True
    return {"beginning": beginning, "scattered": scattered}


@pytest.mark.parametrize("part", ["beginning", "scattered"])
@pytest.mark.parametrize("family", able(Completes))
def test_completions_are_the_models_own(endpoint: Local, folders: dict[str, Path], family: str, part: str) -> None:
    event = event_of(family)
    x, known, n = example(event), halves(event)[part], 6
    body = {"x": x.tolist(), "known": known.tolist(), "n": n, "seed": 4, "index": 3, "label": "two"}
    said = endpoint.ask("POST", f"/v1/models/{family}/completions", json=body, headers=JSON).json()
    model = load(folders[family])
    assert isinstance(model, Completes)
    beginnings = torch.from_numpy(x).expand(n, *x.shape)
    wanted = model.complete(beginnings, torch.from_numpy(known), seed=4, first=3, y=torch.full((n,), 2))
    assert np.array_equal(levels(said), wanted.x.numpy())
    assert (said["method"], said["exact"]) == (wanted.method, wanted.exact)
    assert said["ess"] == (None if wanted.ess is None else wanted.ess.tolist())
    assert np.array_equal(levels(said)[:, known], np.broadcast_to(x[known], (n, known.sum())))
    slip = said["receipt"]
    given = {"given": levels_hash(np.where(known, x, 0).astype(np.uint8)), "known": levels_hash(known)}
    assert slip["completion"] == {"method": wanted.method, "exact": wanted.exact, **given}
    assert (slip["seed"], slip["index"], slip["n"], slip["label"], slip["levels"]) == (4, 3, n, 2, levels_hash(wanted.x.numpy()))


@pytest.mark.parametrize("family", able(Completes))
def test_a_label_nobody_gave_and_a_temperature_are_the_models_own(endpoint: Local, folders: dict[str, Path], family: str) -> None:
    event, model = event_of(family), load(folders[family])
    assert isinstance(model, Completes)
    x, known = example(event), halves(event)["beginning"]
    body = {"x": x.tolist(), "known": known.astype(int).tolist(), "seed": 4, "temperature": 0.7}
    if not isinstance(model, Tempered):
        body["temperature"] = 1.0
    answer = endpoint.ask("POST", f"/v1/models/{family}/completions", json=body, headers=NPY)
    try:
        wanted = model.complete(torch.from_numpy(x)[None], torch.from_numpy(known), seed=4, temperature=body["temperature"])
    except ValueError as error:
        assert (answer.status_code, answer.json()["detail"]) == (422, str(error))
        return
    assert np.array_equal(np.load(io.BytesIO(answer.content)), wanted.x.numpy())


def test_requests_get_the_same_bytes_alone_and_in_company(endpoint: Local) -> None:
    x, masks = example(DIGITS).tolist(), halves(DIGITS)
    path = "/v1/models/gated_pixelcnn/"
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", path + "completions", {"json": {"x": x, "known": masks["beginning"].tolist(), "n": 9, "seed": 1}, "headers": JSON}),
        ("POST", path + "completions", {"json": {"x": x, "known": masks["scattered"].tolist(), "n": 6, "seed": 2}, "headers": JSON}),
        ("POST", path + "samples", {"json": {"n": 20, "seed": 1}, "headers": JSON}),
        ("POST", path + "classifications", {"json": {"x": [x] * 18}}),
        ("POST", path + "scores", {"json": {"x": [x] * 3, "map": True}}),
    ]
    alone = [endpoint.ask(method, where, **request).json() for method, where, request in asked]
    assert [answer.json() for answer in endpoint.together(*asked)] == alone
    assert "model" in alone[-1] and "receipt" in alone[0]


def test_with_nothing_known_a_completion_is_a_sample(endpoint: Local) -> None:
    body = {"n": 5, "seed": 8, "index": 2}
    blank = {"x": example(DIGITS).tolist(), "known": {"first": 0}}
    drawn = endpoint.ask("POST", "/v1/models/gated_pixelcnn/samples", json=body, headers=NPY)
    filled = endpoint.ask("POST", "/v1/models/gated_pixelcnn/completions", json={**body, **blank}, headers=NPY)
    assert drawn.content == filled.content


def test_a_beginning_is_rows_of_a_picture_however_it_is_sent(endpoint: Local) -> None:
    x = example(DIGITS)
    file, where = media.png(x, levels_count=5), "/v1/models/gated_pixelcnn/completions"
    array = io.BytesIO()
    np.save(array, x)
    rows = np.zeros((1, 4, 4), bool)
    rows[:, :3] = True
    asked: list[dict[str, Any]] = [
        {"json": {"x": x.tolist(), "known": {"first": 3}, "n": 2, "seed": 5, "label": 1, "temperature": 0.5}},
        {"json": {"x": x[None].tolist(), "known": rows.tolist(), "n": 2, "seed": 5, "label": "one", "temperature": 0.5}},
        {"json": {"media": base64.b64encode(file).decode(), "known": {"first": 3}, "n": 2, "seed": 5, "label": 1, "temperature": 0.5}},
        {"content": file, "headers": {"Content-Type": "image/png"}},
        {"content": array.getvalue(), "headers": {"Content-Type": "application/x-npy"}},
    ]
    beside = {"first": "3", "n": "2", "seed": "5", "label": "one", "temperature": "0.5"}
    for request in asked[3:]:
        request["params"] = beside
    for request in asked:
        request["headers"] = {**request.get("headers", {}), **JSON}
    answers = [endpoint.ask("POST", where, **request).json() for request in asked]
    assert np.array_equal(levels(answers[0])[:, :, :3], np.broadcast_to(x[:, :3], (2, 1, 3, 4)))
    assert all(answer == answers[0] for answer in answers)


def test_the_receipt_is_in_the_picture_and_in_the_header(endpoint: Local) -> None:
    body = {"x": example(DIGITS).tolist(), "known": {"first": 2}, "n": 3}
    answer = endpoint.ask("POST", "/v1/models/gated_pixelcnn/completions", json=body)
    slip = json.loads(answer.headers["X-Genmodels-Receipt"])
    assert answer.headers["content-type"] == "image/png"
    assert json.loads(media.png_text(answer.content)["genmodels-receipt"]) == slip
    again = endpoint.ask("POST", "/v1/models/gated_pixelcnn/completions", json={**body, "seed": slip["seed"]})
    assert again.content == answer.content


def sound(steps: int, rate: int = 8000) -> tuple[np.ndarray, bytes]:
    wanted = np.arange(100, 100 + steps, dtype=np.uint8)
    return wanted, media.wav(wanted, sample_rate=rate, levels_count=256, companding="mu-law")


def test_a_short_sound_is_continued_from_its_end(endpoint: Local) -> None:
    beginning, file = sound(10)
    where, form = "/v1/models/wavenet/completions", {"Content-Type": "audio/wav"}
    answer = endpoint.ask("POST", where, content=file, headers=form, params={"seed": 3, "label": 1})
    with wave.open(io.BytesIO(answer.content)) as heard:
        assert (heard.getframerate(), heard.getnframes()) == (8000, 24)
    codes = media.levels_from_sound(answer.content, SOUND)[0][0]
    assert np.array_equal(codes[:10], beginning)
    padded = [*beginning.tolist(), *[0] * 14]
    same = endpoint.ask("POST", where, json={"x": padded, "known": {"first": 10}, "seed": 3, "label": 1}, headers=NPY)
    assert np.array_equal(np.load(io.BytesIO(same.content))[0], codes)
    several = endpoint.ask("POST", where, content=file, headers={**form, "Accept": "audio/wav"}, params={"n": 2})
    assert several.status_code == 406


def test_a_longer_sound_lends_its_beginning(endpoint: Local) -> None:
    codes, file = sound(60)
    answer = endpoint.ask(
        "POST", "/v1/models/wavenet/completions", content=file, headers={"Content-Type": "audio/wav", **NPY}, params={"first": 5}
    )
    assert np.array_equal(np.load(io.BytesIO(answer.content))[0, :5], codes[:5])


@pytest.mark.parametrize("family", able(Autoregressive))
def test_the_map_of_a_score_is_the_models_own_and_adds_up(endpoint: Local, folders: dict[str, Path], family: str) -> None:
    event, model = event_of(family), load(folders[family])
    assert isinstance(model, Autoregressive)
    x = np.stack([example(event), np.zeros(event.shape, np.uint8)])
    answer = endpoint.ask("POST", f"/v1/models/{family}/scores", json={"x": x.tolist(), "map": True})
    try:
        with torch.no_grad():
            wanted = model.log_probs(torch.from_numpy(x))
    except ValueError as error:
        assert (answer.status_code, answer.json()["detail"]) == (422, str(error))
        return
    plain = endpoint.ask("POST", f"/v1/models/{family}/scores", json={"x": x.tolist()}).json()
    for one, score, same in zip(wanted, answer.json()["scores"], plain["scores"], strict=True):
        nats = np.frombuffer(base64.b64decode(score["map"]["nats"]), score["map"]["dtype"]).reshape(score["map"]["shape"])
        torch.testing.assert_close(torch.tensor(nats), one.float(), rtol=1e-4, atol=1e-4)
        assert score["nats"] == pytest.approx(float(nats.sum(dtype=np.float64)))
        assert score["nats"] == pytest.approx(same["nats"], rel=1e-4)
        assert same["map"] is None


def test_padding_of_a_short_sound_surprises_nobody(endpoint: Local) -> None:
    body = {"media": [base64.b64encode(sound(10)[1]).decode()], "map": True, "label": 0}
    (score,) = endpoint.ask("POST", "/v1/models/wavenet/scores", json=body).json()["scores"]
    nats = np.frombuffer(base64.b64decode(score["map"]["nats"]), np.float32)
    assert (score["dims"], nats.shape) == (10, (24,))
    assert (nats[:10] < 0).all() and not nats[10:].any()


@pytest.mark.parametrize("family", able(Classifies))
def test_classes_are_the_models_own_and_it_is_said_what_by(endpoint: Local, folders: dict[str, Path], family: str) -> None:
    event, model = event_of(family), load(folders[family])
    assert isinstance(model, Classifies)
    x = np.stack([(example(event).astype(int) + shift) % event.levels for shift in range(5)]).astype(np.uint8)
    answer = endpoint.ask("POST", f"/v1/models/{family}/classifications", json={"x": x.tolist()})
    said = answer.json()
    try:
        with torch.no_grad():
            wanted = model.classify(torch.from_numpy(x))
    except ValueError as error:
        assert answer.status_code == 422 and (str(error) in said["detail"] or "classifies" not in capabilities(model))
        return
    assert said["protocol"] == f"p(y|x) by {model.classifies_by}"
    assert said["labels"] == ["zero", "one", "two"]
    found = torch.tensor([row["log_probs"] for row in said["classifications"]])
    torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-4)
    assert [row["best"] for row in said["classifications"]] == found.argmax(1).tolist()
    assert [row["label"] for row in said["classifications"]] == [said["labels"][row["best"]] for row in said["classifications"]]


X = example(DIGITS).tolist()
BEGUN = {"x": X, "known": {"first": 2}}
MIDDLE = halves(DIGITS)["scattered"].tolist()
CAN = "it can: density, tempered, completes, progressive, classifies, autoregressive"
REFUSED = [
    ("gan", "completions", {"json": BEGUN}, "no-completion", "gan (gan) cannot fill in what is missing; it can: decodes"),
    ("gan", "classifications", {"json": {"x": X}}, "no-classification", "gan (gan) cannot say p(y|x); it can: decodes"),
    ("vae", "scores", {"json": {"x": X, "map": True}}, "no-map",
     f"vae (vae) has no likelihood value by value, so no map of it; it can: {', '.join(capabilities(build('vae', DIGITS)))}"),
    ("unlabelled", "classifications", {"json": {"x": X}}, "no-labels",
     "unlabelled was trained without labels: there are no classes to choose from"),
    ("unlabelled", "completions", {"json": {**BEGUN, "label": 1}}, "no-labels",
     "label 1 given; unlabelled was trained without labels: leave it out"),
    ("gated_pixelcnn", "completions", {"json": {"x": X}}, "wrong-mask",
     'known is missing: wanted a mask, or {"first": n} for the first n of 4 rows'),
    ("gated_pixelcnn", "completions", {"json": {"x": X, "known": [[True] * 4] * 3}}, "wrong-mask",
     "known of shape (3, 4); wanted the event's, (1, 4, 4)"),
    ("gated_pixelcnn", "completions", {"json": {"x": X, "known": [[[2] * 4] * 4]}}, "wrong-mask",
     "known is no regular nesting of true and false, or of 1 and 0"),
    ("gated_pixelcnn", "completions", {"json": {"x": X, "known": [[True], [True, False]]}}, "wrong-mask",
     "known is no regular nesting of true and false, or of 1 and 0"),
    ("gated_pixelcnn", "completions", {"json": {"x": X, "known": {"first": 5}}}, "wrong-mask", "known: the first 5 rows; there are 4"),
    ("gated_pixelcnn", "completions", {"json": {"x": X, "known": {"last": 5}}}, "invalid-request",
     'known: wanted lists of true and false of the event\'s shape, or {"first": n} (got {"last": 5})'),
    ("gated_pixelcnn", "completions", {"json": {"x": [X, X], "known": {"first": 1}}}, "wrong-shape",
     "examples of shape (2, 1, 4, 4); wanted one of shape (1, 4, 4) (n says how many futures it gets)"),
    ("gated_pixelcnn", "completions", {"json": {**BEGUN, "x": [[[9] * 4] * 4]}}, "wrong-levels", "levels from 0 to 9; wanted 0 to 4"),
    ("gated_pixelcnn", "completions", {"json": {"known": {"first": 1}}}, "invalid-request", "got none of x, levels, media; wanted one of them"),
    ("gated_pixelcnn", "completions", {"json": {**BEGUN, "n": 41}}, "too-many-samples",
     "n = 41; this server draws at most 40 a request; ask in parts by index"),
    ("gated_pixelcnn", "completions", {"json": {**BEGUN, "temperature": -1}}, "invalid-request",
     "temperature: Input should be greater than 0 (got -1)"),
    ("gated_pixelcnn", "completions", {"json": {"x": X, "known": MIDDLE, "temperature": 0.5}}, "not-taken",
     "temperature 0.5 for values that are not first in the model's order: importance weights need temperature 1"),
    ("gated_pixelcnn", "completions", {"json": {**BEGUN, "condition": [1]}}, "condition",
     "a condition was given; gated_pixelcnn takes none: leave it out"),
    ("gated_pixelcnn", "completions", {"content": b"abc", "headers": {"Content-Type": "image/png"}, "params": {"sede": 1}},
     "invalid-request", "unknown key 'sede'; did you mean 'seed'?"),
    ("gated_pixelcnn", "classifications", {"json": {"x": X, "label": 1}}, "invalid-request",
     "unknown key 'label'; did you mean 'levels'?"),
    ("gated_pixelcnn", "scores", {"json": {"x": X, "condition": [1]}}, "condition",
     "a condition was given; gated_pixelcnn takes none: leave it out"),
    ("wavenet", "completions", {"content": sound(10, rate=16000)[1], "headers": {"Content-Type": "audio/wav"}}, "wrong-rate",
     "a sound of 16000 Hz; wavenet models 8000 Hz: resample it first"),
    ("wavenet", "completions", {"content": b"abc", "headers": {"Content-Type": "audio/wav"}}, "unreadable",
     "the audio cannot be read: Error opening Format not recognised."),
    ("wavenet", "completions", {"content": sound(10)[1], "headers": {"Content-Type": "audio/wav"}, "params": {"first": 12}}, "wrong-mask",
     "known: the first 12 steps; there are 10"),
    ("wavenet", "completions", {"json": {"media": base64.b64encode(sound(10)[1]).decode(), "known": [True] * 24}}, "wrong-mask",
     "known goes on behind the sound's end; it has 10 of 24 steps"),
    ("wavenet", "completions", {"content": sound(24)[1], "headers": {"Content-Type": "audio/wav"}}, "wrong-mask",
     'known is missing: wanted a mask, or {"first": n} for the first n of 24 steps'),
]  # fmt: skip


@pytest.mark.parametrize(("model", "verb", "request_", "kind", "detail"), REFUSED, ids=[f"{row[3]}-{n}" for n, row in enumerate(REFUSED)])
def test_what_is_not_taken_is_a_problem_of_one_line(
    endpoint: Local, model: str, verb: str, request_: dict[str, Any], kind: str, detail: str
) -> None:
    answer = endpoint.ask("POST", f"/v1/models/{model}/{verb}", **request_)
    said = answer.json()
    assert (answer.status_code, said["type"], said["detail"]) == (422, f"urn:genmodels:{kind}", detail)
