"""What test_triton.py asks of the WaveNet kernel, in a process of its own: TRITON_INTERPRET is read when triton is imported.

TRITON_INTERPRET=1 python -m tests.genmodels.interpreted     one line of JSON
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from genmodels.core import Drawing, Eager, Event, Sampler, copied
from genmodels.models.wavenet import WaveNet
from genmodels.noise import Noise
from genmodels.sampling.triton_wavenet import Precision, Rings, TritonWaveNet
from tests.genmodels.conftest import examples, labels, shaken

SOUND = Event(modality="audio", shape=(10,), levels=40, sample_rate=1000)
SIZES: dict[str, tuple[Event, dict[str, Any], int]] = {
    "plain": (SOUND, {"stacks": 2, "layers": 3, "residual": 16, "skip": 32}, 3),
    "odd": (replace(SOUND, levels=19, classes=3), {"stacks": 1, "layers": 3, "kernel": 3, "residual": 7, "skip": 90}, 18),
    "frames": (
        replace(SOUND, levels=8),
        {"stacks": 1, "layers": 2, "residual": 20, "skip": 9, "condition": "log-mel", "hop": 4, "mels": 3},
        4,
    ),
    "one layer": (replace(SOUND, levels=2), {"stacks": 1, "layers": 1, "residual": 5, "skip": 5}, 1),
}


def model_of(size: str) -> tuple[WaveNet, int]:
    event, config, n = SIZES[size]
    model = shaken("wavenet", event, by=1.0, **config)
    assert isinstance(model, WaveNet)
    return model, n


def begun(model: WaveNet, n: int, sampler: Sampler, **given: Any) -> Drawing:
    model.sampler = sampler
    wanted = model.event.condition
    c = None if wanted is None else Noise(2, position=range(n)).normal("c", wanted.shape)
    y = labels(model.event, n)
    if y is not None:
        y[0] = -1  # of no class
    with torch.no_grad():
        return model.begin(Noise(1, position=range(n)), y=y, c=c, temperature=torch.linspace(0.8, 1.3, n), **given)


def forced(model: WaveNet, n: int, sampler: Sampler) -> tuple[torch.Tensor, Drawing]:
    """The logits of every step of a sound that is given, in portions, and the state after it."""
    x = examples(model.event, n)
    state = begun(model, n, sampler, x=x, known=torch.ones_like(x, dtype=torch.bool))
    found = []
    for k in (1, 5, 100):
        before = state.step
        logits = torch.empty(n, min(k, model.steps - before), model.event.levels)
        if isinstance(state.memory, Rings):
            state.memory.advance(state, k, logits)
        else:
            for i in range(logits.shape[1]):
                logits[:, i] = model.next_logits(state)
                model.advance(state, 1)
        found.append(logits)
    return torch.cat(found, dim=1), state


def given(size: str, precision: Precision) -> dict[str, Any]:
    model, n = model_of(size)
    (logits, state), (eager, wanted) = forced(model, n, TritonWaveNet(precision, interpreted=True)), forced(model, n, Eager())
    assert isinstance(state.memory, Rings) and torch.equal(state.x, wanted.x)
    return {
        "logits": float((logits - eager).abs().max()),
        "spread": float(eager.std()),
        "log_weight": float((state.log_weight - wanted.log_weight).abs().max()) / model.steps,
    }


def free(size: str) -> dict[str, Any]:
    """Drawn at once, in portions, a copy that is left behind, half given: what the eager sampler draws."""
    model, n = model_of(size)
    x, known = examples(model.event, n), torch.arange(model.steps).expand(n, -1) % 3 == 1
    eager = model.advance(begun(model, n, Eager()), model.steps).x
    half = model.advance(begun(model, n, Eager(), x=x, known=known), model.steps)
    sampler = TritonWaveNet(interpreted=True)
    state = model.advance(begun(model, n, sampler), 4)
    twin = copied(state)
    for k in (1, 6, 100):
        model.advance(twin, k)
    filled = model.advance(begun(model, n, sampler, x=x, known=known), 100)
    return {
        "portions": torch.equal(twin.x, eager),
        "left": state.step == 4 and torch.equal(model.advance(state, 100).x, eager),
        "half given": torch.equal(filled.x, half.x) and bool(((filled.log_weight - half.log_weight).abs() < 1e-3).all()),
    }


def broken() -> dict[str, Any]:
    model, n = model_of("odd")
    with torch.no_grad():
        model.hidden.weight[0] = torch.inf
    try:
        model.advance(begun(model, n, TritonWaveNet(interpreted=True)), 3)
    except ValueError as error:
        return {"error": str(error)}
    return {}


def main() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for size in SIZES:
        found[size] = {"f32": given(size, "f32"), "free": free(size)}
    found["odd"]["bf16"] = given("odd", "bf16")
    found["broken"] = broken()
    return found


if __name__ == "__main__":
    np.seterr(all="ignore")
    print(json.dumps(main()))
