"""The posterior of a code of a trained VAE or Helmholtz machine, against grids and enumeration."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Normal

from genmodels import artifact, mcmc
from genmodels.core import Batch, Event
from genmodels.iterate import Iteration
from genmodels.models.helmholtz import Helmholtz
from genmodels.models.posterior import Posterior
from genmodels.models.posterior_latent import Latent
from genmodels.models.vae import VAE
from genmodels.noise import Noise
from genmodels.train import TrainConfig
from genmodels.zoo import build
from tests.genmodels.conftest import examples, shaken, states
from tests.genmodels.posteriors import PICTURE, cut, run
from tests.genmodels.test_contract import g_test


def parent(kind: str, event: Event = PICTURE, **config: Any) -> tuple[VAE | Helmholtz, dict[str, Any]]:
    model = shaken(kind, event, by=1.5, **config)
    assert isinstance(model, VAE | Helmholtz)
    return model, {"family": kind, "event": event.to_json(), "config": config}


def of_code(
    kind: str, event: Event = PICTURE, *, parents: dict[str, Any] | None = None, **config: Any
) -> tuple[Posterior, VAE | Helmholtz, list[Batch]]:
    """The posterior of example 3's code, with its parent's weights put in."""
    source, described = parent(kind, event, **(parents or {"latent": 1, "hidden": 8} if kind == "vae" else parents or {"hidden": (4, 3)}))
    model = build("posterior", event, target="latent", parent=described, example=3, **config)
    assert isinstance(model, Posterior) and isinstance(model.parametric, Latent)
    model.parametric.parent.load_state_dict(source.state_dict())
    y = torch.arange(8) % event.classes if event.classes else None
    return model.eval(), source, cut(Batch(x=examples(event, 8), y=y, position=torch.arange(8)))  # type: ignore[return-value]


@pytest.mark.parametrize("classes", [0, 2])
def test_the_code_of_a_vae_against_a_grid(classes: int) -> None:
    event = replace(PICTURE, classes=classes)
    model, source, data = of_code("vae", event, method="hmc", chains=16, warmup=150, draws=60, round=60)
    run(model, data, 5)
    assert isinstance(source, VAE)
    z = torch.linspace(-6, 6, 1201)[:, None]
    y = torch.full((1201,), 3 % classes) if classes else None
    with torch.no_grad():
        nats = source.likelihood(z, y).log_prob(data[0].x[3:4]).double().sum((1, 2)) + Normal(0.0, 1.0).log_prob(z[:, 0].double())
        share = nats.softmax(0)
        mean = share @ z[:, 0].double()
        variance = share @ (z[:, 0].double() - mean).square()
        assert float(model.effective) > 200 and float((mean.square() + (variance - 1).square()).sqrt()) > 0.1, "the prior would do too"
        assert float(model.draws.mean()) == pytest.approx(float(mean), abs=4.5 * math.sqrt(variance / float(model.effective)))
        assert float(model.draws.var()) == pytest.approx(float(variance), rel=0.25)
        every = states(PICTURE)
        y = torch.full((64,), 1) if classes else None
        p = model.log_prob(every, y).exp()
        assert float(p.sum()) == pytest.approx(1, abs=1e-5)
        given_z = torch.stack(
            [source.likelihood(z, None if y is None else y[:1].expand(1201)).log_prob(x[None]).double().sum((1, 2)) for x in every]
        )
        torch.testing.assert_close(p, given_z.exp() @ share, rtol=0.15, atol=0.004)


@pytest.mark.parametrize("kind", ["vae", "helmholtz"])
def test_pictures_are_drawn_from_what_is_predicted(kind: str) -> None:
    model, _, data = of_code(kind, method="metropolis", chains=4, warmup=50, draws=20, round=20)
    run(model, data, 3)
    with torch.no_grad():
        p = model.log_prob(states(PICTURE)).exp()
        x = model.draw(Noise(3, position=range(50_000)), y=None, c=None, temperature=torch.ones(50_000))
    seen = torch.bincount((x.flatten(1).long() * 2 ** torch.arange(5, -1, -1)).sum(1), minlength=64)
    assert g_test(seen.numpy(), p.numpy()) > 1e-4


@pytest.mark.parametrize("method", ["gibbs", "metropolis", "vi-mean-field"])
def test_the_bits_of_a_helmholtz_machine_against_enumeration(method: str) -> None:
    event = replace(PICTURE, classes=2)
    settings: dict[str, Any] = (
        {"warmup": 800, "round": 400, "draws": 200} if method.startswith("vi") else {"chains": 32, "warmup": 50, "draws": 200, "round": 200}
    )
    model, source, data = of_code("helmholtz", event, method=method, **settings)
    run(model, data, 4)
    assert isinstance(source, Helmholtz) and isinstance(model.parametric, Latent)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=7)))
    with torch.no_grad():
        nats = source.log_joint(data[0].x[3:4], every[None], torch.tensor([1]))[0].double()
    evidence, share = nats.logsumexp(0), nats.softmax(0)
    assert model.parametric.evidence() == pytest.approx(float(evidence), abs=1e-5)
    marginals = share @ every.double()
    assert float((marginals - 0.5).abs().max()) > 0.2
    if method != "vi-mean-field":
        error = (marginals * (1 - marginals) / mcmc.ess(model.theta.data)).sqrt()
        assert bool(((model.draws.mean(0) - marginals).abs() < 4.5 * error).all()) and float(error.max()) < 0.03
        return
    log_q = model.parametric.family.at(model.phi[0]).log_prob(every.double())
    assert log_q.exp().sum() == pytest.approx(1)
    gap = (log_q.exp() * (log_q - nats + evidence)).sum()
    assert float(evidence - model.bound) == pytest.approx(float(gap), abs=0.1)
    assert torch.equal(model.draws, model.draws.round()) and float((model.draws.mean(0) - log_q.exp() @ every.double()).abs().max()) < 0.06


def test_a_saved_posterior_of_a_code_holds_its_parent(tmp_path: Path) -> None:
    model, source, data = of_code("vae", parents={"latent": 2, "hidden": 8}, method="hmc", warmup=10, draws=8, round=8)
    run(model, data, 3)
    artifact.save(model, tmp_path / "model", family="posterior", prepare={}, labels=())
    again = artifact.load(tmp_path / "model")
    assert isinstance(again, Posterior) and isinstance(again.parametric, Latent)
    for name, value in again.parametric.parent.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name
    assert torch.equal(again.parametric.example, data[0].x[3])
    assert torch.equal(again.log_prob(data[0].x), model.log_prob(data[0].x))


def test_chains_that_stand_still_have_an_r_hat_all_the_same() -> None:
    """Bits that differ between chains and never turn over: an infinite R-hat, told as 99, and nothing that is not finite."""
    model, _, data = of_code("helmholtz", method="metropolis", chains=4, warmup=0, draws=8, round=8)
    Iteration(model, TrainConfig(steps=1)).run(lambda _: data, until=1)
    model.theta.data = model.position.data[:, None].expand(model.theta.shape).clone()
    model.kept.fill_(8)
    from genmodels.models import posterior_methods

    found = posterior_methods._diagnosed(model)
    assert float(found["rhat"]) == 99 and not model.converged


def test_a_parent_of_other_data_is_refused() -> None:
    _, described = parent("vae", latent=1, hidden=8)
    with pytest.raises(ValueError, match=r"^the parent models image 1x2x3, 2 levels; the posterior's data is image 1x4x4, 2 levels: "):
        build("posterior", replace(PICTURE, shape=(1, 4, 4)), target="latent", parent=described)
    model, _, data = of_code("vae", method="hmc")
    assert isinstance(model.parametric, Latent)
    model.parametric.row = 8
    with pytest.raises(ValueError, match=r"^example 8 of 8 training examples; wanted 0 to 7$"):
        run(model, data, 1)
