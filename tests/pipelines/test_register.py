"""The registry: a version a model folder, champion through the gate alone, the log copied once; and what is said when MLflow is down."""

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genmodels import artifact, load
from pipelines import log
from pipelines import register as gate
from pipelines.errors import Failed
from pipelines.evaluate import evaluate
from pipelines.recipe import Recipe
from pipelines.records import Checkpoint, Scores, Shards, Version
from pipelines.register import output, register
from pipelines.storage import write_json
from serve import catalogue
from tests.pipelines import small

pytestmark = pytest.mark.ray


class World:
    """One storage with its registry; two candidates of which the second is better on valid."""

    def __init__(self, root: Path) -> None:
        self.root, self.shards = root, small.digits(root, rows={"train": 100, "valid": 40, "test": 30})
        found = sorted((self.candidate(seed) for seed in (0, 1)), key=lambda pair: -self.valid(pair[1]))
        self.worse, self.better = found

    def recipe(self, *changes: str, name: str = "small") -> Recipe:
        return small.recipe(self.root, "evaluate.samples=10", *changes, name=name)

    def candidate(self, seed: int, shards: Shards | None = None, **config: Any) -> tuple[Checkpoint, Scores]:
        shards = shards or self.shards
        checkpoint = small.checkpoint(self.root, shards, seed=seed, **config)
        return checkpoint, evaluate(self.recipe(), checkpoint, shards)

    def valid(self, scores: Scores) -> float:
        score = scores.score("valid")
        assert score is not None
        return score.value

    def register(self, pair: tuple[Checkpoint, Scores], *changes: str, name: str = "small") -> Version:
        return register(self.recipe(*changes, name=name), *pair)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("register"))


@pytest.fixture
def client(world: World) -> Iterator[Any]:
    with log.registry(world.recipe()) as found:
        yield found


def test_the_first_version_is_champion_and_a_rerun_finds_it(world: World, client: Any) -> None:
    checkpoint, scores = world.worse
    version = world.register(world.worse, name="first")
    assert (version.version, version.champion, version.uri) == ("1", True, "models:/first@champion")
    assert version.reason == "the first champion: there was none to compare with"
    assert world.register(world.worse, name="first") == version
    Path(output(world.recipe(name="first"), checkpoint, scores).uri).unlink()
    again = world.register(world.worse, name="first")
    assert (again.version, again.champion) == ("1", True)
    assert len(client.search_model_versions("name = 'first'")) == 1


def test_a_version_says_where_it_comes_from_and_loads(world: World, client: Any, tmp_path: Path) -> None:
    checkpoint, scores = world.worse
    version = world.register(world.worse, name="lineage")
    tags = client.get_model_version("lineage", version.version).tags
    assert tags["genmodels.artifact"] == scores.artifact and tags["genmodels.digest"] == scores.digest
    assert tags["genmodels.shards"] == world.shards.uri and tags["genmodels.checkpoint"] == checkpoint.fingerprint
    located = catalogue.resolve("models:/lineage@champion", storage=str(world.root))
    assert (located.version, located.artifact, located.digest) == ("1", scores.artifact, scores.digest)
    from mlflow.artifacts import download_artifacts

    uri = catalogue.tracking_uri(str(world.root))
    brought = download_artifacts("models:/lineage@candidate", dst_path=str(tmp_path), tracking_uri=uri)
    assert artifact.verify(Path(brought)) == scores.digest
    assert load(brought).event == world.shards.event


def test_only_a_better_candidate_becomes_champion(world: World, client: Any) -> None:
    first = world.register(world.worse, name="gate")
    second = world.register(world.better, name="gate")
    old, new = world.valid(world.worse[1]), world.valid(world.better[1])
    assert first.champion and second.champion
    assert second.reason == f"{new:.4f} bits/dim on valid beats version 1's {old:.4f}"
    assert client.get_registered_model("gate").aliases == {"candidate": 2, "champion": 2} or client.get_registered_model(
        "gate"
    ).aliases == {
        "candidate": "2",
        "champion": "2",
    }
    changed = world.recipe("register.gate.margin=0.0001", name="gate")  # another gate: decided anew
    third = register(changed, *world.worse)
    assert (third.version, third.champion) == ("1", False)
    assert third.reason == f"{old:.4f} bits/dim on valid does not beat version 2's {new:.4f} (margin 0.0001)"
    aliases = {name: str(number) for name, number in client.get_registered_model("gate").aliases.items()}
    assert aliases == {"candidate": "1", "champion": "2"}
    assert world.register(world.worse, name="gate").reason == "version 2 is champion by now"


AIS = "estimate of p(x) (log Z by AIS, 100 chains, 1,000 temperatures; within {} nats with 95 %)"
CHAINS = "exact p(x|c) given 2,000 draws by hmc, R-hat {}"


@pytest.mark.parametrize(
    ("ours", "theirs", "compares"),
    [
        (AIS.format("-0.31 to +0.31"), AIS.format("-0.08 to +0.08"), True),
        (AIS.format("-0.31 to +0.31"), "exact p(x) (log Z exact: all 32 hidden states)", False),
        ("exact p(x) (log Z exact: all 16 hidden states)", "exact p(x) (log Z exact: all 32 hidden states)", True),
        (CHAINS.format("1.002"), CHAINS.format("1.004"), True),
        (CHAINS.format("1.002"), CHAINS.format("1.204") + ", not converged", False),
        (CHAINS.format("1.002"), "exact p(x|c) given 2,000 draws by vi-full", False),
    ],
)
def test_scores_found_alike_compare_whatever_their_own_errors(
    world: World, monkeypatch: pytest.MonkeyPatch, ours: str, theirs: str, compares: bool
) -> None:
    """An interval or an R-hat is one model's: were it compared, no machine and no chain could ever follow another."""
    scores = world.better[1]
    valid = scores.score("valid")
    assert valid is not None
    monkeypatch.setattr(gate, "rescore", lambda recipe, scores, present: replace(valid, value=valid.value + 1, protocol=theirs))
    passed, reason = gate._better(world.recipe(), replace(scores, scores=(replace(valid, protocol=ours),)), "1")
    assert passed == compares and ("beats version 1's" in reason) == compares
    assert compares or reason.startswith(f"version 1 stays: {theirs} does not compare with the candidate's {ours}; set ")


def test_the_margin_must_be_reached(world: World) -> None:
    world.register(world.worse, name="margin")
    version = world.register(world.better, "register.gate.margin=1", name="margin")
    assert not version.champion and version.reason.endswith("(margin 1)") and version.uri == "models:/margin/2"


def test_the_rules_always_and_never(world: World) -> None:
    assert not world.register(world.better, "register.gate.rule=never", name="rules").champion
    assert world.register(world.better, name="rules").champion
    worse = world.register(world.worse, "register.gate.rule=always", name="rules")
    assert worse.champion and worse.reason == "the gate's rule is always"


def test_the_champion_is_scored_again_on_the_candidates_data(world: World) -> None:
    """Its stored score is of easier data; on the candidate's own it loses."""
    other = small.digits(world.root, rows={"train": 100, "valid": 40, "test": 30}, seed=1)
    world.register(world.worse, name="data")
    checkpoint, scores = world.candidate(9, other)
    model = artifact.load(world.worse[1].artifact)
    from pipelines.evaluate import validate

    theirs = validate(world.recipe(), model, other)[0].value
    version = world.register((checkpoint, scores), name="data")
    assert f"{world.valid(scores):.4f} bits/dim" in version.reason and f"version 1's {theirs:.4f}" in version.reason
    assert theirs != pytest.approx(world.valid(world.worse[1]), abs=1e-6)


def test_another_event_does_not_compare(world: World) -> None:
    world.register(world.worse, name="event")
    unnamed = small.digits(world.root, rows={"train": 90, "valid": 40, "test": 30}, seed=2)
    manifest = json.loads(Path(unnamed.uri, "manifest.json").read_text())
    manifest["event"]["levels"] = 32
    write_json(f"{unnamed.uri}/manifest.json", manifest)
    from pipelines.shards import open_shards

    version = world.register(world.candidate(3, open_shards(unnamed.uri)), name="event")
    assert not version.champion
    assert version.reason == (
        "version 1 stays: it cannot be scored on the candidate's data (it models image 1x8x8, 17 levels, 10 classes, the data is "
        "image 1x8x8, 32 levels, 10 classes); set register.gate.rule=always to take it anyway"
    )


def test_only_the_same_condition_compares(world: World) -> None:
    """Both are called p(x|y,c), but it is easier to enlarge a picture than to fill in its middle."""
    world.register(world.candidate(21, condition="smaller"), name="condition")
    version = world.register(world.candidate(22, condition="masked"), name="condition")
    assert not version.champion
    assert "(its condition is image 1x4x4, 17 levels, the candidate's is image 2x8x8, 17 levels)" in version.reason
    assert "on valid" in world.register(world.candidate(23, condition="smaller"), name="condition").reason


def test_a_champion_that_is_gone_is_succeeded(world: World, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "copy"
    shutil.copytree(world.better[1].artifact, moved)
    gone = replace(world.better[1], artifact=str(moved), fingerprint="gone")
    world.register((world.better[0], gone), name="gone")
    shutil.rmtree(moved)
    version = world.register(world.worse, name="gone")
    assert version.champion
    assert version.reason == f"version 1, the champion, is gone (no model at {moved}), so nothing is left to compare with"


def test_a_changed_champion_is_not_trusted(world: World, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "copy"
    shutil.copytree(world.better[1].artifact, moved)
    world.register((world.better[0], replace(world.better[1], artifact=str(moved), fingerprint="changed")), name="changed")
    weights = (moved / "model.safetensors").read_bytes()
    (moved / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    version = world.register(world.worse, name="changed")
    assert not version.champion and "model.safetensors" in version.reason and "\n" not in version.reason


def test_the_log_is_copied_once_however_often(world: World, client: Any) -> None:
    checkpoint, scores = world.better
    recipe = world.recipe("train.lr=0.001", name="copied")
    run = log.copy(recipe, checkpoint, scores)
    assert log.copy(recipe, checkpoint, scores) == run
    assert [point.step for point in client.get_metric_history(run, "loss")] == [1, 2, 3, 4]
    with Path(checkpoint.log).open("a") as file:
        file.write('{"event": "step", "step": 5, "loss": 2.4, "gradient_norm": "nan"}\n{"event": "step", "st')  # a line cut off by a kill
    assert log.copy(recipe, checkpoint, scores) == run
    points = client.get_metric_history(run, "loss")
    assert [(point.step, point.value) for point in points][-2:] == [(4, pytest.approx(2.6)), (5, 2.4)]
    found = client.get_run(run)
    assert found.data.params["train.lr"] == "0.001" and found.data.params["model.family"] == "gated_pixelcnn"
    assert found.data.metrics["valid.bits_per_dim"] == 2.5
    assert found.data.metrics["test.class_histogram.bits_per_dim"] > 2
    assert found.info.status == "FINISHED"
    assert {item.path for item in client.list_artifacts(run, "samples")} == {"samples/samples.png", "samples/neighbours.png"}
    assert len(client.search_runs([found.info.experiment_id])) == 1


def test_a_copy_that_was_killed_between_points_and_their_count_leaves_no_point_twice(world: World, client: Any) -> None:
    checkpoint, scores = world.worse
    run = log.copy(world.recipe(name="killed"), checkpoint, scores)
    client.set_tag(run, log.COPIED, "2")
    log.copy(world.recipe(name="killed"), checkpoint, scores)
    assert [point.step for point in client.get_metric_history(run, "loss")] == [1, 2, 3, 4]


def test_a_searchs_trials_are_child_runs(world: World, client: Any, tmp_path: Path) -> None:
    trial = {"id": "00000", "params": {"train.lr": 0.01}, "value": 2.5, "step": 100, "seconds": 3.0, "status": "finished"}
    failed = {**trial, "id": "00001", "value": None, "status": "failed", "message": "diverged"}
    write_json(str(tmp_path / "tune.json"), {"trials": [trial, failed], "reseeds": []})
    runs = {log.copy(world.recipe(name="search"), *world.worse, str(tmp_path)) for _ in range(2)}
    (parent,) = runs
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], filter_string=f"tags.`mlflow.parentRunId` = '{parent}'", order_by=["attributes.run_name"])
    assert [(run.info.run_name, run.info.status) for run in children] == [("trial 00000", "FINISHED"), ("trial 00001", "FAILED")]
    assert children[0].data.params == {"train.lr": "0.01"} and children[0].data.metrics == {"valid": 2.5, "seconds": 3.0}


def test_mlflow_down_is_one_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Failed) as failure:
        world.register(world.worse, name="down")
    said = str(failure.value)
    assert said.startswith(f"MLflow at http://user:…@127.0.0.1:{port} did not do its part: ")
    assert said.endswith("what is trained and scored is kept: run again") and "\n" not in said and "secret" not in said


def test_sessions_with_the_registry_leave_the_environment_as_it_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with log.registry(world.recipe()), log.registry(world.recipe()):
        assert "MLFLOW_TRACKING_URI" in os.environ
    assert "MLFLOW_TRACKING_URI" not in os.environ
