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

from genmodels.media.image import (
    MAX_PIXELS,
    levels_from_image,
    levels_from_picture,
    levels_from_pixels,
    png,
    png_text,
    quantise,
    sheet,
    shown,
)
from genmodels.media.reading import Levels, Settings, reason
from genmodels.media.sound import (
    MAX_SAMPLES,
    decode,
    encode,
    levels_from_sound,
    sound_format,
    wav,
    wav_end,
    wav_head,
    wav_info,
    wav_samples,
    window_steps,
    windows,
)

__all__ = [
    "MAX_PIXELS",
    "MAX_SAMPLES",
    "VERSION",
    "Levels",
    "Settings",
    "decode",
    "encode",
    "levels_from_image",
    "levels_from_picture",
    "levels_from_pixels",
    "levels_from_sound",
    "png",
    "png_text",
    "quantise",
    "reason",
    "sheet",
    "shown",
    "sound_format",
    "wav",
    "wav_end",
    "wav_head",
    "wav_info",
    "wav_samples",
    "window_steps",
    "windows",
]

VERSION = 1
"""Raised when the same file and settings would give other levels than before."""
