"""A folder thrown away or replaced all at once, whatever moment a kill comes in.

On a disk a rename does it. A bucket renames nothing, so there an object beside the folder, put in
one step, says what is to be done; whoever looks next ends what that object began. done.json is the
first to go and the last to come: who does not look for the object sees no finished half.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from cai_jax import hosts, storage

MARK = "done.json"  # of a folder that is finished


def settle(folder: Path) -> None:
    """Ends a change of `folder` that a kill came into. All hosts call it at the same place."""
    hosts.once(lambda: _settle_objects(folder) if storage.in_bucket(folder) else _settle(folder))


def throw_away(folder: Path) -> None:
    """After a kill the folder is as it was, or `settle` removes it. All hosts call it."""

    def act() -> None:
        if storage.in_bucket(folder):
            storage.put(_beside(folder, "removed"), b"to be removed\n")
            _settle_objects(folder)
        else:
            removed = _beside(folder, "removed")
            shutil.rmtree(removed, ignore_errors=True)
            folder.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)

    hosts.once(act)


@contextlib.contextmanager
def remade(folder: Path) -> Iterator[Path]:
    """A copy of a folder to change, which takes its place all at once. One host calls it.

    After a kill or an error the folder is, or after `settle`, as it was or as it should become.
    """
    settle(folder)
    draft = _beside(folder, "draft")
    in_bucket = storage.in_bucket(folder)
    remove = storage.remove if in_bucket else lambda old: shutil.rmtree(old, ignore_errors=True)
    remove(draft)
    try:
        if in_bucket:
            storage.copy(folder, draft, storage.files(folder))
            yield draft
            storage.put(_beside(folder, "next"), b"to be replaced by the draft\n")
            _settle_objects(folder)
        else:
            shutil.copytree(folder, draft)
            yield draft
            draft.rename(_beside(folder, "next"))
            folder.rename(_beside(folder, "removed"))
            _settle(folder)
    finally:
        if not (in_bucket and _beside(folder, "next").exists()):
            remove(draft)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _settle(folder: Path) -> None:
    successor, removed = _beside(folder, "next"), _beside(folder, "removed")
    if successor.exists() and folder.exists():  # the old folder had not yet gone
        shutil.rmtree(successor)
    elif successor.exists():
        successor.rename(folder)
    shutil.rmtree(removed, ignore_errors=True)


def _settle_objects(folder: Path) -> None:
    removed, successor = _beside(folder, "removed"), _beside(folder, "next")
    if removed.exists():
        (folder / MARK).unlink(missing_ok=True)
        storage.remove(folder)
        removed.unlink()
    if successor.exists():
        draft = _beside(folder, "draft")
        (folder / MARK).unlink(missing_ok=True)
        names, old = storage.files(draft), storage.files(folder)
        for name in set(old) - set(names):
            (folder / name).unlink()
        storage.copy(draft, folder, [name for name in names if name != MARK])
        storage.copy(draft, folder, [name for name in names if name == MARK])
        successor.unlink()  # only now may the draft go
        storage.remove(draft)
