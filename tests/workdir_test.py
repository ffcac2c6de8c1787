"""A run's folder: what a stage is made from, what is thrown away, and what cannot be used."""

import collections
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from cai_jax import shards, workdir
from cai_jax.settings import MeshShape
from cai_jax.workdir import Workdir, WorkdirError

SETTINGS = MeshShape(1, 1, 1, 1, 1)  # any dataclass will do


def one_sentence(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_a_stage_is_done_once(tmp_path):
    folder = Workdir(tmp_path / "run")
    folder.prepare(SETTINGS, 0)
    assert folder.begin("revise", {"seed": 0})
    assert folder.begin("revise", {"seed": 0})  # begun, not finished: continue
    folder.finish("revise", {"rows": 3})
    assert not folder.begin("revise", {"seed": 0})
    assert folder.read_json("revise/done.json") == {"rows": 3}


def test_the_config_is_noted_when_a_stage_begins(tmp_path):
    folder = Workdir(tmp_path)
    folder.prepare(SETTINGS, 0)
    assert not (tmp_path / "config.json").exists()
    folder.begin("revise", {"seed": 0})
    names = ("slice", "data", "fsdp", "sequence", "tensor")
    assert folder.read_json("config.json") == dict.fromkeys(names, 1)
    noted = folder.read_json("environment.json")
    assert noted["packages"]["jax"]
    assert noted["devices"]


def test_a_refused_config_is_not_noted(tmp_path):
    folder = Workdir(tmp_path)
    folder.prepare(SETTINGS, 0)
    folder.begin("revise", {"seed": 0})
    folder.prepare(MeshShape(1, 2, 2, 1, 2), 0)
    with pytest.raises(WorkdirError):
        folder.begin("revise", {"seed": 1})
    assert folder.read_json("config.json")["data"] == 1


def test_tuples_are_not_a_change(tmp_path):
    folder = Workdir(tmp_path)
    folder.begin("compare", {"clamp": (0.0, 1.0)})
    assert folder.begin("compare", {"clamp": (0.0, 1.0)})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"seed": 0}, {"seed": 1}, "another seed (0 then, 1 now)"),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, "another a.c (2 then, 3 now)"),
        ({"a": 1}, {"a": 1, "b": 2}, "another b (None then, 2 now)"),
    ],
)
def test_a_changed_stage_says_what_changed(tmp_path, old, new, said):
    folder = Workdir(tmp_path)
    folder.begin("revise", old)
    (tmp_path / "revise" / "record").write_text("kept")
    with pytest.raises(WorkdirError) as caught:
        folder.begin("revise", new)
    assert said in one_sentence(caught)
    assert "--force" in str(caught.value)
    assert (tmp_path / "revise" / "record").read_text() == "kept"


def test_force_throws_a_changed_stage_away_and_no_other(tmp_path):
    folder = Workdir(tmp_path, force=True)
    for stage in ("revise", "finetune"):
        folder.begin(stage, {"seed": 0})
        (tmp_path / stage / "record").write_text("old")
        folder.finish(stage, {})
    assert folder.begin("revise", {"seed": 1})
    assert not folder.begin("finetune", {"seed": 0})
    assert not (tmp_path / "revise" / "record").exists()
    assert (tmp_path / "finetune" / "record").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["finetune", "revise"]


def test_a_kill_while_throwing_away_leaves_no_half_of_an_old_stage(tmp_path):
    """What is left of the old stage must never be taken for the new one's."""
    program = """
        import os, shutil, signal, sys
        from cai_jax.workdir import Workdir

        folder = Workdir(sys.argv[1])
        folder.begin("revise", {"seed": 0})
        for name in ("inputs.json", "one", "two"):
            (folder.path / "revise" / name).touch()
        folder.force = True

        def half(path, **_):
            if os.path.exists(path):
                os.unlink(f"{path}/inputs.json")
                os.kill(os.getpid(), signal.SIGKILL)

        shutil.rmtree = half
        folder.begin("revise", {"seed": 1})
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    assert subprocess.run(command, env={**os.environ}).returncode == -signal.SIGKILL
    assert not (tmp_path / "revise").exists()
    assert Workdir(tmp_path).begin("revise", {"seed": 1})
    assert [p.name for p in (tmp_path / "revise").iterdir()] == ["inputs.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["revise"]


def test_finishing_drops_the_checkpoints(tmp_path):
    folder = Workdir(tmp_path)
    folder.begin("ppo", {})
    (tmp_path / "ppo" / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "ppo" / "params").mkdir()
    folder.finish("ppo", {})
    assert sorted(p.name for p in (tmp_path / "ppo").iterdir()) == [
        "done.json", "inputs.json", "params"
    ]  # fmt: skip


def test_a_kill_before_the_checkpoints_are_dropped_leaves_none(tmp_path):
    folder = Workdir(tmp_path)
    folder.begin("ppo", {})
    folder.finish("ppo", {})
    (tmp_path / "ppo" / "checkpoints" / "4").mkdir(parents=True)  # as if killed just before
    assert not Workdir(tmp_path).begin("ppo", {})
    assert not (tmp_path / "ppo" / "checkpoints").exists()


def test_a_stage_that_is_needed_is_named_with_its_verb(tmp_path):
    folder = Workdir(tmp_path)
    folder.begin("compare", {})
    with pytest.raises(
        WorkdirError, match="no finished 'compare'; run `cai-jax compare`"
    ) as caught:
        folder.require("compare", "compare")
    one_sentence(caught)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    for path in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(WorkdirError, match="cannot be written") as caught:
            Workdir(path).prepare(SETTINGS, 0)
        assert str(path) in one_sentence(caught)


def test_a_folder_that_is_read_only(tmp_path, monkeypatch):
    if os.geteuid():
        tmp_path.chmod(0o500)
    else:  # nothing is read-only to root

        def refuse(self, data):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

        monkeypatch.setattr(workdir.Path, "write_bytes", refuse)
    with pytest.raises(WorkdirError, match="cannot be written") as caught:
        Workdir(tmp_path).prepare(SETTINGS, 0)
    one_sentence(caught)
    tmp_path.chmod(0o700)


def test_a_disk_with_too_little_room(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**10, 10**10, 10**8))
    with pytest.raises(WorkdirError, match=r"0\.1 GB free .* needs about 6\.5 GB") as caught:
        Workdir(tmp_path).prepare(SETTINGS, 6_500_000_000)
    one_sentence(caught)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up(tmp_path, monkeypatch):
    folder = Workdir(tmp_path)
    folder.begin("revise", {"seed": 0})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(OSError, match=r"done\.json: No space left on device") as caught:
        folder.finish("revise", {})
    one_sentence(caught)
    assert [p.name for p in (tmp_path / "revise").iterdir()] == ["inputs.json"]


def test_the_commit_marks_changed_files(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "workdir.py").write_text("")
    monkeypatch.setattr(workdir, "__file__", str(package / "workdir.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert workdir.commit() == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    clean = workdir.commit()
    assert len(clean) == 12
    (package / "workdir.py").write_text("changed")
    assert workdir.commit() == clean + "+"


def test_digests_follow_content():
    assert workdir.digest({"a": (1, 2)}) == workdir.digest({"a": [1, 2]})
    assert workdir.digest({"a": 1}) != workdir.digest({"a": 2})
    assert len(workdir.digest(json.dumps({}))) == 16


def finished(folder: Workdir) -> None:
    folder.begin("compare", {"clamp": 1})
    folder.write_json("compare/a.json", "old")
    folder.finish("compare", {})


def test_a_stage_is_remade_at_once(tmp_path):
    folder = Workdir(tmp_path)
    finished(folder)
    with folder.remade("compare") as draft:
        (draft / "a.json").write_text('"new"')
        assert folder.read_json("compare/a.json") == "old"
    assert folder.read_json("compare/a.json") == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["compare"]


def test_an_error_leaves_a_stage_as_it_was(tmp_path):
    folder = Workdir(tmp_path)
    finished(folder)
    with pytest.raises(RuntimeError), folder.remade("compare") as draft:
        (draft / "a.json").write_text('"new"')
        raise RuntimeError
    assert folder.read_json("compare/a.json") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["compare"]


@pytest.mark.parametrize("call", range(3))
def test_a_kill_leaves_a_stage_as_it_was_or_as_it_should_be(tmp_path, monkeypatch, call):
    folder = Workdir(tmp_path)
    finished(folder)
    renamed = []
    rename = type(tmp_path).rename

    def killed(path, target):
        if len(renamed) == call:
            raise KeyboardInterrupt
        renamed.append(path)
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", killed)
    with pytest.raises(KeyboardInterrupt), folder.remade("compare") as draft:
        (draft / "a.json").write_text('"new"')
    monkeypatch.undo()
    again = Workdir(tmp_path)
    again.require("compare", "compare")
    assert again.read_json("compare/a.json") == ("new" if call == 2 else "old")
    assert again.read_json("compare/inputs.json") == {"clamp": 1}
    with again.remade("compare") as draft:
        (draft / "a.json").write_text('"newest"')
    assert again.read_json("compare/a.json") == "newest"
    assert [p.name for p in tmp_path.iterdir()] == ["compare"]
