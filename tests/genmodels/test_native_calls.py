"""What a compiled sampler keeps between two calls, where a state's rows lie and a kernel's scratch, never shows in what it draws."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from genmodels.core import Autoregressive, Drawing, Event
from genmodels.core.drawing import copied
from genmodels.sampling import library
from genmodels.sampling.native import Compiled, Native
from genmodels.zoo import MODELS
from tests.genmodels.conftest import EVENTS, examples
from tests.genmodels.test_native import begun, common, drawn, model_of

COMPILED = [family for family, kind in MODELS.items() if issubclass(kind, Compiled)]

pytestmark = pytest.mark.skipif(not library.runnable(), reason="no compiled sampler in this installation")


@pytest.mark.parametrize("name", ["x", "uniforms", "order", "temperature", "log_weight", "given", "known", "kept"])
@pytest.mark.parametrize("family", ["nade", "multiscale"])
def test_a_tensor_put_in_another_ones_place_is_seen(family: str, name: str) -> None:
    if (family, name) == ("multiscale", "kept"):
        pytest.skip("its stages' memories are their own")
    model = model_of(family, common(family))
    x = examples(model.event, 3, seed=4)
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    state = begun(model, 3, Native(), x=x, known=known, hot=True)
    model.advance(state, model.steps // 2)
    other = copied(state)  # nothing is known yet of where its rows lie
    before = replaced(state, name)
    replaced(other, name)
    after = before.clone()
    for each in (state, other):
        model.advance(each, model.steps)
    assert torch.equal(state.x, other.x) and torch.equal(state.log_weight, other.log_weight)
    assert torch.equal(before, after), "the tensor that was there before was written to"


def replaced(state: Drawing, name: str) -> torch.Tensor:
    """Gives a state a tensor with rows, or places, in reverse. -> the one that was there."""
    owner = state.memory if name == "kept" else state
    before = getattr(owner, name)
    setattr(owner, name, before.flip(0))
    return before


def afresh(model: Autoregressive, n: int) -> Drawing:
    """Drawn by a thread that keeps nothing yet."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(drawn, model, n, Native(threads=1), hot=True).result()


@pytest.mark.parametrize("family", COMPILED)
def test_a_kernel_knows_nothing_of_the_calls_before(family: str) -> None:
    """Two models of the same sizes and one of another take turns, a batch of another size a turn."""
    event = common(family)
    models = [model_of(family, each, seed=seed) for seed, each in ((1, event), (2, event), (3, smaller(family)))]
    wanted = [(model, afresh(model, n)) for n in (1, 2, 35) for model in models]
    states = [begun(model, len(alone.x), Native(threads=1), hot=True) for model, alone in wanted]
    for k in (1, 2, 5, event.dims):
        for state, (model, _) in zip(states, wanted, strict=True):
            model.advance(state, k)
    assert all(torch.equal(state.x, alone.x) for state, (_, alone) in zip(states, wanted, strict=True))


def smaller(family: str) -> Event:
    names = ["binary", "clicks"]
    return next(EVENTS[name] for name in names if EVENTS[name].modality in MODELS[family].modalities)
