"""Sources by name or by URL."""

from pipelines.errors import Refused, unknown
from pipelines.recipe import Data
from pipelines.sources.bundled import Digits
from pipelines.sources.source import Source

NAMED = ("digits",)


def open_source(data: Data, storage_root: str) -> Source:
    """The source of a recipe's data section. Raises Refused for a name that is none."""
    if data.source == "digits":
        return Digits()
    raise Refused(f"data.source: {unknown('source', data.source, NAMED)}")
