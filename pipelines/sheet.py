"""Samples made visible: a contact sheet with a row for each class, and wave forms with the spectrograms that show what they hide."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from genmodels import media
from genmodels.core import Event

CLEAR, INK = (0, 0, 0, 0), (122, 128, 134, 255)
"""Names stand on whatever is behind the sheet, a light page or a dark one."""
GREY = "#7a8086"


def layout(event: Event, n: int) -> tuple[list[int] | None, int]:
    """Labels of about n samples to draw, and the sheet's columns: a row for each class, or where that would be one sample wide, ten classes a row."""
    if not event.classes:
        return None, max(1, round(n**0.5))
    each = max(1, n // event.classes)
    labels = [label for label in range(event.classes) for _ in range(each)]
    return labels, each if each > 1 else min(10, event.classes)


def letters(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu, which matplotlib brings: Pillow's own font has a box for Ä, ж or λ, and labels and file names are in any language."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def row_names(labels: Sequence[int] | None, columns: int, names: Sequence[str]) -> list[str]:
    """The name of each row's class; none where a row holds several."""
    if not labels or not names or labels[0] != labels[columns - 1]:
        return []
    return [names[label] for label in labels[::columns]]


def pictures(levels: np.ndarray, event: Event, columns: int, *, names: Sequence[str] = (), scale: int | None = None) -> bytes:
    """levels (n, C, H, W) uint8 -> a PNG of rows of `columns` pictures, each row with its name, if any, before it."""
    scale = scale or max(1, 48 // max(event.shape[1:]))
    sheet = Image.open(io.BytesIO(media.sheet(levels, levels_count=event.levels, columns=columns, scale=scale)))
    if not names:
        return _png(sheet)
    font = letters(13)
    margin = 12 + max(round(font.getlength(name)) for name in names)
    page = Image.new("RGBA", (sheet.width + margin, sheet.height), CLEAR)
    page.paste(sheet.convert("RGBA"), (margin, 0))
    draw = ImageDraw.Draw(page)
    for row, name in enumerate(names):
        middle = (row + 0.5) * sheet.height / len(names)
        draw.text((margin - 6, middle), name, fill=INK, font=font, anchor="rm")
    return _png(page)


def joined(sounds: np.ndarray, event: Event, *, gap: float = 0.15) -> np.ndarray:
    """sounds (n, T) levels -> one (m,) of them all, with `gap` seconds of silence between."""
    silence = np.full(round(gap * _rate(event)), event.levels // 2, dtype=np.uint8)
    parts = [part for sound in sounds for part in (sound, silence)]
    return np.concatenate(parts[:-1])


def sounds(levels: np.ndarray, event: Event, names: Sequence[str], *, limit: int = 12) -> bytes:
    """levels (n, T) -> a PNG: of `limit` of them, spread evenly over all, the wave form and, below, its spectrogram in dB."""
    from matplotlib.figure import Figure  # slow to import, and pictures need none of it

    n = min(limit, len(levels))
    taken = [i * len(levels) // n for i in range(n)]  # in the order of labels the first ones are of one label
    columns = min(4, n)
    rows = -(-n // columns)
    figure = Figure(figsize=(3.1 * columns, 2.6 * rows))
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[1, 2] * rows)
    for axis in axes.flat:
        axis.axis("off")
    for i, sound in enumerate(taken):
        wave, rate = media.decode(levels[sound], event.levels, event.companding), _rate(event)
        top, bottom = axes[2 * (i // columns), i % columns], axes[2 * (i // columns) + 1, i % columns]
        top.plot(np.arange(len(wave)) / rate, wave, lw=0.5, color="#5b8db8")
        top.set(ylim=(-1, 1), xlim=(0, len(wave) / rate))
        top.set_title(names[sound] if sound < len(names) else "", fontsize=8, loc="left", parse_math=False, color=GREY)
        bottom.imshow(spectrogram(wave), origin="lower", aspect="auto", cmap="magma", vmin=-80, vmax=0, interpolation="nearest")
    figure.tight_layout(pad=0.4)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, transparent=True, metadata={"Software": None})
    return out.getvalue()


def spectrogram(wave: np.ndarray, *, window: int = 256, frames: int = 200) -> np.ndarray:
    """wave (T,) -> (window // 2 + 1, about `frames`) dB below the loudest: Hann windows, short-time Fourier transform."""
    padded = np.pad(wave, (0, max(0, window - len(wave))))
    hop = max(1, (len(padded) - window) // frames)
    parts = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    power = np.abs(np.fft.rfft(parts, axis=-1)).T ** 2
    return 10 * np.log10(np.maximum(power, 1e-12) / max(power.max(), 1e-12))


def wav(levels: np.ndarray, event: Event) -> bytes:
    """levels (T,) -> a WAV at the event's rate."""
    return media.wav(levels, sample_rate=_rate(event), levels_count=event.levels, companding=event.companding)


def _rate(event: Event) -> int:
    if event.sample_rate is None:
        raise ValueError(f"{event} has no sample rate; wanted a sound")
    return event.sample_rate


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()
