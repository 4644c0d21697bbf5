"""A table from its shards to a model that carries its scores, its samples and a card: the rest of the pipeline, without Ray."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genmodels import artifact
from genmodels.core import Batch, Event
from pipelines import conditions, marginals, prepare, report, shards, tasks
from pipelines import recipe as recipes
from pipelines.evaluate import evaluate
from pipelines.learning import Learning
from pipelines.memory import nearest
from pipelines.recipe import Recipe
from pipelines.records import Checkpoint, Scores, Shards
from tests.pipelines.test_tables import one_by_one

QUICK = {"method": "metropolis", "chains": 2, "warmup": 30, "draws": 16, "round": 40}
TABLES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "regression": ("diabetes", {"target": "target", "kind": "regression", "features": ["bmi", "bp", "s5"]}, {"target": "linear"}),
    "classification": ("breast_cancer", {"target": "target", "kind": "classification", "features": ["mean area"]}, {"target": "logistic"}),
    "columns": ("iris", {"features": ["petal length (cm)", "petal width (cm)"]}, {"target": "mixture", "method": "gibbs"}),
}
Made = tuple[Recipe, Shards, Scores]


@pytest.fixture(scope="module", params=TABLES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    source, table, model = TABLES[request.param]
    root = tmp_path_factory.mktemp("tables")
    values = {
        "name": request.param,
        "storage": str(root),
        "data": {"source": source, "table": table},
        "model": {"family": "posterior", **QUICK, **model},
        "train": {"steps": 4, "batch_size": 64},
        "evaluate": {"samples": 30},
    }
    recipe = recipes.check(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "each", one_by_one)
        done = prepare.prepare(recipe)
    learning = Learning(recipe, done)
    list(learning.pauses())
    with learning.kept() as (kept, _):
        digest = artifact.save(kept, root / "trained", family="posterior", prepare=done.prepare, labels=done.labels)
    checkpoint = Checkpoint(uri=str(root / "trained"), fingerprint="c", digest=digest, steps=4, log=str(root / "log.jsonl"))
    return recipe, done, evaluate(recipe, checkpoint, done)


def test_scores_are_beside_a_baseline_on_the_same_examples(made: Made) -> None:
    _, done, scores = made
    test = [score for score in scores.scores if score.split == "test"]
    baseline = "histogram" if done.event.levels else "gaussian"
    assert {score.model for score in test} == {"posterior", baseline} and {score.n for score in test} == {done.rows["test"]}
    model = artifact.load(scores.artifact)
    batch = next(shards.examples(done, "test", 1000))
    own = next(score for score in test if (score.model, score.name) == ("posterior", "nll"))
    assert own.value == pytest.approx(-model.log_prob(batch.x, c=batch.c).mean().item(), rel=1e-5)  # type: ignore[operator]
    assert any(score.unit == "bits/dim" for score in test) == (done.event.levels > 0)
    valid = scores.score("valid")
    assert valid is not None and valid.n == done.rows["valid"]


def test_samples_are_asked_for_under_the_conditions_of_the_test_split(made: Made) -> None:
    _, done, scores = made
    model = artifact.load(scores.artifact)
    _, c = conditions.asked(model, done, "test", done.rows["test"] + 3, None)
    batch = next(shards.examples(done, "test", 1000))
    if done.event.condition is None:
        assert c is None
    else:
        assert c is not None and batch.c is not None and torch.equal(c, torch.cat([batch.c, batch.c[:3]]))


def test_the_sheet_is_a_panel_a_column(made: Made) -> None:
    _, done, scores = made
    picture = Image.open(scores.samples)
    panels = 1 if done.prepare["target"] else 2
    assert picture.width == 110 * max(4.0, 2.6 * panels) and picture.getchannel("A").getextrema() == (0, 255)
    assert not Path(scores.uri, "neighbours.png").exists()
    rng = np.random.default_rng(0)
    wide = marginals.figure(rng.normal(size=(9, 7)), np.ones((5, 7)), {"target": None, "features": list("abc$e_g"), "labels": []})
    assert Image.open(io.BytesIO(wide)).height > picture.height


def test_near_examples_are_counted_where_there_is_no_condition(made: Made) -> None:
    _, done, scores = made
    near = {score.model: score for score in scores.scores if score.name == "nearest training example"}
    assert set(near) == (set() if done.event.condition else {"posterior", "test examples"})
    assert bool(report.memorisation("posterior", scores)) == bool(near)
    if near:
        assert "columns in standard deviations" in report.memorisation("posterior", scores)


def test_the_cards_own_code_runs(made: Made) -> None:
    _, done, scores = made
    text = Path(scores.artifact, "README.md").read_text()
    assert f"Features, in their order: {', '.join(done.prepare['features'])}." in text
    assert ("malignant" in text) == bool(done.event.levels)
    scope: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", scores.artifact), scope)
    assert scope["x"].shape == (16, *done.event.shape) and scope["nats"].shape == (16,)


def test_the_data_card_says_what_the_columns_are(made: Made) -> None:
    _, done, _ = made
    pairs = dict(report.data_card(done, shards.manifest(done)))
    columns = shards.manifest(done)["splits"]["train"]["columns"]
    for name, found in columns.items():
        assert pairs[name].startswith(f"{found['mean']:.4g} ± ")
    assert str(report._levels_chart(done, shards.manifest(done))).count("<rect") == (2 if done.event.levels else 0)


def test_distances_are_in_standard_deviations_and_a_copy_lies_at_none() -> None:
    event = Event(modality="table", shape=(2,), levels=0)
    x = torch.tensor([[0.1, 1e6], [0.3, 1e6 + 50]])
    train = [Batch(x=x, position=torch.arange(2))]
    drawn = np.array([[0.3, 1e6 + 50], [0.1, 1e6 + 100]], np.float32)
    found = nearest("mine", drawn, None, train, event, pairs=2, spread=[0.1, 50.0])
    near, copies = found.scores
    assert copies.value == 0.5 and found.samples == [0, 1] and np.array_equal(found.examples[0], drawn[0])
    assert near.value == 0.0  # the lower of the two is the median
    alone = nearest("mine", drawn[1:], None, train, event, pairs=1, spread=[0.1, 50.0]).scores[0]
    assert alone.value == pytest.approx(np.sqrt((0**2 + 2**2) / 2), rel=1e-3)  # the other is 2 and 1 deviations away
