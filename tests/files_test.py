"""Publishers' files: found in folders of several layouts; downloads checked, or not kept."""

import gzip
import hashlib
import subprocess
from pathlib import Path

import pytest

from cai_jax.datasets import catalog, files
from cai_jax.datasets.files import Published

DATA = b"one\ntwo\n"
SHA256 = hashlib.sha256(DATA).hexdigest()
SHARED = Path(__file__).parents[2] / "shared" / "data"


def published(url="", checksum=SHA256):
    return Published("part/test.jsonl.gz", "example.org/data", url, checksum)


@pytest.mark.parametrize("place", ["part/test.jsonl.gz", "part/test.jsonl"])
def test_a_file_is_found_in_the_publishers_layout(tmp_path, place):
    file = tmp_path / place
    file.parent.mkdir()
    file.write_bytes(DATA)
    assert files.find(published(), tmp_path) == file
    assert files.find(published(), tmp_path / "part") == file


def test_a_file_of_another_part_is_not_taken(tmp_path):
    (tmp_path / "test.jsonl.gz").write_bytes(DATA)
    assert files.at_hand(published(), tmp_path) is None
    with pytest.raises(
        FileNotFoundError, match=r"has no part/test\.jsonl\.gz; get it from example"
    ):
        files.find(published(), tmp_path)


def test_checksums_of_both_kinds_also_of_what_is_unzipped(tmp_path):
    plain, zipped = tmp_path / "a", tmp_path / "b"
    plain.write_bytes(DATA)
    zipped.write_bytes(gzip.compress(DATA))
    assert files.is_as_published(published(), plain) and files.is_as_published(published(), zipped)
    in_git = subprocess.run(["git", "hash-object", plain], capture_output=True, text=True)
    if in_git.returncode == 0:
        assert files.is_as_published(published(checksum=in_git.stdout.strip()), plain)
    zipped.write_bytes(gzip.compress(DATA)[:-3])
    assert not files.is_as_published(published(), zipped)
    plain.write_bytes(DATA[:-1])
    assert not files.is_as_published(published(), plain)


def test_a_download_is_checked_and_made_once(tmp_path):
    source, folder, said = tmp_path / "source", tmp_path / "cache", []
    source.write_bytes(DATA)
    got = files.fetch(published(source.as_uri()), folder, said.append)
    assert got == folder / "part" / "test.jsonl.gz" and got.read_bytes() == DATA
    assert [p.name for p in got.parent.iterdir()] == ["test.jsonl.gz"]
    source.unlink()
    assert files.fetch(published(source.as_uri()), folder, said.append) == got
    assert said == ["fetching part/test.jsonl.gz from example.org/data"]


def test_what_is_not_the_published_file_is_not_kept(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "cache"
    source.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="brought another file than"):
        files.fetch(published(source.as_uri()), folder, print)
    assert not folder.exists()
    source.unlink()
    with pytest.raises(ValueError, match=r"could not download .* --manual_dir=DIR"):
        files.fetch(published(source.as_uri()), folder, print)
    with pytest.raises(ValueError, match="its checksum could not be established; get it from"):
        files.fetch(published(checksum=""), folder, print)


@pytest.mark.parametrize("variable", ["CAI_JAX_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_cache_folder_rule(monkeypatch, variable):
    monkeypatch.delenv("CAI_JAX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, "/base")
    expected = {
        "CAI_JAX_CACHE": "/base",
        "XDG_CACHE_HOME": "/base/cai_jax",
        "HOME": "/base/.cache/cai_jax",
    }
    assert str(files.cache_folder()) == expected[variable]


def test_every_download_has_a_checksum_and_a_pinned_address():
    for dataset in catalog.datasets().values():
        for _, file in dataset.files:
            assert bool(file.url) == bool(file.checksum), file.path
            if file.url:
                assert file.url.startswith("https://") and file.url.endswith(file.path)
                commit = file.url.removesuffix(f"/{file.path}").rsplit("/", 1)[1]
                assert len(commit) == 40 and len(file.checksum) in (40, 64)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("hh_rlhf/harmless-base", "anthropic-hh-rlhf"),
        ("cai_paper/hhh", "anthropic-cai-paper"),
        ("cai_paper/harmful_vs_ethical", "anthropic-cai-paper"),
        ("cai_paper/harm_classes", "anthropic-cai-paper"),
        ("xstest", "xstest"),
    ],
)
def test_checksums_of_the_files_at_hand(name, folder):
    dataset = catalog.dataset(name)
    path = dataset.paths(SHARED / folder).get("test")
    if path is None:
        pytest.skip(f"{name} is not beside this checkout")
    assert files.is_as_published(dict(dataset.files)["test"], path)
