"""Paths of a disk and of a bucket: which are taken, and what is said of the others."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
from gcs_stand_in import BUCKET

from cai_jax import storage
from cai_jax.event_file import write
from cai_jax.records import Asked
from cai_jax.shards import Shards, write_atomically
from cai_jax.storage import StorageError


@pytest.fixture
def folder(store):
    return storage.path(f"gs://{BUCKET}/runs/a b")


@pytest.mark.parametrize("name", ["runs/x", "/runs/x", "x:y", "gs", ".", "x/gs:/y"])
def test_a_local_path_is_one_of_pathlib(name):
    assert storage.path(name) == Path(name)
    assert isinstance(storage.path(Path(name)), Path)
    assert not storage.in_bucket(storage.path(name))


@pytest.mark.parametrize(
    "name", ["s3://bucket/run", "hdfs://x", "file:///x", "gs://", "gs:///x", "gs:/bucket/x"]
)
def test_other_schemes_are_refused(name, tiny_cache, tmp_path, capsys):
    with pytest.raises(StorageError, match="neither a local path nor gs://BUCKET/FOLDER"):
        storage.path(name)
    argv = tiny_run.write(tmp_path).command("run", name)
    assert tiny_run.run(argv, tiny_cache) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"cai-jax: {name} is neither") and said.count("\n") == 1


def test_without_its_packages_a_bucket_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert storage.path("runs/x") == Path("runs/x")
    with pytest.raises(StorageError, match=r"`pip install 'cai_jax\[gcs\]'` brings it"):
        storage.path("gs://bucket/run")


def test_a_bucket_is_all_that_imports_its_packages():
    program = (
        "import sys; from cai_jax import storage; storage.path('runs/x'); "
        "assert not {'fsspec', 'gcsfs', 'etils'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tiny_run.ROOT)


def test_a_path_in_a_bucket_stays_what_it_is(folder):
    assert storage.path(folder) == folder == storage.absolute(folder)
    assert storage.in_bucket(folder / "x.json")
    assert str(folder / "x.json") == f"gs://{BUCKET}/runs/a b/x.json"


def test_files_are_copied_moved_and_removed(store, folder):
    for name in ("a.json", "deeper/b c.json"):
        write_atomically(folder / name, name.encode())
    write_atomically(folder.with_name("a bc") / "other", b"")  # begins with the folder's name
    assert storage.files(folder) == ["a.json", "deeper/b c.json"]
    storage.copy(folder, folder.with_name("copy"), storage.files(folder))
    storage.move(folder, folder.with_name("moved"))
    assert not folder.exists()
    for name in ("copy", "moved"):
        assert (folder.with_name(name) / "deeper" / "b c.json").read_bytes() == b"deeper/b c.json"
    storage.remove(folder.with_name("moved"))
    storage.remove(folder.with_name("moved"))
    assert store.names() == ["runs/a bc/other", "runs/copy/a.json", "runs/copy/deeper/b c.json"]


def test_a_file_is_one_put(store, folder):
    data = bytes(range(256)) * 1000
    write_atomically(folder / "file", data)
    assert (store.puts, (folder / "file").read_bytes()) == (["runs/a b/file"], data)


def test_a_large_file_is_there_at_once_or_not_at_all(store, folder):
    data = bytes(60_000_000)  # sent in parts
    write_atomically(folder / "file", data)
    assert store.puts == ["runs/a b/file"]
    assert (folder / "file").stat().length == len(data)


def test_what_cannot_be_written_is_one_sentence(store, folder):
    write_atomically(folder / "file", b"old")
    store.changes_left = 0
    with pytest.raises(StorageError, match="is forbidden to the credentials") as caught:
        write_atomically(folder / "file", b"new")
    assert str(caught.value).startswith(f"{folder}/file is ")
    assert "\n" not in str(caught.value)
    assert (folder / "file").read_bytes() == b"old"


def test_shards_in_a_bucket(folder):
    shards = Shards(folder, 2)
    assert shards.done() == set()
    rows = [Asked("*", "AB", 0), Asked("*", "BA", 1)]
    for number, row in enumerate(rows):
        shards.write(number, [row])
    assert Shards(str(folder), 2).done() == {0, 1}
    assert shards.read(Asked) == rows


def test_event_files_in_a_bucket(folder, tmp_path):
    rows = [(1.0, 1, {"train/loss": 0.5})]
    for where in (folder, tmp_path):
        write(where / "events", rows)
    assert (folder / "events").read_bytes() == (tmp_path / "events").read_bytes()
    assert storage.modified(folder / "events") == pytest.approx(
        storage.modified(tmp_path / "events"), abs=60
    )
