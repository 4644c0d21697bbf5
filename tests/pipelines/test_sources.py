"""Sources: what each lists and holds, and where labels come from."""

import gzip
import http.server
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.errors import Failed, Refused
from pipelines.sections import Data, Label
from pipelines.sources import open_source
from pipelines.sources.arrays import read_idx
from pipelines.sources.bundled import PITCHES, plucked
from pipelines.sources.labels import Labels, ordered
from pipelines.sources.source import REST, Containers, Examples, Source
from tests.genmodels.test_media import encoded

IMAGE = {"height": 8, "width": 8}


def source(where: str | Path, **data: Any) -> Source:
    return open_source(
        Data.model_validate({"source": str(where), "image": IMAGE, **data} if "audio" not in data else {"source": str(where), **data})
    )


def listed(of: Source, cache: Path) -> dict[str, tuple[int, str, str]]:
    """source -> (size, stamp, key) of every input, the way prepare takes them."""
    rows = {}
    for name, table in of.leaves(str(cache)):
        assert name and len(table)
        rows |= {row["source"]: (row["size"], row["stamp"], row["key"]) for row in table.to_pylist()}
    return rows


def held(of: Source) -> dict[str, Examples]:
    assert isinstance(of, Containers)
    return {
        f"{row['source']}/{row['piece']}": of.examples(row["source"], row["piece"])
        for _, table in of.leaves("/nowhere")
        for row in table.to_pylist()
    }


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def test_digits_are_scikit_learns_own_values() -> None:
    from sklearn.datasets import load_digits

    from genmodels import media

    [examples] = held(source("digits")).values()
    values, labels = load_digits(return_X_y=True)
    settings = {"modality": "image", **IMAGE, "channels": 1, "levels": 17, "fit": "crop"}
    assert examples.pixels is not None
    assert (media.levels_from_pixels(examples.pixels, settings).reshape(1797, 64) == values).all()
    assert list(examples.labels or ()) == [str(label) for label in labels]


def test_tones_have_their_pitch_and_are_the_same_each_time() -> None:
    hertz = 440 * 2 ** ((PITCHES.index("A3") - 21) / 12)
    assert hertz == 220.0
    waves = plucked(range(4), hertz, 8000, 1.0)
    assert waves.shape == (4, 8000) and 0.29 < np.abs(waves).max() <= 0.9
    for wave in waves:
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(8000)))
        peaks = [spectrum[round(220 * k) - 12 : round(220 * k) + 13].argmax() - 12 + 220 * k for k in (1, 2, 3)]
        assert all(abs(peak / (220 * k) - 1) < 0.01 for k, peak in enumerate(peaks, start=1))
    assert (plucked(range(1, 3), hertz, 8000, 0.25) / waves[1:3, :2000]).std() < 1e-12
    assert not np.allclose(waves[0], waves[1])


def test_tones_label_every_string_by_its_pitch() -> None:
    tones = source("tones", audio={"sample_rate": 4000, "seconds": 0.1})
    examples = held(tones)
    assert sum(len(each.names) for each in examples.values()) == 2400
    assert {label for each in examples.values() for label in each.labels or ()} == set(PITCHES)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_with_labels_beside_them(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix else bytes
    pixels = np.arange(5 * 3 * 2, dtype=np.uint8).reshape(5, 3, 2)
    (tmp_path / f"some-images-idx3-ubyte{suffix}").write_bytes(pack(idx(pixels)))
    (tmp_path / f"some-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(np.array([3, 1, 4, 1, 5]))))
    for where in (tmp_path, tmp_path / f"some-images-idx3-ubyte{suffix}"):
        [examples] = held(source(where)).values()
        assert examples.pixels is not None and (examples.pixels == pixels).all() and list(examples.labels or ()) == list("31415")
        assert not source(where).official


def test_an_idx_folder_with_train_and_test_files_is_an_official_split(tmp_path: Path) -> None:
    for side, n in (("train", 4), ("t10k", 2)):
        (tmp_path / f"{side}-images-idx3-ubyte").write_bytes(idx(np.zeros((n, 2, 2))))
    found = source(tmp_path)
    assert found.official
    assert {tuple(each.sides or ()) for each in held(found).values()} == {(REST,) * 4, ("test",) * 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "no IDX file of unsigned bytes: it does not begin with 0, 0, 8 and its number of axes"),
        (idx(np.zeros((2, 2, 2)))[:-1], "an IDX file of shape (2, 2, 2) with 23 bytes; it is cut short, or not what it says"),
        (b"\x1f\x8b broken", "a broken gzip file: Compressed file ended before the end-of-stream marker was reached"),
    ],
)
def test_broken_idx_files_say_why(content: bytes, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_idx(content)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (np.zeros((4, 5, 6), np.uint8), (4, 5, 6)),
        (np.zeros((4, 5, 6, 3), np.uint8), (4, 5, 6, 3)),
        (np.zeros((4, 3, 5, 6), np.uint8), (4, 5, 6, 3)),
        (np.ones((4, 5, 6), bool), (4, 5, 6)),
    ],
)
def test_npz_of_pictures(tmp_path: Path, x: np.ndarray, shape: tuple[int, ...]) -> None:
    np.savez(tmp_path / "some.npz", x=x, y=np.arange(4))
    [examples] = held(source(tmp_path / "some.npz")).values()
    assert examples.pixels is not None and examples.pixels.shape == shape and list(examples.labels or ()) == list("0123")
    assert examples.pixels.max() == (255 if x.dtype == bool else 0)


def test_npz_of_sounds(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", x=np.full((2, 100), 16384, np.int16))
    [examples] = held(source(tmp_path / "some.npz", audio={"sample_rate": 8000, "seconds": 0.01})).values()
    assert examples.waves is not None and np.allclose(examples.waves, 0.5) and examples.labels is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 2, 2))}, "x is float64 of shape (2, 2, 2); wanted pictures, uint8 or bool, (n, H, W) or with 1 or 3 channels"),
        ({"z": np.zeros(2)}, "no npz with an array x"),
        ({"x": np.zeros((2, 2, 2), np.uint8), "y": np.zeros(3)}, "x of shape (2, 2, 2) with y of shape (3,); wanted one label an example"),
        ({"x": np.array([{}], dtype=object)}, "Object arrays cannot be loaded when allow_pickle=False"),
    ],
)
def test_npz_that_cannot_be_used_says_why(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "some.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError) as caught:
        held(source(tmp_path / "some.npz"))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("form", ["binary", "struct"])
def test_parquet_with_a_column_of_pictures(tmp_path: Path, form: str) -> None:
    pictures = [encoded(Image.new("L", (8, 8), i)) for i in range(7)]
    column = pa.array(pictures) if form == "binary" else pa.array([{"bytes": data, "path": None} for data in pictures])
    pq.write_table(
        pa.table({"n": range(7), "image": column, "label": [i % 2 for i in range(7)]}), tmp_path / "some.parquet", row_group_size=3
    )
    examples = held(source(tmp_path / "some.parquet"))
    assert [len(each.names) for each in examples.values()] == [3, 3, 1]
    assert [data for each in examples.values() for data in each.encoded or ()] == pictures
    assert [label for each in examples.values() for label in each.labels or ()] == [str(i % 2) for i in range(7)]
    assert [name for each in examples.values() for name in each.names] == [f"some.parquet#{i:07d}" for i in range(7)]
    assert list(held(source(tmp_path))) == list(examples)


def test_parquet_without_pictures_says_so(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "some.parquet")
    with pytest.raises(ValueError, match=r"^no column of binary, or of a struct with bytes; its columns: a, b$"):
        held(source(tmp_path / "some.parquet"))


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(Image.new("L", (8, 8), len(name))))


DATA = ["a.png", "b/one.jpg", "b/two", "c/d/e.tif"]
BESIDE = [".hidden.png", ".git/x.png", "labels.csv", "README.md", "LICENSE", "b/SHA256SUMS", "__MACOSX/._a.png"]


def test_a_folder_lists_its_data_files_only(tmp_path: Path) -> None:
    fill(tmp_path / "data", DATA + BESIDE)
    os.mkfifo(tmp_path / "data" / "pipe.png")
    (tmp_path / "data" / "nowhere.png").symlink_to(tmp_path / "gone")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert sorted(listed(source(tmp_path / "data"), tmp_path)) == DATA


def test_inputs_are_named_by_path_and_content_not_by_root_or_time(tmp_path: Path) -> None:
    fill(tmp_path / "one", DATA)
    fill(tmp_path / "two" / "deeper", DATA)
    os.utime(tmp_path / "two" / "deeper" / "a.png", (1, 1))
    first = listed(source(tmp_path / "one"), tmp_path)
    assert first == listed(source(tmp_path / "two" / "deeper"), tmp_path)
    (tmp_path / "one" / "a.png").write_bytes(b"changed")
    second = listed(source(tmp_path / "one"), tmp_path)
    assert {name for name in DATA if first[name] != second[name]} == {"a.png"}


def test_leaves_are_not_read_again_and_one_file_changes_one_leaf(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i in range(8_000):
        (tmp_path / "data" / f"{i:05d}").write_bytes(b"%d" % i)
    before = {name: len(table) for name, table in source(tmp_path / "data").leaves(str(tmp_path))}
    (tmp_path / "data" / "04000x").write_bytes(b"new")
    after = {name: len(table) for name, table in source(tmp_path / "data").leaves(str(tmp_path))}
    assert len(before) >= 2 and len(set(after) - set(before)) == 1 and sum(after.values()) == sum(before.values()) + 1


def test_a_zip_is_a_folder(tmp_path: Path) -> None:
    fill(tmp_path / "data", DATA)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name in [*DATA, "labels.csv"]:
            archive.write(tmp_path / "data" / name if name in DATA else __file__, name)
    zipped = source(tmp_path / "data.zip")
    assert sorted(listed(zipped, tmp_path)) == DATA
    assert zipped.read("b/two") == (tmp_path / "data" / "b" / "two").read_bytes()  # type: ignore[attr-defined]


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; every first answer for a file is a 503."""

    seen: set[str]
    root: str

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, directory=self.root)

    def do_GET(self) -> None:
        if not self.path.endswith("/") and self.path not in self.seen:
            self.seen.add(self.path)
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def flaky(tmp_path: Path) -> Iterator[str]:
    fill(tmp_path / "served", DATA)
    handler = type("Handler", (Flaky,), {"seen": set(), "root": str(tmp_path / "served")})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_http_folders_and_errors_of_the_network_are_tried_again(flaky: str, tmp_path: Path) -> None:
    remote = source(flaky)
    assert sorted(listed(remote, tmp_path)) == DATA
    assert remote.read("b/one.jpg") == (tmp_path / "served" / "b" / "one.jpg").read_bytes()  # type: ignore[attr-defined]


def test_a_file_out_of_reach_is_a_failure_not_a_bad_file(flaky: str) -> None:
    remote = source(flaky)
    with pytest.raises(Failed) as caught:
        remote.read("gone.png")  # type: ignore[attr-defined]
    assert str(caught.value) == f"nothing at {flaky} (gone.png); check data.source"


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ({"by": "none"}, [None, None, None]),
        ({"by": "source"}, [None, None, None]),
        ({"by": "folder"}, ["cat", "dog", None]),
        ({"by": "pattern", "pattern": r"_(\d+)"}, ["1", "22", None]),
        ({"by": "csv", "csv": "labels.csv"}, ["Cat", None, "none"]),
        ({"by": "csv", "csv": "labels.csv", "label_column": "kind"}, ["x", "y", "z"]),
    ],
)
def test_labels(tmp_path: Path, label: dict[str, str], wanted: list[str | None]) -> None:
    (tmp_path / "labels.csv").write_text("file,label,kind\ncat/a_1.wav,Cat,x\nx/dog/b_22.wav,,y\nc.wav,none,z\n")
    labels = Labels(Label.model_validate(label), str(tmp_path / "labels.csv") if "csv" in label else None)
    assert labels.of(source(tmp_path), ["cat/a_1.wav#3", "x/dog/b_22.wav", "c.wav"], [None] * 3) == wanted


def test_labels_are_numbered_by_value_where_they_are_numbers() -> None:
    assert ordered(["10", "9", "-1", "9"]) == ["-1", "9", "10"] and ordered(["b", "10", "9"]) == ["10", "9", "b"]


def test_a_csv_without_the_column_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("name,label\na,b\n")
    labels = Labels(Label(by="csv", csv="labels.csv"), str(tmp_path / "labels.csv"))
    with pytest.raises(Failed) as caught:
        labels.of(source(tmp_path), ["a"], [None])
    assert str(caught.value) == f"data.label.csv: {tmp_path}/labels.csv has no column 'file'; it has: name, label"


NOWHERE = (
    "data.source: nothing at ./nowhere/at all; wanted a folder, a zip, an IDX, npz or Parquet file, "
    "or one of binarized_mnist, digits, fashion_mnist, fsdd, mnist, tones"
)


@pytest.mark.parametrize(
    ("where", "data", "message"),
    [
        ("digit", {}, "data.source: unknown source 'digit'; did you mean 'digits'? (or give a path or a URL)"),
        ("./nowhere/at all", {}, NOWHERE),
        (__file__, {}, f"data.source: {__file__} is one file; wanted a folder of files, a zip, or an IDX, npz or Parquet file"),
        ("digits", {"audio": {"sample_rate": 8000, "seconds": 1}}, "data.source 'digits' holds pictures; got data.audio, wanted data.image"),
        ("tones", {}, "data.source 'tones' holds sounds; got data.image, wanted data.audio"),
    ],
)  # fmt: skip
def test_sources_that_are_none_are_told_in_a_line(where: str, data: dict, message: str) -> None:
    with pytest.raises(Refused) as caught:
        source(where, **data)
    assert str(caught.value) == message


def test_a_broken_zip_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "some.zip").write_bytes(b"no zip")
    with pytest.raises(Failed) as caught:
        source(tmp_path / "some.zip")
    assert str(caught.value) == f"{tmp_path}/some.zip is no zip file: File is not a zip file"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "binarized_mnist", "fsdd"])
def test_published_sets_are_the_pinned_ones(name: str, real_data: Path, tmp_path: Path) -> None:
    data = {"audio": {"sample_rate": 8000, "seconds": 1}} if name == "fsdd" else {}
    published = source(name, **data).fetched(str(tmp_path))
    examples = held(published)
    sides = [side for each in examples.values() for side in each.sides or ()]
    count = {side: sides.count(side) for side in set(sides)}
    assert count == {"fsdd": {REST: 2700, "test": 300}, "binarized_mnist": {"train": 50000, "valid": 10000, "test": 10000}}.get(
        name, {REST: 60000, "test": 10000}
    )
    assert published.official and not list(tmp_path.iterdir())
    if name == "fsdd":
        [*test] = [n for each in examples.values() for n, side in zip(each.names, each.sides or (), strict=True) if side == "test"]
        assert all(int(n.rpartition("_")[2].removesuffix(".wav")) < 5 for n in test)


def test_other_data_under_a_published_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("GENMODELS_DATA", str(tmp_path))
    mnist = source("mnist")
    with pytest.raises(Failed) as missing:
        mnist.fetched(str(tmp_path))
    assert str(missing.value).startswith(
        f"mnist: {tmp_path}/mnist holds no train-images-idx3-ubyte.gz; wanted train-images-idx3-ubyte.gz, "
    )
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((1, 28, 28))))
    with pytest.raises(Failed) as other:
        mnist.fetched(str(tmp_path))
    assert "train-images-idx3-ubyte has the sha256" in str(other.value) and str(other.value).endswith(
        f"this is not the published data: replace {tmp_path}/mnist, or give its own path as data.source"
    )


def test_neither_data_nor_network_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENMODELS_DATA", raising=False)
    monkeypatch.setattr("pipelines.sources.tree._TRIES", ())
    monkeypatch.setattr("pipelines.sources.published.Mnist.address", "http://127.0.0.1:9")
    with pytest.raises(Failed) as caught:
        source("mnist").fetched(str(tmp_path))
    said = str(caught.value)
    assert said.startswith(
        "mnist is neither in $GENMODELS_DATA/mnist nor within reach of the network (could not read http://127.0.0.1:9/train"
    )
    assert said.endswith("set GENMODELS_DATA to a folder that holds mnist/") and "\n" not in said


def test_what_the_shards_will_be_is_known_without_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GENMODELS_DATA", raising=False)
    assert len(listed(source("mnist"), tmp_path)) == 2
