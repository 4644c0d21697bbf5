"""A posterior as a model of the zoo: cut and resumed, saved, asked row by row, refused; chains that do not agree are thinned and go on."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genmodels import artifact, mcmc
from genmodels.core import BLOCK, Event
from genmodels.iterate import Iteration
from genmodels.models.posterior import Posterior, target_of
from genmodels.models.posterior_linear import Linear
from genmodels.noise import Noise, derive
from genmodels.train import TrainConfig
from genmodels.zoo import build
from tests.genmodels.posteriors import PICTURE, POINTS, QUICK, classification, clouds, cut, given, joined, learnt, regression

CASES: list[tuple[Event, Any, dict[str, Any]]] = [
    (given(2), regression, {"method": "hmc"}),
    (given(2), regression, {"method": "metropolis"}),
    (given(1, 3), lambda: classification(levels=3), {"target": "logistic", "method": "mala"}),
    (given(1, 2), classification, {"target": "logistic", "method": "vi-full"}),
    (POINTS, clouds, {"target": "mixture", "method": "gibbs"}),
    (POINTS, clouds, {"target": "mixture", "method": "vi-mean-field"}),
]


@pytest.mark.parametrize(("event", "make", "config"), CASES)
def test_rounds_cut_anywhere_are_the_undisturbed_ones(event: Event, make: Any, config: dict[str, Any], tmp_path: Path) -> None:
    data, passes = make(), 7

    def fresh() -> Iteration:
        model = build("posterior", event, warmup=20, draws=16, round=8, rhat=1.0001, **config)
        return Iteration(model, TrainConfig(steps=passes, seed=3))  # type: ignore[arg-type]

    whole = fresh()
    records = whole.run(lambda _: data, until=passes)
    whole.save(tmp_path / "whole")
    for cut_at in range(1, len(records)):
        first, second = fresh(), fresh()
        before = first.run(lambda _: data, until=cut_at)
        first.save(tmp_path / "cut")
        torch.manual_seed(cut_at)
        second.restore(tmp_path / "cut")
        assert before + second.run(lambda _: data, until=passes) == records
        second.save(tmp_path / "again")
        assert (tmp_path / "again/state.safetensors").read_bytes() == (tmp_path / "whole/state.safetensors").read_bytes()


@pytest.mark.parametrize(("event", "make", "config"), CASES)
def test_a_saved_posterior_is_the_same_one(event: Event, make: Any, config: dict[str, Any], tmp_path: Path) -> None:
    data = make()
    model, whole = learnt(event, data, passes=4, warmup=20, draws=16, round=8, **config), joined(data)
    artifact.save(model, tmp_path / "model", family="posterior", prepare={}, labels=())
    again = artifact.load(tmp_path / "model")
    assert isinstance(again, Posterior) and again.converged == model.converged
    assert torch.equal(again.log_prob(whole.x, None, whole.c), model.log_prob(whole.x, None, whole.c))
    c = None if whole.c is None else whole.c[:5]
    assert torch.equal(again.sample(5, seed=1, c=c), model.sample(5, seed=1, c=c))
    assert again.findings() == pytest.approx(model.findings(), nan_ok=True)


@pytest.mark.parametrize(("event", "make", "config"), CASES[:5])
def test_a_sample_depends_on_its_own_request_alone(event: Event, make: Any, config: dict[str, Any]) -> None:
    data = make()
    model, whole = learnt(event, data, passes=3, warmup=20, draws=16, round=16, **config), joined(data)
    c = None if whole.c is None else whole.c[: BLOCK + 3]
    rows = model.sample(BLOCK + 3, seed=4, c=c)
    few = model.sample(2, seed=4, first=4, c=None if c is None else c[4:6])
    assert torch.equal(few, rows[4:6]) and rows.dtype == (torch.uint8 if event.levels else torch.float32)
    assert len(rows.unique(dim=0)) > 1
    assert not torch.equal(model.sample(BLOCK + 3, seed=5, c=c), rows)


def test_draws_that_do_not_agree_are_thinned_and_go_on() -> None:
    """What is kept in the end is every thin-th draw of one long run; whether they agree is told."""
    data = regression()
    model = build("posterior", given(2), method="metropolis", warmup=30, draws=16, round=16, rhat=1.0001)
    assert isinstance(model, Posterior)
    iteration = Iteration(model, TrainConfig(steps=5, seed=3))
    records = iteration.run(lambda _: data, until=5)
    assert (int(model.thin), int(model.kept)) == (4, 12) and not model.converged
    seed = derive(derive(3, "iterate"), "chains")
    begin = target_of(model, data).start(Noise(derive(3, "iterate"), position=range(4)))
    kernel = mcmc.RandomWalk(target_of(model, data).log_density)
    long = mcmc.run(kernel, begin, warmup=30, draws=12, seed=seed, thin=4)
    torch.testing.assert_close(model.theta[:, :12], long.draws)
    assert records[-1]["rhat"] == float(model.worst) == pytest.approx(float(mcmc.rhat(long.draws).amax()))
    findings = model.findings()
    assert findings["converged"] is False and findings["rhat"] > 1.0001 and findings["draws"] == 48


def test_assignments_follow_the_clouds() -> None:
    data = clouds()
    model = learnt(POINTS, data, target="mixture", method="gibbs", passes=3, **QUICK)
    share = model.assignments(joined(data).x)
    assert share.shape == (40, 2) and float((share.sum(1) - 1).abs().max()) < 1e-9
    own = torch.arange(40) % 3 == 0  # the cloud further right comes second
    assert float((share[:, 1].round().bool() == own).double().mean()) > 0.95
    with pytest.raises(ValueError, match=r"^a posterior of target linear assigns nothing; "):
        build("posterior", given(2)).assignments(torch.zeros(1, 1))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("event", "config", "line"),
    [
        (given(2), {"target": "linaer"}, r"^target 'linaer'; wanted one of linear, logistic, mixture, latent$"),
        (given(2), {"draws": 9}, r"^9 draws a chain; wanted an even number of at least 8$"),
        (given(2), {"chains": 1}, r"^1 chain has none to agree with, so it has no R-hat; wanted at least 2$"),
        (given(2), {"prior_scale": 0.0}, r"^prior_scale 0, .* wanted above 0"),
        (
            given(2, 3),
            {"target": "logistic", "method": "gibbs"},
            r"^method gibbs of target logistic; it has hmc, mala, metropolis, vi-diagonal, vi-full$",
        ),
        (given(2, 3), {}, r"wanted one target, a real number, given a table of real-valued features; set data.table.target and kind$"),
        (given(2), {"target": "logistic"}, r"wanted one target, a label \(levels = how many there are\), given a table"),
        (POINTS, {}, r"^table 2, real values given None: wanted one target"),
        (
            given(2),
            {"target": "mixture"},
            r"target mixture models a table of real values without a condition; leave data.table.target out$",
        ),
        (PICTURE, {}, r"^target linear models tables; got image 1x2x3, 2 levels$"),
        (PICTURE, {"target": "latent"}, r"^target latent and a parent go together: "),
        (
            PICTURE,
            {"target": "latent", "parent": "models:/mine@champion"},
            r"^parent 'models:/mine@champion'; wanted a trained vae or helmholtz, ",
        ),
        (
            PICTURE,
            {"target": "latent", "parent": {"family": "gan"}},
            r"^parent of family 'gan'; wanted one that has a prior and a likelihood",
        ),
    ],
)
def test_what_cannot_be_is_refused(event: Event, config: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        build("posterior", event, **config)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_table_with_holes_is_refused_in_one_line(broken: float) -> None:
    for column in ("x", "c"):
        whole = joined(regression())
        values = getattr(whole, column).clone()
        values[17, 0] = broken
        with pytest.raises(
            ValueError, match=r"^1 of 30 rows hold NaN or infinity \(the first: row 17\); a posterior needs whole rows: [^\n]+$"
        ):
            learnt(given(2), cut(replace(whole, **{column: values})))
    with pytest.raises(ValueError, match=r"^condition missing; "):
        learnt(given(2), [replace(joined(regression()), c=None)])


def test_a_feature_that_never_varies_is_no_trouble() -> None:
    whole = joined(regression())
    assert whole.c is not None
    data = [replace(whole, c=torch.cat([whole.c, torch.full((30, 1), 3.0)], 1))]
    model = learnt(given(3), data, method="gibbs", passes=3, **QUICK)
    assert isinstance(model.parametric, Linear) and bool(model.log_prob(data[0].x, None, data[0].c).isfinite().all())
