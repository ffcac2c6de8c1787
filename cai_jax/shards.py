"""Shards: records in files of JSON lines, each file whole or absent, also after a kill."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from cai_jax import hosts, storage
from cai_jax.records import from_json, read_rows, to_line

T = TypeVar("T")


class Shards:
    """A folder of record shards, each written whole or not at all.

    A stage's unit of restart is a shard: it asks `done()`, makes the missing ones and `write`s
    each. A killed write leaves at most a hidden partial file, which is never read and which the
    next write of that shard replaces.

    Args:
      directory: made on the first write.
      count: number of shards in all; names are 00003-of-00010.jsonl with it, 00003.jsonl without.
    """

    def __init__(self, directory: str | os.PathLike, count: int | None = None):
        self.directory = storage.path(directory)
        self.count = count

    def path(self, number: int) -> Path:
        """Where shard `number` lies once written; IndexError outside 0..count-1."""
        if number < 0 or (self.count is not None and number >= self.count):
            raise IndexError(f"shard {number} of {self.count} in {self.directory}")
        suffix = "" if self.count is None else f"-of-{self.count:05d}"
        return self.directory / f"{number:05d}{suffix}.jsonl"

    def done(self) -> set[int]:
        """Numbers of the shards that are complete.

        Raises:
          ValueError: the folder holds shards of a different count.
        """
        found = set()
        for path in self.directory.glob("*.jsonl"):
            match = re.fullmatch(r"(\d{5,})(?:-of-(\d{5,}))?\.jsonl", path.name)
            if not match:
                continue
            count = int(match[2]) if match[2] else None
            if count != self.count:
                raise ValueError(
                    f"{path} is not one of {self.count or 'an open number of'} shards; "
                    "it comes from a run with other settings, so use a new workdir."
                )
            found.add(int(match[1]))
        return found

    def write(self, number: int, records: Iterable[Any]) -> Path:
        """Writes shard `number` in one step, whole or not at all. The first host does.

        Raises:
          OSError, StorageError: the folder is read-only, the disk full or the bucket out of reach;
            nothing half-written stays.
        """
        path = self.path(number)
        hosts.once(lambda: write_atomically(path, "".join(map(to_line, records)).encode()))
        return path

    def read(self, cls: type[T]) -> list[T]:
        """All records, in shard order, then row order.

        Raises:
          ValueError: a shard is truncated or damaged, or a row is no `cls`; names file and line.
        """
        records = []
        for number in sorted(self.done()):
            path = self.path(number)
            data = path.read_bytes()
            if data and not data.endswith(b"\n"):
                lines = data.count(b"\n") + 1
                raise ValueError(
                    f"{path}, line {lines}: the shard is cut short; delete it and run again."
                )
            records += [from_json(cls, row, where) for where, row in read_rows(path)]
        return records


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that it exists whole or not at all, also after a kill or power loss.

    On a disk by a partial file, fsync and rename, in a bucket by one put.

    Raises:
      OSError, StorageError: one sentence naming the path; the file is as it was before.
    """
    if storage.in_bucket(path):
        return storage.put(path, data)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)  # a rename lasts only once its folder is synced
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise OSError(
            f"Cannot write {path}: {error.strerror or error}; "
            "check free space and permissions, or use another workdir."
        ) from error
