"""Counter-based randomness: every random number of the project is a pure function of what names it.

Parallel random numbers: as easy as 1, 2, 3 (Salmon, Moraes, Dror, Shaw, 2011): Philox4x32-10. There is no state: a number is addressed by
(seed, tag, step, position, element), so a row's numbers do not depend on the rows it is batched with, on the rank that computes it, or on
what was drawn before. The global generators of torch, numpy and random are never read.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
TRIES = 16
"""Proposals of a gamma variate: all of them are refused once in 10^20 times."""
_SHARED = -1  # the position word of draws that belong to a whole step, not to a row


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10. counter: four, key: two int64 tensors holding 32-bit words (broadcast together) -> four int64 tensors of 32-bit words."""
    if all(word.device.type == "cpu" for word in (*counter, *key)):
        return _on_host(counter, key)
    return _on_device(counter, key)


def _on_device(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A 64-bit product wraps to the right bits in int64; the masks make both halves unsigned words.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _WORD) ^ c1 ^ k0, p1 & _WORD, (p0 >> 32 & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return c0, c1, c2, c3


def _on_host(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same words without a new array an operation: less than half the time."""
    k0, k1 = (word.numpy().view(np.uint64) for word in key)
    shape = np.broadcast_shapes(*(word.shape for word in (*counter, *key)))
    c0, c1, c2, c3 = (np.array(np.broadcast_to(word.numpy().view(np.uint64), shape)) for word in counter)
    p0, p1 = np.empty_like(c0), np.empty_like(c0)
    for _ in range(10):
        np.multiply(c0, np.uint64(_MULTIPLIERS[0]), out=p0)
        np.multiply(c2, np.uint64(_MULTIPLIERS[1]), out=p1)
        for word, product, other, secret in ((c0, p1, c1, k0), (c2, p0, c3, k1)):
            np.right_shift(product, np.uint64(32), out=word)
            np.bitwise_xor(word, other, out=word)
            np.bitwise_xor(word, secret, out=word)
            np.bitwise_and(word, np.uint64(_WORD), out=word)  # the products keep their upper halves
        c1, c3, p0, p1 = p1, p0, c3, c1
        k0, k1 = k0 + np.uint64(_WEYL[0]) & np.uint64(_WORD), k1 + np.uint64(_WEYL[1]) & np.uint64(_WORD)
    for word in (c1, c3):
        np.bitwise_and(word, np.uint64(_WORD), out=word)
    w0, w1, w2, w3 = (torch.from_numpy(word.view(np.int64)) for word in (c0, c1, c2, c3))
    return w0, w1, w2, w3


def derive(*parts: int | str) -> int:
    """A 63-bit seed from any parts: blake2b of their text, so that neighbouring seeds share nothing."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class Noise:
    """The random numbers of one batch of B rows.

    Row i's depend on (seed_i, tag, step, position_i) alone. `seed` is one for all rows (training) or one a row (a server that batches requests);
    `position` is (B,) int64: the example's global position in training, the sample's index in sampling.
    """

    def __init__(self, seed: int | Sequence[int], *, position: Tensor | Sequence[int], step: int = 0) -> None:
        self.position = torch.as_tensor(position, dtype=torch.int64)
        self.seeds: tuple[int, ...] = (seed,) if isinstance(seed, int) else tuple(seed)
        self.step = step
        if len(self.seeds) not in (1, len(self.position)):
            raise ValueError(f"{len(self.seeds)} seeds for {len(self.position)} rows; give one seed, or one a row")

    def __len__(self) -> int:
        return len(self.position)

    def rows(self, start: int, stop: int) -> "Noise":
        """The same numbers for rows start..stop alone."""
        seeds = self.seeds if len(self.seeds) == 1 else self.seeds[start:stop]
        return Noise(seeds, position=self.position[start:stop], step=self.step)

    def pick(self, rows: Tensor) -> "Noise":
        """The same numbers for some of the rows; rows (n,) int64."""
        seeds = self.seeds if len(self.seeds) == 1 else [self.seeds[row] for row in rows.tolist()]
        return Noise(seeds, position=self.position[rows.to(self.position.device)], step=self.step)

    def to(self, device: torch.device | str) -> "Noise":
        return Noise(self.seeds, position=self.position.to(device), step=self.step)

    def uniform(self, tag: str, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) float32 in [0, 1), multiples of 2^-24. A longer last axis only appends to a row of the same tag."""
        return self._uniform(self._words(tag, self.position, math.prod(shape)), (len(self), *shape))

    def normal(self, tag: str, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) float32 standard normal, by Box and Muller's transform of two uniforms each."""
        size = math.prod(shape)
        words = self._words(tag, self.position, 2 * size).reshape(len(self), size, 2)
        u, v = ((words >> 8).to(torch.float64) * 2.0**-24).unbind(-1)
        z = torch.sqrt(-2 * torch.log1p(-u)) * torch.cos(2 * math.pi * v)
        return z.to(torch.float32).reshape(len(self), *shape)

    def gumbel(self, tag: str, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) float32 standard Gumbel; the uniform is moved to the middle of its cell, so that it is never 0 or 1."""
        u = self.uniform(tag, shape).to(torch.float64) + 2.0**-25
        return (-torch.log(-torch.log(u))).to(torch.float32)

    def gamma(self, tag: str, shape: Tensor) -> Tensor:
        """shape (B, *...) above 0 -> as many float64 from Gamma(shape, 1), above 0.

        A simple method for generating gamma variables (Marsaglia, Tsang, 2000): of TRIES proposals the first that is accepted, each with 95 % or
        more; below shape 1 one of shape + 1, times u^(1/shape).
        """
        d = torch.where(shape < 1, shape + 1, shape).double() - 1 / 3
        tries = (*shape.shape[1:], TRIES)
        z = self.normal(f"{tag} proposal", tries).double()
        cube = (1 + z / (3 * d.sqrt()[..., None])).clamp(min=0) ** 3
        log_u = torch.log(self.uniform(f"{tag} accept", tries).double() + 2.0**-25)
        accepted = log_u < z.square() / 2 + d[..., None] * (1 - cube + cube.log())  # a cube of 0 has -inf here
        found = d * cube.gather(-1, accepted.double().argmax(-1, keepdim=True))[..., 0]
        below = torch.log(self.uniform(f"{tag} below 1", shape.shape[1:]).double() + 2.0**-25) / shape
        return torch.where(shape < 1, found * below.exp(), found).clamp(min=1e-300)

    def shared(self, tag: str, shape: Sequence[int] = ()) -> Tensor:
        """(*shape) float32 uniforms that belong to the step: the same for every row and on every rank. Needs one seed for all rows."""
        if len(self.seeds) != 1:
            raise ValueError("shared draws need one seed for all rows; these rows have one each")
        nobody = torch.full((1,), _SHARED, dtype=torch.int64, device=self.position.device)
        return self._uniform(self._words(tag, nobody, math.prod(shape)), tuple(shape))

    def permutation(self, tag: str, n: int) -> Tensor:
        """(n,) int64: a permutation of range(n) that belongs to the step, the same on every rank."""
        return torch.argsort(self.shared(tag, (n,)).to(torch.float64), stable=True)

    def _words(self, tag: str, position: Tensor, size: int) -> Tensor:
        return words(self._keys(tag), position, self.step, size)

    def _keys(self, tag: str) -> Tensor:
        return torch.tensor([key(seed, tag) for seed in self.seeds], dtype=torch.int64, device=self.position.device)

    @staticmethod
    def _uniform(words: Tensor, shape: tuple[int, ...]) -> Tensor:
        return ((words >> 8).to(torch.float32) * 2.0**-24).reshape(shape)


def words(keys: Tensor, position: Tensor, step: int | Tensor, size: int) -> Tensor:
    """keys (B, 2) or (1, 2), position (B,), step () -> (B, size) int64 words of 32 bits, which depend on their row's key, position and step."""
    blocks = torch.arange(-(-size // 4), dtype=torch.int64, device=position.device)
    column = position[:, None]
    counter = (column & _WORD, column >> 32 & _WORD, torch.zeros_like(column) + (step & _WORD), blocks[None])
    found = philox(torch.broadcast_tensors(*counter), (keys[:, :1], keys[:, 1:]))
    return torch.stack(found, dim=-1).flatten(1)[:, :size]


def key(seed: int, tag: str) -> tuple[int, int]:
    """The two words that a seed and a tag come to."""
    word = int.from_bytes(hashlib.blake2b(f"{seed}\0{tag}".encode(), digest_size=8).digest(), "little")
    return word & _WORD, word >> 32


def bijection(index: Tensor, *, n: int, seed: int) -> Tensor:
    """index (...) int64 in [0, n) -> its image under a keyed permutation of range(n), without ever holding that permutation.

    A four-round Feistel network over the smallest even number of bits that holds n, walked until the image falls inside
    (Ciphers with arbitrary finite domains, Black and Rogaway, 2002).
    """
    if n < 1:
        raise ValueError(f"a permutation of {n} things; wanted at least 1")
    half = max(1, (max(1, n - 1).bit_length() + 1) // 2)
    out = _feistel(index, half, seed)
    while bool((outside := out >= n).any()):
        out = torch.where(outside, _feistel(out, half, seed), out)
    return out


def permuted(n: int, *, seed: int) -> Tensor:
    """(n,) int64: `bijection` of the whole range at once. The network is evaluated once a point, and walked by looking it up."""
    half = max(1, (max(1, n - 1).bit_length() + 1) // 2)
    images = _feistel(torch.arange(1 << 2 * half), half, seed)
    out = images[:n]
    while bool((outside := out >= n).any()):
        out = torch.where(outside, images[out], out)
    return out


def _feistel(index: Tensor, half: int, seed: int) -> Tensor:
    low = (1 << half) - 1
    left, right = index >> half, index & low
    secret = tuple(torch.tensor(word) for word in key(seed, "bijection"))
    zero = torch.zeros_like(index)
    for turn in range(4):
        mixed = philox((right, right >> 32, zero + turn, zero), secret)[0]
        left, right = right, left ^ (mixed & low)
    return left << half | right


def categorical(logits: Tensor, u: Tensor) -> Tensor:
    """Inverse CDF in level order. logits (..., K) any float dtype, u (...) in [0, 1) -> (...) int64: the first level whose CDF exceeds u."""
    weights = torch.softmax(logits.to(torch.float32), dim=-1).cumsum(-1)
    scaled = u * weights[..., -1]
    return (weights <= scaled[..., None]).sum(-1).clamp_(max=logits.shape[-1] - 1)


@contextmanager
def initialising(seed: int) -> Iterator[None]:
    """Inside, torch's weight initialisers draw from a generator that starts from `seed`; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("initialise", seed))
        yield
