"""Conditions of pictures: given ones, and those that a model makes of the example itself, so that data sets need store none.

A derived condition makes a model of pictures one of super-resolution (smaller), colouring (grey) or filling in (masked). It is made of x, yet p(x|c)
is a density over every x for each c, also over those x that would have given another c.
"""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from genmodels.core import Event

Condition = Literal["none", "given", "smaller", "grey", "masked"]


def check(kind: Condition, factor: int) -> None:
    """Raises ValueError for settings that name no condition."""
    if kind not in get_args(Condition):
        raise ValueError(f"condition {kind!r}; wanted one of {', '.join(get_args(Condition))}")
    if factor < 2:
        raise ValueError(f"factor {factor}; wanted at least 2")


def conditioned(event: Event, kind: Condition, factor: int) -> Event:
    """The event with the condition that a model of this kind has. Raises ValueError where the event cannot have it, or has another."""
    wanted = event.condition if kind == "given" else None if kind == "none" else _made(event, kind, factor)
    if kind == "given":
        _check_given(event)
    elif event.condition not in (None, wanted):
        made = f"makes its own, {wanted}" if wanted else "takes none unless its setting `condition` is given"
        raise ValueError(f"an event with a condition, {event.condition}; this model {made}")
    return replace(event, condition=wanted)


def _made(event: Event, kind: Condition, factor: int) -> Event:
    channels, height, width = event.shape
    if kind == "smaller" and (height % factor or width % factor):
        raise ValueError(f"condition smaller by {factor} of {event}; wanted a factor of both height and width")
    if kind == "grey" and channels != 3:
        raise ValueError(f"condition grey of {event}; wanted three channels, R, G and B")
    shape = {"smaller": (channels, height // factor, width // factor), "grey": (1, height, width), "masked": (channels + 1, height, width)}
    return Event(modality="image", shape=shape[kind], levels=event.levels)


def _check_given(event: Event) -> None:
    given, (_, height, width) = event.condition, event.shape
    if given is None or given.modality != "image" or height % given.shape[1] or width % given.shape[2]:
        raise ValueError(f"condition {given} given for {event}; wanted an image whose height and width divide the picture's")


def derive(x: Tensor, kind: Condition, factor: int, levels: int) -> Tensor:
    """x (B, C, H, W) levels -> (B, *condition.shape) uint8: every factor-th pixel of every factor-th row; the luma (ITU-R BT.601) rounded to a
    level; or x with its central half in height and width set to 0, and a last channel that is K - 1 where x is shown and 0 where it is not."""
    if kind == "smaller":
        return x[..., ::factor, ::factor]
    if kind == "grey":
        weights = torch.tensor([299, 587, 114], device=x.device)[:, None, None]
        return (((x.long() * weights).sum(1, keepdim=True) + 500) // 1000).to(torch.uint8)
    hidden = centre(x.shape[-2], x.shape[-1]).to(x.device)
    shown = torch.where(hidden, 0, levels - 1).to(torch.uint8).expand(len(x), 1, -1, -1)
    return torch.cat([torch.where(hidden, 0, x), shown], dim=1)


def centre(height: int, width: int) -> Tensor:
    """(height, width) bool: the central half in height and in width, at least one pixel."""
    rows, columns = (_middle(side) for side in (height, width))
    return rows[:, None] & columns


def _middle(side: int) -> Tensor:
    half = max(1, side // 2)
    index = torch.arange(side) - (side - half) // 2
    return (index >= 0) & (index < half)
