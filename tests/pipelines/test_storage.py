"""Writing is atomic: a reader sees all of a file or none, on this machine and elsewhere."""

import hashlib
from pathlib import Path

import pytest

from pipelines import storage


@pytest.mark.parametrize("root", ["{here}", "memory://box"])
def test_a_file_is_whole_or_not_there(root: str, tmp_path: Path) -> None:
    folder = storage.join(root.format(here=tmp_path), "deep")
    uri = storage.join(folder, "file.bin")
    with pytest.raises(RuntimeError, match="cut off"), storage.writing(uri) as path:
        path.write_bytes(b"half")
        raise RuntimeError("cut off")
    assert not storage.exists(uri)
    with storage.writing(uri) as path:
        path.write_bytes(b"all of it")
        assert not storage.exists(uri)
    assert storage.read_bytes(uri) == b"all of it"
    assert storage.sha256(uri) == hashlib.sha256(b"all of it").hexdigest()
    fs, inside = storage.filesystem(folder)
    assert [name.rpartition("/")[2] for name in fs.ls(inside, detail=False)] == ["file.bin"]
