"""Tables over HTTP: a condition as a list, scores in nats of a density, and what does not fit refused with the reason."""

import base64
import json
import shlex
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genmodels import Event, artifact, build, load
from genmodels.core import Batch, Density
from genmodels.iterate import Iteration
from genmodels.noise import Noise
from genmodels.train import TrainConfig
from serve import documentation
from serve.client import Client
from serve.schema import Description, Settings
from tests.serve.conftest import Local, listening

FEATURES = Event(modality="table", shape=(2,), levels=0)
SAMPLES, SCORES = "/v1/models/{}/samples", "/v1/models/{}/scores"


def fitted(folder: Path, levels: int) -> Path:
    """A regression of one number, or of one of so many labels, on two others."""
    c = Noise(0, position=range(40)).normal("c", (2,))
    x = c.sum(1, keepdim=True) * 3 + 10 if levels == 0 else (c.sum(1, keepdim=True) > 0).to(torch.uint8)
    event = Event(modality="table", shape=(1,), levels=levels, condition=FEATURES)
    kind = "logistic" if levels else "linear"
    model: Any = build("posterior", event, target=kind, method="metropolis", chains=2, warmup=20, draws=8, round=20)
    Iteration(model, TrainConfig(steps=4)).run(lambda step: [Batch(x=x, c=c, position=torch.arange(40))], until=4)
    prepare = {"modality": "table", "features": ["a", "b"], "target": "t", "kind": "regression", "labels": []}
    artifact.save(model, folder, family="posterior", prepare=prepare, labels=())
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tables")
    return {"number": fitted(root / "number", 0), "label": fitted(root / "label", 2)}


@pytest.fixture(scope="module")
def endpoint(folders: dict[str, Path]) -> Iterator[Local]:
    local = Local(folders, Settings(batch_wait_ms=1, max_samples=40))
    yield local
    local.close()


@pytest.mark.parametrize("name", ["number", "label"])
def test_samples_are_those_of_the_condition(endpoint: Local, folders: dict[str, Path], name: str) -> None:
    for condition in ([0.5, -1.0], [2.0, 2.0]):
        answer = endpoint.ask("POST", SAMPLES.format(name), json={"n": 20, "seed": 3, "condition": condition}).json()
        wanted = load(folders[name]).sample(20, seed=3, c=torch.tensor(condition).expand(20, 2)).numpy()
        assert (
            base64.b64decode(answer["levels"]) == wanted.tobytes() and answer["shape"] == [20, 1] and answer["dtype"] == str(wanted.dtype)
        )


@pytest.mark.parametrize("name", ["number", "label"])
def test_scores_are_given_the_condition_of_each_row_or_of_all(endpoint: Local, folders: dict[str, Path], name: str) -> None:
    model = load(folders[name])
    assert isinstance(model, Density)
    x = torch.tensor([[0.0], [9.5], [20.25]]) if name == "number" else torch.tensor([[0], [1], [1]], dtype=torch.uint8)
    each = torch.tensor([[0.5, -1.0], [2.0, 2.0], [0.0, 0.0]])
    for c in (each, each[:1].expand(3, 2)):
        sent = c.tolist() if len(c.unique(dim=0)) > 1 else c[0].tolist()
        answer = endpoint.ask("POST", SCORES.format(name), json={"x": x.tolist(), "condition": sent}).json()
        found = torch.tensor([score["nats"] for score in answer["scores"]])
        torch.testing.assert_close(found, model.log_prob(x, c=c).float(), rtol=1e-5, atol=1e-5)
        assert answer["protocol"].startswith("exact p(x|c)")
        has_bits = [score["bits_per_dim"] is not None for score in answer["scores"]]
        assert has_bits == [name == "label"] * 3, "a density of real values has no bits/dim"
    with listening(endpoint, endpoint.app) as url, Client(url) as client:
        scored = client.score(name, x.numpy(), condition=each.numpy())
        assert [score.nats for score in scored.scores] == pytest.approx(model.log_prob(x, c=each).tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (SAMPLES, {"n": 2}, "no condition was given; wanted "),
        (SAMPLES, {"condition": [1.0, 2.0, 3.0]}, "condition of shape (3,); wanted (2,)"),
        (SAMPLES, {"condition": [1.0, float("nan")]}, "condition with NaN or infinity; wanted finite numbers"),
        (SAMPLES, {"condition": [1.0, "high"]}, "condition is no regular nesting of numbers; wanted lists of equal length"),
        (SCORES, {"x": [[1.0], [2.0]]}, "condition missing; this model's condition is: table 2, real values"),
        (SCORES, {"x": [[1.0]], "condition": [[1.0, 2.0]] * 3}, "condition of shape (3, 2); wanted (2,), or one for each of 1"),
        (SCORES, {"x": [[float("inf")]], "condition": [1.0, 2.0]}, "examples with NaN or infinity; wanted finite numbers"),
        (SCORES, {"x": [[1.0, 2.0]], "condition": [1.0, 2.0]}, "examples of shape (1, 2); wanted (n, 1)"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(endpoint: Local, path: str, body: dict[str, Any], said: str) -> None:
    answer = endpoint.ask("POST", path.format("number"), content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and answer.json()["detail"].startswith(said)


@pytest.mark.parametrize("name", ["number", "label"])
def test_the_line_to_try_is_answered(endpoint: Local, name: str) -> None:
    page = endpoint.ask("GET", "/").text
    words = next(shlex.split(line) for line in page.splitlines() if f"/{name}/samples" in line)
    answer = endpoint.ask("POST", SAMPLES.format(name), content=words[words.index("-d") + 1])
    assert answer.status_code == 200 and answer.json()["receipt"]["seed"] == 1


def test_a_large_condition_is_named_and_not_written_out() -> None:
    many = Event(modality="image", shape=(1, 9, 9), levels=4, condition=Event(modality="image", shape=(1, 9, 9), levels=4))
    about = dict.fromkeys(("version", "artifact", "family", "equality_class"), "") | {"prepare": {}, "lineage": {}, "max_samples": 1}
    model = Description.model_validate(
        {**about, "model": "m", "event": many.to_json(), "aliases": [], "labels": [], "capabilities": [], "scores": []}
    )
    assert documentation.curl("http://here", model).endswith("/m/samples, with a condition of shape (1, 9, 9) as nested lists")


def test_no_sample_of_chains_is_without_their_rhat(endpoint: Local, folders: dict[str, Path]) -> None:
    found = load(folders["number"]).findings()  # type: ignore[operator]
    answer = endpoint.ask("POST", SAMPLES.format("number"), json={"seed": 1, "condition": [0, 1]})
    said = f"approximate: given 16 draws by metropolis, R-hat {found['rhat']:.3f}" + ("" if found["converged"] else ", not converged")
    assert json.loads(answer.headers["X-Genmodels-Receipt"])["approximate"] == said


def test_arrays_of_real_values_go_in_and_out(endpoint: Local) -> None:
    answer = endpoint.ask("POST", SAMPLES.format("number"), json={"seed": 1, "condition": [0, 1]}, headers={"Accept": "application/x-npy"})
    drawn = np.load(BytesIO(answer.content))
    assert drawn.dtype == np.float32 and drawn.shape == (1, 1)
