"""One value's distribution: mass one, the same nats one level at a time, finite gradients; and features that tell every level from every other."""

import math

import pytest
import torch

from genmodels.nn import values
from genmodels.noise import Noise

LEVELS = [2, 3, 16, 17, 256]


def raw(levels: int, *shape: int, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(levels)
    return scale * torch.randn(*shape, values.output_parameters(levels), generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-6)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_mass_is_one(levels: int, dtype: torch.dtype, error: float, scale: float) -> None:
    nats = values.log_probs(raw(levels, 4, 5, scale=scale, dtype=dtype), levels)
    assert nats.shape == (4, 5, levels) and nats.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (nats.double().exp().sum(-1) - 1).abs().max() < error


@pytest.mark.parametrize("levels", LEVELS)
def test_one_level_has_the_nats_it_has_among_all(levels: int) -> None:
    x = torch.arange(levels, dtype=torch.uint8).expand(3, levels)
    one = raw(levels, 3, 1)
    each = values.log_prob(one.expand(3, levels, -1), x, levels)
    torch.testing.assert_close(each, values.log_probs(one[:, 0], levels))


@pytest.mark.parametrize("levels", LEVELS)
def test_zeros_are_uniform_or_near_it(levels: int) -> None:
    nats = values.log_probs(torch.zeros(1, values.output_parameters(levels)), levels)
    if levels <= values.SOFTMAX:
        torch.testing.assert_close(nats, torch.full((1, levels), -math.log(levels)))
    else:
        assert (nats.exp() * levels)[0, 1:-1].min() > 0.5
        assert -nats.mean() < math.log(levels) + 0.15


@pytest.mark.parametrize("levels", LEVELS)
def test_every_parameter_gets_a_gradient_of_its_own(levels: int) -> None:
    """From zeros too: logistics that start as one would stay one."""
    zeros = torch.zeros(values.output_parameters(levels), requires_grad=True)
    x = torch.arange(levels)[: -(-levels // 2)]
    (gradient,) = torch.autograd.grad(values.log_prob(zeros.expand(len(x), -1), x, levels).sum(), zeros)
    assert bool(gradient.isfinite().all()) and bool((gradient != 0).all())
    if levels > values.SOFTMAX:
        assert gradient.unflatten(0, (3, -1)).std(1).min() > 0


@pytest.mark.parametrize("levels", LEVELS)
def test_gradients_are_finite_far_out(levels: int) -> None:
    far = raw(levels, 50, scale=300.0, dtype=torch.float32).requires_grad_()
    nats = values.log_prob(far, torch.arange(50) % levels, levels)
    assert bool(nats.isfinite().all())
    assert bool(torch.autograd.grad(nats.sum(), far)[0].isfinite().all())


@pytest.mark.parametrize("levels", LEVELS)
def test_features_tell_levels_apart(levels: int) -> None:
    every = values.features(torch.arange(levels, dtype=torch.uint8), levels, torch.float64)
    assert every.shape == (levels, values.input_features(levels)) and every.dtype == torch.float64
    assert every.abs().max() == 1
    assert len(torch.unique(every, dim=0)) == levels


@pytest.mark.parametrize("levels", LEVELS)
def test_draws_and_the_likeliest_level_are_those_of_the_nats(levels: int) -> None:
    """A chi-square of 40,000 draws of each of three values, the levels that are expected fewer than five times taken together."""
    draws, told = 40_000, raw(levels, 3, scale=1.5)
    u = Noise(levels, position=range(draws)).uniform("u", (3, values.uniforms(levels)))
    drawn = values.sample(told.expand(draws, -1, -1), u, levels)
    assert drawn.dtype == torch.uint8 and drawn.shape == (draws, 3)
    p = values.log_probs(told, levels).exp()
    for column in range(3):
        seen = torch.bincount(drawn[:, column].long(), minlength=levels).double()
        expected, often = p[column] * draws, p[column] * draws >= 5
        parts = [(seen[often] - expected[often]).square() / expected[often]]
        if bool((~often).any()) and expected[~often].sum() > 1:
            parts.append((seen[~often].sum() - expected[~often].sum()).square()[None] / expected[~often].sum())
        n = sum(map(len, parts)) - 1
        assert torch.cat(parts).sum() < n + 4.5 * math.sqrt(2 * n) + 5, (column, seen, expected)
    assert torch.equal(values.mode(told, levels).long(), p.argmax(-1))
