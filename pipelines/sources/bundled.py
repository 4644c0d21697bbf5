"""Sources that need no file: scikit-learn's handwritten digits, and plucked strings, which are generated."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.arrays import numbered
from pipelines.sources.source import Containers, Examples, Leaf, inputs, leaf


class Digits(Containers):
    """Optical recognition of handwritten digits (Alpaydin, Kaynak, 1998), 1,797 pictures of 8x8 with values 0..16 and ten labels, as scikit-learn
    bundles them. Shown as round(255 v / 16), so that 17 levels give back the values themselves."""

    modality = "image"
    pin = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"

    def leaves(self, cache: str) -> Iterator[Leaf]:
        yield leaf(inputs(["digits"], [0], [self.pin]))

    def examples(self, source: str, piece: int) -> Examples:
        from sklearn.datasets import load_digits

        values, labels = load_digits(return_X_y=True)
        content = values.astype(np.uint8).tobytes() + labels.astype(np.uint8).tobytes()
        if (found := hashlib.sha256(content).hexdigest()) != self.pin:
            raise ValueError(f"scikit-learn's digits have the sha256 {found[:12]}..., wanted {self.pin[:12]}...; another version of them?")
        pixels = (values.astype(np.int64) * 510 + 16) // 32
        names = numbered("digits", len(pixels))
        return Examples(pixels=pixels.astype(np.uint8).reshape(-1, 8, 8), names=names, labels=[str(label) for label in labels])


PITCHES = ("C3", "C#3", "D3", "D#3", "E3", "F3", "F#3", "G3", "G#3", "A3", "A#3", "B3")
"""Equal temperament from 130.81 Hz to 246.94 Hz (A4 = 440 Hz)."""


@dataclass(frozen=True)
class Tones(Containers):
    """Synthetic: 2,400 plucked strings, 200 of each of 12 pitches, by Digital synthesis of plucked-string and drum timbres (Karplus, Strong, 1983)
    with a fractional delay (Jaffe, Smith, 1983). Loudness, damping, brightness and the plucked point differ from string to string; the label is the
    pitch."""

    sample_rate: int
    seconds: float
    modality = "audio"
    units, each = 12, 200

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"sample_rate": self.sample_rate, "seconds": self.seconds}

    def leaves(self, cache: str) -> Iterator[Leaf]:
        yield leaf(inputs([f"tones/{pitch}" for pitch in PITCHES], [0] * self.units, ["karplus-strong 1"] * self.units))

    def examples(self, source: str, piece: int) -> Examples:
        pitch = source.rpartition("/")[2]
        first = PITCHES.index(pitch) * self.each
        waves = plucked(range(first, first + self.each), 440 * 2 ** ((PITCHES.index(pitch) - 21) / 12), self.sample_rate, self.seconds)
        return Examples(waves=list(waves), names=numbered(source, self.each), labels=[pitch] * self.each)


def plucked(numbers: range, hertz: float, rate: int, seconds: float) -> NDArray[np.float64]:
    """String number i of a pitch -> (n, seconds x rate) float64 in -1..1, a function of (i, pitch, rate) alone; a longer one begins the same."""
    import torch  # here, since every source's tasks import this file

    from genmodels.noise import Noise

    noise = Noise(0, position=torch.tensor(list(numbers)))
    loudness, damping, brightness, point = noise.uniform("string", (4,)).double().numpy().T
    bright = 0.3 + 0.2 * brightness  # weight of the older of the two samples that the string's low-pass averages
    period = rate / hertz - bright
    whole, part = np.floor(period).astype(np.int64), period - np.floor(period)
    longest, steps, n = int(whole.max()) + 2, round(seconds * rate), len(numbers)
    burst = 2 * noise.uniform("burst", (longest,)).double().numpy() - 1
    burst -= np.take_along_axis(
        burst, (np.arange(longest) - np.floor(whole * (0.1 + 0.4 * point)).astype(np.int64)[:, None]) % longest, axis=1
    )
    sound = np.concatenate([burst, np.zeros((n, steps))], axis=1)
    rows, gain = np.arange(n), 0.985 + 0.0145 * damping
    taps = [(1 - bright) * (1 - part), bright * (1 - part) + (1 - bright) * part, bright * part]
    for t in range(longest, longest + steps):
        sound[:, t] = gain * sum(tap * sound[rows, t - whole - k] for k, tap in enumerate(taps))
    sound = sound[:, longest:]
    return sound / np.abs(sound[:, :longest]).max(axis=1, keepdims=True) * (0.3 + 0.6 * loudness)[:, None]
