"""A compiled loss is the same loss with the same random numbers, resumed exactly wherever it was cut; what is no graph is told in one line."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genmodels import compilation, noise
from genmodels.compilation import NotCompiled
from genmodels.core import Trained
from genmodels.train import TrainConfig, Training
from genmodels.zoo import build
from tests.genmodels.tiny import EVENT, Tiny, batches

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own compiler uses what torch deprecates

CONFIG = TrainConfig(steps=7, batch_size=4, seed=3, compile=True)


def training(config: TrainConfig) -> Training:
    with noise.initialising(5):
        return Training(Tiny(EVENT, Tiny.Config()), config)


@pytest.fixture(autouse=True, scope="module")
def a_compiler() -> None:
    try:
        compilation.check_compiler(torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.ray
def test_a_compiled_training_is_the_same_but_for_rounding_and_can_be_cut(tmp_path: Path) -> None:
    whole, plain = training(CONFIG), training(replace(CONFIG, compile=False))
    found = whole.run(batches(4), until=7)
    for got, wanted in zip(found, plain.run(batches(4), until=7), strict=True):
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    first, second = training(CONFIG), training(CONFIG)
    parts = first.run(batches(4), until=2)
    first.save(tmp_path / "cut")
    torch._dynamo.reset()  # as a new process: nothing is compiled yet
    second.restore(tmp_path / "cut")
    assert parts + second.run(batches(4), until=7) == found
    for each, name in ((whole, "whole"), (second, "parts")):
        each.save(tmp_path / name)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "parts" / file.name).read_bytes()


def test_a_loss_that_is_no_graph_is_told_in_a_line() -> None:
    """A MADE chooses the step's member by a number that it draws."""
    made = build("made", EVENT)
    assert isinstance(made, Trained)
    with pytest.raises(NotCompiled, match=r"^objective likelihood cannot be compiled \([^\n]+\); set compile to false$"):
        Training(made, CONFIG).run(batches(4), until=1)


def test_without_a_compiler_training_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ValueError, match=r"^compile without a C\+\+ compiler \(no-such-compiler is not found\); install one, or set compile"
    ):
        training(CONFIG)
