"""The central types: what is modelled (Event), what is learnt from (Batch, Objective), and what a model can do (the capabilities).

A family's class header tells the reader everything: `class GatedPixelCNN(Trained, Autoregressive)`, `class VAE(Trained, Bounded, Encodes, Decodes)`.
"""

from collections.abc import Mapping

from genmodels.core.autoregressive import Autoregressive
from genmodels.core.capabilities import (
    Bounded,
    ByBayes,
    Chained,
    Classifies,
    Completes,
    Completion,
    Decodes,
    Density,
    Encodes,
    Progressive,
)
from genmodels.core.drawing import Drawing, Eager, Fused, Sampler, copied
from genmodels.core.energy import Energy, Partition
from genmodels.core.event import Batch, Event
from genmodels.core.model import BLOCK, GenerativeModel, Iterated, Metrics, Objective, Optimizer, Tempered, Trained, blocks

__all__ = [
    "BLOCK",
    "CAPABILITIES",
    "Autoregressive",
    "Batch",
    "Bounded",
    "ByBayes",
    "Chained",
    "Classifies",
    "Completes",
    "Completion",
    "Decodes",
    "Density",
    "Drawing",
    "Eager",
    "Encodes",
    "Energy",
    "Event",
    "Fused",
    "GenerativeModel",
    "Iterated",
    "Metrics",
    "Objective",
    "Optimizer",
    "Partition",
    "Progressive",
    "Sampler",
    "Tempered",
    "Trained",
    "blocks",
    "capabilities",
    "copied",
]

CAPABILITIES: Mapping[str, type[GenerativeModel]] = {
    "density": Density,
    "bounded": Bounded,
    "energy": Energy,
    "encodes": Encodes,
    "decodes": Decodes,
    "tempered": Tempered,
    "completes": Completes,
    "progressive": Progressive,
    "chained": Chained,
    "classifies": Classifies,
    "autoregressive": Autoregressive,
}


def capabilities(model: GenerativeModel | type[GenerativeModel]) -> list[str]:
    """The names of what a model, or a family, can do; of a model without what its settings withhold."""
    family, withheld = (model, ()) if isinstance(model, type) else (type(model), model.withheld)
    return [name for name, capability in CAPABILITIES.items() if issubclass(family, capability) and name not in withheld]
