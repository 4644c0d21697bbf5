"""The two players' losses against their closed forms, and each player's step against the other's weights."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genmodels.core import Batch, Event
from genmodels.models.gan import GAN, discriminator_loss, squared_gradients, unit_norm_penalty
from genmodels.noise import Noise
from tests.genmodels.conftest import examples, shaken

EVENT = Event(modality="image", shape=(1, 8, 8), levels=17, classes=3)


def model_of(event: Event = EVENT, **config: Any) -> GAN:
    model = shaken("gan", event, hidden=8, latent=8, **config)
    assert isinstance(model, GAN)
    return model


def batch_of(n: int = 6) -> Batch:
    return Batch(x=examples(EVENT, n), y=torch.arange(n) % 3, position=torch.arange(n))


class Linear(nn.Module):
    """A critic whose gradient is its weight everywhere."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        return (x * self.weight).flatten(1).sum(1)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradient_penalty_of_a_linear_critic(autocast: bool) -> None:
    """(|w| - 1)^2 with the norm over channels, rows and columns of one picture; in float32 under autocast too."""
    weight = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    critic, x = Linear(weight), torch.randn(5, 2, 3, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        squared, penalty = squared_gradients(critic, x, None), unit_norm_penalty(critic, x, None)
    assert penalty.dtype == torch.float32 and penalty.shape == (5,)
    torch.testing.assert_close(squared, weight.square().sum().expand(5))
    torch.testing.assert_close(penalty, (weight.norm() - 1).square().expand(5))
    (gradient,) = torch.autograd.grad(penalty.mean(), critic.weight)
    torch.testing.assert_close(gradient, 2 * (weight.norm() - 1) * weight / weight.norm())


def test_a_real_critic_s_penalty_keeps_float32_under_autocast() -> None:
    model, x = model_of(), torch.rand(4, 1, 8, 8) * 2 - 1
    plain = squared_gradients(model.critic, x, torch.tensor([0, 1, 2, 0]))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(squared_gradients(model.critic, x, torch.tensor([0, 1, 2, 0])), plain, rtol=1e-6, atol=1e-8)


def test_the_best_discriminator_and_its_value() -> None:
    """On a discrete toy the loss is least at D = p / (p + q), where it is log 4 - 2 JSD(p, q)."""
    p, q = torch.tensor([0.5, 0.25, 0.125, 0.125]).double(), torch.tensor([0.125, 0.125, 0.25, 0.5]).double()
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe")
    states = [torch.repeat_interleave(torch.arange(4), (8 * share).long()) for share in (p, q)]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = discriminator_loss(logits[states[0]], logits[states[1]]).mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    middle = (p + q) / 2
    divergence = ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2
    torch.testing.assert_close(logits.detach().sigmoid(), p / (p + q))
    assert closure().item() == pytest.approx(math.log(4) - 2 * divergence.item(), abs=1e-9)


@pytest.mark.parametrize("loss", ["non-saturating", "wgan-gp"])
def test_the_critics_loss_leaves_the_generator_alone(loss: str) -> None:
    """Even with nothing frozen no gradient reaches it."""
    model = model_of(loss=loss).train()
    model.critic_loss(batch_of(), Noise(0, position=range(6)))[0].backward()
    assert all(parameter.grad is None for parameter in model.generator.parameters())
    assert all(parameter.grad is not None for parameter in model.critic.parameters())


@pytest.mark.parametrize(("loss", "first"), [("non-saturating", "discriminator"), ("wgan-gp", "critic")])
def test_who_plays_when(loss: str, first: str) -> None:
    objectives = model_of(loss=loss, critic_steps=3).objectives()
    assert [(objective.name, objective.every) for objective in objectives] == [(first, 1), ("generator", 3)]
    turns = [[objective.name for objective in objectives if step % objective.every == 0] for step in range(7)]
    assert turns == [[first, "generator"] if step in (0, 3, 6) else [first] for step in range(7)]


def test_wasserstein_loss_is_the_difference_of_means_and_the_penalty() -> None:
    model, batch, noise = model_of(loss="wgan-gp", penalty=7.0), batch_of(), Noise(4, position=range(6))
    loss, metrics = model.critic_loss(batch, noise)
    real, fake = model._blurred(batch.x / 8 - 1, noise, "critic.real"), model._fakes(batch, noise, "critic").detach()
    share = noise.uniform("critic.share")[:, None, None, None]
    at_real, at_fake = model.critic(real, batch.y), model.critic(fake, batch.y)
    penalty = 7 * unit_norm_penalty(model.critic, share * real + (1 - share) * fake, batch.y)
    torch.testing.assert_close(loss, (at_fake - at_real + penalty).mean())
    torch.testing.assert_close(metrics["real_minus_fake"], (at_real - at_fake).mean().detach())


def test_generator_losses_are_the_papers() -> None:
    noise, batch = Noise(4, position=range(6)), batch_of()
    for loss, value in (("wgan-gp", lambda logit: -logit), ("non-saturating", lambda logit: -logit.sigmoid().log())):
        model = model_of(loss=loss)
        logit = model.critic(model._fakes(batch, noise, "generator"), batch.y)
        torch.testing.assert_close(model.generator_loss(batch, noise)[0], value(logit).mean())


def test_a_picture_and_its_blur_are_the_same_levels() -> None:
    """The noise before the critic stays within half a level of the picture, on both sides of it."""
    model, x = model_of(), torch.zeros(50, 1, 8, 8)
    moved = (model._blurred(x, Noise(0, position=range(50)), "t") - x) * 8
    assert moved.abs().max() <= 0.5 and moved.min() < -0.49 and moved.max() > 0.49 and moved.mean().abs() < 0.02


def test_the_critic_judges_each_picture_alone() -> None:
    model = model_of().double().train()
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.critic(x, torch.zeros(4, dtype=torch.int64))[1], x)
    assert gradient[1].any() and not gradient[[0, 2, 3]].any()


def test_labels_reach_both_players() -> None:
    model, noise = model_of(), Noise(0, position=range(1))
    pictures = [model.generator(noise.normal("z", (8,)), torch.tensor([label])) for label in range(3)]
    assert not torch.equal(pictures[0], pictures[1])
    values = {model.critic(pictures[0], torch.tensor([label])).item() for label in range(3)}
    assert len(values) == 3


def test_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^loss 'hinge'; wanted non-saturating or wgan-gp$"):
        GAN.Config(loss="hinge")  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["non-saturating", "wgan-gp"])
def test_the_game_finds_every_mode(loss: str) -> None:
    """Four equally likely patterns of stripes: after a short game each has its share of the samples, and hardly any sample is none of them."""
    event = Event(modality="image", shape=(1, 4, 4), levels=2)
    stripes = torch.arange(16).reshape(1, 4, 4)
    patterns = torch.stack([stripes // 4 % 2, 1 - stripes // 4 % 2, stripes % 2, 1 - stripes % 2]).to(torch.uint8)
    model = shaken(
        "gan", event, by=0.0, hidden=16, latent=8, loss=loss, penalty=1.0 if loss == "non-saturating" else 10.0, critic_steps=2
    ).train()
    assert isinstance(model, GAN)
    objectives = model.objectives()
    optimizers = [torch.optim.Adam(objective.parameters, lr=2e-3, betas=objective.optimizer.betas) for objective in objectives]
    for step in range(300):
        x = patterns[(Noise(1, position=range(64), step=step).uniform("mode") * 4).long()]
        batch = Batch(x=x, position=torch.arange(64), step=step)
        for objective, optimizer in zip(objectives, optimizers, strict=True):
            if step % objective.every == 0:
                loss_value = objective.loss(batch, Noise(0, position=batch.position, step=step))[0]
                gradients = torch.autograd.grad(loss_value, list(objective.parameters))
                for parameter, gradient in zip(objective.parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
    samples = model.sample(400, seed=0)
    apart = (samples[:, None] != patterns).flatten(2).sum(2)
    share = torch.bincount(apart.argmin(1)[apart.min(1).values <= 1], minlength=4) / 400
    assert share.sum() > 0.8 and share.min() > 0.08, share.tolist()
