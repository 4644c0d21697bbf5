"""Tables from their files to batches: every row there once as it was written, the same bytes whoever makes them, and bad rows named by column."""

import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn import datasets

from genmodels.core import Event
from pipelines import prepare, shards, tables, tasks
from pipelines.errors import Failed, Refused, Stop
from pipelines.fingerprint import libraries
from pipelines.recipe import Recipe
from pipelines.records import Shards
from pipelines.sections import Data, Model, Train
from tests.pipelines.test_prepare import digests

NUMBER, LABEL = {"target": "y", "kind": "regression"}, {"target": "y", "kind": "classification"}


def one_by_one(function: Callable[[Any], dict[str, Any]], items: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """What tasks.each does, in this process and backwards."""
    for item in reversed(list(items)):
        yield json.loads(json.dumps(function(json.loads(json.dumps(item)))))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "each", one_by_one)


def recipe(storage: Path, source: Path | str, table: dict[str, Any], **data: Any) -> Recipe:
    settings = Data.model_validate({"source": str(source), "table": table, **data})
    return Recipe(name="some", storage=str(storage), data=settings, model=Model(family="posterior"), train=Train(steps=1))


def rows(made: Shards) -> dict[str, tuple[np.ndarray, np.ndarray | None, str]]:
    """By id: what is modelled, given what, and the split."""
    found = {}
    for file in shards.manifest(made)["files"]:
        table = pq.read_table(f"{made.uri}/{file['name']}").to_pydict()
        content = table["levels" if made.event.levels else "values"]
        given = table.get("condition", [None] * len(content))
        for name, x, c in zip(table["id"], content, given, strict=True):
            found[name] = (np.array(x), None if c is None else np.array(c), file["split"])
    return found


def frame(count: int = 300, seed: int = 0) -> pandas.DataFrame:
    """Three columns of numbers of very different sizes, one of them whole, and a label."""
    draw = np.random.default_rng(seed)
    numbers = {"a": draw.normal(size=count), "b": 1e6 + draw.normal(size=count), "n": draw.integers(-5, 5, count)}
    return pandas.DataFrame({**numbers, "y": draw.choice(["up", "down", "10"], count)})


def written(folder: Path, table: pandas.DataFrame, suffix: str = ".csv", **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"data{suffix}"
    table.to_parquet(path, row_group_size=70) if suffix == ".parquet" else table.to_csv(path, index=False, **options)
    return path


@pytest.mark.parametrize("name", ["diabetes", "breast_cancer", "wine", "iris"])
def test_a_bundled_table_is_scikit_learns(name: str, alone: None, tmp_path: Path) -> None:
    own: Any = datasets.load_diabetes(scaled=False) if name == "diabetes" else getattr(datasets, f"load_{name}")()
    kind = "regression" if name == "diabetes" else "classification"
    done = prepare.prepare(recipe(tmp_path, name, {"target": "target", "kind": kind}))
    assert done.prepare["features"] == list(own.feature_names) and done.labels == () and done.event.classes == 0
    assert done.prepare["labels"] == ([] if name == "diabetes" else sorted(map(str, own.target_names)))
    target = own.target[:, None] if name == "diabetes" else own.target_names[own.target][:, None]
    wanted = {(*c, x[0]) for c, x in zip(own.data.astype(np.float32).tolist(), target, strict=True)}
    labels = done.prepare["labels"]
    found = [(*map(float, c), labels[x[0]] if labels else x[0]) for x, c, _ in rows(done).values() if c is not None]
    assert len(found) == len(wanted) == sum(done.rows.values()) and set(found) == wanted
    features = Event(modality="table", shape=(own.data.shape[1],), levels=0)
    assert done.event == Event(modality="table", shape=(1,), levels=len(labels), condition=features)


def bundled_iris() -> Any:
    return datasets.load_iris()


def test_without_a_target_the_features_are_modelled(alone: None, tmp_path: Path) -> None:
    done, iris = prepare.prepare(recipe(tmp_path, "iris", {})), bundled_iris()
    assert done.event == Event(modality="table", shape=(4,), levels=0) and done.prepare["features"] == iris.feature_names
    some = prepare.prepare(recipe(tmp_path, "iris", {"features": ["petal width (cm)", "sepal length (cm)"]}))
    whole = {tuple(row) for row in iris.data.astype(np.float32)[:, [3, 0]].tolist()}
    assert {tuple(x.tolist()) for x, _, _ in rows(some).values()} == whole and all(c is None for _, c, _ in rows(some).values())


def test_rows_are_named_by_their_numbers_and_label_and_split_by_that_name(alone: None, tmp_path: Path) -> None:
    table = pandas.DataFrame({"a": [1.5, 1.5, 1.5, 0.0, -0.0, 2], "b": [1, 1, 1, 2, 2, 3], "y": ["u", "v", "u", "u", "u", "v"]})
    done = prepare.prepare(recipe(tmp_path, written(tmp_path / "data", table), LABEL))
    wanted = {
        hashlib.blake2b(np.array([a, b], "<f4").tobytes() + f"\0{y}".encode(), digest_size=16).hexdigest(): (a, b, y)
        for a, b, y in [(1.5, 1, "u"), (1.5, 1, "v"), (0, 2, "u"), (2, 3, "v")]
    }
    found = rows(done)
    assert {name: (*c.tolist(), "uv"[x[0]]) for name, (x, c, _) in found.items() if c is not None} == wanted
    assert shards.manifest(done)["duplicates"] == 2
    many = prepare.prepare(recipe(tmp_path, written(tmp_path / "many", frame()), LABEL))
    for name, (_, _, split) in rows(many).items():
        place = int(name[-8:], 16) / 2**32
        assert split == ("train" if place < 0.8 else "valid" if place < 0.9 else "test")


@pytest.mark.ray
def test_the_same_table_gives_the_same_bytes_on_workers_and_in_any_root(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (written(tmp_path / name / "data", frame()) for name in ("here", "there"))
    one = prepare.prepare(recipe(tmp_path / "one", here, LABEL))
    monkeypatch.setattr(tasks, "each", one_by_one)
    two = prepare.prepare(recipe(tmp_path / "two", there, LABEL))
    assert (one.fingerprint, digests(one.uri)) == (two.fingerprint, digests(two.uri))
    assert prepare.prepare(recipe(tmp_path / "two", there, LABEL)) == two


def test_csv_and_parquet_of_one_table_are_the_same_rows(alone: None, tmp_path: Path) -> None:
    forms = [(".csv", {}), (".csv", {"sep": ";"}), (".tsv", {"sep": "\t"}), (".parquet", {}), (".csv", {"encoding": "utf-8-sig"})]
    made = []
    for place, (suffix, options) in enumerate(forms):
        table = written(tmp_path / f"data{place}", frame(), suffix, **options)
        made.append(rows(prepare.prepare(recipe(tmp_path / str(place), table, LABEL))))
    for other in made[1:]:
        assert other.keys() == made[0].keys()
        assert all(np.array_equal(np.concatenate(other[name][:2]), np.concatenate(made[0][name][:2])) for name in other)  # type: ignore[arg-type]


def test_a_folder_is_one_table(alone: None, tmp_path: Path) -> None:
    table, wanted = frame(), {"target": "n", "kind": "regression", "features": ["a", "b"]}
    whole = rows(prepare.prepare(recipe(tmp_path / "runs", written(tmp_path / "whole", table), wanted)))
    for suffix in (".csv", ".parquet"):
        folder = tmp_path / f"written{suffix}"
        for part in range(3):
            piece = pandas.DataFrame(table[part * 100 : part * 100 + 100])
            written(folder, piece, suffix).rename(folder / f"part-{part}{suffix}")
        (folder / "README.md").write_text("what it is")
        assert rows(prepare.prepare(recipe(tmp_path / "runs", folder, wanted))).keys() == whole.keys()


def test_a_table_over_http(alone: None, tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path / "data"))

        def log_message(self, *_: Any) -> None:
            pass

    path = written(tmp_path / "data", frame())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        far = rows(prepare.prepare(recipe(tmp_path / "far", f"{url}/data.csv", LABEL)))
        server.shutdown()
    assert far.keys() == rows(prepare.prepare(recipe(tmp_path / "near", path, LABEL))).keys()


def test_the_manifest_describes_the_columns(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.buckets.SMALL_BYTES", 600)  # several buckets, whose moments are joined
    table = frame()
    done = prepare.prepare(
        recipe(tmp_path, written(tmp_path / "data", table), {"target": "b", "kind": "regression", "features": ["n", "a"]})
    )
    value = shards.manifest(done)
    assert len([file for file in value["files"] if file["split"] == "train"]) > 3
    mine = [(x[0], *c) for x, c, split in rows(done).values() if split == "train" and c is not None]
    for name, column in zip(("b", "n", "a"), np.array(mine, np.float64).T, strict=True):
        wanted = {"count": len(mine), "mean": column.mean(), "std": column.std(), "min": column.min(), "max": column.max()}
        assert value["splits"]["train"]["columns"][name] == pytest.approx(wanted, rel=1e-9)
    assert value["prepare"] == {"modality": "table", "features": ["n", "a"], "target": "b", "kind": "regression", "labels": []}
    counted = shards.manifest(prepare.prepare(recipe(tmp_path / "l", written(tmp_path / "data", table), LABEL)))
    assert counted["prepare"]["labels"] == ["10", "down", "up"]
    assert sum(sum(split["levels"]) for split in counted["splits"].values()) == 300


BAD = """a,b,y
1,2,up
,2,up
1,nan,up
1,2,
high,2,up
inf,2,down
1,-1e300,up
1,2
1,2,3,4
3,4,down
5,6,down
"""
REASONS = {
    1: "column 'a' has no value",
    2: "column 'b' has no value",
    3: "column 'y' has no value",
    4: "column 'a' holds 'high', no number",
    5: "column 'a' holds inf, not finite in 32 bits",
    6: "column 'b' holds -1e300, not finite in 32 bits",
    7: "2 values where the first line has 3 names",
    8: "4 values where the first line has 3 names",
}


@pytest.mark.parametrize("piece", [2, 2**16])
def test_a_row_that_lacks_a_number_goes_to_quarantine_and_says_why(
    piece: int, alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.sources.comma.ROWS", piece)
    path = tmp_path / "bad.csv"
    path.write_text(BAD)
    done = prepare.prepare(recipe(tmp_path, path, LABEL, max_bad=8))
    found = pandas.read_parquet(f"{done.uri}/quarantine.parquet")
    assert dict(zip(found["source"], found["reason"], strict=True)) == {f"bad.csv#{row:07d}": reason for row, reason in REASONS.items()}
    assert len(rows(done)) == 3 and shards.manifest(done)["quarantined"] == 8
    with pytest.raises(
        Failed,
        match=r"^8 of 11 inputs could not be read, data\.max_bad=7 allows fewer: mend them or raise it; the first: bad\.csv#0000001: column 'a' ",
    ):
        prepare.prepare(recipe(tmp_path / "again", path, LABEL, max_bad=7))


def test_a_missing_value_of_a_parquet_table_too(alone: None, tmp_path: Path) -> None:
    table = pa.table({"a": [1.0, None, 2.0, float("nan")], "y": [3, 4, None, 5], "flag": [True, False, True, False]})
    pq.write_table(table, tmp_path / "t.parquet")
    done = prepare.prepare(recipe(tmp_path, tmp_path / "t.parquet", {"features": ["a", "flag"]}, max_bad=0.5))
    assert {tuple(x.tolist()) for x, _, _ in rows(done).values()} == {(1.0, 1.0), (2.0, 1.0)}
    found = pandas.read_parquet(f"{done.uri}/quarantine.parquet")
    assert found["reason"].to_list() == ["column 'a' has no value"] * 2


@pytest.mark.parametrize(
    ("content", "table", "said"),
    [
        ("a,b,y\n1,2,3\n", {"features": ["bb"], **NUMBER}, "data.table.features: unknown column 'bb'; did you mean 'b'?"),
        ("a,b,y\n1,2,3\n", {**NUMBER, "target": "why"}, "data.table.target: unknown column 'why'; did you mean 'y'?"),
        (
            "a,b,y\n1,no,3\n",
            NUMBER,
            "data.table.features: column 'b' holds 'no', no numbers; name those to take, as data.table.features=[a]",
        ),
        ("a,b,y\n1,no,3\n", {"features": ["b"], **NUMBER}, "data.table.features: column 'b' holds 'no', no numbers; leave it out"),
        ("a,y\n1,no\n2,3x\n", NUMBER, "data.table.target: column 'y' holds 'no', no numbers; set data.table.kind=classification"),
        ("y\n1\n", NUMBER, "data.table.features: no column is left beside the target 'y'"),
        ("a,y\n1,7\n2,7\n", NUMBER, "data.table.target 'y' of {path} has the one value 7; choose another target"),
        ("a,y\n1,no\n2,no\n", LABEL, "data.table.target 'y' of {path} has the one value 'no'; choose another target"),
        (
            "a,y\n" + "".join(f"{i},{i}\n" for i in range(257)),
            LABEL,
            "data.table.target 'y' of {path} has 257 labels; wanted 2 to 256; set data.table.kind=regression if it is a number",
        ),
        ("a,y\n", NUMBER, "t.csv is empty: it has names of columns and no rows"),
        ("", NUMBER, "t.csv is no CSV with names in its first line: it is empty"),
        ("1,2\n3,4\n", NUMBER, "t.csv is no CSV with names in its first line: it begins with the numbers 1, 2"),
        ("a,a\n3,4\n", NUMBER, "t.csv is no CSV with names in its first line: two columns are named 'a'"),
        (",a\n3,4\n", {}, "t.csv is no CSV with names in its first line: column 1 of 2 has no name"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", NUMBER, "t.csv is no CSV: it is not UTF-8 text"),
        (b"PK\x03\x04\x14\0\0\0,y", NUMBER, "t.csv is no CSV with names in its first line: it holds zero bytes"),
        ('a,y\n"1,2\n', NUMBER, "t.csv is no CSV: unexpected end of data"),
    ],
)
def test_a_mistake_is_one_line(content: str | bytes, table: dict[str, Any], said: str, alone: None, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Stop) as caught:
        prepare.prepare(recipe(tmp_path, path, table))
    assert str(caught.value) == said.format(path=path)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 it is not")
    (tmp_path / "empty").mkdir()
    for source, said in {
        tmp_path / "t.parquet": "t.parquet is no Parquet file: ",
        tmp_path / "none.csv": f"nothing at {tmp_path} (none.csv); check data.source",
        tmp_path / "empty": f"data.source: {tmp_path}/empty holds neither; wanted a CSV or Parquet file, ",
        "irsi": "data.source: unknown source 'irsi'; did you mean 'iris'? (or give a path or a URL)",
        "digits": "data.source 'digits' holds pictures; got data.table, wanted data.image",
    }.items():
        with pytest.raises(Stop) as caught:
            prepare.prepare(recipe(tmp_path, source, {}))
        assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
    with pytest.raises(Refused, match=r"^data\.source 'iris' holds a table; got data\.image, wanted data\.table$"):
        wanted = Data.model_validate({"source": "iris", "image": {"height": 8, "width": 8}})
        prepare.prepare(recipe(tmp_path, "iris", {}).model_copy(update={"data": wanted}))


@pytest.mark.parametrize(
    ("table", "more", "said"),
    [
        ({"target": "y"}, {}, "a target needs its kind: regression (a number) or classification (a label)"),
        ({"kind": "regression"}, {}, "kind regression without a target"),
        ({"features": ["a", "a"]}, {}, "features name 'a' twice"),
        ({"features": ["y"], **NUMBER}, {}, "'y' is both a feature and the target"),
        ({}, {"label": {"by": "folder"}}, "a row's label is its target"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(table: dict[str, Any], more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
        Data.model_validate({"source": "iris", "table": table, **more})


@pytest.mark.parametrize("table", [NUMBER | {"target": "n"}, LABEL, {"features": ["n", "a"]}])
def test_batches_are_the_rows_on_disk(table: dict[str, Any], alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.buckets.group_rows", lambda each: 16)  # batches reach over row groups
    settings = {"features": ["a", "b"], **table}
    done = prepare.prepare(recipe(tmp_path, written(tmp_path / "data", frame()), settings))
    train = [(x.astype(np.float64), c) for x, c, split in rows(done).values() if split == "train"]
    wanted = sorted((*x.tolist(), *([] if c is None else c.tolist())) for x, c in train)

    def joined(batches: list[Any]) -> list[tuple[float, ...]]:
        return sorted(
            tuple(torch.cat([part.double() for part in (x, c) if part is not None]).tolist())
            for batch in batches
            for x, c in zip(batch.x, batch.c if batch.c is not None else [None] * len(batch), strict=True)
        )

    stream = shards.Stream(done, seed=1)
    assert joined([stream.batch(0, len(train))]) == wanted == joined(list(shards.examples(done, "train", 7)))
    batch = stream.batch(0, 5)
    assert batch.y is None and batch.length is None and batch.x.dtype == (torch.uint8 if done.event.levels else torch.float32)
    assert tuple(batch.x.shape[1:]) == done.event.shape
    assert (batch.c is None) == (done.event.condition is None) and (batch.c is None or batch.c.dtype == torch.float32)
    halves = [shards.Stream(done, seed=1).batch(5, 20, rank=rank, workers=2) for rank in range(2)]
    whole = stream.batch(5, 20)
    assert torch.equal(torch.cat([half.x for half in halves]), whole.x)
    assert whole.c is None or torch.equal(torch.cat([half.c for half in halves if half.c is not None]), whole.c)
    across = shards.Stream(done, seed=1).batch(0, len(train) + 5)
    assert len(across) == len(train) + 5 and (None if across.c is None else len(across.c)) == (
        len(across) if done.event.condition else None
    )


GOLDEN = {"tables": "2.4.6 25.0.1 1.9.1", "content": "2f6f9a9b65eb5aaa", "bytes": "a0482f73883c278c"}
"""Of iris. Where `content` changes, prepare.VERSION must rise; `bytes` may change with the libraries."""


def test_the_bytes_of_iris_never_change_without_a_version(alone: None, tmp_path: Path) -> None:
    done = prepare.prepare(recipe(tmp_path, "iris", {"target": "target", "kind": "classification"}))
    content = hashlib.sha256()
    for name, (x, c, split) in sorted(rows(done).items()):
        content.update(f"{name} {x.tolist()} {[] if c is None else c.tolist()} {split}\n".encode())
    files = {name: digest for name, digest in digests(done.uri).items() if name != "manifest.json"}
    got = {
        "tables": " ".join(libraries("numpy", "pyarrow", "scikit-learn").values()),
        "content": content.hexdigest()[:16],
        "bytes": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16],
    }
    assert got["content"] == GOLDEN["content"] and prepare.VERSION == 2
    assert got == GOLDEN or got["tables"] != GOLDEN["tables"]


def test_the_moments_of_parts_are_those_of_the_whole() -> None:
    column = np.random.default_rng(0).normal(1e8, 1, 1000)
    parts = [{"a": tables._moments(part)} for part in np.split(column, [1, 10, 500])]
    found = tables.described(parts)["a"]
    assert found["std"] == pytest.approx(column.std(), rel=1e-9) and found["mean"] == pytest.approx(column.mean(), rel=1e-15)
    assert (found["count"], found["min"], found["max"]) == (1000, column.min(), column.max())
