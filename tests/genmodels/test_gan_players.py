"""The networks of a GAN's players: spectral norms that are one, labels that are heard, rows apart, tables of real values, and settings that clash."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genmodels.core import Batch, Event
from genmodels.models.gan import GAN
from genmodels.models.gan_players import Projection
from genmodels.models.spectral import SQUARINGS, SpectralConv2d, SpectralLinear, largest_singular_value, normalised
from genmodels.noise import Noise
from genmodels.train import TrainConfig, Training
from tests.genmodels.conftest import examples, shaken

PICTURE = Event(modality="image", shape=(1, 8, 8), levels=17, classes=3)
LEVELS = Event(modality="table", shape=(6,), levels=3, classes=3)
REALS = Event(modality="table", shape=(5,), levels=0, classes=3)
SNGAN: dict[str, Any] = {"loss": "hinge", "spectral": True, "conditioning": "projection", "critic_steps": 2}
VARIANTS: list[dict[str, Any]] = [SNGAN, {**SNGAN, "r1": 0.5}, {"loss": "wgan-gp"}, {"loss": "minimax", "conditioning": "projection"}]


def model_of(event: Event, **config: Any) -> GAN:
    model = shaken("gan", event, hidden=8, latent=8, **config)
    assert isinstance(model, GAN)
    return model


def batch_of(event: Event, n: int = 12, step: int = 3) -> Batch:
    position = torch.arange(n) + step * n
    x = examples(event, n, seed=step) if event.levels else 3 + 2 * Noise(1, position=position).normal("x", event.shape)
    return Batch(x=x, y=torch.arange(n) % 3, position=position, step=step)


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (24, 5, 3, 3), (1, 9), (128, 128)])
def test_largest_singular_value(shape: tuple[int, ...]) -> None:
    """As by decomposition, its gradient too."""
    weight = Noise(0, position=range(shape[0])).normal("w", shape[1:]).double().requires_grad_()
    found, exact = largest_singular_value(weight), torch.linalg.matrix_norm(weight.flatten(1), 2)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(value, weight)[0] for value in (found, exact)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_close_singular_values_cost_no_more_than_stated() -> None:
    rows = 64
    basis, _ = torch.linalg.qr(Noise(0, position=range(rows)).normal("w", (rows,)).double())
    for values in (torch.ones(rows), 1 - torch.arange(rows) / 1e5, 1e-3 * torch.linspace(1, 0.99, rows), 1e4 * 0.5 ** torch.arange(rows)):
        for precision in (torch.float32, torch.float64):
            weight = (basis * values.double() @ basis.roll(1, 0).T).to(precision)
            ratio = largest_singular_value(weight).item() / values.max().item()
            assert rows ** (-1 / 2 ** (SQUARINGS + 1)) - 1e-5 <= ratio <= 1 + 1e-5


def effective(layer: nn.Module) -> Tensor:
    """(out, in) matrix that a layer applies, (out, in * 9) of a convolution: probed, not read."""
    if isinstance(layer, nn.Linear):
        return (layer(torch.eye(layer.in_features)) - layer(torch.zeros(1, layer.in_features))).T
    assert isinstance(layer, nn.Conv2d)
    patches = torch.zeros(9 * layer.in_channels, layer.in_channels, 5, 5)
    patches[..., 1:4, 1:4] = torch.eye(9 * layer.in_channels).reshape(-1, layer.in_channels, 3, 3)
    centre = 2 // layer.stride[0]
    return (layer(patches) - layer(torch.zeros_like(patches)))[..., centre, centre].T


@pytest.mark.parametrize("event", [PICTURE, REALS])
def test_every_layer_of_a_trained_spectral_critic_has_norm_one(event: Event) -> None:
    model = model_of(event, **SNGAN)
    Training(model, TrainConfig(steps=20, batch_size=12)).run(lambda step: batch_of(event, step=step), until=20)
    layers = [layer for layer in model.critic.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert len(layers) > 2 and all(isinstance(layer, SpectralConv2d | SpectralLinear) for layer in layers)
    with torch.no_grad():
        norms = [torch.linalg.matrix_norm(effective(layer), 2).item() for layer in layers]
        own = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in layers]
    assert norms == pytest.approx([1.0] * len(layers), abs=2e-3)
    assert max(abs(norm - 1) for norm in own) > 0.05, "the weights have norm one by themselves, which proves nothing"
    (projection,) = (layer for layer in model.critic.modules() if isinstance(layer, Projection))
    assert torch.linalg.matrix_norm(normalised(projection.weight).detach(), 2).item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("event", [PICTURE, LEVELS, REALS])
@pytest.mark.parametrize("config", VARIANTS)
def test_loss_is_a_mean_over_rows_and_changes_nothing(event: Event, config: dict[str, Any]) -> None:
    """So that parts of a batch, on one worker or several, add up; no vector of a power iteration moves."""
    model, batch = model_of(event, **config).train(), batch_of(event)
    noise = Noise(0, position=batch.position, step=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for objective in model.objectives():
        assert torch.equal(objective.loss(batch, noise)[0], objective.loss(batch, noise)[0])
        parts = [objective.loss(batch.rows(a, b), noise.rows(a, b))[0] * (b - a) / 12 for a, b in ((0, 3), (3, 12))]
        whole, apart = (
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, objective.parameters, allow_unused=True) if g is not None])
            for loss in (objective.loss(batch, noise)[0], parts[0] + parts[1])
        )
        torch.testing.assert_close(apart, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("event", [PICTURE, REALS])
def test_a_resumed_game_is_the_undisturbed_one(event: Event, tmp_path: Path) -> None:
    def training() -> Training:
        return Training(model_of(event, **SNGAN), TrainConfig(steps=6, batch_size=12, ema=0.9))

    whole, begun, resumed = training(), training(), training()
    whole.run(lambda step: batch_of(event, step=step), until=6)
    begun.run(lambda step: batch_of(event, step=step), until=3)
    begun.save(tmp_path)
    resumed.restore(tmp_path)
    resumed.run(lambda step: batch_of(event, step=step), until=6)
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("event", [PICTURE, LEVELS, REALS])
@pytest.mark.parametrize("config", VARIANTS)
def test_the_critic_judges_each_row_alone(event: Event, config: dict[str, Any]) -> None:
    model = model_of(event, **config).double().train()
    x = Noise(0, position=range(4)).uniform("x", event.shape).double().requires_grad_()
    (gradient,) = torch.autograd.grad(model.critic(x, torch.zeros(4, dtype=torch.int64))[1], x)
    assert gradient[1].any() and not gradient[[0, 2, 3]].any()
    assert not [layer for layer in model.critic.modules() if "Norm" in type(layer).__name__]


@pytest.mark.parametrize("event", [PICTURE, LEVELS, REALS])
@pytest.mark.parametrize("conditioning", ["concatenation", "projection"])
def test_labels_reach_both_players(event: Event, conditioning: str) -> None:
    model, noise = model_of(event, conditioning=conditioning), Noise(0, position=range(1))
    made = [model.generator(noise.normal("z", (8,)), torch.tensor([label])) for label in range(3)]
    assert not torch.equal(made[0], made[1])
    assert len({model.critic(made[0], torch.tensor([label])).item() for label in (-1, 0, 1, 2)}) == 4


@pytest.mark.parametrize("spectral", [False, True])
def test_a_projection_is_the_label_s_vector_times_the_features(spectral: bool) -> None:
    """D(x, y) - D(x, no label) = v_y . phi(x), phi(x) being what the last layer reads."""
    model, batch = model_of(PICTURE, conditioning="projection", spectral=spectral), batch_of(PICTURE)
    seen: list[Tensor] = []
    assert model.critic.project is not None
    model.critic.leave.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x, y = model._inside(batch.x), torch.tensor([0, 1, 2, -1] * 3)
    with torch.no_grad():
        with_label, without = model.critic(x, y), model.critic(x, torch.full_like(y, -1))
        weight = model.critic.project.weight
        vectors = weight / torch.linalg.matrix_norm(weight, 2) if spectral else weight
        wanted = (vectors[y.clamp(min=0)] * seen[0]).sum(1) * (y >= 0)
    assert wanted[y >= 0].abs().mean() > 0.1
    torch.testing.assert_close(with_label - without, wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(without, model.critic(x, None))


def test_a_table_of_reals_is_made_of_its_own_values() -> None:
    """No noise before the critic; moved and scaled data make a moved and scaled model, of the same game."""
    location, scale = (1.0, -2.0, 0.0, 5.0, 3.0), (2.0, 0.5, 1.0, 4.0, 3.0)
    plain, moved = model_of(REALS), model_of(REALS, location=location, scale=scale)
    samples, y = plain.sample(5, seed=3, y=1), torch.ones(7, dtype=torch.int64)
    assert samples.dtype == torch.float32 and samples.shape == (5, 5) and samples.abs().max() > 0
    torch.testing.assert_close(moved.sample(5, seed=3, y=1), samples * torch.tensor(scale) + torch.tensor(location))
    batch, noise = batch_of(REALS), Noise(0, position=range(12))
    assert torch.equal(plain._blurred(batch.x, noise, "critic.real"), batch.x)
    shifted = replace(batch, x=batch.x * torch.tensor(scale) + torch.tensor(location))
    for name in ("critic_loss", "generator_loss"):
        torch.testing.assert_close(getattr(plain, name)(batch, noise)[0], getattr(moved, name)(shifted, noise)[0])
    codes = plain.codes(Noise(3, position=range(14)))
    path = moved.interpolate(codes[:7], codes[7:], 4, y)
    assert path.shape == (7, 4, 5)
    torch.testing.assert_close(path[:, 0], moved.decode(codes[:7], y))
    torch.testing.assert_close(path[:5, 0], moved.sample(5, seed=3, y=1))


@pytest.mark.parametrize(
    ("event", "config", "why"),
    [
        (PICTURE, {"loss": "hing"}, r"^loss 'hing'; wanted minimax, non-saturating, hinge, wgan-gp$"),
        (PICTURE, {"conditioning": "project"}, r"^conditioning 'project'; wanted concatenation or projection$"),
        (PICTURE, {"critic_steps": 0}, r"wanted sizes and steps of at least 1 and penalties of at least 0$"),
        (PICTURE, {"r1": -1.0}, r"wanted sizes and steps of at least 1 and penalties of at least 0$"),
        (
            PICTURE,
            {"loss": "wgan-gp", "r1": 1.0},
            r"^r1 1 with wgan-gp, which has a penalty of its own; leave r1 out, or take another loss$",
        ),
        (PICTURE, {"scale": (2.0,)}, r"they are of real values, leave them out$"),
        (replace(PICTURE, levels=0), {}, r"^GAN models pictures of levels; got image 1x8x8, real values, 3 classes$"),
        (replace(PICTURE, condition=LEVELS), {}, r"^GAN takes no condition but a label; got "),
        (replace(REALS, classes=0), {"conditioning": "projection"}, r"^conditioning by projection for .*, which has no classes; "),
        (REALS, {"location": (1.0, 2.0)}, r"^2 numbers of location for table 5, real values, 3 classes; wanted 1 or 5$"),
        (REALS, {"scale": (0.0,)}, r"^scale \(0.0,\); wanted numbers above 0$"),
    ],
)
def test_settings_that_clash_are_refused(event: Event, config: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        GAN(event, GAN.Config(**config))
