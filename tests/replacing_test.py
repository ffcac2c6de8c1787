"""Stages in a bucket thrown away and remade, stopped after each of the requests that do it.

What they do on a disk is workdir_test's.
"""

import json
from pathlib import Path

import pytest
from gcs_stand_in import BUCKET
from workdir_test import SETTINGS, one_sentence

from cai_jax.storage import StorageError
from cai_jax.workdir import Workdir, WorkdirError

RUN = f"gs://{BUCKET}/run"
OLD = {"inputs.json", "one.jsonl", "two.jsonl", "records/a", "checkpoints/4/x", "done.json"}


def begun(seed: int = 0, force: bool = False) -> bool:
    return Workdir(RUN, force).begin("compare", {"seed": seed})


def finished(store) -> Workdir:
    """A stage with all of OLD in it, and another that is not to be touched."""
    store.clear()
    folder = Workdir(RUN)
    for stage in ("compare", "compare2"):
        folder.begin(stage, {"seed": 0})
        folder.finish(stage, {})
    for name in OLD - {"inputs.json", "done.json"}:
        folder.write_json(f"compare/{name}", "old")
    return folder


def there(store) -> set[str]:
    found = set(store.names("run/"))
    assert {n for n in found if "compare2" in n} == {
        "run/compare2/done.json", "run/compare2/inputs.json"
    }  # fmt: skip
    return {n.removeprefix("run/") for n in found if "compare2" not in n}


def stopped_after(store, changes: int, action) -> bool:
    """Whether an action was, by a store that then forbids all changes, as if it had been killed."""
    store.changes_left = changes
    try:
        action()
    except (OSError, StorageError):
        return True
    else:
        return False
    finally:
        store.changes_left = None


def test_a_workdir_is_checked_before_compute(store):
    Workdir(RUN).prepare(SETTINGS, 10**18)  # a bucket has room
    assert store.names() == []
    with pytest.raises(StorageError, match="There is no bucket gs://other that ") as caught:
        Workdir("gs://other/run").prepare(SETTINGS, 0)
    one_sentence(caught)


def test_a_stage_is_done_once(store):
    assert begun() and begun()
    Workdir(RUN).finish("compare", {"rows": 3})
    assert not begun()
    assert Workdir(RUN).read_json("compare/done.json") == {"rows": 3}
    with pytest.raises(WorkdirError, match="another seed"):
        begun(seed=1)
    Workdir(RUN).require("compare", "compare")
    with pytest.raises(WorkdirError, match="no finished 'revise'"):
        Workdir(RUN).require("revise", "revise")


def test_finishing_drops_the_checkpoints(store):
    finished(store).finish("compare", {})
    assert there(store) == {f"compare/{n}" for n in OLD - {"checkpoints/4/x"}}


def test_force_at_every_moment_leaves_the_old_stage_or_none_of_it(store):
    for changes in range(20):
        finished(store)
        if not stopped_after(store, changes, lambda: begun(seed=1, force=True)):
            break
        left = there(store)
        if "compare/done.json" in left:  # for who reads without settling
            assert left >= {f"compare/{n}" for n in OLD}
        if changes == 0:
            assert left == {f"compare/{n}" for n in OLD}
            with pytest.raises(WorkdirError):
                begun(seed=1)
        else:
            assert begun(seed=1)
            assert there(store) == {"compare/inputs.json"}
    assert 6 < changes < 19
    assert there(store) == {"compare/inputs.json"}


@pytest.mark.parametrize("again", ["require", "remade"])
def test_remade_at_every_moment_leaves_the_old_stage_or_the_new(store, again):
    new = (OLD - {"two.jsonl"}) | {"three.jsonl"}

    def remake():
        folder = Workdir(RUN)
        with folder.remade("compare") as draft:
            (draft / "two.jsonl").unlink()
            for name in ("inputs.json", "one.jsonl", "three.jsonl", "done.json"):
                folder.write_json(f".compare.draft/{name}", {"seed": 2})
            assert draft.name == ".compare.draft"

    outcomes = []
    for changes in range(60):
        finished(store)
        stopped = stopped_after(store, changes, remake)
        if "compare/done.json" in (left := there(store)):
            found = Workdir(RUN).read_json("compare/done.json")
            assert left >= {f"compare/{n}" for n in (new if found else OLD)}
        folder = Workdir(RUN)
        if again == "remade" and stopped:
            with folder.remade("compare"):
                pass
        else:
            folder.require("compare", "compare")
        seed = folder.read_json("compare/inputs.json")["seed"]
        assert not begun(seed=seed)
        kept = {n.removeprefix("compare/") for n in there(store) if n.startswith("compare/")}
        assert kept == (new if seed else OLD) - {"checkpoints/4/x"}
        marks = [n for n in there(store) if n in (".compare.next", ".compare.removed")]
        assert not marks
        outcomes.append(seed)
        if not stopped:
            break
    assert outcomes == sorted(outcomes) and set(outcomes) == {0, 2}
    assert changes < 59


def test_an_error_leaves_a_stage_as_it_was(store):
    folder = finished(store)
    with pytest.raises(RuntimeError), folder.remade("compare") as draft:
        (draft / "one.jsonl").write_text(json.dumps("new"))
        raise RuntimeError
    assert folder.read_json("compare/one.jsonl") == "old"
    assert there(store) == {f"compare/{n}" for n in OLD}


def test_a_path_in_a_bucket_is_no_local_folder(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun()
    assert list(Path(tmp_path).iterdir()) == []
