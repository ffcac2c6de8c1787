"""Prepared data sets in the user's cache folder: array_record files, written once and whole."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import tensorflow_datasets as tfds

Builder = tfds.core.GeneratorBasedBuilder


def prepared(builder: Callable[[Path], Builder], folder: Path, what: str) -> Builder:
    """The builder of a data folder, prepared there on first use.

    Args:
      builder: makes the builder of a data folder.
      folder: named after the content, so that other content has another folder.
      what: is prepared, for messages.

    Raises:
      OSError: the folder cannot be written.
    """
    try:
        if not folder.exists():
            prepare(builder, folder)
        return builder(folder)
    except OSError as error:
        raise OSError(
            f"Cannot prepare {what} in {folder}: {error.strerror or error}; "
            "set CAI_JAX_CACHE to a folder that can be written."
        ) from error


def prepare(builder: Callable[[Path], Builder], folder: Path) -> None:
    """Prepares beside `folder` and renames, so that a kill or a second process does no harm."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    silence = io.StringIO()  # tfds prints and draws bars; errors still raise
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            builder(scratch).download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
        with contextlib.suppress(FileExistsError):
            os.rename(scratch, folder)
    except OSError as error:
        if not folder.exists():  # else another process was faster, with the same content
            raise error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
