"""A plan says what changed, and touches nothing."""

from pathlib import Path

from pipelines import plan
from pipelines import recipe as recipes


def test_changes_are_named_by_their_key() -> None:
    old = {"train": {"steps": 10, "lr": 1e-3}, "tune": {"trials": 4}}
    new = {"train": {"steps": 20, "lr": 1e-3}, "data": {"source": "digits"}}
    assert plan.changed(old, new) == ["data none -> {'source': 'digits'}", "train.steps 10 -> 20", "tune {'trials': 4} -> none"]
    assert plan.changed(old, old) == []


def test_a_new_storage_has_everything_before_it(tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    steps = plan.plan(recipes.load("digits-pixelcnn", [f"storage={storage}"]))
    assert [step.state for step in steps] == ["would run"] + ["waits"] * 5
    assert steps[0].why == "no output yet" and steps[1].why == "its inputs come from prepare"
    steps = plan.plan(recipes.load("digits-vae", [f"storage={storage}"]))
    assert steps[1].state == "not asked for"


def test_it_says_what_changed_since_the_last_run(tmp_path: Path) -> None:
    recipe = recipes.load("digits-vae", [f"storage={tmp_path}"])
    plan.remember(recipe)
    later = recipes.load("digits-vae", [f"storage={tmp_path}", "data.image.levels=4"])
    assert plan.plan(later)[0].why == "since the last run: data.image.levels 17 -> 4"
    assert plan.plan(recipe)[0].why == "since the last run: the data, the code or the libraries changed"
