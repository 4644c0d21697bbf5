"""Tuning: what its fingerprint depends on, who wins, what mattered; and on Ray a search that is killed, goes on and survives candidates that fail."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines import recipe as recipes
from pipelines import storage
from pipelines.errors import Failed, Refused
from pipelines.importance import importance
from pipelines.recipe import Recipe
from pipelines.records import Shards
from pipelines.shards import open_shards
from pipelines.tune import _check, _seed, _trial_recipe, _winner, output, tune
from tests.pipelines import small
from tests.pipelines.test_train import digits

SPACE = {"train.lr": {"loguniform": [1e-3, 1e-2]}, "model.kernel": {"choice": [3, 4]}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return digits(tmp_path_factory.mktemp("data"))


def searched(root: Path, *changes: str, space: dict[str, Any] = SPACE) -> Recipe:
    """Four trials; with this seed the kernels drawn are 3, 4, 3, 4, and both come in however many are drawn after a kill."""
    values = recipes.dump(small.recipe(root, "train.batch_size=16", "model.hidden=4", "model.layers=1"))
    values["tune"] = {"trials": 4, "search": {"algorithm": "random", "space": space}, "steps": 8, "reseed_top": 1, "seed": 24}
    return recipes.check(recipes.set_keys(values, changes))


def scored(value: float | None, number: int = 0, /, **params: Any) -> dict[str, Any]:
    return {"id": f"{number:05d}", "value": value, "params": params, "seconds": 1.0}


def test_without_a_search_the_recipe_is_itself(shards: Shards, tmp_path: Path) -> None:
    plain = small.recipe(tmp_path)
    assert tune(plain, shards) is plain
    assert output(plain, shards).done


def test_the_fingerprint_is_the_same_before_and_after(shards: Shards, tmp_path: Path) -> None:
    before = output(searched(tmp_path), shards)
    for change in ("train.lr=0.5", "model.kernel=7", "train.steps=9", "train.workers=2"):
        assert output(searched(tmp_path, change), shards) == before, change
    for change in ("train.batch_size=8", "model.hidden=5", "tune.steps=9", "tune.seed=5", "tune.search.algorithm=optuna"):
        assert output(searched(tmp_path, change), shards).fingerprint != before.fingerprint, change


def test_a_stored_winner_fixes_the_recipe_without_a_search(shards: Shards, tmp_path: Path) -> None:
    recipe = searched(tmp_path)
    storage.write_json(
        storage.join(output(recipe, shards).uri, "tune.json"), {"winner": {"params": {"train.lr": 0.004, "model.kernel": 3}}}
    )
    tuned = tune(recipe, shards)
    assert (tuned.train.lr, tuned.model.config["kernel"], tuned.train.steps) == (0.004, 3, recipe.train.steps)
    assert tune(tuned, shards) == tuned


def test_a_trial_is_the_short_training_with_its_candidate(tmp_path: Path) -> None:
    recipe = searched(tmp_path, "tune.steps=40")
    assert recipe.tune
    trial = _trial_recipe(recipe, {"train.lr": 0.5, "model.kernel": 3}, recipe.tune, seed=9)
    assert (trial.train.steps, trial.train.valid_every, trial.train.lr, trial.train.seed, trial.train.workers) == (40, 10, 0.5, 9, 1)
    assert trial.model.config["kernel"] == 3


def test_what_cannot_be_searched_is_refused(shards: Shards, tmp_path: Path) -> None:
    for key, message in (("evaluate.iwae", "only keys of model and train"), ("train.steps", "a trial sets that key itself")):
        recipe = searched(tmp_path, space={key: {"randint": [1, 9]}})
        assert recipe.tune
        with pytest.raises(Refused, match=message):
            _check(recipe, recipe.tune, shards)


def test_the_mean_over_seeds_decides() -> None:
    trials = [scored(1.0, 0, a=1), scored(1.1, 1, a=2), scored(None, 2, a=3), scored(0.5, 3, a=4)]
    again = [scored(2.0) | {"id": "00000-0"}, scored(1.2) | {"id": "00001-0"}]
    winner = _winner(trials, again, "here")
    assert (winner["params"], winner["values"]) == ({"a": 2}, [1.1, 1.2])
    assert winner["value"] == pytest.approx(1.15)
    assert _winner(trials, [], "here")["params"] == {"a": 4}
    with pytest.raises(Failed, match="none of 1 trials came to a score; the first says: kernel 4"):
        _winner([scored(None) | {"message": "kernel 4"}], [], "here")


def test_a_resumed_search_draws_other_candidates(tmp_path: Path) -> None:
    settings = searched(tmp_path).tune
    assert settings
    assert len({_seed(settings, done) for done in range(4)}) == 4


def test_importance_finds_the_key_that_matters() -> None:
    space = {"train.lr": {"loguniform": [1e-4, 1e-1]}, "model.layers": {"randint": [1, 9]}, "model.name": {"choice": ["a", "b"]}}
    lrs = [10 ** (-1 - 3 * (i * 7 % 20) / 20) for i in range(20)]
    trials = [
        scored(abs(lr - 0.01) * 10, i, **{"train.lr": lr, "model.layers": 1 + i * 3 % 8, "model.name": "ab"[i % 2]})
        for i, lr in enumerate(lrs)
    ]
    found = importance(trials, space)
    assert found["method"] == "fANOVA over 20 trials"
    assert next(iter(found["values"])) == "train.lr" and found["values"]["train.lr"] > 0.8
    assert sum(found["values"].values()) == pytest.approx(1)
    assert importance(trials[:3], space)["values"] == {}


def test_importance_falls_back_and_says_so() -> None:
    space = {"train.lr": {"loguniform": [1e-4, 1e-1]}}
    outside = [scored(float(i), i, **{"train.lr": float(i + 1)}) for i in range(6)]  # values that the distribution does not contain
    assert importance(outside, space) == {"method": "absolute rank correlation over 6 trials", "values": {"train.lr": 1.0}}


DRIVER = """
import sys
from pathlib import Path
from pipelines.shards import open_shards
from pipelines.tune import tune
from tests.pipelines.test_tune import searched
if __name__ == "__main__":
    tune(searched(Path(sys.argv[1])), open_shards(sys.argv[2]))
"""


@pytest.mark.ray
def test_a_killed_search_goes_on_and_failing_candidates_harm_no_one(ray_session: object, shards: Shards, tmp_path: Path) -> None:
    recipe = searched(tmp_path)
    folder = Path(output(recipe, shards).uri)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), shards.uri], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(1200):
        if list(folder.glob("trials/*.json")):
            break
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    kept = {file.name: file.read_bytes() for file in folder.glob("trials/*.json")}
    assert kept and not (folder / "tune.json").exists()

    tuned = tune(recipe, open_shards(shards.uri))
    assert all((folder / "trials" / name).read_bytes() == content for name, content in kept.items())
    found = json.loads((folder / "tune.json").read_text())
    status = {trial["params"]["model.kernel"]: trial["status"] for trial in found["trials"]}
    assert len(found["trials"]) == 4
    assert status[4] == "failed" and status[3] in ("finished", "stopped")
    assert "kernel 4; wanted an odd number" in next(trial["message"] for trial in found["trials"] if trial["status"] == "failed")
    assert [each["status"] for each in found["reseeds"]] == ["finished"]
    assert len(found["winner"]["values"]) == 2
    assert tuned.model.config["kernel"] == 3 and tuned.train.lr == found["winner"]["params"]["train.lr"]
    assert output(tuned, shards).done
    assert not (folder / "ray").exists()
