"""Compression: exact on every family and event, as short as the model says, the same bytes again, and one line for what is refused."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from genmodels import coding
from genmodels.coding import TOTAL, compress, decompress, quantised
from genmodels.compressed import HEADER, Compressed
from genmodels.core import Autoregressive, Event
from genmodels.zoo import build
from tests.genmodels.conftest import EVENTS, TINY, cases, examples, labels, shaken

N = 18
"""Two blocks, the second one padded."""


def example_model(event: str = "grey", family: str = "gated_pixelcnn", *, seed: int = 0) -> Autoregressive:
    model = shaken(family, EVENTS[event], seed=seed, **TINY.get(family, {}))
    assert isinstance(model, Autoregressive)
    return model


def some_lengths(event: Event, n: int = N) -> Tensor | None:
    return 1 + torch.arange(n) * 7 % event.dims if event.modality == "audio" else None


def quantised_bits(model: Autoregressive, x: Tensor, y: Tensor | None, lengths: Tensor | None) -> float:
    """-log2 of the quantised model's probability of x and y, by stepping one block of its own."""
    total, order = 0.0, model.order.tolist()
    for start in range(0, len(x), 16):
        rows = torch.arange(start, start + 16).clamp(max=len(x) - 1)
        counts, flat = min(16, len(x) - start), x.flatten(1)[rows].long()
        memory = model.start(model.order, 16, y=None if y is None else y[rows], c=None)
        for place in order:
            p = quantised(model.predict(memory))[np.arange(16), flat[:, place].numpy()] / TOTAL
            live = np.arange(16) < counts if lengths is None else (np.arange(16) < counts) & (lengths[rows].numpy() > place)
            total -= float(np.log2(p[live]).sum())
            model.take(memory, flat[:, place])
    if y is not None:
        total -= float(np.log2(quantised(model.class_frequencies.log()[None])[0, y.numpy()] / TOTAL).sum())
    return total


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Autoregressive))
def test_the_round_trip_is_exact_and_as_short_as_the_model_says(family: str, event: str) -> None:
    model = example_model(event, family)
    x, y, lengths = examples(model.event, N), labels(model.event, N), some_lengths(model.event)
    made = Compressed.from_bytes(compress(model, x, y, lengths).to_bytes())
    if lengths is not None:
        x = x * (torch.arange(x.shape[1]) < lengths[:, None]).to(torch.uint8)
    back, back_y = decompress(model, made)
    assert torch.equal(back, x)
    assert (back_y is None and y is None) or (back_y is not None and y is not None and torch.equal(back_y, y))
    with torch.no_grad():
        bits = quantised_bits(model, x, y, lengths)
        said = -float(model.log_prob(x, y, length=lengths).double().sum()) / math.log(2)
        said -= 0 if y is None else float(model.class_frequencies[y].log2().sum())
    assert abs(8 * len(made.payload) - bits) <= 64 + 1e-3 * bits
    assert 8 * len(made.payload) <= 1.01 * said + 64


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_probabilities_become_whole_numbers_and_the_coder_takes_exactly_those(levels: int) -> None:
    """However uneven the logits: they sum to 2^24, none is 0, and the coder's interval after one symbol is that symbol's share."""
    generator = torch.Generator().manual_seed(levels)
    logits = torch.randn(200, levels, generator=generator) * torch.logspace(-3, 3, 200)[:, None]
    logits[0], logits[1], logits[2, 1:] = 0, 1e4, -torch.inf
    counts = quantised(logits)
    assert counts.dtype == np.int64 and (counts.sum(1) == TOTAL).all() and counts.min() >= 1
    np.testing.assert_allclose(counts / TOTAL, torch.softmax(logits.double(), 1), atol=(levels + 1) / TOTAL)
    for row in counts:
        symbol = int(row.argmax())  # a likely one: its interval needs no new word
        writer = coding._Writer()
        writer(row[None], np.array([symbol]))
        assert writer._encoder.pos() == (0, (((1 << 64) - 1 >> 24) * int(row[:symbol].sum()), ((1 << 64) - 1 >> 24) * int(row[symbol])))


def test_a_level_of_no_probability_costs_24_bits() -> None:
    counts = quantised(torch.tensor([[0.0, -torch.inf]]))
    assert counts.tolist() == [[TOTAL - 1, 1]]
    writer = coding._Writer()
    for _ in range(100):
        writer(counts, np.array([1]))
    assert 2400 <= 8 * len(writer.payload) <= 2464


def test_the_likeliest_label_is_coded_and_never_one_that_training_lacked() -> None:
    model = example_model()
    model.class_frequencies.copy_(torch.tensor([0.75, 0.0, 0.25]))
    x = examples(model.event, N)
    made = compress(model, x)
    back, y = decompress(model, made)
    assert y is not None and torch.equal(back, x)
    assert torch.equal(y, model.classify(x).argmax(-1)) and 1 not in y
    bits = -float(model.joint_log_prob(x).detach().gather(1, y[:, None]).sum()) / math.log(2)
    assert abs(8 * len(made.payload) - bits) < 64 + 1e-3 * bits


def test_the_same_bytes_again() -> None:
    model, x = example_model(), examples(EVENTS["grey"], N)
    made = compress(model, x).to_bytes()
    assert made == compress(model.train(), x).to_bytes()
    assert model.training
    assert made[:HEADER] != compress(model, x[:-1]).to_bytes()[:HEADER]
    assert HEADER <= 64


def test_padding_is_not_coded() -> None:
    model = example_model("clicks", "wavenet")
    x, lengths = examples(model.event, N), some_lengths(model.event)
    assert lengths is not None
    other = torch.where(torch.arange(x.shape[1]) < lengths[:, None], x, 3 - x)
    assert compress(model, x, lengths=lengths) == compress(model, other, lengths=lengths)


def test_no_examples_at_all() -> None:
    model = example_model("binary")
    made = Compressed.from_bytes(compress(model, examples(model.event, 0)).to_bytes())
    assert decompress(model, made)[0].shape == (0, *model.event.shape)


def test_the_threads_of_the_writer_are_the_readers() -> None:
    model, had = example_model("binary"), torch.get_num_threads()
    x = examples(model.event, 3)
    made = compress(model, x, threads=had + 1)
    assert f"threads-{had + 1}" in made.equality_class and torch.get_num_threads() == had
    assert torch.equal(decompress(model, made)[0], x) and torch.get_num_threads() == had


def refused(call: object, *words: str) -> None:
    with pytest.raises(ValueError) as error:
        call()  # type: ignore[operator]
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_another_model_is_refused_and_both_are_named() -> None:
    made = compress(example_model("binary"), examples(EVENTS["binary"], 2))
    other = example_model("binary", seed=1)
    refused(lambda: decompress(other, made), made.model, coding.digest(other))


def test_another_equality_class_is_refused_and_both_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = example_model("binary")
    made = compress(model, examples(model.event, 2))
    monkeypatch.setattr(coding, "equality_class", lambda device: "another")
    refused(lambda: decompress(model, made), made.equality_class, "another")


def test_a_file_cut_short_or_changed_anywhere_is_refused() -> None:
    model = example_model("binary")
    data = compress(model, examples(model.event, 3), names={"files": ["ü.png"]}).to_bytes()
    assert Compressed.from_bytes(data).names == {"files": ["ü.png"]}
    for size in range(len(data)):
        refused(lambda size=size: Compressed.from_bytes(data[:size]))
    for at in range(len(data)):
        refused(lambda at=at: Compressed.from_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]))
    refused(lambda: Compressed.from_bytes(data + b"\0"), "changed")
    refused(lambda: Compressed.from_bytes(data[:-1]), "cut short", f"{len(data):,}")
    refused(lambda: Compressed.from_bytes(b"PK\3\4" + data), "no compressed file")


def test_a_payload_of_other_numbers_is_refused() -> None:
    """What a machine would meet whose logits are not those of the writer: noise, and a checksum that says so."""
    model = example_model("binary")
    made = compress(model, examples(model.event, 20))
    refused(lambda: decompress(model, replace(made, payload=made.payload[4:] + b"\xff" * 4)))


def test_models_without_conditionals_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = examples(EVENTS["binary"], 2)
    refused(lambda: compress(build("vae", EVENTS["binary"]), x), "VAE", "bounded")
    model = example_model("binary")
    model.event = replace(model.event, condition=EVENTS["clicks"])
    refused(lambda: compress(model, x), "conditioned on audio")

    def averaged(*_: object, **__: object) -> Tensor:
        raise ValueError("4 orders are averaged over: no conditionals one by one")

    model = example_model("binary")
    monkeypatch.setattr(model, "conditional_log_probs", averaged)
    refused(lambda: compress(model, x), "4 orders")


def test_what_does_not_fit_the_model_is_refused() -> None:
    model = example_model("clicks", "wavenet")
    x = examples(model.event, 3)
    refused(lambda: compress(model, x[:, :-1]), "shape")
    refused(lambda: compress(model, x, torch.zeros(3)), "label")
    refused(lambda: compress(model, x, lengths=torch.tensor([1, 2, 25])), "lengths")
    refused(lambda: compress(model, x, threads=0), "threads")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    refused(lambda: compress(model, x), "finite")


def test_a_model_loads_without_the_coder() -> None:
    program = "import sys, genmodels, genmodels.artifact, genmodels.coding; print('constriction' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
