"""Sources that need no file: scikit-learn's handwritten digits, and plucked strings that are generated."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipelines.sources.source import Containers, Examples, inputs


class Digits(Containers):
    """Optical recognition of handwritten digits (Alpaydin, Kaynak, 1998), 1,797 pictures of 8x8 with values 0..16 and ten labels, as scikit-learn
    bundles them. Shown as round(255 v / 16), so that 17 levels give back the values themselves."""

    def listings(self, cache: str | None) -> Iterator[pa.Table]:
        values, labels = self._values()
        stamp = hashlib.blake2b(values.tobytes() + labels.tobytes(), digest_size=16).hexdigest()
        yield inputs(["digits"], [values.nbytes], [stamp])

    def examples(self, source: str, piece: int) -> Examples:
        values, labels = self._values()
        pixels = ((values.astype(np.int64) * 510 + 16) // 32).astype(np.uint8)
        return Examples(pixels=pixels, names=[f"{i:04d}" for i in range(len(pixels))], labels=[str(label) for label in labels])

    @staticmethod
    def _values() -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return bunch["images"].astype(np.uint8), bunch["target"].astype(np.int64)
