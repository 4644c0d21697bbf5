"""What the endpoint answers, asked in this process: samples, scores, media types, receipts, and every error word for word."""

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genmodels import load, media
from genmodels.core import Density
from serve.documentation import PATHS
from serve.media_types import levels_hash
from serve.schema import Settings
from tests.serve.conftest import Local

SAMPLES, SCORES = "/v1/models/digits/samples", "/v1/models/digits/scores"
NPY = {"Accept": "application/x-npy"}
BLANK = [[[0] * 4] * 4]


def levels(content: bytes) -> np.ndarray:
    return np.load(BytesIO(content), allow_pickle=False)


def test_samples_are_the_models_own(endpoint: Local, digits: Path) -> None:
    answer = endpoint.ask("POST", SAMPLES, json={"n": 20, "seed": 5, "index": 3, "label": "two", "temperature": 0.8}, headers=NPY)
    wanted = load(digits).sample(20, seed=5, y=2, first=3, temperature=0.8).numpy()
    assert np.array_equal(levels(answer.content), wanted)


def test_labels_nobody_chose_are_drawn_as_the_model_draws_them(endpoint: Local, digits: Path) -> None:
    answer = endpoint.ask("POST", SAMPLES, json={"n": 20, "seed": 5}, headers={"Accept": "application/json"}).json()
    model = load(digits)
    assert (
        np.frombuffer(base64.b64decode(answer["levels"]), np.uint8).reshape(answer["shape"]).tolist() == model.sample(20, seed=5).tolist()
    )
    assert len(set(answer["labels"])) == 3
    assert model.sample(20, seed=5, y=answer["labels"]).tolist() == model.sample(20, seed=5).tolist()
    assert answer["receipt"]["label"] is None


def test_a_sample_is_the_same_in_every_media_type(endpoint: Local) -> None:
    asked = {"seed": 9, "label": 1}
    array = endpoint.ask("POST", SAMPLES, json=asked, headers=NPY)
    picture = endpoint.ask("POST", SAMPLES, json=asked)
    text = endpoint.ask("POST", SAMPLES, json=asked, headers={"Accept": "application/json"}).json()
    prepare = {"height": 4, "width": 4, "channels": 1, "levels": 5, "fit": "crop"}
    drawn = levels(array.content)
    assert picture.headers["content-type"] == "image/png"
    assert np.array_equal(media.levels_from_image(picture.content, prepare), drawn[0])
    assert np.array_equal(media.levels_from_image(base64.b64decode(text["media"][0]), prepare), drawn[0])
    assert base64.b64decode(text["levels"]) == drawn.tobytes()


def test_the_receipt_is_in_the_header_and_in_the_picture_and_makes_the_sample_again(endpoint: Local, digits: Path) -> None:
    answer = endpoint.ask("POST", SAMPLES, json={"n": 3, "label": [2, 0, 1]})
    slip = json.loads(answer.headers["X-Genmodels-Receipt"])
    assert json.loads(media.png_text(answer.content)["genmodels-receipt"]) == slip
    described = endpoint.ask("GET", "/v1/models/digits").json()
    assert {key: slip[key] for key in ("model", "version", "artifact", "equality_class")} == {
        "model": "digits",
        "version": "3",
        "artifact": described["artifact"],
        "equality_class": described["equality_class"],
    }
    again = load(digits).sample(slip["n"], seed=slip["seed"], y=slip["label"], first=slip["index"], temperature=slip["temperature"])
    assert levels_hash(again.numpy()) == slip["levels"]


def test_a_missing_seed_is_chosen_anew_each_time(endpoint: Local) -> None:
    slips = [json.loads(endpoint.ask("POST", SAMPLES).headers["X-Genmodels-Receipt"]) for _ in range(2)]
    assert slips[0]["seed"] != slips[1]["seed"]


def test_a_stream_has_a_line_a_sample_each_with_its_own_receipt(endpoint: Local, digits: Path) -> None:
    answer = endpoint.ask("POST", SAMPLES, json={"n": 20, "seed": 2, "index": 1, "label": 1, "stream": True})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    wanted = load(digits).sample(20, seed=2, y=1, first=1)
    assert [base64.b64decode(line["levels"]) for line in lines] == [one.numpy().tobytes() for one in wanted]
    assert [line["receipt"]["index"] for line in lines] == list(range(1, 21))


def test_scores_are_the_models_own_and_say_what_they_are(endpoint: Local, digits: Path) -> None:
    model = load(digits)
    assert isinstance(model, Density)
    x = model.sample(5, seed=0)
    given = endpoint.ask("POST", SCORES, json={"x": x.tolist(), "label": [0, 1, 2, 0, 1]}).json()
    summed = endpoint.ask("POST", SCORES, json={"x": x.tolist()}).json()
    assert (given["protocol"], summed["protocol"]) == ("exact p(x|y)", "exact p(x)")
    nats = torch.tensor([score["nats"] for score in given["scores"]])
    torch.testing.assert_close(nats, model.log_prob(x, torch.tensor([0, 1, 2, 0, 1])), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor([score["nats"] for score in summed["scores"]]), model.log_prob(x), rtol=1e-5, atol=1e-5)
    assert all(score["bits_per_dim"] == pytest.approx(-score["nats"] / 16 / np.log(2)) and score["dims"] == 16 for score in given["scores"])


def test_a_picture_handed_out_scores_as_its_levels_do(endpoint: Local) -> None:
    picture = endpoint.ask("POST", SAMPLES, json={"seed": 4, "label": 2})
    array = endpoint.ask("POST", SAMPLES, json={"seed": 4, "label": 2}, headers=NPY)
    asked: list[dict[str, Any]] = [
        {"content": picture.content, "headers": {"Content-Type": "image/png"}, "params": {"label": "two"}},
        {"content": array.content, "headers": {"Content-Type": "application/x-npy"}, "params": {"label": 2}},
        {"json": {"media": [base64.b64encode(picture.content).decode()], "label": 2}},
        {"json": {"levels": base64.b64encode(levels(array.content).tobytes()).decode(), "shape": [1, 1, 4, 4], "label": "two"}},
        {"json": {"x": levels(array.content)[0].tolist(), "label": "two"}},
    ]
    answers = [endpoint.ask("POST", SCORES, **request).json() for request in asked]
    assert answers[0]["protocol"] == "exact p(x|y)"
    assert all(answer == answers[0] for answer in answers)


def test_models_are_found_by_name_alias_and_version(endpoint: Local) -> None:
    listed = endpoint.ask("GET", "/v1/models").json()["models"]
    for asked in ("digits", "digits@champion", "digits:3"):
        assert endpoint.ask("GET", f"/v1/models/{asked}").json() == listed[0]
        assert endpoint.ask("POST", f"/v1/models/{asked}/samples").status_code == 200
    assert listed[0]["event"]["shape"] == [1, 4, 4]
    assert "density" in listed[0]["capabilities"]
    assert listed[0]["labels"] == ["zero", "one", "two"]


def test_health_readiness_and_the_page_at_the_door(endpoint: Local) -> None:
    assert endpoint.ask("GET", "/healthz").json() == {"status": "ok"}
    assert endpoint.ask("GET", "/readyz").json() == {"status": "ready", "models": ["digits"]}
    page = endpoint.ask("GET", "/").text
    assert 'curl -s http://here/v1/models/digits/samples -d \'{"seed": 1, "label": 0}\' -o sample.png' in page


def test_openapi_documents_every_path_its_keys_and_its_errors(endpoint: Local) -> None:
    said = endpoint.ask("GET", "/openapi.json").json()
    verbs = {
        f"/v1/models/{{m}}/{verb}"
        for verb in ("samples", "completions", "scores", "classifications", "encodings", "decodings", "interpolations")
    }
    assert set(said["paths"]) == {"/healthz", "/readyz", "/v1/models", "/v1/models/{m}"} | verbs
    samples = said["paths"]["/v1/models/{m}/samples"]["post"]
    assert set(samples["requestBody"]["content"]["application/json"]["schema"]["properties"]) >= {
        "n",
        "seed",
        "index",
        "label",
        "temperature",
    }
    assert set(samples["responses"]["200"]["content"]) >= {"image/png", "audio/wav", "application/x-npy", "application/json"}
    assert "application/problem+json" in samples["responses"]["429"]["content"]


REFUSED = [
    ("GET", "/v2", {}, 404, "unknown-path",
     f"nothing at /v2; known: {', '.join(PATHS)}"),
    ("GET", SAMPLES, {}, 405, "wrong-method", "GET /v1/models/digits/samples; wanted POST"),
    ("GET", "/v1/models/digit", {}, 404, "unknown-model", "unknown model 'digit'; did you mean 'digits'?"),
    ("GET", "/v1/models/x@y@z", {}, 404, "unknown-model", "'x@y@z' names no model; wanted name, name@alias or name:version"),
    ("POST", "/v1/models/digits@champ/samples", {}, 404, "unknown-alias", "digits: unknown alias 'champ'; did you mean 'champion'?"),
    ("POST", "/v1/models/digits:4/samples", {}, 404, "unknown-version", "digits has no version 4 here; served: 3"),
    ("POST", SAMPLES, {"content": b"{"}, 400, "not-json",
     "the body is no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1); wanted an object such as {}"),
    ("POST", SAMPLES, {"json": [1]}, 422, "invalid-request", "the body is a JSON list; wanted an object such as {}"),
    ("POST", SAMPLES, {"json": {"sede": 1}}, 422, "invalid-request", "unknown key 'sede'; did you mean 'seed'?"),
    ("POST", SAMPLES, {"json": {"n": "many"}}, 422, "invalid-request", 'n: Input should be a valid integer (got "many")'),
    ("POST", SAMPLES, {"json": {"n": 0}}, 422, "invalid-request", "n: Input should be greater than or equal to 1 (got 0)"),
    ("POST", SAMPLES, {"json": {"seed": -1}}, 422, "invalid-request", "seed: Input should be greater than or equal to 0 (got -1)"),
    ("POST", SAMPLES, {"json": {"n": 41}}, 422, "too-many-samples",
     "n = 41; this server draws at most 40 a request; ask in parts by index"),
    ("POST", SAMPLES, {"json": {"label": 3}}, 422, "unknown-label", "label 3; wanted 0 to 2"),
    ("POST", SAMPLES, {"json": {"label": "tow"}}, 422, "unknown-label", "unknown label 'tow'; did you mean 'two'? (or a number, 0 to 2)"),
    ("POST", SAMPLES, {"json": {"label": [0, 1]}}, 422, "wrong-labels", "2 labels for 1 rows; give one for all, or one for each"),
    ("POST", SAMPLES, {"json": {"label": 1.5}}, 422, "invalid-request",
     "label: wanted a class number, a class name, or a list of them (got 1.5)"),
    ("POST", SAMPLES, {"json": {"temperature": 0}}, 422, "invalid-request", "temperature: Input should be greater than 0 (got 0)"),
    ("POST", SAMPLES, {"json": {"condition": [1]}}, 422, "condition", "a condition was given; digits takes none: leave it out"),
    ("POST", SAMPLES, {"headers": {"Accept": "audio/wav"}}, 406, "not-acceptable",
     "Accept: audio/wav; offered here: image/png, application/json, application/x-npy"),
    ("POST", SAMPLES, {"content": b" " * 20_001}, 413, "too-large",
     "the body is larger than 20000 bytes; send less at a time, or raise serve.max_body"),
    ("POST", SCORES, {"json": {}}, 422, "invalid-request", "got none of x, levels, media; wanted one of them"),
    ("POST", SCORES, {"json": {"x": [[[0] * 4] * 3]}}, 422, "wrong-shape", "examples of shape (1, 3, 4); wanted (n, 1, 4, 4)"),
    ("POST", SCORES, {"json": {"x": []}}, 422, "wrong-shape", "examples of shape (0,); wanted (n, 1, 4, 4)"),
    ("POST", SCORES, {"json": {"x": [[0], [0, 1]]}}, 422, "not-numbers", "x is no regular nesting of numbers; wanted lists of equal length"),
    ("POST", SCORES, {"json": {"x": [[[5] * 4] * 4]}}, 422, "wrong-levels", "levels from 5 to 5; wanted 0 to 4"),
    ("POST", SCORES, {"json": {"x": [[[0.5] * 4] * 4]}}, 422, "wrong-levels", "examples of dtype float64; wanted whole levels 0 to 4"),
    ("POST", SCORES, {"json": {"x": [BLANK] * 41}}, 422, "too-many-examples", "41 examples; this server scores 1 to 40 a request"),
    ("POST", SCORES, {"json": {"x": BLANK, "label": 7}}, 422, "unknown-label", "label 7; wanted 0 to 2"),
    ("POST", SCORES, {"json": {"levels": "AAA", "shape": [1]}}, 422, "not-base64", "levels is no base64: Incorrect padding"),
    ("POST", SCORES, {"json": {"levels": "AAAA", "shape": [1, 1, 4, 4]}}, 422, "wrong-shape",
     "levels of 3 bytes; they do not fill (1, 1, 4, 4) of uint8"),
    ("POST", SCORES, {"content": b"abc", "headers": {"Content-Type": "image/png"}}, 422, "unreadable",
     "the image cannot be read: cannot identify image"),
    ("POST", SCORES, {"content": b"abc", "headers": {"Content-Type": "application/x-npy"}}, 422, "not-npy",
     "the body is no .npy array: it does not begin as one; numpy.save writes them"),
    ("POST", SCORES, {"content": b"abc", "headers": {"Content-Type": "audio/wav"}}, 415, "unsupported-media-type",
     "Content-Type: audio/wav; digits takes image/*, application/x-npy, application/json"),
    ("POST", SCORES, {"content": b"", "params": {"kk": 1}, "headers": {"Content-Type": "image/png"}}, 422, "invalid-request",
     "unknown key 'kk'; did you mean 'k'?"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "request_", "status", "kind", "detail"), REFUSED, ids=[f"{row[4]}-{n}" for n, row in enumerate(REFUSED)]
)
def test_every_error_is_a_problem_of_one_line(
    endpoint: Local, method: str, path: str, request_: dict[str, Any], status: int, kind: str, detail: str
) -> None:
    answer = endpoint.ask(method, path, **request_)
    assert answer.headers["content-type"] == "application/problem+json"
    said = answer.json()
    assert (answer.status_code, said["type"], said["detail"]) == (status, f"urn:genmodels:{kind}", detail)
    assert (said["status"], said["instance"]) == (status, path)
    assert said["title"]


@pytest.fixture
def slow(digits: Path) -> Iterator[Local]:
    local = Local({"digits": digits}, Settings(timeout_s=0.001))
    yield local
    local.close()


def test_what_takes_too_long_is_ended_with_504(slow: Local) -> None:
    answer = slow.ask("POST", SAMPLES, json={"n": 200, "seed": 1})
    assert answer.status_code == 504
    assert answer.json()["detail"] == "not done within 0.001 s; ask for fewer at a time, or raise serve.timeout_s"


def test_an_error_nobody_foresaw_tells_nothing_of_the_inside(endpoint: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr("serve.media_types.receipt", broken)
    answer = endpoint.ask("POST", SAMPLES)
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert answer.json()["detail"] == "the server failed at this request; its log says why"
    assert "secret" not in answer.text


@pytest.fixture
def guarded(digits: Path) -> Iterator[Local]:
    local = Local({"digits": digits}, Settings(), token="2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b")
    yield local
    local.close()


def test_with_a_token_only_its_bearer_is_served(guarded: Local) -> None:
    def ask(**headers: str) -> Any:
        return guarded.ask("GET", "/v1/models", headers=headers)

    assert (ask().status_code, ask().json()["detail"]) == (401, "no token was given; wanted the header Authorization: Bearer TOKEN")
    assert ask(Authorization="Bearer wrong").json()["detail"] == "a wrong token was given; wanted the header Authorization: Bearer TOKEN"
    assert ask(Authorization="Bearer secret").status_code == 200
    assert guarded.ask("POST", SAMPLES).status_code == 401
    assert guarded.ask("GET", "/healthz").status_code == guarded.ask("GET", "/readyz").status_code == 200
    assert "digits" not in guarded.ask("GET", "/").text
