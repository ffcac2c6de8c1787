"""What is said of a public data set, where its files are, and its splits that no prompt crosses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cai_jax.datasets import splits
from cai_jax.datasets.files import Published, at_hand, download_folder, find


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
      name: such as "hh_rlhf/harmless-base".
      what, licence, source, defects: its card; defects are what is known of the whole.
      row: type of its rows.
      read: one of its files -> rows, in order.
      files: (split, file) pairs; the split "" is parted by first human turn. Where there are none,
        it is a file of the user's.
      whole: a file -> all its rows, where `read` leaves some out.
    """

    name: str
    what: str
    licence: str
    source: str
    defects: str
    row: type
    read: Callable[[Path], list]
    files: tuple[tuple[str, Published], ...] = ()
    whole: Callable[[Path], list] | None = None

    @property
    def home(self) -> Path:
        """The folder in which downloads of its publisher are kept."""
        return download_folder(self.name.split("/")[0])

    def paths(self, folder: Path) -> dict[str, Path]:
        """Split -> file, of the files that are at hand in a folder."""
        found = {split: at_hand(file, folder) for split, file in self.files}
        return {split: path for split, path in found.items() if path}

    def splits(self, folder: Path) -> dict[str, list[Any]]:
        """Split -> rows, without leaks: no first human turn of a train half is in the test half.

        The published halves stay, but what leaks is taken out of train. One published file is
        parted by `splits.split_of`.

        Args:
          folder: laid out as the publisher's; a file for a data set of the user's.

        Raises:
          FileNotFoundError: no file, or no test file beside a train file; says how to get it.
          ValueError: a bad row, with file, line and field.
        """
        if not self.files:
            return _parted(self.read(folder))
        published = {split: self.read(path) for split, path in self.paths(folder).items()}
        if not published or ("train" in published and "test" not in published):
            find(dict(self.files)[min(dict(self.files))], folder)
        if "" in published:
            return _parted(published[""])
        if "train" in published:
            published["train"] = splits.without(published["train"], published["test"])
        return published


def _parted(rows: list) -> dict[str, list]:
    halves: dict[str, list] = {"train": [], "test": []}
    for row in rows:
        halves[splits.split_of(row)].append(row)
    return halves


def on_github(repository: str, commit: str, path: str, in_lfs: bool = False) -> str:
    """Address of a file at a commit; a file in Git LFS has another address."""
    if in_lfs:
        return f"https://media.githubusercontent.com/media/{repository}/{commit}/{path}"
    return f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"
