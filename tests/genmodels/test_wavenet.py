"""WaveNet's receptive field is exact, its rings hold the full network's activations, and padding counts for nothing."""

import math
from typing import Any

import pytest
import torch

from genmodels.core import Batch, Event
from genmodels.models.wavenet import WaveNet
from genmodels.noise import Noise
from tests.genmodels.conftest import examples, shaken


def event_of(steps: int, levels: int = 8, classes: int = 0) -> Event:
    return Event(modality="audio", shape=(steps,), levels=levels, sample_rate=8000, classes=classes)


def model_of(event: Event, **config: Any) -> WaveNet:
    model = shaken("wavenet", event, **config).double()
    assert isinstance(model, WaveNet)
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("stacks", "layers", "kernel"), [(1, 1, 2), (1, 4, 2), (2, 3, 2), (2, 3, 3), (3, 2, 4)])
def test_receptive_field_is_exact(stacks: int, layers: int, kernel: int, training: bool) -> None:
    """Step t depends on every one of the `receptive_field` steps before it, on no older one and on no later one."""
    model = model_of(event_of(60), stacks=stacks, layers=layers, kernel=kernel, residual=6, skip=6, dropout=0.2).train(training)
    assert model.receptive_field == 1 + (kernel - 1) * stacks * (2**layers - 1)
    z = model.embed(examples(model.event, 4)).detach().requires_grad_()
    logits = model.logits(z, None, Noise(0, position=range(4)) if training else None)
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in (0, 1, 7, 40, 59):
        (gradient,) = torch.autograd.grad((logits * weight)[:, t].sum(), z, retain_graph=True)
        seen = (gradient != 0).any(0).any(0).nonzero().flatten().tolist()
        assert seen == list(range(max(0, t - model.receptive_field), t))


@pytest.mark.parametrize(
    ("config", "classes"), [({}, 0), ({"kernel": 3, "layers": 3}, 2), ({"stacks": 3, "layers": 2, "kernel": 4, "residual": 5}, 3)]
)
def test_rings_give_the_full_networks_logits(config: dict[str, int], classes: int) -> None:
    model = model_of(event_of(45, classes=classes), **config)
    y = torch.arange(4) % classes if classes else None
    state = model.begin(Noise(4, position=range(4)), y=y, c=None, temperature=torch.ones(4))
    with torch.no_grad():
        for step in range(model.steps):
            full = model.logits(model.embed(model.read(state)), y)[:, step]
            torch.testing.assert_close(model.next_logits(state), full, rtol=1e-10, atol=1e-10)
            state = model.advance(state, 1)


def test_padding_is_neither_learnt_from_nor_scored() -> None:
    model = model_of(event_of(30), layers=3)
    x, length = examples(model.event, 4), torch.tensor([30, 12, 1, 0])
    other = x.clone()
    for row, valid in enumerate(length.tolist()):
        other[row, valid:] = 7 - other[row, valid:]
    with torch.no_grad():
        scores = [model.log_prob(sound, length=length) for sound in (x, other)]
        assert torch.equal(*scores) and scores[0][3] == 0
        assert not torch.equal(model.log_prob(x), model.log_prob(other))
        batches = [Batch(x=sound, length=length, position=torch.arange(4)) for sound in (x, other)]
        losses = [model.loss(batch, Noise(0, position=batch.position))[0] for batch in batches]
    assert losses[0] == losses[1]
    torch.testing.assert_close(losses[0], -scores[0].mean() / 30)


def test_bits_per_dim_counts_valid_steps_only() -> None:
    model = model_of(event_of(20))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        batch = Batch(x=examples(model.event, 3), length=torch.tensor([20, 5, 10]), position=torch.arange(3))
        loss, metrics = model.loss(batch, Noise(0, position=batch.position))
    assert metrics["bits_per_dim"].item() == pytest.approx(math.log2(8))
    assert loss.item() == pytest.approx((20 + 5 + 10) / 3 * math.log(8) / 20)


def test_the_class_reaches_every_layer() -> None:
    model = model_of(event_of(12, classes=2), layers=3)
    x = examples(model.event, 1)
    with torch.no_grad():
        for layer in model._layers():
            assert layer.label.weight is not None
            before = model.log_prob(x, torch.tensor([1]))
            layer.label.weight[1] += 1
            assert not torch.equal(model.log_prob(x, torch.tensor([1])), before)


def test_the_papers_size_can_be_had() -> None:
    model = shaken("wavenet", event_of(16, levels=256), stacks=3, layers=10, residual=64, skip=128)
    assert isinstance(model, WaveNet) and model.receptive_field == 3070
