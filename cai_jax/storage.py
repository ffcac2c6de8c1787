"""Where a run's files lie: on a disk, or in a bucket, gs://..., through etils' epath.

A path on a disk is a pathlib.Path. One in a bucket is an epath.Path, which has the same methods as
far as an object store can: one object is put whole or not at all, but nothing can be appended to,
a folder is only a beginning that names share, and it is neither renamed nor copied in one step.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

SCHEME = "gs://"
# Packages whose own errors are of requests, credentials and connections, and how TensorStore and
# gcsfs begin such errors of Python's own types.
_CLIENTS = ("aiohttp", "gcsfs", "google", "requests")
_ON_THE_WAY = (
    "UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED", "ABORTED",
    "RESOURCE_EXHAUSTED", "Forbidden",
)  # fmt: skip


class StorageError(ValueError):
    """A path that cannot be used here or now; the message says which and what to do."""


def path(name: str | os.PathLike) -> Path:
    """A folder or file by its name, for reading and writing.

    Raises:
      StorageError: a kind of storage that is not known, or one whose packages are not installed.
    """
    text = os.fspath(name)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        return Path(text)
    if not re.match(r"gs://[^/]", text):
        raise StorageError(
            f"{text} is neither a local path nor gs://BUCKET/FOLDER; other storage has to be "
            "mounted, or copied to one of these."
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise StorageError(
            f"{text} is in a bucket, and the package that reads those is not installed; "
            "`pip install 'cai_jax[gcs]'` brings it, or mount the bucket."
        )
    _set_up()
    from etils import epath

    return epath.Path(text)


def in_bucket(where: Path) -> bool:
    """Whether a path of `path` is not one of a disk's."""
    return os.fspath(where).startswith(SCHEME)


def absolute(where: Path) -> Path:
    """The path from a root, or as it is where it names a bucket."""
    return where if in_bucket(where) else where.absolute()


def modified(file: Path) -> float:
    """When a file was last written, in seconds since 1970."""
    return file.stat().mtime if in_bucket(file) else file.stat().st_mtime


def put(where: Path, data: bytes) -> None:
    """Writes an object of a bucket, whole or not at all.

    Raises:
      OSError: one sentence naming the path; the object is as it was before.
    """
    try:
        _objects().pipe_file(os.fspath(where), data)
    except Exception as error:  # of the store, of the network, of credentials
        raise OSError(
            f"Cannot write {where}: {' '.join(str(error).split()) or type(error).__name__}; "
            "check the bucket's name, the network and what your credentials permit."
        ) from error


def remove(folder: Path) -> None:
    """Deletes all objects of a bucket's folder, if there are any, in no order."""
    folder.rmtree(missing_ok=True)


def files(folder: Path) -> list[str]:
    """Names, relative to it, of all objects in a bucket's folder and the folders in it."""
    start = os.fspath(folder).rstrip("/").removeprefix(SCHEME) + "/"
    found = _objects().find(os.fspath(folder))
    return sorted(name.removeprefix(start) for name in found if name.startswith(start))


def copy(source: Path, target: Path, names: list[str]) -> None:
    """Copies objects of one folder of a bucket to another, in no order."""
    old, new = ([os.fspath(folder / name) for name in names] for folder in (source, target))
    if names:
        _objects().copy(old, new)


def move(folder: Path, target: Path) -> None:
    """Gives a folder another name; in a bucket a kill can leave it under both."""
    if in_bucket(folder):
        copy(folder, target, files(folder))
        remove(folder)
    else:
        folder.rename(target)


def not_reached(where: Path, error: Exception) -> StorageError | None:
    """What to raise where an error is of the way to a bucket, not of what lies there; or None."""
    if in_bucket(where) and (
        isinstance(error, ConnectionError | TimeoutError)
        or type(error).__module__.split(".")[0] in _CLIENTS
        or str(error).startswith(_ON_THE_WAY)
    ):
        return StorageError(
            f"{where} cannot be reached ({' '.join(str(error).split())[:200]}); check the network "
            "and what your credentials permit, and run again."
        )
    return None


def _set_up() -> None:
    """How the packages underneath are to reach a bucket, said before they are imported."""
    os.environ.setdefault("EPATH_USE_TF", "false")  # where TensorFlow is installed too
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    # One host has to see at once what another has written.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


def _objects() -> Any:
    import fsspec

    return fsspec.filesystem("gcs")
