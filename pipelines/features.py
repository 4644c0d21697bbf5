"""Feature spaces made from a training set, kept beside it by fingerprint: principal components, and a small classifier where there are labels."""

import hashlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn

from genmodels import noise
from genmodels.evaluate import Features
from pipelines.fingerprint import fingerprint, libraries
from pipelines.records import Shards
from pipelines.shards import Stream, examples
from pipelines.storage import exists, join, read_bytes, write_bytes

VERSION = 1
STEPS, BATCH, WIDTH = 600, 128, 64


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A small convolutional network trained on the shards; its features are the layer before the last. accuracy: on the test split."""

    net: nn.Sequential
    levels: int
    accuracy: float
    n: int
    digest: str

    @property
    def title(self) -> str:
        return f"a classifier of the training set {self.digest}, accuracy {self.accuracy:.3f}"

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) levels -> (B, 64) float64."""
        with torch.no_grad():
            return torch.cat([self.net[:-1](part) for part in _scaled(x, self.levels).split(512)]).to(torch.float64)


def components(root: str, shards: Shards) -> Features:
    """The first 64 principal components of the training split. Raises ValueError for events too large for them."""
    uri = join(root, "features", f"pca-{_name(shards, 'pca')}.safetensors")
    if not exists(uri):
        features = Features.fit(shards.event, examples(shards, "train", 1024))
        write_bytes(uri, safetensors.torch.save({"mean": features.mean, "components": features.components.contiguous()}))
    return Features(levels=shards.event.levels, **safetensors.torch.load(read_bytes(uri)))


def classifier(root: str, shards: Shards, step: Callable[[int, int], None] = lambda done, total: None) -> Classifier | None:
    """The shards' classifier, trained where there is none yet (step: told of its progress); None where they are no labelled pictures."""
    if shards.event.modality != "image" or shards.event.classes < 2 or shards.event.levels == 0:
        return None
    uri = join(root, "features", f"classifier-{_name(shards, 'classifier', STEPS, BATCH, WIDTH)}.safetensors")
    net = _network(shards)
    if not exists(uri):
        _train(net, shards, step)
        correct, n = _accuracy(net, shards)
        counts = {"correct": torch.tensor(correct), "n": torch.tensor(n)}
        write_bytes(uri, safetensors.torch.save({**net.state_dict(), **counts}))
    content = read_bytes(uri)
    weights = safetensors.torch.load(content)
    correct, n = int(weights.pop("correct")), int(weights.pop("n"))
    net.load_state_dict(weights)
    digest = hashlib.blake2b(content, digest_size=6).hexdigest()
    return Classifier(net=net.eval(), levels=shards.event.levels, accuracy=correct / n, n=n, digest=digest)


def _network(shards: Shards) -> nn.Sequential:
    """Convolutions that halve the picture until a side is small, then 64 features and the classes."""
    channels, height, width = shards.event.shape
    halvings = max(1, min(4, min(height, width).bit_length() - 2))
    sides = [channels, *(min(64, 16 * 2**i) for i in range(halvings))]
    layers: list[nn.Module] = []
    with noise.initialising(0):
        for before, after in itertools.pairwise(sides):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU()]
        places = math.ceil(height / 2**halvings) * math.ceil(width / 2**halvings)
        layers += [nn.Flatten(), nn.Linear(sides[-1] * places, WIDTH), nn.ReLU(), nn.Linear(WIDTH, shards.event.classes)]
        return nn.Sequential(*layers)


def _train(net: nn.Sequential, shards: Shards, step: Callable[[int, int], None]) -> None:
    stream = Stream(shards, "train", seed=0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for number in range(STEPS):
        batch = stream.batch(number, BATCH)
        if batch.y is None:
            return
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - number / STEPS)
        loss = nn.functional.cross_entropy(net(_scaled(batch.x, shards.event.levels)), batch.y, ignore_index=-1)
        optimizer.zero_grad(set_to_none=True)
        if loss.isfinite():  # a batch without a single label has no mean
            loss.backward()
            optimizer.step()
        step(number + 1, STEPS)


def _accuracy(net: nn.Sequential, shards: Shards) -> tuple[int, int]:
    """Labelled test examples named rightly, and how many there are."""
    correct = n = 0
    with torch.no_grad():
        for batch in examples(shards, "test", 512):
            if batch.y is not None:
                known = batch.y >= 0
                guess = net(_scaled(batch.x, shards.event.levels)).argmax(-1)
                correct, n = correct + int((guess == batch.y)[known].sum()), n + int(known.sum())
    return correct, max(1, n)


def _scaled(x: Tensor, levels: int) -> Tensor:
    return x.to(torch.float32) / (levels - 1) * 2 - 1


def _name(shards: Shards, *parts: object) -> str:
    return fingerprint(VERSION, *parts, shards.fingerprint, libraries("torch"))
