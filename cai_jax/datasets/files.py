"""Publishers' files: where they are on this machine, and checked downloads of some.

A checksum is the file's sha256, or the id under which the publisher's git repository holds it, a
sha1. A file whose checksum could not be established is never downloaded.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Published:
    """A file of a data set.

    Attributes:
      path: below the folder of the publisher, such as "harmless-base/test.jsonl.gz".
      url: where it can be downloaded; empty where only a file at hand will do.
      checksum: 64 hex digits of its sha256, or 40 of its git id; empty where none is known.
      home: where a person gets it.
    """

    path: str
    home: str
    url: str = ""
    checksum: str = ""


def cache_folder() -> Path:
    """$CAI_JAX_CACHE, else cai_jax under $XDG_CACHE_HOME, else under ~/.cache."""
    if own := os.environ.get("CAI_JAX_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cai_jax"


def download_folder(publisher: str) -> Path:
    """Where `fetch` keeps the files of a publisher."""
    return cache_folder() / "downloads" / publisher


def at_hand(file: Published, folder: Path) -> Path | None:
    """The file in a folder laid out as the publisher's, or in its last folder; gzipped or not."""
    path = Path(file.path)
    places = [folder / path.parent]
    if folder.name == path.parent.name:
        places.append(folder)
    plain = path.name.removesuffix(".gz")
    names = dict.fromkeys((path.name, plain, f"{plain}.gz"))
    return next((p / name for p in places for name in names if (p / name).is_file()), None)


def find(file: Published, folder: Path) -> Path:
    """As `at_hand`.

    Raises:
      FileNotFoundError: it is not there; says how to get it.
    """
    found = at_hand(file, folder)
    if found is None:
        raise FileNotFoundError(
            f"{folder} has no {file.path}; get it from {file.home} and give its folder."
        )
    return found


def is_as_published(file: Published, path: Path) -> bool:
    """Whether a file has the published checksum, itself or unzipped; it must have one."""
    data = path.read_bytes()
    if _has_checksum(data, file.checksum):
        return True
    try:
        return data.startswith(b"\x1f\x8b") and _has_checksum(gzip.decompress(data), file.checksum)
    except (OSError, EOFError):
        return False


def fetch(file: Published, folder: Path, report: Callable[[str], None]) -> Path:
    """The file in `folder`, downloaded and checked if it is not there whole.

    Raises:
      ValueError: it cannot be downloaded, or what came is another file.
      OSError: the folder cannot be written.
    """
    target = folder / file.path
    if not file.url:
        raise ValueError(
            f"{file.path} is not downloaded, since its checksum could not be established; get it "
            f"from {file.home} and give its folder as --manual_dir=DIR."
        )
    if target.is_file() and is_as_published(file, target):
        return target
    report(f"fetching {file.path} from {file.home}")
    try:
        with urllib.request.urlopen(file.url, timeout=60) as answer:
            data = answer.read()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"could not download {file.url} ({getattr(error, 'reason', error)}); get it from "
            f"{file.home} and give its folder as --manual_dir=DIR."
        ) from error
    if not _has_checksum(data, file.checksum):
        raise ValueError(
            f"{file.url} brought another file than {file.checksum[:12]}...; it was not kept."
        )
    _write(target, data)
    return target


def _has_checksum(data: bytes, checksum: str) -> bool:
    if len(checksum) == 40:
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == checksum
    return hashlib.sha256(data).hexdigest() == checksum


def _write(target: Path, data: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
            partial = Path(scratch) / target.name
            partial.write_bytes(data)
            os.replace(partial, target)
    except OSError as error:
        raise OSError(
            f"cannot write {target} ({error.strerror or error}); set CAI_JAX_CACHE to a folder "
            "that can be written"
        ) from error
