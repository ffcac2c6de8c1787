"""People's choices, kept in one SQLite file: appended, on the disk before the rater sees the next.

Nothing is changed or deleted. A choice that is taken back stays, with a later row that says so, and
what counts of each rater and pair is the last row.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
import time
from pathlib import Path

BETTER = {"1": "left", "2": "left", "3": "right", "4": "right"}  # by how much: 1 and 4 much
SKIP, UNDO = "skip", "undo"
FILE = "ratings.sqlite"  # in a run's workdir
_VERSION = 1


class ChoicesError(ValueError):
    """A file that cannot hold choices; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A rater's choice. Attributes: task, `tasks.Task.id`; swapped, whether its answer b stood on
    the left; said, a key of BETTER, or SKIP."""

    rater: str
    task: str
    swapped: bool
    said: str

    @property
    def prob_a(self) -> float | None:
        """1 where answer a was chosen, 0 where b; None where the pair was skipped."""
        if self.said == SKIP:
            return None
        return float((BETTER[self.said] == "left") != self.swapped)


class Choices:
    """The file of choices. Any thread may use it.

    Args:
      path: made where it is not there, in a folder that is.

    Raises:
      ChoicesError: the file is something else, damaged, or cannot be written.
    """

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        try:
            self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=FULL")  # a choice outlives a loss of power
            version = self._file.execute("PRAGMA user_version").fetchone()[0]
            tables = self._file.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if version != _VERSION and tables:
                raise ChoicesError(f"{path} holds no ratings of ours; give another --ratings.")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS choices (number INTEGER PRIMARY KEY, at REAL NOT NULL,"
                " rater TEXT NOT NULL, task TEXT NOT NULL, swapped INTEGER NOT NULL,"
                " said TEXT NOT NULL)"
            )
            self._file.execute(f"PRAGMA user_version={_VERSION}")
        except (sqlite3.Error, OSError) as error:
            raise ChoicesError(
                f"{path} cannot be used for ratings ({error}); give another --ratings=FILE on a "
                "local disk."
            ) from error

    def add(self, choice: Choice) -> None:
        """Appends a choice; it is on the disk when this returns.

        Raises:
          ChoicesError: it cannot be written; nothing of it is kept.
        """
        row = (time.time(), choice.rater, choice.task, choice.swapped, choice.said)
        try:
            with self._lock:
                self._file.execute(
                    "INSERT INTO choices (at, rater, task, swapped, said) VALUES (?, ?, ?, ?, ?)",
                    row,
                )
        except sqlite3.Error as error:
            raise ChoicesError(f"the choice could not be written ({error})") from error

    def undo(self, rater: str) -> str | None:
        """Takes back a rater's last choice that stands, and returns its task; None without one."""
        standing = [choice for choice in self.standing() if choice.rater == rater]
        if not standing:
            return None
        self.add(dataclasses.replace(standing[-1], said=UNDO))
        return standing[-1].task

    def standing(self) -> list[Choice]:
        """What counts: of each rater and task the last choice, oldest first."""
        with self._lock:
            rows = self._file.execute(
                "SELECT rater, task, swapped, said FROM choices ORDER BY number"
            ).fetchall()
        last: dict[tuple[str, str], Choice] = {}
        for rater, task, swapped, said in rows:
            last.pop((rater, task), None)
            if said != UNDO:
                last[rater, task] = Choice(rater, task, bool(swapped), said)
        return list(last.values())

    def close(self) -> None:
        with self._lock:
            self._file.close()
