"""Lossless compression: a range coder driven by any product of conditionals, so that examples take as many bits as the model says they should.

A Mathematical Theory of Communication (Shannon, 1948): the shortest code of x has -log2 p(x) bits. Range encoding: an algorithm for removing
redundancy from a digitised message (Martin, 1979); the coder is constriction's (Bamler, 2022, arXiv:2201.01741).

Both sides step the same sampler over the same blocks of 16 rows, with the same number of threads, and hand the coder whole numbers: each step's
probabilities as multiples of 2^-24, every level at least one. A label is coded first where there are classes, by how often each came in training, so
that an example takes -log2 p(x, y) bits. A file can be read in the equality class it was written in, and in no other: there another last bit of a
logit may move a boundary between two levels, and everything after it would be noise.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmodels.compressed import Compressed, hashed
from genmodels.core import Autoregressive, GenerativeModel, blocks, capabilities
from genmodels.machine import equality_class

TOTAL = 1 << 24
"""What a step's probabilities add up to; constriction's precision."""

Code = Callable[[NDArray[np.int64], NDArray[Any]], NDArray[Any]]
Step = Callable[[float, int], None]


@torch.no_grad()
def compress(
    model: GenerativeModel,
    x: Tensor,
    y: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    threads: int = 1,
    names: Mapping[str, Any] = {},
    step: Step = lambda done, total: None,
) -> Compressed:
    """x (n, *shape) levels, y (n,) int64 (left out on a class model: the likeliest of each), lengths (n,) valid steps of sounds.

    step is told of the progress, in examples. Raises ValueError for a model that has no exact conditionals, or takes a condition.
    """
    coder = coding(model)
    levels = coder.examples(x)
    with _settled(coder, threads):
        y = likeliest(coder, levels, lengths)[0] if y is None and coder.event.classes else coder.condition(y, len(levels))
        lengths = None if lengths is None else _fitting(coder, lengths, len(levels))
        if len(levels):  # a model that averages over orders says so here
            coder.conditional_log_probs(levels[:1], y=None if y is None else y[:1], c=None)
        table = levels.flatten(1).cpu().numpy().copy()
        labels = None if y is None else y.cpu().numpy().copy()
        valid = None if lengths is None else lengths.cpu().numpy()
        if valid is not None:
            table[np.arange(table.shape[1]) >= valid[:, None]] = 0
        writer = _Writer()
        _walk(coder, table, labels, valid, writer, step)
        return Compressed(
            examples=len(table),
            payload=writer.payload,
            model=digest(coder),
            checksum=_checksum(table, labels),
            equality_class=equality_class(device=coder.device),
            threads=threads,
            lengths=None if valid is None else tuple(valid.tolist()),
            names=names,
        )


@torch.no_grad()
def decompress(model: GenerativeModel, compressed: Compressed, *, step: Step = lambda done, total: None) -> tuple[Tensor, Tensor | None]:
    """-> x (n, *shape) uint8 levels, 0 behind each sound's length, and labels y (n,) int64 on a class model.

    Raises ValueError for another model or equality class than it was compressed with, or levels that do not match their checksum.
    """
    coder = coding(model)
    if digest(coder) != compressed.model:
        raise ValueError(
            f"compressed with model {compressed.model}; this model is {digest(coder)}: decompress with the one it was compressed with"
        )
    with _settled(coder, compressed.threads):
        here = equality_class(device=coder.device)
        if here != compressed.equality_class:
            raise ValueError(
                f"compressed in equality class {compressed.equality_class}; here it is {here}: decompress on a machine like the first"
            )
        table = np.zeros((compressed.examples, coder.event.dims), np.uint8)
        labels = np.zeros(compressed.examples, np.int64) if coder.event.classes else None
        lengths = None if compressed.lengths is None else np.asarray(compressed.lengths, np.int64)
        _walk(coder, table, labels, lengths, _Reader(compressed.payload), step)
    if _checksum(table, labels) != compressed.checksum:
        raise ValueError("the levels do not match their checksum: this machine's numbers are not those of the one that compressed them")
    return torch.from_numpy(table).reshape(-1, *coder.event.shape), None if labels is None else torch.from_numpy(labels)


def coding(model: GenerativeModel) -> Autoregressive:
    """The model, if it can drive a coder. Raises ValueError with the reason if it cannot."""
    name = type(model).__name__
    if not isinstance(model, Autoregressive) or model.event.levels == 0:
        able = ", ".join(capabilities(model)) or "sample"
        raise ValueError(
            f"{name} has no exact probability of each level given those before (it can: {able}); compress with an autoregressive model"
        )
    if model.event.condition is not None:
        raise ValueError(
            f"{name} is conditioned on {model.event.condition}, which would be needed to decompress; compress with an unconditional model"
        )
    return model


@torch.no_grad()
def likeliest(model: Autoregressive, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x (n, *shape) levels -> (n,) int64, the label of the largest p(x, y), and (n,) nats, log p(x)."""
    joint = torch.cat(
        [
            model.joint_log_prob(x[rows], length=None if lengths is None else lengths[rows])[:count].double()
            for rows, count in blocks(len(x))
        ]
        or [torch.empty(0, model.event.classes)]
    )
    return joint.argmax(-1), joint.logsumexp(-1)


def digest(model: GenerativeModel) -> str:
    """16 hex digits that name everything a model computes by: family, version, config, event, weights. Scores and lineage do not change it."""
    content = hashlib.blake2b(digest_size=8)
    said = {"family": type(model).__name__, "version": type(model).VERSION, "config": asdict(model.config), "event": model.event.to_json()}
    content.update(json.dumps(said, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        content.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        content.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def quantised(logits: Tensor) -> NDArray[np.int64]:
    """(n, K) logits -> (n, K) whole numbers, each at least 1, that add up to 2^24 in every row: probabilities in multiples of 2^-24."""
    p = torch.softmax(logits.detach().to("cpu", torch.float64), dim=-1).numpy()
    if not np.isfinite(p).all():
        raise ValueError("the model's probabilities are not all finite numbers; its weights are broken")
    counts = 1 + np.floor(p * (TOTAL - p.shape[1])).astype(np.int64)
    counts[np.arange(len(p)), counts.argmax(axis=1)] += TOTAL - counts.sum(axis=1)  # what rounding down left over
    return counts


def _walk(
    model: Autoregressive, x: NDArray[np.uint8], y: NDArray[np.int64] | None, lengths: NDArray[np.int64] | None, code: Code, step: Step
) -> None:
    """Steps all rows of x (n, D) by place through the sampler. code(counts, symbols) writes those symbols, or answers with what it reads;
    the answers are put into x and y. Padding is stepped as level 0 and never coded."""
    order = model.order
    for rows, count in blocks(len(x)):
        block, kept = rows.numpy(), rows[:count].numpy()
        if y is not None:
            y[kept] = code(quantised(model.class_frequencies.log().expand(count, -1)), y[kept])
        memory = model.start(order, len(block), y=None if y is None else torch.from_numpy(y[block]).to(model.device), c=None)
        for number, place in enumerate(_visits(order, None if lengths is None else lengths[kept])):
            counts = quantised(model.predict(memory))
            live = kept if lengths is None else kept[lengths[kept] > place]
            if len(live):
                x[live, place] = code(counts[live - kept[0]], x[live, place])
            model.take(memory, torch.from_numpy(x[block, place].astype(np.int64)).to(model.device))
            if number % 32 == 0:
                step(kept[0] + count * number / len(order), len(x))
    step(len(x), len(x))


def _visits(order: Tensor, lengths: NDArray[np.int64] | None) -> list[int]:
    """The places in the order they are visited, up to the last one where any row still has something."""
    places = order.tolist()
    if lengths is None:
        return places
    return places[: max((t + 1 for t, place in enumerate(places) if place < lengths.max()), default=0)]


class _Writer:
    def __init__(self) -> None:
        self._queue, self._family = _coder()
        self._encoder = self._queue.RangeEncoder()

    def __call__(self, counts: NDArray[np.int64], symbols: NDArray[Any]) -> NDArray[Any]:
        self._encoder.encode(symbols.astype(np.int32), self._family, _weights(counts))
        return symbols

    @property
    def payload(self) -> bytes:
        return self._encoder.get_compressed().astype("<u4").tobytes()


class _Reader:
    def __init__(self, payload: bytes) -> None:
        queue, self._family = _coder()
        self._decoder = queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))

    def __call__(self, counts: NDArray[np.int64], symbols: NDArray[Any]) -> NDArray[Any]:
        try:
            return self._decoder.decode(self._family, _weights(counts))
        except AssertionError:  # constriction's, for bits that no message has
            raise ValueError(
                "the payload is none of this model's: this machine's numbers are not those of the one that compressed it"
            ) from None


def _coder() -> tuple[Any, Any]:
    from constriction import stream  # type: ignore[attr-defined] # here, so that a model loads without it

    return stream.queue, stream.model.Categorical(perfect=False)


def _weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """What makes constriction's own quantisation (shares of 2^24 - K by weight, and 1 more for each level) give exactly these counts."""
    return (counts - 1).astype(np.float64)


def _fitting(model: Autoregressive, lengths: Tensor, n: int) -> Tensor:
    steps = model.event.dims
    if model.event.modality != "audio" or tuple(lengths.shape) != (n,) or bool(((lengths < 0) | (lengths > steps)).any()):
        raise ValueError(
            f"lengths {tuple(lengths.shape)} for {n} rows of {model.event}; wanted ({n},) of 0 to {steps}, and for sounds alone"
        )
    return lengths


@contextmanager
def _settled(model: GenerativeModel, threads: int) -> Iterator[None]:
    """In eval mode, with this many threads."""
    if threads < 1:
        raise ValueError(f"{threads} threads; wanted at least 1")
    was_training, had = model.training, torch.get_num_threads()
    model.eval()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(had)
        model.train(was_training)


def _checksum(x: NDArray[np.uint8], y: NDArray[np.int64] | None) -> str:
    return hashed(x.tobytes() + (b"" if y is None else y.tobytes())).hex()
