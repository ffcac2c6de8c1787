"""Where a run's files lie: on a disk, or in a bucket, gs://..., through etils' epath.

A path on a disk is a pathlib.Path. One in a bucket is an epath.Path, which has the same methods as
far as an object store can: one object is put whole or not at all, but nothing can be appended to,
a folder is only a beginning that names share, and it is neither renamed nor copied in one step.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai_jax import outages

SCHEME = "gs://"
_named: list[str] = []  # buckets that `path` was asked for


class StorageError(ValueError):
    """A path that cannot be used here or now; the message says which and what to do."""


class Unreachable(StorageError):
    """A bucket that does not answer, where nobody has anything to mend but to wait."""

    exit_code = outages.AGAIN


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
    bucket = "/".join(text.split("/")[:3])
    if bucket not in _named:
        _named.append(bucket)
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


def check(where: Path) -> None:
    """Asks for the bucket itself, as Orbax will hours later.

    Raises:
      StorageError: one sentence naming the bucket, that it is not there or what it forbids.
    """
    with _one_sentence(where, "ask for"):
        _objects().call("GET", "b/{}", os.fspath(where).split("/")[2])


def put(where: Path, data: bytes) -> None:
    """Writes an object of a bucket, whole or not at all.

    Raises:
      StorageError: one sentence naming the path; the object is as it was before.
    """
    with _one_sentence(where, "write"):
        _objects().pipe_file(os.fspath(where), data)


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


def not_reached(error: BaseException, where: Path | None = None) -> StorageError | None:
    """What to raise where an error is of the way to a bucket, not of what lies there; or None.

    Args:
      where: what was read or written; where it is not known, any bucket that was named before.
    """
    if not _named or (where is not None and not in_bucket(where)):
        return None
    name = os.fspath(where) if where else " or ".join(_named)
    found = outages.kind(error)
    if found == "passing":
        return Unreachable(
            f"{name} cannot be reached ({_said(error)}); check the network, and run the same "
            "command again to continue."
        )
    if found == "forbidden":
        return StorageError(
            f"{name} is forbidden to the credentials that are found here ({_said(error)}); give "
            "them the roles Storage Object User and Storage Legacy Bucket Reader on the bucket, or "
            "others by `gcloud auth application-default login`."
        )
    return _no_bucket(name, error) if found == "no bucket" else None


def explained(error: BaseException) -> BaseException:
    """A command's error, or in its place a sentence where it is of the way to a bucket."""
    known = isinstance(error, (ValueError, KeyboardInterrupt, SystemExit))
    return error if known else not_reached(error) or error


@contextlib.contextmanager
def _one_sentence(where: Path, verb: str) -> Iterator[None]:
    """While open, any error is a StorageError of what needs nothing but a bucket."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FileNotFoundError):
            raise _no_bucket(os.fspath(where), error) from error
        away = not_reached(error, where)
        raise away or StorageError(f"Cannot {verb} {where} ({_said(error)}).") from error


def _no_bucket(name: str, error: BaseException) -> StorageError:
    bucket = "/".join(name.split("/")[:3])
    return StorageError(
        f"There is no bucket {bucket} that the credentials found here may see ({_said(error)}); "
        f"mend its name, or make it by `gcloud storage buckets create {bucket}`."
    )


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


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
