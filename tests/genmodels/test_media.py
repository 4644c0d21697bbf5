"""Files to levels and back: what a picture or a sound becomes, and that what is handed out comes back the same."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from genmodels import media

GREY = {"modality": "image", "height": 8, "width": 8, "channels": 1, "levels": 256, "fit": "crop"}
SPOKEN = {"modality": "audio", "sample_rate": 8000, "seconds": 0.5, "levels": 256, "companding": "mu-law", "window": "all", "hop": None}


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def sound(wave: np.ndarray, rate: int = 8000, subtype: str = "FLOAT", form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, subtype=subtype, format=form)
    return file.getvalue()


@pytest.mark.parametrize("count", range(2, 257))
def test_a_picture_handed_out_scores_to_the_same_levels_when_handed_back(count: int) -> None:
    levels = np.resize(np.arange(count, dtype=np.uint8), (1, 16, 16))
    settings = {**GREY, "height": 16, "width": 16, "levels": count}
    assert (media.levels_from_image(media.png(levels, levels_count=count), settings) == levels).all()


def test_levels_are_the_nearest_to_what_is_shown() -> None:
    for count in (2, 3, 17, 100, 256):
        shown = media.shown(np.arange(count, dtype=np.uint8), count)
        assert (shown == np.floor(255 * np.arange(count) / (count - 1) + 0.5)).all()
        every = np.arange(256, dtype=np.uint8)
        distance = np.abs(every[:, None].astype(float) * (count - 1) / 255 - np.arange(count))
        assert np.isclose(distance[every, media.quantise(every, count)], distance.min(axis=1)).all()


def test_colour_keeps_its_channel_order() -> None:
    picture = Image.new("RGB", (8, 8), (10, 20, 30))
    levels = media.levels_from_image(encoded(picture), {**GREY, "channels": 3})
    assert levels.shape == (3, 8, 8) and [int(channel[0, 0]) for channel in levels] == [10, 20, 30]
    assert (
        media.png(levels, levels_count=256)
        and (media.levels_from_image(media.png(levels, levels_count=256), {**GREY, "channels": 3}) == levels).all()
    )


@pytest.mark.parametrize(
    ("picture", "wanted"),
    [
        (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), 255),
        (Image.new("LA", (8, 8), (100, 255)), 100),
        (Image.new("LA", (8, 8), (0, 128)), 127),
        (Image.fromarray(np.full((8, 8), 65535, np.uint16)), 255),
        (Image.fromarray(np.full((8, 8), 257 * 40, np.uint16)), 40),
        (Image.new("1", (8, 8), 1), 255),
        (Image.new("L", (8, 8), 77).convert("P"), 77),
    ],
    ids=["transparent is white", "opaque", "half", "16 bits, full", "16 bits scale by 257", "one bit", "palette"],
)
def test_modes_become_grey_by_the_stated_rules(picture: Image.Image, wanted: int) -> None:
    assert np.unique(media.levels_from_image(encoded(picture), GREY)).tolist() == [wanted]


def test_cmyk_and_float_tiffs_become_grey_by_the_stated_rules() -> None:
    assert media.levels_from_image(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "TIFF"), GREY).max() == 0
    assert np.unique(media.levels_from_image(encoded(Image.new("F", (8, 8), 0.5), "TIFF"), GREY)).tolist() == [128]
    assert np.unique(media.levels_from_image(encoded(Image.new("F", (8, 8), 7.0), "TIFF"), GREY)).tolist() == [255]


def test_the_first_frame_is_taken() -> None:
    frames = [Image.new("L", (8, 8), shade) for shade in (50, 200)]
    assert np.unique(media.levels_from_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), GREY)).tolist() == [50]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int, form: str) -> None:
    upright = np.zeros((8, 8), np.uint8)
    upright[:4, :4], upright[:4, 4:], upright[4:, :4] = 250, 160, 80
    undo = {
        1: None,
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    stored = Image.fromarray(upright)
    if undo[orientation]:
        stored = stored.transpose(Image.Transpose[undo[orientation] or ""])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if form == "JPEG" else {}
    levels = media.levels_from_image(encoded(stored, form, exif=exif, **options), GREY)
    assert np.abs(levels[0].astype(int) - upright).max() <= (12 if form == "JPEG" else 0)


def test_fit() -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200
    data = encoded(Image.fromarray(wide))
    crop, pad, stretch = (
        media.levels_from_image(data, {**GREY, "height": 10, "width": 10, "fit": fit})[0] for fit in ("crop", "pad", "stretch")
    )
    assert (crop == 200).all()
    assert (pad[:3] == 0).all() and (pad[-3:] == 0).all() and pad[4, 5] > 150
    assert stretch[:, 0].max() < 30 and stretch[:, 5].min() > 150


def test_a_large_jpeg_decoded_at_a_reduced_scale_looks_like_the_whole_one() -> None:
    wave = np.sin(np.linspace(0, 6, 640))
    picture = Image.fromarray((127 + 60 * np.add.outer(wave, wave)).clip(0, 255).astype(np.uint8))
    settings = {**GREY, "height": 32, "width": 32}
    reduced = media.levels_from_image(encoded(picture, "JPEG", quality=95), settings).astype(int)
    assert np.abs(reduced - media.levels_from_image(encoded(picture), settings)).max() <= 4


def vast(width: int, height: int) -> bytes:
    """A PNG whose header announces that many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def test_vast_pictures_are_refused_by_their_header() -> None:
    with pytest.raises(ValueError, match=r"^Image size \(1000000000 pixels\) exceeds limit"):
        media.levels_from_image(vast(40_000, 25_000), GREY)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_just_above_our_own_limit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^12000 x 12000 pixels; at most 100000000 are decoded$"):
        media.levels_from_image(vast(12_000, 12_000), GREY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot identify image"),
        (b"hello", "cannot identify image"),
        (encoded(Image.new("L", (64, 64), 9))[:60], "image file is truncated"),
    ],
)
def test_broken_pictures_say_why_in_words_that_never_change(data: bytes, message: str) -> None:
    said = set()
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            media.levels_from_image(data, GREY)
        said.add(str(caught.value))
    assert len(said) == 1 and said.pop().startswith(message)


def test_postscript_is_never_handed_to_another_program() -> None:
    with pytest.raises(ValueError, match="cannot identify image"):
        media.levels_from_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", GREY)


def test_receipts_are_read_back() -> None:
    receipt = {"genmodels": '{"seed": 7, "model": "digits@1"}', "note": "façade"}
    assert media.png_text(media.png(np.zeros((1, 4, 4), np.uint8), levels_count=2, text=receipt)) == receipt
    made = media.wav(np.zeros(11, np.uint8), sample_rate=8000, levels_count=256, companding="mu-law", info=receipt)
    assert media.wav_info(made) == receipt
    assert soundfile.info(io.BytesIO(made)).frames == 11
    assert media.wav_info(media.wav(np.zeros(10, np.uint8), sample_rate=8000, levels_count=256)) == {}


def test_a_sheet_shows_every_picture() -> None:
    levels = np.stack([np.full((1, 3, 5), i, np.uint8) for i in range(5)])
    with Image.open(io.BytesIO(media.sheet(levels, 5, columns=2, scale=2))) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (3 * 8 + 2, 2 * 12 + 2)
    assert [pixels[2 + 8 * (i // 2), 2 + 12 * (i % 2)] for i in range(5)] == media.shown(np.arange(5, dtype=np.uint8), 5).tolist()


def test_mu_law_codes_come_back_and_are_symmetric() -> None:
    codes = np.arange(256, dtype=np.uint8)
    wave = media.decode(codes, 256, "mu-law")
    assert (media.encode(wave, 256, "mu-law") == codes).all()
    assert np.allclose(wave, -wave[::-1]) and np.isclose(wave[255], 1) and (np.diff(wave) > 0).all()
    y = 2 * codes.astype(float) / 255 - 1
    exact = np.sign(y) * (256.0 ** np.abs(y) - 1) / 255
    assert np.allclose(wave, exact)


def test_mu_law_errs_by_at_most_half_a_step() -> None:
    wave = np.arange(-32768, 32768) / 32768
    codes = media.encode(wave, 256, "mu-law")
    edges = media.decode(np.arange(256, dtype=np.uint8), 256, "mu-law")
    step = np.maximum(np.diff(edges, prepend=edges[:1]), np.diff(edges, append=edges[-1:]))
    assert (np.abs(media.decode(codes, 256, "mu-law") - wave) <= step[codes]).all()


@pytest.mark.parametrize(("count", "law"), [(256, "mu-law"), (256, None), (16, None), (2, None)])
def test_a_sound_handed_out_scores_to_the_same_levels_when_handed_back(count: int, law: str | None) -> None:
    codes = np.resize(np.arange(count, dtype=np.uint8), 4000)
    data = media.wav(codes, sample_rate=8000, levels_count=count, companding=law)
    [(back, length)] = media.levels_from_sound(data, {**SPOKEN, "levels": count, "companding": law})
    assert length == 4000 and (back == codes).all()


@pytest.mark.parametrize(
    ("steps", "hop", "window", "lengths"),
    [
        (100, None, "all", [100]),
        (4000, None, "all", [4000]),
        (4001, None, "all", [4000, 1]),
        (8000, None, "all", [4000, 4000]),
        (10000, None, "all", [4000, 4000, 2000]),
        (10000, 0.25, "all", [4000, 4000, 4000, 4000]),
        (10000, None, "first", [4000]),
    ],
)
def test_windows_cover_the_sound_and_keep_how_much_of_it_they_hold(steps: int, hop: float | None, window: str, lengths: list[int]) -> None:
    wave = np.linspace(-0.9, 0.9, steps)
    cut = media.levels_from_sound(sound(wave), {**SPOKEN, "hop": hop, "window": window})
    assert [length for _, length in cut] == lengths
    assert all(codes.shape == (4000,) and (codes[length:] == 128).all() for codes, length in cut)
    whole, stride = media.encode(wave.astype(np.float32), 256, "mu-law"), 4000 if hop is None else 2000
    for i, (codes, length) in enumerate(cut):
        assert (codes[:length] == whole[i * stride : i * stride + length]).all()


def test_channels_are_averaged_and_rates_changed() -> None:
    t = np.arange(44100) / 44100
    stereo = np.stack([0.8 * np.sin(2 * np.pi * 440 * t), np.zeros_like(t)], axis=1)
    windows = media.levels_from_sound(sound(stereo, 44100, "PCM_16", "FLAC"), SPOKEN)
    wave = media.decode(np.concatenate([codes[:n] for codes, n in windows]), 256, "mu-law")
    assert abs(len(wave) - 8000) <= 1
    spectrum = np.abs(np.fft.rfft(wave))
    assert spectrum.argmax() == 440 and abs(np.abs(wave[200:-200]).max() - 0.4) < 0.02


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (sound(np.zeros(0)), "no sound in it: 0 frames"),
        (sound(np.array([0.0, np.nan])), "its samples are not all finite numbers"),
        (b"RIFF nonsense", "Error opening"),
    ],
)
def test_broken_sounds_say_why(data: bytes, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        media.levels_from_sound(data, SPOKEN)
    assert str(caught.value).startswith(message) and "0x" not in str(caught.value)


@pytest.mark.parametrize("levels", [256, 64])
@pytest.mark.parametrize("companding", [None, "mu-law"])
@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_sixteen_bits_that_are_looked_up_get_the_levels_of_the_formula(levels: int, companding: str | None, form: str) -> None:
    """Every sample there is, alone and beside another."""
    how = {**SPOKEN, "levels": levels, "companding": companding, "seconds": 8.192}
    every = np.arange(-32768, 32768).astype(np.int16)
    for samples in (every[:, None], np.stack([every, np.roll(every, 12345)], 1), np.stack([every, every], 1)):
        file = io.BytesIO()
        soundfile.write(file, samples, 8000, "PCM_16", format=form)
        wave = (samples / np.float32(32768)).astype(np.float32).mean(axis=1)
        ((got, length),) = media.levels_from_sound(file.getvalue(), how)
        assert length == 65536 and (got == media.encode(wave, levels, companding)).all()


def test_media_stands_alone() -> None:
    for file in Path(media.__file__).parent.glob("*.py"):
        source = file.read_text()
        assert "import torch" not in source and "from genmodels" not in source.replace("from genmodels.media", "")
