"""The mixture: the box's mass whatever the tail, EM that never goes down, nothing that hangs on names, order or batches, exact completion."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from genmodels import noise
from genmodels.core import Batch, Event
from genmodels.iterate import Iteration
from genmodels.models.mixture import Mixture
from genmodels.nn.likelihood import discretised_gaussian
from genmodels.noise import Noise
from genmodels.train import TrainConfig
from tests.genmodels.conftest import EVENTS, examples, labels, shaken, states

LINE = Event(modality="table", shape=(2,), levels=64)


def mixture(event: Event, **config: float) -> Mixture:
    with noise.initialising(1):
        return Mixture(event, Mixture.Config(**config))  # type: ignore[arg-type]


def learnt(model: Mixture, data: list[Batch], passes: int = 40, seed: int = 0) -> list[float]:
    """The loss of every pass."""
    records = Iteration(model, TrainConfig(steps=passes, seed=seed)).run(lambda _: data, until=passes)
    return [record["loss"] for record in records]


def cut(x: Tensor, size: int, y: Tensor | None = None, length: Tensor | None = None) -> list[Batch]:
    batch = Batch(x=x, y=y, length=length, position=torch.arange(len(x)))
    return [batch.rows(start, min(start + size, len(x))) for start in range(0, len(x), size)]


def two_clouds(n: int = 3000) -> Tensor:
    """(n, 2) levels: three quarters near (15, 45) with scales 3 and 6, a quarter near (50, 20) with scales 4 and 2."""
    noise = Noise(5, position=range(n))
    first = noise.uniform("which")[:, None] < 0.75
    mean = torch.where(first, torch.tensor([15.0, 45.0]), torch.tensor([50.0, 20.0]))
    scale = torch.where(first, torch.tensor([3.0, 6.0]), torch.tensor([4.0, 2.0]))
    return (mean + scale * noise.normal("where", (2,))).round().clamp(0, 63).to(torch.uint8)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("mean", [-400.0, 0.0, 0.9, 100.3, 1000.0])
@pytest.mark.parametrize("scale", [0.02, 0.7, 40.0, 5000.0])
def test_masses_sum_to_one_and_are_those_of_the_gaussian(levels: int, mean: float, scale: float) -> None:
    level = torch.arange(levels, dtype=torch.float64)
    centre, width = torch.tensor([mean, scale], dtype=torch.float64)
    nats = discretised_gaussian(level, centre, width, levels)
    assert float(nats.exp().sum()) == pytest.approx(1, abs=1e-12)
    edges = (np.arange(levels + 1) - 0.5 - mean) / scale
    edges[0], edges[-1] = -np.inf, np.inf
    near, far = np.maximum(edges[:-1], -edges[1:]), np.maximum(edges[1:], -edges[:-1])
    above, below = stats.norm.logcdf(-near), stats.norm.logcdf(-far)
    wanted = above + np.log1p(-np.exp(np.clip(below - above, None, -1e-300)))
    assert bool(torch.isfinite(nats).all())
    np.testing.assert_allclose(nats.numpy(), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["grey", "clicks"])
def test_em_never_lowers_the_likelihood_and_the_metric_is_it(name: str) -> None:
    """Also where some labels are missing and some sounds are short; the last pass's loss is that of the density written out plainly."""
    event = EVENTS[name]
    x = examples(event, 120)
    x[:60] //= 2
    y = labels(event, 120)
    if y is not None:
        y[::7] = -1
    length = torch.arange(120) % event.dims + 1 if event.modality == "audio" else None
    model = mixture(event, components=4, tolerance=0)
    losses = learnt(model, cut(x, 50, y, length), passes=15)
    assert max(later - before for before, later in pairwise(losses[1:])) < 1e-10
    assert losses[-1] < losses[1] - 0.01
    mean, scale, weights = model.means, model.log_scales.exp(), model.log_weights.exp()
    valid = torch.ones(120, event.dims) if length is None else (torch.arange(event.dims) < length[:, None]).float()
    each = torch.distributions.Normal(mean, scale).log_prob(x.flatten(1).double()[:, None, None]) * valid[:, None, None]
    nats = each.sum(-1) + weights.log()  # (B, labels, M)
    if y is not None:
        own = torch.where(y < 0, 0, torch.where(torch.arange(event.classes)[:, None] == y, 0, -torch.inf)).T
        nats = nats + (own + torch.where(y[:, None] < 0, model.class_frequencies.log(), 0))[..., None]
    plain = -nats.flatten(1).logsumexp(1).sum() / valid.sum()
    after = learnt_once(model, cut(x, 50, y, length))
    assert after == pytest.approx(float(plain), abs=1e-8)


def learnt_once(model: Mixture, data: list[Batch]) -> float:
    return float(model.iterate(data, Noise(0, position=[]))["loss"])


def test_a_known_mixture_is_found_again() -> None:
    model = mixture(LINE, components=2, floor=0.01, tolerance=1e-7)
    losses = learnt(model, cut(two_clouds(), 500), passes=200)
    assert len(losses) < 200 and model.converged
    large = int(model.log_weights[0].argmax())
    order = [large, 1 - large]
    torch.testing.assert_close(model.log_weights[0].exp()[order], torch.tensor([0.75, 0.25]).double(), atol=0.03, rtol=0)
    torch.testing.assert_close(model.means[0][order], torch.tensor([[15.0, 45.0], [50.0, 20.0]]).double(), atol=0.5, rtol=0)
    torch.testing.assert_close(model.log_scales[0].exp()[order], torch.tensor([[3.0, 6.0], [4.0, 2.0]]).double(), atol=0.3, rtol=0)


def test_a_pass_is_the_weighted_moments_written_out() -> None:
    """Bayes' rule for who owns what, then shares, means and spreads about the new means."""
    model, x = mixture(LINE, components=3), two_clouds(200)
    learnt(model, cut(x, 200), passes=1)
    parts = zip(model.log_weights[0].exp(), model.means[0].clone(), model.log_scales[0].exp(), strict=True)
    density = np.stack([float(w) * stats.norm.pdf(x.numpy(), mean.numpy(), scale.numpy()).prod(1) for w, mean, scale in parts])
    share = torch.from_numpy(density / density.sum(0))
    before = model.means.clone()
    model.iterate(cut(x, 200), Noise(0, position=[]))
    means = share @ x.double() / share.sum(1, keepdim=True)
    spread = (share[..., None] * (x.double() - means[:, None]).square()).sum(1) / share.sum(1, keepdim=True)
    torch.testing.assert_close(model.means[0], means)
    torch.testing.assert_close(model.log_scales[0].exp(), spread.sqrt().clamp(min=model.narrowest))
    torch.testing.assert_close(model.log_weights[0].exp(), share.mean(1))
    assert float((model.means - before).abs().max()) > 1 and float(spread.sqrt().min()) > model.narrowest


def test_batches_and_their_order_change_nothing() -> None:
    x = two_clouds(500)
    wanted, found = mixture(LINE, components=5), mixture(LINE, components=5)
    learnt(wanted, cut(x, 500), passes=4)
    learnt(found, cut(x, 37)[::-1], passes=4)
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-9, atol=1e-9)


def test_another_seed_begins_elsewhere() -> None:
    x = two_clouds(500)
    one, other = mixture(LINE, components=5), mixture(LINE, components=5)
    learnt(one, cut(x, 500), passes=1, seed=1)
    learnt(other, cut(x, 500), passes=1, seed=2)
    assert not torch.equal(one.means, other.means)


def test_a_permutation_of_components_changes_nothing() -> None:
    event = EVENTS["grey"]
    model = shaken("mixture", event, components=4)
    x, y = examples(event, 9), labels(event, 9)
    assert isinstance(model, Mixture)
    with torch.no_grad():
        before = model.log_probs(x, y)
        for parameter in model.parameters():
            parameter.copy_(parameter[:, [2, 0, 3, 1]].clone())
        torch.testing.assert_close(model.log_probs(x, y), before, rtol=1e-12, atol=1e-12)


def test_many_rows_score_as_few() -> None:
    """Above as many rows as levels, masses are looked up in a table."""
    event = EVENTS["table"]
    model = shaken("mixture", event)
    x, y = examples(event, 60), labels(event, 60)
    assert isinstance(model, Mixture)
    together = model.log_probs(x, y)
    alone = torch.cat([model.log_probs(x[i : i + 1], None if y is None else y[i : i + 1]) for i in range(60)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_the_conditionals_add_up_to_the_density() -> None:
    event = EVENTS["mu-law"]
    model, length = shaken("mixture", event), torch.tensor([40, 1, 17])
    assert isinstance(model, Mixture)
    x, y = examples(event, 3), labels(event, 3)
    torch.testing.assert_close(model.log_probs(x, y, length=length).sum(1), model.log_prob(x, y, length=length), rtol=1e-11, atol=1e-9)


def test_any_subset_is_completed_by_its_exact_conditional() -> None:
    event = Event(modality="table", shape=(4,), levels=3, classes=2)
    model = shaken("mixture", event, components=3)
    assert isinstance(model, Mixture)
    known = torch.tensor([False, True, False, True])
    x = torch.tensor([[0, 2, 0, 1]], dtype=torch.uint8)
    done = model.complete(x.expand(2500, -1), known, seed=3)
    assert done.exact and bool((done.x[:, known] == x[:, known]).all())
    every = states(event)
    agree = (every[:, known] == x[0, known]).all(1)
    p = model.log_prob(every[agree]).exp()
    seen = torch.bincount((done.x[:, ~known].long() * torch.tensor([3, 1])).sum(1), minlength=9)
    assert stats.chisquare(seen.numpy(), (p / p.sum()).numpy() * 2500).pvalue > 1e-4


def test_a_label_without_examples_and_fewer_examples_than_components_are_borne() -> None:
    event = replace(LINE, classes=3)
    model = mixture(event, components=6)
    x = two_clouds(7)
    losses = learnt(model, cut(x, 7, torch.tensor([0, 0, 0, 1, 1, -1, 0])), passes=6)
    assert all(map(math.isfinite, losses))
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    assert float(model.log_scales.exp().min()) >= model.narrowest * (1 - 1e-12)
    assert bool(torch.isfinite(model.classify(x)).all())


def test_what_it_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Mixture models levels without a condition; got table 2, real values$"):
        mixture(replace(LINE, levels=0))
    with pytest.raises(ValueError, match=r"wanted at least one component, a floor above 0 up to 1"):
        Mixture.Config(floor=0)
