"""Sounds to levels and back, by the rules at the top of genmodels.media."""

import functools
import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmodels.media.reading import Levels, Settings, reason

MAX_SAMPLES = 500_000_000
"""Announced frames times channels of a sound."""

_MU = 255


def levels_from_sound(data: bytes, settings: Settings) -> list[tuple[Levels, int]]:
    """An encoded sound -> its windows, each (T,) uint8 levels and how many of the T steps are sound; the rest is silence.

    Raises ValueError for what cannot be decoded, has no frames, or announces more than MAX_SAMPLES samples.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if 0 < file.frames < 2**62 and file.frames * file.channels > MAX_SAMPLES:
                raise ValueError(f"{file.frames} frames of {file.channels} channels; at most {MAX_SAMPLES} samples are decoded")
            rate = file.samplerate
            looked_up = file.subtype == "PCM_16" and file.channels <= 2 and rate == settings["sample_rate"]
            samples: Any = file.read(dtype="int16" if looked_up else "float32", always_2d=True)
        if len(samples) == 0:
            raise ValueError("no sound in it: 0 frames")
        codes = _looked_up(samples, settings) if looked_up else encode(_wave(samples, rate, settings), *_law(settings))
    except MemoryError:
        raise ValueError("not enough memory to decode it") from None
    except Exception as error:  # libsndfile's errors, and numpy's for impossible sizes
        raise ValueError(reason(error)) from None
    if len(codes) == 0:
        raise ValueError(f"no sound in it: shorter than one step at {settings['sample_rate']} Hz")
    return _cut(codes, settings)


def _law(settings: Settings) -> tuple[int, str | None]:
    return settings["levels"], settings["companding"]


def _looked_up(samples: NDArray[np.int16], settings: Settings) -> Levels:
    """(n, channels) -> (n,): the level of the channels' mean, as `encode` gives it, at a tenth of the cost."""
    channels = samples.shape[1]
    if channels == 1:
        return _levels_of_words(*_law(settings)).take(samples[:, 0].view(np.uint16))
    return _levels_of_sums(channels, *_law(settings))[samples.sum(axis=1, dtype=np.int32) + 32768 * channels]


@functools.lru_cache(maxsize=8)
def _levels_of_words(levels: int, companding: str | None) -> Levels:
    """The level of every 16-bit sample, by its bits."""
    return np.roll(_levels_of_sums(1, levels, companding), 32768)


@functools.lru_cache(maxsize=8)
def _levels_of_sums(channels: int, levels: int, companding: str | None) -> Levels:
    """The level of every sum of so many 16-bit samples, from the least on; float32 holds each of their means exactly."""
    sums = np.arange(-32768 * channels, 32767 * channels + 1)
    return encode((sums / (32768 * channels)).astype(np.float32), levels, companding)


def _wave(samples: NDArray[np.float32], rate: int, settings: Settings) -> NDArray[np.float32]:
    """(n, channels) -> (m,): the channels' mean at the settings' rate."""
    wave = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if not np.isfinite(wave).all():
        raise ValueError("its samples are not all finite numbers")
    if rate == settings["sample_rate"]:
        return wave
    import soxr

    return soxr.resample(wave, rate, settings["sample_rate"], quality="HQ")


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
    return _cut(encode(wave, *_law(settings)), settings)


def _cut(codes: Levels, settings: Settings) -> list[tuple[Levels, int]]:
    steps = window_steps(settings)
    hop = steps if settings["hop"] is None else max(1, round(settings["hop"] * settings["sample_rate"]))
    last = 0 if settings["window"] == "first" else max(0, len(codes) - steps)
    silence = encode(np.zeros(1), *_law(settings))[0]
    cut = []
    for start in range(0, last + hop if last else 1, hop):
        piece = codes[start : start + steps]
        whole = piece if len(piece) == steps else np.concatenate([piece, np.full(steps - len(piece), silence, np.uint8)])
        cut.append((whole, len(piece)))
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


def wav(
    levels: Levels, *, sample_rate: int, levels_count: int, companding: str | None = None, info: Mapping[str, str] | None = None
) -> bytes:
    """(T,) uint8 levels -> a 16-bit mono WAV at sample_rate Hz; `info` goes as JSON into the comment of its INFO chunk, behind the samples."""
    end = wav_end(info)
    return wav_head(len(levels), sample_rate=sample_rate, behind=len(end)) + wav_samples(levels, levels_count, companding) + end


def wav_head(steps: int, *, sample_rate: int, behind: int) -> bytes:
    """What comes before the samples, of so many steps and with so many bytes behind them: a sound can be sent while it is made."""
    form = _chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16))
    size = len(b"WAVE") + len(form) + 8 + 2 * steps + behind
    return b"RIFF" + struct.pack("<I", size) + b"WAVE" + form + b"data" + struct.pack("<I", 2 * steps)


def wav_samples(levels: Levels, levels_count: int, companding: str | None) -> bytes:
    """(t,) uint8 levels -> their samples, 16 bits each, little end first."""
    return np.rint(decode(np.asarray(levels), levels_count, companding) * 32767).astype("<i2").tobytes()


def wav_end(info: Mapping[str, str] | None) -> bytes:
    """The INFO chunk."""
    return _chunk(b"LIST", b"INFO" + _chunk(b"ICMT", json.dumps(dict(info)).encode() + b"\0")) if info else b""


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
