"""Text files that grow line by line, on a disk or in a bucket, which has no appends.

On a disk a line is there when `append` returns. Of a file in a bucket all lines are kept here, and
put as one object with the first line of each minute and by `put_all`: before every checkpoint, when
a stage is finished, when the command ends. A kill may lose lines since then, which a resumed run
writes again, as it goes on from a checkpoint that is no newer.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

from cai_jax import storage
from cai_jax.shards import write_atomically

SECONDS = 60  # between puts at the least, unless they are asked for


@dataclasses.dataclass
class _Kept:
    """What a bucket's file holds or should hold. Attributes: put_at, by the clock; changed."""

    text: str
    put_at: float
    changed: bool = False


_kept: dict[str, _Kept] = {}


def begin(path: Path) -> None:
    """Before a writer's first use of the others: the file is what its storage says."""
    if (kept := _kept.pop(os.fspath(path), None)) is not None and kept.changed:
        _put(path, kept)


def read(path: Path) -> str:
    """The file's text, with lines that are not in the bucket yet; empty where there is none."""
    if (kept := _kept.get(os.fspath(path))) is not None:
        return kept.text
    return path.read_bytes().decode("utf-8", "replace") if path.exists() else ""


def append(path: Path, line: str) -> None:
    """Adds a line, newline included."""
    if not storage.in_bucket(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Opened anew each time: nothing lies in a buffer when the process is killed.
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
        return
    kept = _keep(path)
    kept.text += line
    kept.changed = True
    if time.monotonic() - kept.put_at > SECONDS:
        _put(path, kept)


def replace(path: Path, text: str) -> None:
    """Gives the file another text, at once."""
    if storage.in_bucket(path):
        kept = _keep(path)
        kept.text = text
        _put(path, kept)
    else:
        new = path.with_name(path.name + ".new")
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)


def put_all() -> None:
    """Puts every file that has lines which are not in its bucket yet."""
    for name, kept in _kept.items():
        if kept.changed:
            _put(storage.path(name), kept)


def _keep(path: Path) -> _Kept:
    name = os.fspath(path)
    if name not in _kept:
        _kept[name] = _Kept(read(path), time.monotonic())
    return _kept[name]


def _put(path: Path, kept: _Kept) -> None:
    write_atomically(path, kept.text.encode())
    kept.put_at, kept.changed = time.monotonic(), False
