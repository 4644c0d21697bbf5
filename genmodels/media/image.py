"""Pictures to levels and back, by the rules at the top of genmodels.media."""

import functools
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin

from genmodels.media.reading import Levels, Settings, reason

MAX_PIXELS = 100_000_000

_PROGRAMS = {"EPS"}  # formats that Pillow hands to another program
_ORIENTATION = 0x0112


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
