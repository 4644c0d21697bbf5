"""WaveNet's receptive field is exact, its rings hold the full network's activations, padding counts for nothing, and a condition is on its frames."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels import artifact, media
from genmodels.core import Batch, Event
from genmodels.models.wavenet import WaveNet
from genmodels.nn import mel
from genmodels.noise import Noise
from genmodels.zoo import build
from tests.genmodels.conftest import examples, labels, shaken, states


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


@pytest.mark.parametrize(("config", "classes"), [({}, 0), ({"stacks": 2, "layers": 2, "kernel": 3}, 2)])
def test_the_network_is_the_paper_s_one_step_at_a_time(config: dict[str, int], classes: int) -> None:
    """Eq. 2 and fig. 4 with plain loops: gated taps beside the identity, and the sum of all layers' skips through two products."""
    model = model_of(event_of(20, classes=classes), **{"stacks": 1, "layers": 3, "residual": 4, "skip": 5, **config})
    x, y = examples(model.event, 1), torch.tensor([1]) if classes else None
    embedded = model.embed(x)[0].T
    z = [torch.zeros(4, dtype=torch.float64), *embedded[:-1]]
    total = [torch.zeros(5, dtype=torch.float64)] * 20
    for layer in model.convolutions():
        weight, bias, kernel = layer.taps.weight, layer.taps.bias, model.config.kernel
        assert bias is not None
        if layer.label.weight is not None:
            bias = bias + layer.label.weight[1]
        after = []
        for t in range(20):
            back = [t - (kernel - 1 - j) * layer.dilation for j in range(kernel)]
            filtered, gated = (bias + sum(weight[..., j] @ z[s] for j, s in enumerate(back) if s >= 0)).chunk(2)
            out = torch.tanh(filtered) * torch.sigmoid(gated)
            total[t] = total[t] + layer.skip(out[:, None])[:, 0]
            after.append(z[t] if layer.residual is None else z[t] + layer.residual(out[:, None])[:, 0])
        z = after
    wanted = [model.out(F.relu(model.hidden(F.relu(each)[:, None])))[:, 0] for each in total]
    torch.testing.assert_close(model.logits(model.embed(x), y)[0], torch.stack(wanted))


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
        for layer in model.convolutions():
            assert layer.label.weight is not None
            before = model.log_prob(x, torch.tensor([1]))
            layer.label.weight[1] += 1
            assert not torch.equal(model.log_prob(x, torch.tensor([1])), before)


def test_the_papers_size_can_be_had() -> None:
    model = shaken("wavenet", event_of(16, levels=256), stacks=3, layers=10, residual=64, skip=128)
    assert isinstance(model, WaveNet) and model.receptive_field == 3070


PITCH = Event(modality="image", shape=(1, 3, 4), levels=0)
"""Three features at four frames."""


def conditions(model: WaveNet, n: int, *, seed: int = 0) -> Tensor:
    """(n, *condition.shape) float32."""
    assert model.event.condition is not None
    return Noise(seed, position=range(n)).normal("c", model.event.condition.shape)


@pytest.mark.parametrize(
    ("event", "config", "frames"),
    [
        (event_of(45), {"condition": "log-mel", "mels": 5, "hop": 8}, [t // 8 for t in range(45)]),
        (event_of(45, classes=3), {"condition": "log-mel", "mels": 2, "hop": 80, "kernel": 3, "layers": 3}, [0] * 45),
        (replace(event_of(45), condition=PITCH), {"condition": "given", "stacks": 3, "layers": 2}, [t * 4 // 45 for t in range(45)]),
    ],
)
def test_rings_follow_the_frames_of_a_condition(event: Event, config: dict[str, Any], frames: list[int]) -> None:
    model = model_of(event, **config)
    c, y = conditions(model, 4), labels(event, 4)
    assert [model.frame(t) for t in range(45)] == frames
    state = model.begin(Noise(4, position=range(4)), y=y, c=c, temperature=torch.ones(4))
    with torch.no_grad():
        for step in range(model.steps):
            full = model.logits(model.embed(model.read(state)), y, c=c)[:, step]
            torch.testing.assert_close(model.next_logits(state), full, rtol=1e-10, atol=1e-10)
            state = model.advance(state, 1)


def test_density_sums_to_one_given_any_condition() -> None:
    model = model_of(replace(event_of(5, levels=4), condition=PITCH), condition="given", layers=2)
    every = states(model.event)
    with torch.no_grad():
        nats = torch.stack([model.log_prob(every, c=c.expand(len(every), *c.shape)) for c in conditions(model, 3)])
    torch.testing.assert_close(nats.exp().sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-9)
    assert float(nats.std(0).mean()) > 0.01, "the condition changes nothing"


def test_a_condition_opens_no_way_to_the_future_of_the_sound() -> None:
    model = model_of(event_of(60), condition="log-mel", hop=10, stacks=1, layers=3, residual=6, skip=6)
    z, c = model.embed(examples(model.event, 4)).detach().requires_grad_(), conditions(model, 4).requires_grad_()
    logits = model.logits(z, None, c=c)
    for t in (0, 7, 40, 59):
        by_sound, by_frame = torch.autograd.grad(logits[:, t].square().sum(), [z, c], retain_graph=True)
        assert (by_sound != 0).any(0).any(0).nonzero().flatten().tolist() == list(range(max(0, t - model.receptive_field), t))
        first, last = max(0, t - model.receptive_field + 1) // 10 - 1, t // 10 + 1
        assert (by_frame != 0).flatten(0, 2).any(0).nonzero().flatten().tolist() == list(range(max(0, first), min(5, last) + 1))


def test_the_condition_reaches_every_layer() -> None:
    model = model_of(event_of(12), condition="log-mel", hop=4, layers=3)
    x = examples(model.event, 1)
    with torch.no_grad():
        for layer in model.convolutions():
            assert layer.local is not None
            before = model.log_prob(x)
            layer.local.weight += 1
            assert not torch.equal(model.log_prob(x), before)


def test_log_mel_is_made_of_the_sound_where_none_is_given() -> None:
    model = shaken("wavenet", event_of(100, classes=2), condition="log-mel", mels=6, hop=16, layers=3).train()
    assert isinstance(model, WaveNet) and model.event.condition == Event(modality="image", shape=(1, 6, 7), levels=0)
    x, y = examples(model.event, 3), torch.tensor([0, 1, 0])
    c, length = model.derive(x), torch.tensor([100, 40, 1])
    assert c.dtype == torch.float32 and c.shape == (3, 1, 6, 7) and float(c.abs().max()) <= 1
    assert torch.equal(model.log_prob(x, y), model.log_prob(x, y, c))
    assert not torch.equal(model.log_prob(x, y), model.log_prob(x, y, c.flip(0)))
    batches = [Batch(x=x, y=y, c=given, length=length, position=torch.arange(3)) for given in (None, c)]
    losses = [model.loss(batch, Noise(0, position=range(3)))[0] for batch in batches]
    assert torch.equal(*losses)
    losses[0].backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


@pytest.mark.parametrize("condition", ["log-mel", "given"])
def test_a_beginning_has_several_futures_and_one_that_is_its_own(condition: str) -> None:
    event = event_of(60) if condition == "log-mel" else replace(event_of(60), condition=PITCH)
    model = shaken("wavenet", event, condition=condition, layers=3)
    assert isinstance(model, WaveNet)
    c, known = conditions(model, 20), torch.arange(60) < 25
    x = model.sample(20, seed=6, c=c)
    assert torch.equal(x[4:6], model.sample(2, seed=6, c=c[4:6], first=4))
    assert not torch.equal(x, model.sample(20, seed=6, c=c.flip(0)))
    again = model.complete(torch.where(known, x, 0), known, seed=6, c=c)
    assert again.exact and torch.equal(again.x, x)
    futures = model.complete(x[:1].expand(20, -1), known, seed=7, c=c[:1].expand(20, -1, -1, -1))
    assert futures.exact and torch.equal(futures.x[:, :25], x[:1, :25].expand(20, -1))
    assert len({tuple(sound) for sound in futures.x.tolist()}) == 20
    with pytest.raises(ValueError, match=r"^condition missing; this model's condition is: image 1x"):
        model.complete(x, known, seed=6)
    with pytest.raises(ValueError, match=r"^condition missing; "):
        model.sample(1, seed=6)


def test_a_conditioned_model_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    model = shaken("wavenet", event_of(40), condition="log-mel", mels=3, hop=7, layers=2)
    assert isinstance(model, WaveNet)
    artifact.save(model, tmp_path / "model", family="wavenet", prepare={"modality": "audio"}, labels=())
    loaded, x = artifact.load(tmp_path / "model"), examples(model.event, 2)
    assert isinstance(loaded, WaveNet) and loaded.event == model.event
    assert torch.equal(loaded.log_prob(x), model.log_prob(x))


@pytest.mark.parametrize(
    ("event", "config", "message"),
    [
        (event_of(9), {"condition": "pitch"}, r"^condition 'pitch', mels 20, hop 80; wanted one of none, given, log-mel, and sizes "),
        (event_of(9), {"condition": "log-mel", "hop": 0}, r"^condition 'log-mel', mels 20, hop 0; "),
        (event_of(9), {"condition": "given"}, r"^condition None given for audio 9, 8 levels; wanted an image of 1 x features x frames"),
        (replace(event_of(3), condition=PITCH), {"condition": "given"}, r"; wanted an image of .*, at most a frame a step$"),
        (replace(event_of(9), condition=PITCH), {}, r"this model takes none unless its setting `condition` is given$"),
        (replace(event_of(9), condition=PITCH), {"condition": "log-mel"}, r"this model makes its own, image 1x20x1, real values$"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(event: Event, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("wavenet", event, **config)


@pytest.mark.parametrize(("levels", "companding"), [(256, "mu-law"), (256, None), (2, None), (17, None)])
def test_amplitudes_are_those_of_media(levels: int, companding: str | None) -> None:
    codes = torch.arange(levels, dtype=torch.uint8)
    expected = torch.from_numpy(media.decode(codes.numpy(), levels, companding))
    torch.testing.assert_close(mel.amplitude(codes, levels, companding), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("rate", "hop", "mels"), [(8000, 80, 20), (16000, 200, 40), (1000, 7, 5)])
def test_a_tone_sounds_in_its_own_bands_and_time(rate: int, hop: int, mels: int) -> None:
    steps = 24 * hop + 1
    time, half = torch.arange(steps, dtype=torch.float64) / rate, torch.arange(steps) < 12 * hop
    edges = 700 * (10 ** (torch.linspace(0, math.log10(1 + rate / 1400), mels + 2, dtype=torch.float64)) - 1)
    for band in (mels // 2, mels - 2):
        c = mel.log_mel((torch.sin(2 * math.pi * edges[band + 1] * time) * half)[None], rate, hop, mels)[0]
        assert c.shape == (mels, mel.frames(steps, hop)) == (mels, 25)
        assert int(c[:, 6].argmax()) == band and float(c[band, 6]) == pytest.approx(1, abs=0.1)
        assert float(c[band, 11]) > 0.9 > float(c[band, 12])  # between the two the tone ends
        assert float(c[:, 14:].max()) == -1  # silence
    assert float(mel.filterbank(rate, 256, 100).sum(1).min()) > 0
