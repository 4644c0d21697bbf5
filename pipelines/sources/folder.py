"""A folder, a zip or a URL prefix of pictures or sounds, one a file."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.sources.source import Files, Leaf
from pipelines.sources.tree import Tree


@dataclass(frozen=True)
class Folder(Files):
    """Every data file below the root; whether one is a picture or a sound shows when it is decoded, not by its name."""

    tree: Tree

    def leaves(self, cache: str) -> Iterator[Leaf]:
        return self.tree.leaves(cache)

    def url_of(self, path: str) -> str:
        return self.tree.url_of(path)

    def local(self, source: str) -> str | None:
        return self.tree.local(source)

    def read(self, source: str) -> bytes:
        return self.tree.read(source)
