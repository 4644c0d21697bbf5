"""Published data sets by name: from $GENMODELS_DATA/<name> where that is set, else downloaded once into the storage.

Pinned by the sha256 of what is in them (unpacked arrays, names and bytes of recordings), so that any copy of the same data does and nothing else;
and so what the Shards will be is known before a byte is there.
"""

import hashlib
import io
import os
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import fsspec
import numpy as np

from pipelines import console, storage
from pipelines.errors import Failed
from pipelines.sources.arrays import idx_examples, numbered, read_idx
from pipelines.sources.source import REST, Containers, Examples, Leaf, inputs, leaf
from pipelines.sources.tree import Tree, retried


@dataclass(frozen=True)
class Published(Containers):
    """A data set with a name, an address and pins."""

    tree: Tree | None = None
    name: ClassVar[str]
    official = True

    @abstractmethod
    def files(self) -> dict[str, str]:
        """The files it consists of, by the name under which they are kept -> their address."""

    @abstractmethod
    def check(self, tree: Tree) -> None:
        """Raises ValueError where a file under the tree is not the published one, FileNotFoundError where one is missing."""

    def fetched(self, root: str) -> Self:
        folder = os.environ.get("GENMODELS_DATA")
        where = storage.join(storage.absolute(folder), self.name) if folder else None
        if where is None or not storage.exists(where):
            where = storage.join(root, "sources", self.name)
            self._download(where)
        try:
            self.check(Tree(where))
        except FileNotFoundError as error:
            raise Failed(f"{self.name}: {where} holds no {error}; wanted {', '.join(self.files())}") from None
        except ValueError as error:
            raise Failed(
                f"{self.name}: {error}; this is not the published data: replace {where}, or give its own path as data.source"
            ) from None
        return replace(self, tree=Tree(where))

    def _download(self, where: str) -> None:
        for name, address in self.files().items():
            if not storage.exists(storage.join(where, name)):
                console.say(f"{self.name}: downloading {address}")
                try:
                    storage.write_bytes(storage.join(where, name), retried(lambda address=address: _get(address), address))
                except Failed as error:
                    raise Failed(
                        f"{self.name} is neither in $GENMODELS_DATA/{self.name} nor within reach of the network "
                        f"({str(error).split(';')[0]}); set GENMODELS_DATA to a folder that holds {self.name}/"
                    ) from None

    @property
    def _tree(self) -> Tree:
        assert self.tree is not None, "fetched() comes first"
        return self.tree


def _get(address: str) -> bytes:
    with fsspec.open(address, "rb") as file:
        return file.read()  # type: ignore[union-attr]


def _either(tree: Tree, *names: str) -> str:
    for name in names:
        if storage.exists(f"{tree.url}/{name}"):
            return name
    raise FileNotFoundError(names[0])


def _pin(what: str, content: bytes, pinned: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != pinned:
        raise ValueError(f"{what} has the sha256 {found[:12]}..., wanted {pinned[:12]}...")


@dataclass(frozen=True)
class IdxSet(Published):
    """Four IDX files; the training side has 60,000 pictures, the test side 10,000, all 28x28 with ten labels. Pins: of the unzipped files."""

    modality = "image"
    address: ClassVar[str]
    pins: ClassVar[dict[str, str]]

    def files(self) -> dict[str, str]:
        return {f"{name}.gz": f"{self.address}/{name}.gz" for name in self.pins}

    def leaves(self, cache: str) -> Iterator[Leaf]:
        images = [name for name in self.pins if "images" in name]
        stamps = [f"{self.pins[name]} {self.pins[name.replace('images-idx3', 'labels-idx1')]}" for name in images]
        yield leaf(inputs(images, [0] * len(images), stamps))

    def check(self, tree: Tree) -> None:
        for name, pinned in self.pins.items():
            array = read_idx(tree.read(_either(tree, f"{name}.gz", name)))
            head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
            _pin(name, head + array.tobytes(), pinned)

    def examples(self, source: str, piece: int) -> Examples:
        labels = source.replace("images-idx3", "labels-idx1")
        images = _either(self._tree, f"{source}.gz", source)
        return idx_examples(self._tree, images, _either(self._tree, f"{labels}.gz", labels), REST if source.startswith("train") else "test")


class Mnist(IdxSet):
    """The MNIST database of handwritten digits (LeCun, Cortes, Burges, 1998)."""

    name = "mnist"
    address = "https://ossci-datasets.s3.amazonaws.com/mnist"
    pins = {  # noqa: RUF012 - a ClassVar of the base
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }


class FashionMnist(IdxSet):
    """Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms (Xiao, Rasul, Vollgraf, 2017), arXiv:1708.07747."""

    name = "fashion_mnist"
    address = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
    pins = {  # noqa: RUF012 - a ClassVar of the base
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    }


class BinarizedMnist(Published):
    """MNIST as binarised once and for all (The neural autoregressive distribution estimator, Larochelle, Murray, 2011): 50,000, 10,000 and
    10,000 pictures of 28x28 bits without labels. As text, as first published, or as MATLAB 5 files. Pins: of the bits, a byte each."""

    name = "binarized_mnist"
    modality = "image"
    pins: ClassVar = {
        "train": "43490d4d6ac9002727af4426d8748609fdb7e4094fa65ad8d681ea60082a7a5a",
        "valid": "069b4f0beb389b776478c3e872b4df71c95ac4be64d7cbe6d32e24ebac8e6d5e",
        "test": "ca0294c3b8d984c7a1dc891015a8eea6f37bae59a34e35ea0fc8c47110a8dd86",
    }

    def files(self) -> dict[str, str]:
        address = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
        return {f"binarized_mnist_{side}.amat": f"{address}/binarized_mnist_{side}.amat" for side in self.pins}

    def leaves(self, cache: str) -> Iterator[Leaf]:
        yield leaf(inputs([f"binarized_mnist_{side}" for side in self.pins], [0] * 3, list(self.pins.values())))

    def check(self, tree: Tree) -> None:
        for side, pinned in self.pins.items():
            name = _either(tree, f"binarized_mnist_{side}.amat")
            _pin(name, _bits(tree.read(name)).tobytes(), pinned)

    def examples(self, source: str, piece: int) -> Examples:
        bits = _bits(self._tree.read(f"{source}.amat"))
        side = source.rpartition("_")[2]
        return Examples(pixels=bits.reshape(-1, 28, 28) * np.uint8(255), names=numbered(source, len(bits)), sides=[side] * len(bits))


def _bits(content: bytes) -> np.ndarray:
    if content.startswith(b"MATLAB 5.0"):
        from scipy.io import loadmat

        return loadmat(io.BytesIO(content))["X"].astype(np.uint8)
    return np.array(content.split(), dtype=np.uint8).reshape(-1, 784)


class Fsdd(Published):
    """Free Spoken Digit Dataset (Jackson and others, 2018), v1.0.10: 3,000 recordings of ten digits by six speakers, 8 kHz; numbers 0 to 4
    of each digit and speaker are the test split, the label is the digit. Pin: of the lines `<name> <sha256>` in the order of names."""

    name = "fsdd"
    modality = "audio"
    pin = "dbd573d7cafe79c4b49f65718115e1304e24e067fa39eff18a660dc6cb9c360f"

    def files(self) -> dict[str, str]:
        return {"fsdd.zip": "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip"}

    def leaves(self, cache: str) -> Iterator[Leaf]:
        units = [f"recordings/{digit}" for digit in range(10)]
        yield leaf(inputs(units, [0] * 10, [self.pin] * 10))

    def check(self, tree: Tree) -> None:
        recordings, paths = _recordings(tree)
        lines = [f"{name} {hashlib.sha256(recordings.read(path)).hexdigest()}\n" for name, path in sorted(paths.items())]
        _pin("recordings/", "".join(lines).encode(), self.pin)

    def examples(self, source: str, piece: int) -> Examples:
        recordings, paths = _recordings(self._tree)
        names = sorted(name for name in paths if name.startswith(source.rpartition("/")[2]))
        return Examples(
            encoded=[recordings.read(paths[name]) for name in names],
            names=[f"recordings/{name}" for name in names],
            labels=[name[0] for name in names],
            sides=["test" if int(name.rpartition("_")[2].removesuffix(".wav")) < 5 else REST for name in names],
        )


def _recordings(tree: Tree) -> tuple[Tree, dict[str, str]]:
    """Where the recordings lie, in a folder or in the archive as it was downloaded, and each one's path there by its name."""
    inside = Tree(f"{tree.url}/recordings") if storage.exists(f"{tree.url}/recordings") else Tree(f"zip://::{tree.url}/fsdd.zip")
    paths = {path.rpartition("/")[2]: path for path, _, _ in inside.entries()}
    return inside, {name: path for name, path in paths.items() if re.fullmatch(r"\d_[a-z]+_\d+\.wav", name)}
