"""Decoding in a process that can be killed: broken, slow and vast files cost themselves and nothing else."""

import csv
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genmodels import media
from pipelines.decoder import Decoder, Progress, content_id
from tests.genmodels.test_media import encoded, vast

TINY = {"modality": "image", "height": 8, "width": 8, "channels": 1, "levels": 256, "fit": "crop"}
SPOKEN = {"modality": "audio", "sample_rate": 8000, "seconds": 1.0, "levels": 256, "companding": "mu-law", "window": "all", "hop": None}


def endless() -> bytes:
    """A JPEG of 150 kB that takes most of a minute of C code to decode: one scan of a large picture, three thousand times over."""
    whole = encoded(Image.new("L", (4000, 4000), 128), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * 3000 + whole[-2:]


def shade(value: int) -> bytes:
    return encoded(Image.new("L", (8, 8), value))


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder(TINY, seconds=60)
    yield made
    made.close()


def test_rows_are_what_media_makes_of_each_file(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(shade(7))
    rows, bad = decoder.decode([str(tmp_path / "a.png"), b"nonsense", shade(9), str(tmp_path / "gone.png")])
    assert rows.column("index").to_pylist() == [0, 2]
    assert [row[0] for row in rows.column("levels").to_pylist()] == [7, 9]
    assert rows.column("id").to_pylist() == [content_id(media.levels_from_image(data, TINY).tobytes()) for data in (shade(7), shade(9))]
    assert bad == {1: "cannot identify image", 3: "No such file or directory"}


def test_a_file_that_takes_for_ever_is_cut_off_and_the_others_are_kept() -> None:
    decoder = Decoder(TINY, seconds=3)
    begun = time.monotonic()
    rows, bad = decoder.decode([shade(1), endless(), shade(2), b"", shade(3)])
    decoder.close()
    assert time.monotonic() - begun < 30
    assert [row[0] for row in rows.column("levels").to_pylist()] == [1, 2, 3]
    assert rows.column("index").to_pylist() == [0, 2, 4]
    assert bad == {1: "not decoded within 3 s", 3: "cannot identify image"}


def test_progress_is_whole_whenever_it_is_read() -> None:
    """Seen half written, a file that has just begun would look overdue."""
    code = "import sys; from pipelines.decoder import Progress; p = Progress(int(sys.argv[1]))\nwhile True: p.note(7)"
    with tempfile.TemporaryFile() as file:
        file.truncate(16)
        progress, begun = Progress(file.fileno()), time.monotonic()
        progress.note(7)
        child = subprocess.Popen([sys.executable, "-c", code, str(file.fileno())], pass_fds=[file.fileno()])
        last = progress.since
        while progress.since == last:
            time.sleep(0.01)
        seen = [(progress.index, progress.since) for _ in range(300_000)]
        child.kill()
        child.wait()
    assert {index for index, _ in seen} == {7} and min(since for _, since in seen) >= begun


def test_a_vast_picture_is_refused_without_the_memory_for_it(decoder: Decoder) -> None:
    decoder.decode([shade(0)])
    rows, bad = decoder.decode([vast(40_000, 25_000), vast(12_000, 12_000), shade(5)])
    assert rows.column("index").to_pylist() == [2]
    assert (
        bad[0].startswith("Image size (1000000000 pixels) exceeds limit")
        and bad[1] == "12000 x 12000 pixels; at most 100000000 are decoded"
    )
    assert decoder.peak_bytes < 400e6


def test_a_file_that_crashes_the_decoder_twice_is_bad(tmp_path: Path) -> None:
    decoder = Decoder(TINY, seconds=60)
    decoder.decode([shade(0)])

    def crash(times: int) -> None:
        for _ in range(times):
            time.sleep(1)
            while decoder.at < 1 or decoder._child is None:
                time.sleep(0.05)
            decoder._child.kill()

    killer = threading.Thread(target=crash, args=(2,))
    killer.start()
    rows, bad = decoder.decode([shade(1), endless(), shade(2)])
    killer.join()
    assert rows.column("index").to_pylist() == [0, 2] and bad == {1: "its decoder crashed, signal 9"}
    decoder.close()


def test_a_decoder_killed_between_two_batches_is_replaced(decoder: Decoder) -> None:
    decoder.decode([shade(0)])
    assert decoder._child is not None
    decoder._child.kill()
    decoder._child.wait()
    rows, bad = decoder.decode([shade(1), shade(2)])
    assert len(rows) == 2 and not bad


def test_every_odd_picture_is_kept_or_says_why_not(real_data: Path) -> None:
    """Exactly the pictures that Pillow cannot decode are bad."""
    with (real_data / "odd_images" / "manifest.csv").open() as file:
        expected = {row["file"]: row["status"] == "ok" for row in csv.DictReader(file)}
    names = sorted(expected)
    decoder = Decoder({**TINY, "height": 32, "width": 32, "channels": 3}, seconds=30)
    rows, bad = decoder.decode([str(real_data / "odd_images" / name) for name in names])
    again = decoder.decode([(real_data / "odd_images" / names[i]).read_bytes() for i in sorted(bad)])
    decoder.close()
    assert len(names) == 551 and {names[i] for i in rows.column("index").to_pylist()} == {name for name in names if expected[name]}
    assert {names[i] for i in bad} == {name for name in names if not expected[name]}
    assert all(reason and "0x" not in reason and "/" not in reason and len(reason) <= 200 for reason in bad.values())
    assert list(again[1].values()) == [bad[i] for i in sorted(bad)]


def test_every_odd_sound_is_kept_or_says_why_not(real_data: Path) -> None:
    """Exactly the sounds that soundfile cannot read, and the one without a single frame, are bad; two that end early are kept as far as they go."""
    with (real_data / "odd_audio" / "manifest.csv").open() as file:
        expected = {row["file"]: row for row in csv.DictReader(file)}
    names = sorted(expected)
    decoder = Decoder(SPOKEN, seconds=30)
    rows, bad = decoder.decode([str(real_data / "odd_audio" / name) for name in names])
    decoder.close()
    unreadable = {name for name in names if expected[name]["status"] == "error" or expected[name]["frames"] == "0"}
    assert len(names) == 77 and {names[i] for i in bad} == unreadable
    assert all(reason and "0x" not in reason and len(reason) <= 200 for reason in bad.values())
    steps = dict.fromkeys(names, 0)
    for i, length in zip(rows.column("index").to_pylist(), rows.column("length").to_pylist(), strict=True):
        steps[names[i]] += length
    for name in set(names) - unreadable:
        row = expected[name]
        frames = int(row["status"].partition(":")[2] or row["frames"])
        assert abs(steps[name] - frames * 8000 / int(row["rate"])) <= 1, name


def test_levels_are_the_same_alone_or_in_a_batch(decoder: Decoder) -> None:
    files = [encoded(Image.fromarray(np.full((9, 9), i, np.uint8))) for i in range(40)]
    together, _ = decoder.decode(files)
    for i, data in enumerate(files):
        alone, _ = decoder.decode([data])
        assert alone.column("levels")[0] == together.column("levels")[i]


def test_nothing_is_fine(decoder: Decoder) -> None:
    rows, bad = decoder.decode([])
    assert len(rows) == 0 and bad == {}
