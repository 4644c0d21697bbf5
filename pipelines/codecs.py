"""PNG, FLAC and zstd on the levels that a model compresses: each as small as the library at hand makes it."""

import io
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import soundfile
from numpy.typing import NDArray
from PIL import Image

from genmodels import media
from genmodels.core import Event
from pipelines.files import Examples, Levels

LN2 = math.log(2)


def sizes(examples: Examples) -> dict[str, int]:
    """Bytes by title; a picture and a sound are a file each, zstd has all levels at once."""
    event, wholes = examples.event, examples.wholes
    found = {"plain levels": -(-dims(examples) * (event.levels - 1).bit_length() // 8)}
    if event.modality == "image":
        found["PNG, optimised, the sum of one file a picture"] = sum(png(each, event.levels) for each in wholes)
    if event.modality == "audio":
        found["FLAC, the sum of one file a sound"] = sum(flac(each, event) for each in wholes)
    found["zstd, level 22, everything in one file"] = zstd(wholes, event.levels)
    return found


def dims(examples: Examples) -> int:
    """How many levels there are, padding left out."""
    return sum(each.size for each in examples.wholes)


def png(levels: Levels, count: int) -> int:
    """The smaller of optimised PNGs of a (C, H, W) picture: grey or colour of 8 bits; with few levels also 1, 2 or 4 bits a pixel."""
    pixels = media.shown(levels, count).transpose(1, 2, 0)
    if levels.shape[0] != 1:
        return _png(Image.fromarray(np.ascontiguousarray(pixels)))
    pictures = [Image.fromarray(pixels[..., 0])]
    if count == 2:
        pictures.append(pictures[0].convert("1"))
    elif count <= 16:
        pictures.append(Image.fromarray(levels[0]).convert("P"))
        pictures[1].putpalette([int(shade) for shade in media.shown(np.arange(count, dtype=np.uint8), count) for _ in "rgb"])
    return min(_png(picture) for picture in pictures)


def flac(levels: Levels, event: Event) -> int:
    """The smaller of FLACs of a (T,) sound: its levels as 8-bit samples, or the 16-bit samples that they are heard as."""
    wave = np.rint(media.decode(levels, event.levels, event.companding) * 32767).astype(np.int16)
    codes = (levels.astype(np.int16) - event.levels // 2) << 8
    return min(_flac(codes, event, "PCM_S8"), _flac(wave, event, "PCM_16"))


def zstd(wholes: Sequence[Levels], count: int) -> int:
    """All levels one after the other; of two levels the smaller of that and eight to a byte."""
    plain = np.concatenate([each.reshape(-1) for each in wholes])
    codec = pa.Codec("zstd", compression_level=22)
    forms = [plain, np.packbits(plain)] if count == 2 else [plain]
    return min(len(codec.compress(form.tobytes(), asbytes=True)) for form in forms)


def _png(picture: Image.Image) -> int:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.tell()


def _flac(samples: NDArray[np.int16], event: Event, subtype: str) -> int:
    assert event.sample_rate is not None
    file = io.BytesIO()
    soundfile.write(file, samples, event.sample_rate, format="FLAC", subtype=subtype, compression_level=1.0)
    return len(file.getvalue())
