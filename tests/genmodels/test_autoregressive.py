"""Units of the autoregressive families: nats of a uniform model, and a known source's entropy that no honest score goes below."""

import math

import pytest
import torch
from torch import Tensor

from genmodels.core import Batch, Density, Event, Progressive, Trained
from genmodels.noise import Noise
from genmodels.zoo import MODELS, build
from tests.genmodels.conftest import EVENTS, TINY, cases, examples, labels

AUTOREGRESSIVE = [name for name, kind in MODELS.items() if issubclass(kind, Density) and issubclass(kind, Progressive)]
SOURCES = {
    "image": Event(modality="image", shape=(1, 4, 4), levels=2),
    "audio": Event(modality="audio", shape=(16,), levels=2, sample_rate=1000),
    "table": Event(modality="table", shape=(16,), levels=2),
}
STAY = 0.85
"""How likely the source's next value is the one before, in raster order."""


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Density, Progressive))
def test_a_uniform_model_scores_d_ln_k(family: str, event: str) -> None:
    model = build(family, EVENTS[event], **TINY.get(family, {}))
    assert isinstance(model, Density)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        nats = -model.log_prob(examples(EVENTS[event], 3), labels(EVENTS[event], 3))
    torch.testing.assert_close(nats, torch.full((3,), EVENTS[event].dims * math.log(EVENTS[event].levels)))


@pytest.mark.parametrize("family", AUTOREGRESSIVE)
def test_no_score_below_the_entropy_of_the_source(family: str) -> None:
    """Trained on a Markov chain, a model comes near the chain's entropy and stays above it: a leak of the future would go below."""
    event = SOURCES[next(iter(MODELS[family].modalities))]
    model = build(family, event, **TINY.get(family, {})).train()
    assert isinstance(model, Density) and isinstance(model, Trained)
    (objective,) = model.objectives()
    optimizer = torch.optim.Adam(objective.parameters, lr=1e-2)
    for step in range(150):
        batch = Batch(x=chain(event, 128, step=step), position=torch.arange(128), step=step)
        optimizer.zero_grad()
        objective.loss(batch, Noise(0, position=batch.position, step=step))[0].backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        nats = -model.log_prob(chain(event, 4000, step=10_000)).double()
    entropy = math.log(2) - 15 * (STAY * math.log(STAY) + (1 - STAY) * math.log(1 - STAY))
    error = float(nats.std()) / math.sqrt(len(nats))
    assert entropy - 4 * error < float(nats.mean()) < entropy + 4 * error + 0.05 * entropy


def chain(event: Event, n: int, *, step: int) -> Tensor:
    """(n, *shape) uint8: 16 values, each equal to the one before with probability STAY."""
    u = Noise(0, position=range(n), step=step).uniform("chain", (16,))
    flips = (u >= STAY).long()
    flips[:, 0] = (u[:, 0] >= 0.5).long()
    return (flips.cumsum(1) % 2).reshape(n, *event.shape).to(torch.uint8)
