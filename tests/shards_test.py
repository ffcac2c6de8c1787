"""Shards: records in files that are whole or absent, and come back in order."""

import errno
import os
import subprocess
import sys
import textwrap

import pytest

from cai_jax.conversation import Conversation
from cai_jax.records import Provenance, Response
from cai_jax.shards import Shards

PROVENANCE = Provenance("tiny@0f3a", "house@91bc", 7, "abc123")
PROMPT = Conversation().human("Hi\u2028 日本")


def response(number):
    return Response(f"p-{number}", "helpful", PROMPT, "ok", (5, 9), "end", 1, PROVENANCE)


def test_shards_come_back_in_order(tmp_path):
    folder = Shards(tmp_path / "sub", count=3)
    assert folder.done() == set() and folder.read(Response) == []
    folder.write(2, [response(4)])
    folder.write(0, [response(0), response(1)])
    assert folder.done() == {0, 2}
    assert [r.id for r in folder.read(Response)] == ["p-0", "p-1", "p-4"]
    assert sorted(os.listdir(folder.directory)) == ["00000-of-00003.jsonl", "00002-of-00003.jsonl"]
    assert Shards(tmp_path / "open").write(12, []).name == "00012.jsonl"
    assert Shards(tmp_path / "open").done() == {12}
    with pytest.raises(IndexError):
        folder.write(3, [])


def test_shards_of_another_count_are_refused(tmp_path):
    Shards(tmp_path, count=3).write(0, [])
    with pytest.raises(
        ValueError, match=r"00000-of-00003.jsonl is not one of 4 shards; .* workdir"
    ):
        Shards(tmp_path, count=4).done()


def test_a_killed_write_leaves_nothing_that_counts(tmp_path):
    script = f"""
        import os
        from cai_jax.records import Provenance
        from cai_jax.shards import Shards
        os.fsync = lambda fd: os.kill(os.getpid(), 9)
        p = Provenance("m", "c", 1, "")
        Shards({str(tmp_path)!r}).write(5, [p] * 1000)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode == -9
    folder = Shards(tmp_path)
    assert len(os.listdir(tmp_path)) == 1 and folder.done() == set()
    folder.write(5, [PROVENANCE])
    assert os.listdir(tmp_path) == ["00005.jsonl"]
    assert folder.read(Provenance) == [PROVENANCE]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-20], "line 2: the shard is cut short; delete it and run again."),
        (lambda b: b[:40] + b"\xff" + b[41:], "line 1: not UTF-8 text"),
        (lambda b: b"\0" * 30 + b"\n" + b, "line 1: not valid JSON"),
        (lambda b: b"[1]\n", "line 1: the row must be a JSON object, not [1]."),
    ],
)
def test_damaged_shards(tmp_path, damage, message):
    folder = Shards(tmp_path)
    path = folder.write(0, [PROVENANCE, PROVENANCE])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError) as caught:
        folder.read(Provenance)
    assert f"{path}, {message}" in str(caught.value)


def test_full_disk_leaves_the_old_shard(tmp_path, monkeypatch):
    folder = Shards(tmp_path)
    path = folder.write(0, [PROVENANCE])
    before = path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"^Cannot write .*00000.jsonl: No space left on device; "):
        folder.write(0, [PROVENANCE] * 2)
    assert os.listdir(tmp_path) == ["00000.jsonl"] and path.read_bytes() == before


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^Cannot write .*file/stage/00000.jsonl: .*workdir"):
        Shards(tmp_path / "file" / "stage").write(0, [PROVENANCE])
