"""Codes over HTTP: distributions of examples, examples of codes and the way between two are the model's own, also in company; log p of an energy."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Bernoulli

from genmodels import Event, load, media
from genmodels.core import Chained, Classifies, Decodes, Encodes, Energy, GenerativeModel
from genmodels.noise import Noise
from genmodels.zoo import MODELS
from serve.client import Client, Refused
from serve.media_types import levels_hash
from serve.schema import Settings
from tests.serve.conftest import Local, listening, save

PICTURES = Event(modality="image", shape=(1, 8, 8), levels=5, classes=3)
PLAIN = Event(modality="image", shape=(1, 8, 8), levels=5)
BITS = Event(modality="image", shape=(1, 8, 8), levels=2)
PREPARE = {"modality": "image", "height": 8, "width": 8, "channels": 1, "levels": 5, "fit": "crop"}
JSON, NPY = {"Accept": "application/json"}, {"Accept": "application/x-npy"}
SHORT: dict[str, dict[str, Any]] = {"rbm": {"hidden": 18, "length": 3, "chains": 8, "temperatures": 20}, "helmholtz": {"hidden": (12, 6)}}
SAVED: dict[str, tuple[str, Event, dict[str, Any]]] = {
    "vae": ("vae", PICTURES, {}),
    "plain": ("vae", PLAIN, {}),
    "gan": ("gan", PICTURES, {}),
    "free": ("gan", PLAIN, {}),
    "helmholtz": ("helmholtz", BITS, SHORT["helmholtz"]),
    "rbm": ("rbm", BITS, SHORT["rbm"]),
    "small": ("rbm", BITS, {**SHORT["rbm"], "hidden": 5}),
    "density": ("gated_pixelcnn", PLAIN, {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("codes")
    for name, (family, event, config) in SAVED.items():
        save(root / name, family=family, event=event, prepare={**PREPARE, "levels": event.levels}, **config)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="module")
def endpoint(folders: dict[str, Path]) -> Iterator[Local]:
    local = Local(folders, Settings(batch_wait_ms=1, max_samples=40))
    yield local
    local.close()


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: load(folder) for name, folder in folders.items()}


def pictures(name: str, n: int, *, seed: int = 0) -> np.ndarray:
    event = SAVED[name][1]
    return np.random.default_rng(seed).integers(0, event.levels, (n, *event.shape)).astype(np.uint8)


def ask(endpoint: Local, name: str, verb: str, **request: Any) -> Any:
    return endpoint.ask("POST", f"/v1/models/{name}/{verb}", **request)


def able(models: dict[str, Any], capability: type[GenerativeModel]) -> list[str]:
    return [name for name, model in models.items() if isinstance(model, capability)]


def labels(name: str, n: int) -> tuple[Any, torch.Tensor | None]:
    return ("two", torch.full((n,), 2)) if SAVED[name][1].classes else (None, None)


@pytest.mark.parametrize("name", ["vae", "plain", "helmholtz", "rbm"])
def test_encodings_are_the_models_own(endpoint: Local, models: dict[str, Any], name: str) -> None:
    x, model = pictures(name, 18), models[name]
    label, y = labels(name, 18)
    said = ask(endpoint, name, "encodings", json={"x": x.tolist(), "label": label}).json()
    with torch.no_grad():
        q = model.encode(torch.from_numpy(x), y)
    wanted = {"probs": q.mean} if isinstance(q, Bernoulli) else {"mean": q.mean, "stddev": q.stddev}
    assert said["distribution"] == type(q).__name__ and said["protocol"] == ("q(z|x)" if y is None else "q(z|x,y)")
    assert said["latent"] == model.latent.to_json()
    for key in ("mean", "stddev", "probs"):
        if key in wanted:
            found = torch.tensor([row[key] for row in said["encodings"]])
            torch.testing.assert_close(found, wanted[key], rtol=1e-4, atol=1e-5)
        else:
            assert all(row[key] is None for row in said["encodings"])
    params = {} if label is None else {"label": label}
    array = ask(endpoint, name, "encodings", content=_npy(x), params=params, headers={"Content-Type": "application/x-npy", **NPY})
    means = np.load(io.BytesIO(array.content))
    assert means.dtype == np.float32
    assert np.array_equal(means, np.array([row[next(iter(wanted))] for row in said["encodings"]], np.float32))


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def test_an_encoding_does_not_depend_on_its_company(endpoint: Local) -> None:
    """Bit for bit, however many are asked for together."""
    x = pictures("plain", 20)
    whole = ask(endpoint, "plain", "encodings", json={"x": x.tolist()}).json()["encodings"]
    for row in (0, 7, 19):
        assert ask(endpoint, "plain", "encodings", json={"x": x[row].tolist()}).json()["encodings"] == [whole[row]]


@pytest.mark.parametrize("name", ["vae", "plain", "gan", "free", "helmholtz", "rbm"])
def test_decodings_are_the_models_own(endpoint: Local, models: dict[str, Any], name: str) -> None:
    model = models[name]
    label, y = labels(name, 19)
    z = model.codes(Noise(3, position=range(19))).detach()
    sent = z.tolist()
    answer = ask(endpoint, name, "decodings", json={"z": sent, "label": label}, headers=NPY)
    slip = json.loads(answer.headers["X-Genmodels-Receipt"])
    wanted = model.decode_rows(z, y).numpy()
    assert np.array_equal(np.load(io.BytesIO(answer.content)), wanted)
    assert slip["decoded"] == {"codes": levels_hash(z.numpy().astype(np.uint8 if model.latent.levels else np.float32)), "ends": None}
    assert (slip["seed"], slip["n"], slip["label"], slip["levels"]) == (None, 19, None if y is None else 2, levels_hash(wanted))
    params = {} if label is None else {"label": label}
    array = ask(endpoint, name, "decodings", content=_npy(z.numpy()), params=params, headers={"Content-Type": "application/x-npy", **NPY})
    assert array.content == answer.content


def test_the_code_of_a_sample_decodes_to_that_sample_where_the_decoder_is_the_draw(endpoint: Local, models: dict[str, Any]) -> None:
    drawn = ask(endpoint, "gan", "samples", json={"n": 3, "seed": 8, "index": 4, "label": 1}, headers=NPY)
    z = models["gan"].codes(Noise(8, position=range(4, 7)))
    again = ask(endpoint, "gan", "decodings", json={"z": z.tolist(), "label": 1}, headers=NPY)
    assert again.content == drawn.content


@pytest.mark.parametrize("name", ["vae", "plain", "gan", "free"])
def test_a_path_between_two_samples_begins_and_ends_at_their_codes(endpoint: Local, models: dict[str, Any], name: str) -> None:
    model = models[name]
    label, y = labels(name, 7)
    body = {"a": {"seed": 3}, "b": {"seed": 4, "index": 2}, "steps": 7, "label": label}
    answer = ask(endpoint, name, "interpolations", json=body, headers=NPY)
    a, b = model.codes(Noise(3, position=[0])), model.codes(Noise(4, position=[2]))
    wanted = model.decode_rows(model.path(a, b, 7)[0], y).numpy()
    found = np.load(io.BytesIO(answer.content))
    assert np.array_equal(found, wanted)
    assert np.array_equal(found, model.interpolate(a, b, 7, None if y is None else y[:1])[0].numpy())
    assert np.array_equal(found[[0, -1]], model.decode_rows(torch.cat([a, b]), None if y is None else y[:2]).numpy())
    assert len(np.unique(found, axis=0)) > 3
    slip = json.loads(answer.headers["X-Genmodels-Receipt"])
    ends = [{"seed": 3, "index": 0, "example": None}, {"seed": 4, "index": 2, "example": None}]
    assert (slip["decoded"]["ends"], slip["n"], slip["seed"]) == (ends, 7, None)
    said = {
        key: {name: value for name, value in end.items() if value is not None}
        for key, end in zip("ab", slip["decoded"]["ends"], strict=True)
    }
    again = {**said, "steps": slip["n"], "label": slip["label"]}
    assert ask(endpoint, name, "interpolations", json=again, headers=NPY).content == answer.content, "the receipt alone makes it again"


@pytest.mark.parametrize("name", ["vae", "plain"])
def test_a_path_between_two_examples_goes_through_their_mean_codes(endpoint: Local, models: dict[str, Any], name: str) -> None:
    x, model = pictures(name, 2), models[name]
    label, y = labels(name, 5)
    file = base64.b64encode(media.png(x[1], levels_count=5)).decode()
    body = {"a": {"x": x[0].tolist()}, "b": {"media": file}, "steps": 5, "label": label}
    answer = ask(endpoint, name, "interpolations", json=body, headers=NPY)
    means = model.features(torch.from_numpy(x), None if y is None else y[:2])
    wanted = model.decode_rows(model.path(means[:1], means[1:], 5)[0], y)
    assert (np.load(io.BytesIO(answer.content)) == wanted.numpy()).mean() > 0.99  # the encoder's last bit changes with the batch
    slip = json.loads(answer.headers["X-Genmodels-Receipt"])
    assert slip["decoded"]["ends"] == [{"seed": None, "index": None, "example": levels_hash(one)} for one in x]


def test_ends_of_different_classes_are_encoded_and_decoded_under_their_own(endpoint: Local, models: dict[str, Any]) -> None:
    x, model = pictures("vae", 2), models["vae"]
    body = {"a": {"x": x[0].tolist()}, "b": {"x": x[1].tolist()}, "steps": 3, "label": [0, 0, "two"]}
    found = np.load(io.BytesIO(ask(endpoint, "vae", "interpolations", json=body, headers=NPY).content))
    y = torch.tensor([0, 0, 2])
    means = model.features(torch.from_numpy(x), torch.tensor([0, 2]))
    assert (found == model.decode_rows(model.path(means[:1], means[1:], 3)[0], y).numpy()).mean() > 0.99
    under_one = np.load(io.BytesIO(ask(endpoint, "vae", "interpolations", json={**body, "label": 0}, headers=NPY).content))
    assert not np.array_equal(found, under_one)


def test_a_path_is_a_row_of_pictures_with_its_receipt_inside(endpoint: Local) -> None:
    answer = ask(endpoint, "free", "interpolations", json={"a": {"seed": 1}, "b": {"seed": 2}})
    assert answer.headers["content-type"] == "image/png"
    assert json.loads(media.png_text(answer.content)["genmodels-receipt"]) == json.loads(answer.headers["X-Genmodels-Receipt"])
    page = Image.open(io.BytesIO(answer.content))
    assert page.size == (9 * (8 * 4 + 2) + 2, 8 * 4 + 4)
    several = Image.open(io.BytesIO(ask(endpoint, "free", "decodings", json={"z": [[0.1] * 64] * 9}).content))
    assert several.size == (3 * (8 * 4 + 2) + 2, 3 * (8 * 4 + 2) + 2)


def test_answers_are_the_same_alone_and_in_company(endpoint: Local) -> None:
    x, z = pictures("plain", 9), np.random.default_rng(1).normal(size=(21, 16)).astype(np.float32)
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/v1/models/plain/decodings", {"json": {"z": z.tolist()}, "headers": JSON}),
        ("POST", "/v1/models/plain/decodings", {"json": {"z": z[5].tolist()}, "headers": JSON}),
        ("POST", "/v1/models/plain/encodings", {"json": {"x": x.tolist()}}),
        ("POST", "/v1/models/plain/interpolations", {"json": {"a": {"seed": 1}, "b": {"x": x[0].tolist()}}, "headers": JSON}),
        ("POST", "/v1/models/plain/samples", {"json": {"n": 5, "seed": 1}, "headers": JSON}),
    ]
    alone = [endpoint.ask(method, where, **request).json() for method, where, request in asked]
    assert [answer.json() for answer in endpoint.together(*asked)] == alone
    levels = [np.frombuffer(base64.b64decode(alone[i]["levels"]), np.uint8).reshape(-1, 64) for i in (0, 1)]
    assert np.array_equal(levels[0][5], levels[1][0])


def test_a_model_says_what_its_codes_its_chain_and_its_labels_are(endpoint: Local, models: dict[str, Any]) -> None:
    said = {one["model"]: one for one in endpoint.ask("GET", "/v1/models").json()["models"]}
    for name, model in models.items():
        assert said[name]["latent"] == (model.latent.to_json() if isinstance(model, Encodes | Decodes) else None)
        assert said[name]["chain"] == (f"approximate: {model.chain}" if isinstance(model, Chained) else None)
        assert said[name]["classifies_by"] == (
            model.classifies_by if isinstance(model, Classifies) and "classifies" not in model.withheld else None
        )
    assert said["rbm"]["chain"] == "approximate: block Gibbs, 3 steps from independent bits of the data's rates"


def test_samples_of_a_chain_say_so(endpoint: Local) -> None:
    chained = json.loads(ask(endpoint, "rbm", "samples", json={"seed": 1}).headers["X-Genmodels-Receipt"])
    exact = json.loads(ask(endpoint, "plain", "samples", json={"seed": 1}).headers["X-Genmodels-Receipt"])
    assert chained["approximate"] == "approximate: block Gibbs, 3 steps from independent bits of the data's rates"
    assert exact["approximate"] is None


@pytest.mark.parametrize("name", ["rbm", "small"])
def test_an_energys_score_says_how_log_z_was_found_and_how_far_it_may_be_off(endpoint: Local, models: dict[str, Any], name: str) -> None:
    x, model = pictures(name, 3), models[name]
    assert isinstance(model, Energy)
    with torch.no_grad():
        partition, energy = model.log_partition(Noise(0, position=[0])), model.energy(torch.from_numpy(x))
    said = ask(endpoint, name, "scores", json={"x": x.tolist()}).json()
    assert said["log_partition"] == {
        "value": partition.value,
        "interval": list(partition.interval),
        "method": partition.method,
        "exact": partition.exact,
    }
    np.testing.assert_allclose([one["nats"] for one in said["scores"]], -energy.double() - partition.value, rtol=1e-5)
    assert said["protocol"].startswith(
        "exact p(x) (log Z exact: all 32" if name == "small" else "estimate of p(x) (log Z by AIS, 8 chains, "
    )
    assert partition.exact == ("exact" in said["protocol"])
    if not partition.exact:
        low, high = (partition.value - end for end in partition.interval[::-1])
        assert f"within {low:+.2f} to {high:+.2f} nats with 95 %" in said["protocol"] and low < 0 < high


def test_a_machine_of_500_hidden_bits_is_scored_by_the_log_z_of_its_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"hidden": 500, "length": 3, "chains": 8, "temperatures": 20}
    save(tmp_path / "wide", family="rbm", event=BITS, prepare={**PREPARE, "levels": 2}, **config)
    model, x = load(tmp_path / "wide"), torch.from_numpy(pictures("rbm", 2))
    assert isinstance(model, Energy)
    anew = model.log_partition(Noise(0, position=[0]))
    monkeypatch.setattr(type(model), "log_partition", lambda self, noise: pytest.fail("annealed again"))
    local = Local({"wide": tmp_path / "wide"}, Settings(batch_wait_ms=1))
    try:
        said = ask(local, "wide", "scores", json={"x": x.tolist()}).json()
    finally:
        local.close()
    assert said["log_partition"]["value"] == anew.value and said["log_partition"]["interval"] == list(anew.interval)
    assert said["protocol"] == anew.protocol("p(x)") and said["protocol"].startswith("estimate of p(x) (log Z by AIS, 8 chains, ")
    with torch.no_grad():
        np.testing.assert_allclose([one["nats"] for one in said["scores"]], -model.energy(x).double() - anew.value, rtol=1e-5)


def test_log_z_of_an_artifact_without_one_is_found_once(endpoint: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = endpoint.replicas["rbm"]._loaded
    assert loaded is not None and isinstance(loaded.model, Energy)
    model, loaded.model.known, loaded.partition = loaded.model, None, None
    body = {"json": {"x": pictures("rbm", 2).tolist()}}
    first = ask(endpoint, "rbm", "scores", **body).json()
    monkeypatch.setattr(type(model), "log_partition", lambda self, noise: pytest.fail("asked again"))
    both = endpoint.together(*[("POST", "/v1/models/rbm/scores", body)] * 2)
    assert [answer.json() for answer in both] == [first, first]


X, Z = pictures("vae", 1)[0].tolist(), [0.5] * 16
CAN = "it can: density, tempered, completes, progressive, classifies, autoregressive"
NOTHING_BETWEEN = (
    "has codes of 2 levels, which have nothing between them; decode codes of your own, or interpolate in a model of real-valued codes"
)
SEEDS = {"a": {"seed": 1}, "b": {"seed": 2}}
REFUSED = [
    ("gan", "encodings", {"json": {"x": X}}, "no-encoding", "gan (gan) cannot encode examples; it can: decodes"),
    ("gan", "interpolations", {"json": {"a": {"seed": 1}, "b": {"x": X}, "label": 0}}, "no-encoding",
     "gan (gan) decodes and interpolates but does not encode: give a seed and an index in place of an example"),
    ("density", "decodings", {"json": {"z": Z}}, "no-decoding", f"density (gated_pixelcnn) cannot decode codes; {CAN}"),
    ("density", "interpolations", {"json": SEEDS}, "no-decoding", f"density (gated_pixelcnn) cannot decode codes; {CAN}"),
    ("density", "encodings", {"json": {"x": X}}, "no-encoding", f"density (gated_pixelcnn) cannot encode examples; {CAN}"),
    ("helmholtz", "interpolations", {"json": SEEDS}, "no-interpolation",
     f"helmholtz (helmholtz) {NOTHING_BETWEEN}"),
    ("helmholtz", "decodings", {"json": {"z": [0.5] * 12}}, "wrong-levels",
     "codes of dtype float64; wanted whole levels 0 to 1: round a mean"),
    ("helmholtz", "decodings", {"json": {"z": [2] * 12}}, "wrong-levels", "codes: levels from 2 to 2; wanted 0 to 1"),
    ("vae", "encodings", {"json": {"x": X}}, "not-taken", "this model is conditioned on labels; give y"),
    ("vae", "decodings", {"json": {"z": Z}}, "no-label", "vae decodes a code under a label; give label, 0 to 2, as zero"),
    ("gan", "interpolations", {"json": SEEDS}, "no-label", "gan decodes a code under a label; give label, 0 to 2, as zero"),
    ("plain", "decodings", {"json": {"z": Z, "label": 1}}, "no-labels", "label 1 given; plain was trained without labels: leave it out"),
    ("vae", "decodings", {"json": {"z": Z[:-1], "label": 1}}, "wrong-shape", "codes of shape (15,); wanted (n, 16)"),
    ("vae", "decodings", {"json": {"label": 1}}, "wrong-shape", "codes of shape (0,); wanted (n, 16)"),
    ("plain", "decodings", {"json": {"z": [Z, Z[1:]]}}, "not-numbers", "z is no regular nesting of numbers; wanted lists of equal length"),
    ("plain", "decodings", {"content": _npy(np.full((1, 16), np.nan)), "headers": {"Content-Type": "application/x-npy"}}, "wrong-levels",
     "codes with NaN or infinity; wanted finite numbers"),
    ("plain", "decodings", {"json": {"z": [Z] * 41}}, "too-many-codes", "41 codes; this server decodes 1 to 40 a request"),
    ("plain", "interpolations", {"json": {**SEEDS, "steps": 41}}, "too-many-samples", "steps = 41; this server decodes at most 40 a request"),
    ("plain", "interpolations", {"json": {**SEEDS, "steps": 1}}, "invalid-request",
     "steps: Input should be greater than or equal to 2 (got 1)"),
    ("plain", "interpolations", {"json": {"a": {"seed": 1}, "b": {"seed": 1, "x": X}}}, "invalid-request",
     "b: got seed and x of seed, x, levels, media; wanted one of them"),
    ("plain", "interpolations", {"json": {"a": {"seed": 1}, "b": {}}}, "invalid-request",
     "b: got none of seed, x, levels, media; wanted one of them"),
    ("plain", "interpolations", {"json": {"a": {"seed": 1}}}, "invalid-request", 'b: Field required (got {"a": {"seed": 1}})'),
    ("plain", "interpolations", {"json": {"a": {"seed": 1}, "b": {"sede": 2}}}, "invalid-request", "b: unknown key 'sede'; did you mean 'seed'?"),
    ("plain", "interpolations", {"json": {"a": {"seed": 1}, "b": {"x": [X, X]}}}, "wrong-shape",
     "b: 2 examples; a path has one at each end"),
    ("plain", "interpolations", {"json": {"a": {"seed": 1}, "b": {"x": [[[9] * 8] * 8]}}}, "wrong-levels", "levels from 9 to 9; wanted 0 to 4"),
    ("rbm", "scores", {"json": {"x": [[[0] * 8] * 8], "label": 1}}, "no-labels", "label 1 given; rbm was trained without labels: leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "verb", "request_", "kind", "detail"), REFUSED, ids=[f"{row[3]}-{n}" for n, row in enumerate(REFUSED)])
def test_what_is_not_taken_is_a_problem_of_one_line(
    endpoint: Local, model: str, verb: str, request_: dict[str, Any], kind: str, detail: str
) -> None:
    answer = ask(endpoint, model, verb, **request_)
    said = answer.json()
    assert (answer.status_code, said["type"], said["detail"]) == (422, f"urn:genmodels:{kind}", detail)


def test_media_types_that_are_not_here(endpoint: Local) -> None:
    picture = {"content": b"abc", "headers": {"Content-Type": "image/png"}}
    assert ask(endpoint, "plain", "decodings", **picture).json()["detail"] == (
        "Content-Type: image/png; plain takes application/x-npy, application/json here"
    )
    refused = ask(endpoint, "plain", "encodings", json={"x": pictures("plain", 1).tolist()}, headers={"Accept": "image/png"})
    assert (refused.status_code, refused.json()["detail"]) == (406, "Accept: image/png; offered here: application/json, application/x-npy")


def test_the_client_encodes_decodes_and_interpolates(folders: dict[str, Path], models: dict[str, Any]) -> None:
    local = Local({name: folders[name] for name in ("vae", "gan", "helmholtz")}, Settings(batch_wait_ms=1))
    x = pictures("vae", 2)
    try:
        with listening(local, local.app) as url, Client(url) as client:
            codes = client.encode("vae", x, label=1)
            wanted = models["vae"].encode(torch.from_numpy(x), torch.ones(2)).mean.detach()
            assert codes.distribution == "Normal" and set(codes.parameters) == {"mean", "stddev"}
            np.testing.assert_allclose(codes.mean, wanted, rtol=1e-4, atol=1e-5)
            decoded = client.decode("vae", codes.mean, label=1)
            path = client.interpolate("vae", x[0], x[1], steps=4, label=1)
            assert np.array_equal(path.levels[[0, -1]], decoded.levels) and path.receipt.n == 4
            assert np.array_equal(
                client.interpolate("gan", 1, (2, 3), steps=3, label="one").levels[0], client.sample("gan", seed=1, label=1).levels[0]
            )
            assert list(client.encode("helmholtz", pictures("helmholtz", 3)).parameters) == ["probs"]
            with pytest.raises(Refused, match="does not encode: give a seed"):
                client.interpolate("gan", 1, x[0], label=0)
    finally:
        local.close()


def test_every_family_that_encodes_or_decodes_is_tried_here() -> None:
    tried = {family for family, _, _ in SAVED.values()}
    assert {name for name, kind in MODELS.items() if issubclass(kind, Encodes | Decodes)} <= tried
