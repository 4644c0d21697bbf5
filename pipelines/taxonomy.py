"""The tree of generative models, and where in it a family stands: by its capabilities, and a posterior by what it is of."""

from collections.abc import Callable, Mapping

from genmodels.core import Bounded, Chained, Density, Energy, GenerativeModel, Iterated, Tempered, capabilities
from genmodels.zoo import MODELS

Kind = type[GenerativeModel]
Path = tuple[str, ...]

_EXPLICIT, _TRACTABLE, _APPROXIMATE = (
    "explicit density: log p(x) has a value",
    "tractable: the value is exact",
    "approximate: the value is bounded or estimated",
)
_IMPLICIT = "implicit density: there are only samples"
GROUPS: Mapping[str, tuple[Path, Callable[[Kind], bool]]] = {
    "inference": (
        (_EXPLICIT, _APPROXIMATE, "inference: a posterior by variational inference or Markov chain Monte Carlo"),
        lambda kind: kind is MODELS["posterior"],  # its density is that of its draws, exactly; these are approximate
    ),
    "classical": (
        (_EXPLICIT, _TRACTABLE, "classical, fitted by passes over the data"),
        lambda kind: issubclass(kind, Density) and issubclass(kind, Iterated),
    ),
    "autoregressive": ((_EXPLICIT, _TRACTABLE, "autoregressive, trained by descent"), lambda kind: issubclass(kind, Density)),
    "energy": ((_EXPLICIT, _APPROXIMATE, "energy and chains"), lambda kind: issubclass(kind, Energy)),
    "variational": ((_EXPLICIT, _APPROXIMATE, "variational"), lambda kind: issubclass(kind, Bounded)),
    "chain": ((_IMPLICIT, "a Markov chain"), lambda kind: issubclass(kind, Chained)),
    "implicit": ((_IMPLICIT, "adversarial"), lambda kind: True),
}
"""By its name a group's branches from the root, and who belongs there: the first group that fits. A group without a family is not shown."""

ORDER = ("autoregressive", "classical", "variational", "energy", "inference", "implicit", "chain")
"""In which they are shown."""

WORDS = {
    "density": "log p exact",
    "bounded": "log p bounded",
    "energy": "energy",
    "encodes": "encodes",
    "decodes": "decodes",
    "tempered": "temperature",
    "completes": "completes",
    "progressive": "draws stepwise",
    "chained": "samples by a chain",
    "classifies": "classifies",
    "autoregressive": "surprise of every value",
}
"""What a capability lets one do."""


def group(kind: Kind) -> str:
    return next(name for name, (_, fits) in GROUPS.items() if fits(kind))


def tree() -> list[tuple[str, Path, list[str]]]:
    """Every group that has families: its name, its branches, its families in the order of the zoo."""
    found = [(name, GROUPS[name][0], [family for family, kind in MODELS.items() if group(kind) == name]) for name in ORDER]
    return [(name, branches, families) for name, branches, families in found if families]


def can(kind: Kind) -> list[str]:
    """What a family can do, in words."""
    scaled = temperature(kind)
    words = {**WORDS, "tempered": f"temperature (of {scaled})"} if scaled else WORDS
    return ["samples", *(words[name] for name in capabilities(kind))]


def temperature(kind: Kind) -> str | None:
    """What a temperature scales, where there is one."""
    return kind.temperature_scales if issubclass(kind, Tempered) else None
