"""Where a model is surprised: beside each picture the bits of every pixel as a heat map, over each sound the bits of every step."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from genmodels import media
from genmodels.core import Event
from pipelines.sheet import letters

SIDE, GAP, BAR = 256, 16, 14
"""Pixels: the least side that a picture is enlarged to, between things, width of the scale."""
PAPER, INK = (255, 255, 255), (40, 44, 48)
_HEAT = np.array([(0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191)], float)
"""From no bits to most: black, violet, red, orange, yellow."""


@dataclass(frozen=True, kw_only=True)
class Surprise:
    """One file: its levels and the bits of every value, both (C, H, W) or (T,), and a line about it."""

    levels: NDArray[np.uint8]
    bits: NDArray[np.floating]
    title: str


def found(name: str, x: NDArray[np.uint8], lengths: Sequence[int] | None, nats: NDArray[np.floating]) -> list[Surprise]:
    """A file's examples x (n, *shape) with nats (n, *shape) of each value: a sound of its windows joined, or pictures one by one."""
    if lengths is not None:
        x, nats = (np.concatenate([row[:length] for row, length in zip(rows, lengths, strict=True)])[None] for rows in (x, nats))
    each = []
    for number, (levels, bits) in enumerate(zip(x, -nats / np.log(2), strict=True)):
        title = f"{name}{f' [{number}]' if len(x) > 1 else ''}: {bits.sum():,.1f} bits, {bits.mean():.3f} bits/dim"
        each.append(Surprise(levels=levels, bits=bits, title=title))
    return each


def png(found: Sequence[Surprise], event: Event) -> bytes:
    """All of them in one PNG, one below the other, on one scale."""
    return _sounds(found, event) if event.modality == "audio" else _pictures(found, event)


def heat(bits: NDArray[np.floating], top: float) -> NDArray[np.uint8]:
    """(...) bits in 0..top -> (..., 3) colours."""
    at = np.clip(bits / top, 0, 1) * (len(_HEAT) - 1)
    return np.stack([np.interp(at, np.arange(len(_HEAT)), _HEAT[:, channel]) for channel in range(3)], axis=-1).round().astype(np.uint8)


def _pictures(found: Sequence[Surprise], event: Event) -> bytes:
    _, height, width = event.shape
    scale, font = max(1, round(SIDE / max(height, width))), letters(14)
    high, wide = height * scale, width * scale
    each = [one.bits.sum(axis=0) for one in found]
    top = max(max(float(bits.max()) for bits in each), 1e-3)
    row = high + 2 * GAP + 4
    named = max(round(font.getlength(one.title)) for one in found)
    page = Image.new("RGB", (max(2 * wide + 3 * GAP + BAR + 70, named) + 2 * GAP, row * len(found) + GAP), PAPER)
    draw = ImageDraw.Draw(page)
    for i, (one, bits) in enumerate(zip(found, each, strict=True)):
        y = i * row + GAP
        draw.text((GAP, y), one.title, fill=INK, font=font)
        y += GAP + 4
        page.paste(_enlarged(media.shown(one.levels, event.levels).transpose(1, 2, 0), scale), (GAP, y))
        page.paste(_enlarged(heat(bits, top), scale), (2 * GAP + wide, y))
        _scale(draw, page, (3 * GAP + 2 * wide, y), high, top, font)
    out = io.BytesIO()
    page.save(out, "PNG")
    return out.getvalue()


def _enlarged(pixels: NDArray[np.uint8], scale: int) -> Image.Image:
    """(H, W, C) -> a picture, each pixel `scale` wide."""
    whole = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(np.ascontiguousarray(whole))


def _scale(
    draw: ImageDraw.ImageDraw,
    page: Image.Image,
    at: tuple[int, int],
    high: int,
    top: float,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """The bar that says which colour is how many bits; ticks at 0, the middle and the top."""
    left, y = at
    ramp = heat(np.linspace(top, 0, high), top)[:, None].repeat(BAR, axis=1)
    page.paste(Image.fromarray(np.ascontiguousarray(ramp)), (left, y))
    for share, anchor in ((0.0, "ls"), (0.5, "lm"), (1.0, "lt")):
        value = f"{share * top:.2g}" if top < 10 else f"{share * top:.0f}"
        draw.text(
            (left + BAR + 6, y + round((1 - share) * (high - 1))),
            value + (" bits" if share == 1 else ""),
            fill=INK,
            font=font,
            anchor=anchor,
        )


def _sounds(found: Sequence[Surprise], event: Event) -> bytes:
    from matplotlib.figure import Figure  # slow to import, and pictures need none of it

    figure = Figure(figsize=(10, 3.2 * len(found)), layout="constrained")
    top, rate = max(float(_binned(one.bits)[1].max()) for one in found), event.sample_rate or 1
    for one, part in zip(found, figure.subfigures(len(found), 1, squeeze=False)[:, 0], strict=True):
        upper, lower = part.subplots(2, 1, sharex=True, height_ratios=[1.3, 1])
        (step, bits), wave = _binned(one.bits), media.decode(one.levels, event.levels, event.companding)
        upper.stairs(bits, np.minimum(np.arange(len(bits) + 1) * step, len(wave)) / rate, lw=0.9, color="#b73779")
        upper.set(ylim=(0, top * 1.05), ylabel="bits a step" + (f"\n(mean of {step})" if step > 1 else ""))
        upper.set_title(one.title, fontsize=10, loc="left", parse_math=False)
        lower.plot(np.arange(len(wave)) / rate, wave, lw=0.6, color="#31688e")
        lower.set(
            xlim=(0, len(wave) / rate), ylim=np.array([-1.1, 1.1]) * max(float(np.abs(wave).max()), 1e-3), ylabel="wave", xlabel="seconds"
        )
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def _binned(bits: NDArray[np.floating], most: int = 500) -> tuple[int, NDArray[np.floating]]:
    """Steps a bin and the mean of each, so that at most about `most` are drawn."""
    step = -(-len(bits) // most)
    starts = np.arange(0, len(bits), step)
    return step, np.add.reduceat(bits, starts) / np.diff(starts, append=len(bits))
