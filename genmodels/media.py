"""Files to levels and back: decode, fit, resample, quantise, encode. Preparing, serving and the command all use this, so they cannot differ.

Pictures. The first frame, upright by its EXIF tag; alpha over white; palettes looked up; CMYK and LAB to sRGB, embedded profiles ignored; 16 bits
scaled to 8 (v / 257); 32-bit integers read as 16-bit and floats as 0..1, both clipped; grey is ITU-R 601 luma. Fit to (height, width) with Pillow's
antialiased bicubic: `crop` fills and cuts the centre, `pad` fits inside and fills with black, `stretch` ignores the aspect. A JPEG at least twice as
large as needed is decoded at a reduced scale. v in 0..255 becomes level round(v (K - 1) / 255); level l is shown as round(255 l / (K - 1)).

Sounds. The mean of all channels, clipped to -1..1, resampled to `sample_rate` Hz, cut into windows, mu-law (mu = 255) where K = 256 and
companding says so, else K even steps.

A broken, empty or oversized file raises ValueError with one line that holds no address or path. No state and no torch: settings are the plain
dict of an artifact's model.json, for instance {"modality": "image", "height": 28, "width": 28, "channels": 1, "levels": 256, "fit": "crop"} or
{"modality": "audio", "sample_rate": 8000, "seconds": 1.0, "levels": 256, "companding": "mu-law", "window": "all", "hop": None}.
"""

import functools
import io
import json
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin

VERSION = 1
"""Raised when the same file and settings would give other levels than before."""

MAX_PIXELS = 100_000_000
MAX_SAMPLES = 500_000_000
"""Announced frames times channels of a sound."""

_PROGRAMS = {"EPS"}  # formats that Pillow hands to another program
_ORIENTATION = 0x0112
_MU = 255

Levels = NDArray[np.uint8]
Settings = Mapping[str, Any]


def levels_from_image(data: bytes, settings: Settings) -> Levels:
    """An encoded picture -> (C, H, W) uint8 levels. Raises ValueError for what cannot be decoded, or has more than MAX_PIXELS pixels."""
    try:
        picture = _decoded(data, settings)
    except MemoryError:
        raise ValueError("not enough memory to decode it") from None
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them raise
        raise ValueError(reason(error)) from None
    return levels_from_picture(picture, settings)


def levels_from_picture(picture: Image.Image, settings: Settings) -> Levels:
    """A picture of mode L or RGB -> (C, H, W) uint8 levels."""
    mode = "L" if settings["channels"] == 1 else "RGB"
    fitted = _fit(picture if picture.mode == mode else picture.convert(mode), settings["width"], settings["height"], settings["fit"])
    pixels = np.asarray(fitted).reshape(settings["height"], settings["width"], settings["channels"])
    return quantise(pixels.transpose(2, 0, 1), settings["levels"])


def levels_from_pixels(pixels: Levels, settings: Settings) -> Levels:
    """Decoded pictures (n, H, W) or (n, H, W, 3) uint8 in 0..255 -> (n, C, height, width) uint8 levels."""
    pixels = pixels if pixels.ndim == 4 else pixels[..., None]
    wanted = (settings["height"], settings["width"], settings["channels"])
    if pixels.shape[1:] == wanted:
        return quantise(pixels.transpose(0, 3, 1, 2), settings["levels"])
    one = [levels_from_picture(Image.fromarray(each.squeeze(-1) if each.shape[-1] == 1 else each), settings) for each in pixels]
    return np.stack(one) if one else np.empty((0, wanted[2], *wanted[:2]), np.uint8)


def quantise(pixels: Levels, levels: int) -> Levels:
    """uint8 in 0..255 -> uint8 in 0..K-1, the nearest level."""
    return np.ascontiguousarray(pixels) if levels == 256 else _to_levels(levels)[pixels]


def shown(levels: Levels, count: int) -> Levels:
    """uint8 in 0..K-1 -> uint8 in 0..255, the brightness that a level is shown as."""
    return _to_pixels(count)[levels]


def _to_levels(count: int) -> Levels:
    return ((2 * np.arange(256) * (count - 1) + 255) // 510).astype(np.uint8)


def _to_pixels(count: int) -> Levels:
    return ((510 * np.arange(count) + count - 1) // (2 * (count - 1))).astype(np.uint8)


def _decoded(data: bytes, settings: Settings) -> Image.Image:
    """The upright first frame in mode L or RGB."""
    with Image.open(io.BytesIO(data), formats=_formats()) as file:
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"{file.width} x {file.height} pixels; at most {MAX_PIXELS} are decoded")
        if file.format == "JPEG" and file.mode in ("L", "RGB", "YCbCr"):
            side = 2 * max(settings["height"], settings["width"])  # whichever way it will be turned
            file.draft(None, (side, side))
        _load(file)
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"{file.width} x {file.height} pixels; at most {MAX_PIXELS} are decoded")
        picture = _flat(file)
        method = _TURNS.get(_orientation(file))
    return picture.transpose(method) if method is not None else picture


def _load(file: ImageFile.ImageFile) -> None:
    """Decodes the pixels. In a PNG, chunks that are broken behind the last of them do not count."""
    try:
        file.load()
    except Exception:
        # Pillow empties `tile` when the pixels are decoded, reads a PNG's last chunks, and only then lets go of `fp`.
        if file.format != "PNG" or file.tile or file.fp is None:
            raise


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(file: Image.Image) -> int:
    """The EXIF orientation 1..8; a picture whose EXIF block is broken is taken as it lies."""
    try:
        return int(file.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


@functools.cache
def _formats() -> list[str]:
    """Every format that Pillow reads by itself."""
    Image.init()
    return [name for name in Image.ID if name not in _PROGRAMS]


def _flat(file: Image.Image) -> Image.Image:
    """A decoded frame of any mode -> L or RGB by the rules at the top of this file."""
    if file.mode.startswith("I"):
        return Image.fromarray(((np.clip(np.asarray(file, np.int64), 0, 65535) * 2 + 257) // 514).astype(np.uint8))
    if file.mode == "F":
        return Image.fromarray((np.nan_to_num(np.clip(np.asarray(file), 0, 1)) * 255 + 0.5).astype(np.uint8))
    if file.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        flat = ImageCms.applyTransform(file, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
        return flat if flat is not None else file
    if file.mode in ("La", "RGBa"):
        file = file.convert({"La": "LA", "RGBa": "RGBA"}[file.mode])
    if file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info:
        layer = file.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if file.mode in ("L", "RGB"):
        return file
    return file.convert("L" if file.mode == "1" else "RGB")


def _fit(picture: Image.Image, width: int, height: int, fit: str) -> Image.Image:
    if picture.size == (width, height):
        return picture
    if fit == "crop":
        return ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    if fit == "pad":
        return ImageOps.pad(picture, (width, height), Image.Resampling.BICUBIC)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def levels_from_sound(data: bytes, settings: Settings) -> list[tuple[Levels, int]]:
    """An encoded sound -> its windows, each (T,) uint8 levels and how many of the T steps are sound; the rest is silence.

    Raises ValueError for what cannot be decoded, has no frames, or announces more than MAX_SAMPLES samples.
    """
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if 0 < file.frames < 2**62 and file.frames * file.channels > MAX_SAMPLES:
                raise ValueError(f"{file.frames} frames of {file.channels} channels; at most {MAX_SAMPLES} samples are decoded")
            wave, rate = file.read(dtype="float32", always_2d=True).mean(axis=1), file.samplerate
        if len(wave) == 0:
            raise ValueError("no sound in it: 0 frames")
        if not np.isfinite(wave).all():
            raise ValueError("its samples are not all finite numbers")
        if rate != settings["sample_rate"]:
            wave = soxr.resample(wave, rate, settings["sample_rate"], quality="HQ")
    except MemoryError:
        raise ValueError("not enough memory to decode it") from None
    except Exception as error:  # libsndfile's errors, and numpy's for impossible sizes
        raise ValueError(reason(error)) from None
    if len(wave) == 0:
        raise ValueError(f"no sound in it: shorter than one step at {settings['sample_rate']} Hz")
    return windows(wave, settings)


def sound_format(data: bytes) -> tuple[int, int]:
    """Hz and channels, as an encoded sound announces them. Raises ValueError for what cannot be decoded."""
    import soundfile

    try:
        said = soundfile.info(io.BytesIO(data))
        return int(said.samplerate), int(said.channels)
    except Exception as error:  # libsndfile's errors
        raise ValueError(reason(error)) from None


def windows(wave: NDArray[np.floating], settings: Settings) -> list[tuple[Levels, int]]:
    """wave (n,) in -1..1 at the settings' rate -> windows of T = round(seconds x rate) steps, the last one padded with silence."""
    steps = window_steps(settings)
    hop = steps if settings["hop"] is None else max(1, round(settings["hop"] * settings["sample_rate"]))
    codes = encode(wave, settings["levels"], settings["companding"])
    last = 0 if settings["window"] == "first" else max(0, len(codes) - steps)
    starts = range(0, last + hop if last else 1, hop)
    silence = encode(np.zeros(1), settings["levels"], settings["companding"])[0]
    cut = []
    for start in starts:
        piece = codes[start : start + steps]
        cut.append((np.concatenate([piece, np.full(steps - len(piece), silence, np.uint8)]), len(piece)))
    return cut


def window_steps(settings: Settings) -> int:
    """T, the steps of one window."""
    return max(1, round(settings["seconds"] * settings["sample_rate"]))


def encode(wave: NDArray[np.floating], levels: int, companding: str | None) -> Levels:
    """wave (...) in -1..1, clipped -> (...) uint8 levels. mu-law: ITU-T G.711's curve at mu = 255, codes symmetric about 127.5."""
    wave = np.clip(np.asarray(wave, np.float64), -1, 1)
    if companding == "mu-law":
        wave = np.sign(wave) * np.log1p(_MU * np.abs(wave)) / np.log1p(_MU)
    return np.floor((wave + 1) / 2 * (levels - 1) + 0.5).astype(np.uint8)


def decode(codes: Levels, levels: int, companding: str | None) -> NDArray[np.float64]:
    """(...) uint8 levels -> (...) float64 wave in -1..1; encode(decode(c)) = c."""
    wave = 2 * np.asarray(codes, np.float64) / (levels - 1) - 1
    return np.sign(wave) * np.expm1(np.abs(wave) * np.log1p(_MU)) / _MU if companding == "mu-law" else wave


def png(levels: Levels, *, levels_count: int, text: Mapping[str, str] | None = None) -> bytes:
    """(C, H, W) uint8 levels, C 1 or 3 -> a PNG; `text` goes into its tEXt chunks (keywords of 1 to 79 Latin-1 characters)."""
    pixels = shown(np.asarray(levels), levels_count).transpose(1, 2, 0)
    chunks = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels)).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def png_text(data: bytes) -> dict[str, str]:
    """The texts inside a PNG. Raises ValueError where it is none."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as file:
            file.load()
            return {key: str(value) for key, value in getattr(file, "text", {}).items()}
    except Exception as error:
        raise ValueError(reason(error)) from None


def sheet(levels: Levels, levels_count: int, columns: int = 8, scale: int = 4, text: Mapping[str, str] | None = None) -> bytes:
    """(n, C, H, W) uint8 levels -> one PNG of n pictures in rows of `columns`, each pixel `scale` pixels wide, two grey ones between pictures."""
    pixels = shown(np.asarray(levels), levels_count).repeat(scale, axis=2).repeat(scale, axis=3)
    n, channels, height, width = pixels.shape
    rows = -(-n // columns)
    canvas = np.full((channels, rows * (height + 2) + 2, min(n, columns) * (width + 2) + 2), 128, np.uint8)
    for i, picture in enumerate(pixels):
        top, left = i // columns * (height + 2) + 2, i % columns * (width + 2) + 2
        canvas[:, top : top + height, left : left + width] = picture
    return png(canvas, levels_count=256, text=text)


def wav(
    levels: Levels, *, sample_rate: int, levels_count: int, companding: str | None = None, info: Mapping[str, str] | None = None
) -> bytes:
    """(T,) uint8 levels -> a 16-bit mono WAV at sample_rate Hz; `info` goes as JSON into the comment of its INFO chunk."""
    samples = np.rint(decode(np.asarray(levels), levels_count, companding) * 32767).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    comment = _chunk(b"ICMT", json.dumps(dict(info)).encode() + b"\0") if info else b""
    body = b"WAVE" + _chunk(b"fmt ", form) + (_chunk(b"LIST", b"INFO" + comment) if info else b"") + _chunk(b"data", samples)
    return _chunk(b"RIFF", body)


def wav_info(data: bytes) -> dict[str, str]:
    """What `wav` put into the INFO chunk; empty where there is none. Raises ValueError where data is no WAV."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError("not a WAV file: it does not begin with RIFF and WAVE")
    comment = _find(_find(data[12:], b"LIST")[4:], b"ICMT")
    return json.loads(comment.rstrip(b"\0")) if comment else {}


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _find(chunks: bytes, name: bytes) -> bytes:
    at = 0
    while at + 8 <= len(chunks):
        size = int.from_bytes(chunks[at + 4 : at + 8], "little")
        if chunks[at : at + 4] == name:
            return chunks[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    return b""


def reason(error: BaseException) -> str:
    """An error's message on one line, without addresses, so that the same file always gives the same words."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"\s*(?:file |: )?<[^<>]* object at 0x[0-9a-fA-F]+>:?", "", text)
    return re.sub(r"0x[0-9a-fA-F]{5,}", "0x...", text)[:200]
