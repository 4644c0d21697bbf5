"""Energies and partition functions against sums over all states, counted out and annealed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from genmodels import artifact
from genmodels.core import Batch, Event
from genmodels.evaluate import evaluate
from genmodels.models import rbm_units
from genmodels.models.rbm import RBM
from genmodels.noise import Noise
from tests.genmodels.conftest import states
from tests.genmodels.test_rbm import LABELLED, PLAIN, joint, model_of


@pytest.mark.parametrize(("event", "hidden"), [(PLAIN, 4), (PLAIN, 9), (LABELLED, 3), (LABELLED, 7)])
def test_energy_and_partition_function_are_sums_over_all_states(event: Event, hidden: int) -> None:
    """With fewer hidden units than bits the hidden states are counted out, else the visible ones."""
    model = model_of(event, hidden=hidden)
    every, found = joint(model), model.log_partition(Noise(0, position=range(3)))
    with torch.no_grad():
        torch.testing.assert_close(model.energy(states(event)), -every.logsumexp((1, 2)).float())
    assert found.value == pytest.approx(float(every.logsumexp((0, 1, 2))), abs=1e-9)
    assert found.interval == (found.value, found.value) and found.exact
    assert found.method == f"exact: all {2**hidden} hidden states" if hidden < event.dims else f"exact: all {2**event.dims} visible states"


def test_states_are_counted_out_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(hidden=5)
    whole = model.log_partition(Noise(0, position=range(1)))
    monkeypatch.setattr(rbm_units, "CHUNK", 7)
    assert model.log_partition(Noise(0, position=range(1))).value == pytest.approx(whole.value, abs=1e-9)


@pytest.fixture
def annealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is small enough to be counted out."""
    monkeypatch.setattr(rbm_units, "COUNTABLE", 0)


@pytest.mark.usefixtures("annealed")
@pytest.mark.parametrize("event", [PLAIN, LABELLED])
def test_annealed_estimate_is_within_its_own_error_bars(event: Event) -> None:
    """An interval of 95 % holds the truth about that often, and is neither a point nor a guess; so is the mean of the estimates of Z."""
    model = model_of(event, by=4.0, hidden=6, chains=100, temperatures=30)
    truth = float(joint(model).logsumexp((0, 1, 2)))
    found = [model.log_partition(Noise(seed, position=range(1))) for seed in range(60)]
    assert {each.method for each in found} == {"AIS, 100 chains, 30 temperatures"} and not any(each.exact for each in found)
    widths = [each.interval[1] - each.interval[0] for each in found]
    assert min(widths) > 0.02 and max(widths) < 1.0, (min(widths), max(widths))
    held = sum(each.interval[0] <= truth <= each.interval[1] for each in found)
    assert 51 <= held < 60, held
    off = torch.tensor([each.value - truth for each in found])
    assert abs(float(off.exp().mean()) - 1) < 4 * float(off.std()) / 60**0.5
    assert len({each.value for each in found}) == 60


@pytest.mark.usefixtures("annealed")
def test_annealed_estimate_is_of_the_present_parameters() -> None:
    model, noise = model_of(by=3.0, hidden=6), Noise(0, position=range(1))
    for _ in range(2):
        found, truth = model.log_partition(noise), float(joint(model).logsumexp((0, 1, 2)))
        assert found.interval[0] - 0.05 < truth < found.interval[1] + 0.05
        with torch.no_grad():
            model.weight.mul_(-1.5)
            model.visible.add_(1)


@pytest.mark.usefixtures("annealed")
@pytest.mark.parametrize("event", [PLAIN, LABELLED])
def test_from_the_model_itself_nothing_is_left_to_anneal(event: Event) -> None:
    """Without weights and with its biases as base all chains weigh the same; what annealed from elsewhere would have an interval."""
    model = model_of(event, hidden=6, chains=20, temperatures=5)
    with torch.no_grad():
        model.weight.zero_()
        model.base.copy_(model.visible)
    found = model.log_partition(Noise(0, position=range(1)))
    assert found.interval[1] - found.interval[0] < 1e-4
    assert found.value == pytest.approx(float(joint(model).logsumexp((0, 1, 2))), abs=1e-4)


def test_error_of_a_log_mean_weight() -> None:
    """As the delta method's where weights are alike; where one of them is all there is, not less than what it makes."""
    log_w = 0.1 * torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 700
    value, error = rbm_units.log_mean(log_w)
    w = (log_w - 700).exp()
    assert value == pytest.approx(700 + math.log(w.mean()), abs=1e-9)
    assert error == pytest.approx(float(w.std() / w.mean()) / 200**0.5, rel=0.02)
    assert rbm_units.log_mean(torch.tensor([0.0] * 99 + [30.0]).double())[1] > 20


WIDE = {"hidden": 18, "chains": 8, "temperatures": 12}


def saved(folder: Path, model: RBM) -> RBM:
    """What comes back of a model from its folder."""
    artifact.save(model, folder, family="rbm", prepare={}, labels=())
    loaded = artifact.load(folder)
    assert isinstance(loaded, RBM)
    return loaded


def rewritten(folder: Path, **changes: Any) -> RBM:
    """The folder's model with other keys in its description, or other weights, and sums that fit."""
    about = json.loads((folder / artifact.DESCRIPTION).read_text())
    if weights := changes.pop("weights", None):
        save_file(weights, folder / artifact.WEIGHTS)
    artifact._seal(folder, {name: value for name, value in (about | changes).items() if value is not None})
    loaded = artifact.load(folder)
    assert isinstance(loaded, RBM)
    return loaded


@pytest.mark.parametrize("hidden", [3, 18])
def test_an_artifact_keeps_log_z_as_it_would_be_found_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: int) -> None:
    event = Event(modality="image", shape=(1, 4, 5), levels=2)
    model = model_of(event, **WIDE | {"hidden": hidden})
    anew = model.log_partition(Noise(0, position=[0]))
    loaded = saved(tmp_path / "a", model)
    monkeypatch.setattr(RBM, "log_partition", lambda self, noise: pytest.fail("found again"))
    assert loaded.partition() == anew and anew.exact == (hidden == 3)
    scores = evaluate(loaded, [Batch(x=states(event)[:5], position=torch.arange(5))], split="test", seed=7)
    assert scores[-1].value == anew.value and scores[-1].protocol == anew.method
    artifact.annotate(tmp_path / "a", scores=[], lineage={})
    again = artifact.load(tmp_path / "a")
    assert isinstance(again, RBM) and again.partition() == anew
    assert artifact.save(again, tmp_path / "b", family="rbm", prepare={}, labels=()) == artifact.verify(tmp_path / "a")


def test_other_weights_never_have_a_log_z_that_was_kept(tmp_path: Path) -> None:
    """Changed in memory, exchanged in the folder, or of an artifact that keeps none: it is found for those that are there."""
    event = Event(modality="image", shape=(1, 4, 5), levels=2)
    loaded, other = saved(tmp_path / "a", model_of(event, **WIDE)), model_of(event, seed=1, **WIDE)
    first, second = loaded.partition(), other.log_partition(Noise(0, position=[0]))
    assert abs(first.value - second.value) > 1
    loaded.load_state_dict(other.state_dict())
    assert loaded.partition() == second
    with torch.no_grad():
        loaded.visible[0] += 1e-3
    assert loaded.partition() == loaded.log_partition(Noise(0, position=[0])) != second
    artifact.save(other, tmp_path / "b", family="rbm", prepare={}, labels=())
    assert rewritten(tmp_path / "a", weights=load_file(tmp_path / "b" / artifact.WEIGHTS)).partition() == second
    assert rewritten(tmp_path / "b", log_partition=None).known is None
    assert rewritten(tmp_path / "b").partition() == second
