"""Generative models whose numbers are true: build one for an event, or load a trained one from its folder."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genmodels.artifact import load
    from genmodels.core import Event
    from genmodels.zoo import build

__all__ = ["Event", "build", "load"]

_HOMES = {"Event": "genmodels.core", "build": "genmodels.zoo", "load": "genmodels.artifact"}


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for: `import genmodels` alone loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
