"""The orders in which families that are bound to no raster visit the values of an event."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genmodels.core import Event
from genmodels.noise import derive, permuted

LARGEST = 4096
"""Values of an event that a fully connected family models: it has weights for each of them in every unit."""


def check(family: str, event: Event, order: str | Sequence[int], orders: int = 1) -> None:
    """Raises ValueError for an event that a family bound to no raster does not take, in this order of its values."""
    if event.levels == 0 or event.dims > LARGEST:
        raise ValueError(f"{family} models at most {LARGEST} values of levels; got {event}")
    if event.condition is not None:
        raise ValueError(f"{family} takes no condition; got one of {event.condition}")
    if event.modality == "audio" and (order != "raster" or orders > 1):
        raise ValueError(f"order {order!r:.60}, orders {orders} of a sound; its end may be padding, so wanted order: raster, orders: 1")


def arrangement(raster: Tensor, order: str | Sequence[int], seed: int) -> Tensor:
    """raster (D,) places; order: "raster", "random" (a function of the seed), or the places themselves -> (D,) int64 places as visited.

    Raises ValueError for an order that is no permutation of the places.
    """
    if order == "raster":
        return raster
    if order == "random":
        return permuted(len(raster), seed=derive("order", seed)).to(raster.device)
    if isinstance(order, str) or sorted(order) != list(range(len(raster))):
        raise ValueError(f"order {order!r:.60}; wanted raster, random, or each place from 0 to {len(raster) - 1} once")
    return torch.tensor(order, device=raster.device)


def arrangements(raster: Tensor, order: str | Sequence[int], seed: int, count: int) -> Tensor:
    """(count, D) int64 orders, no two alike: `arrangement`'s, then random ones. Raises ValueError where there are not so many."""
    if len(raster) < 13 and count > math.factorial(len(raster)):
        raise ValueError(f"{count} orders of {len(raster)} values; there are only {math.factorial(len(raster))}")
    found, attempt = [arrangement(raster, order, seed)], 0
    while len(found) < count:
        further = arrangement(raster, "random", derive("further", seed, attempt))
        attempt += 1
        if not any(torch.equal(further, other) for other in found):
            found.append(further)
    return torch.stack(found)


def inverse(order: Tensor) -> Tensor:
    """order (..., D) places as visited -> (..., D) int64: when each place is visited."""
    return torch.argsort(order, dim=-1)
