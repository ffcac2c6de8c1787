"""`cai-jax report`: runs as one HTML file that opens from disk, without a network."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai_jax.review import page
from cai_jax.review.overview import overview
from cai_jax.review.rows import FOLDERS, Row, rows, spaced
from cai_jax.shards import write_atomically

FILE = "report.html"  # in a run's workdir
MEGABYTES = 10.0
ROWS_A_PAGE = 200  # that are unpacked at a time


def write_report(workdirs: Sequence[Path], to: Path, megabytes: float = MEGABYTES) -> Path:
    """Writes the report of runs, finished or not.

    Where all rows do not fit into `megabytes`, evenly spaced ones stay out, and the page says how
    many.

    Raises:
      ValueError: a folder that is no run, or a damaged record, with file and line.
      OSError: a file that cannot be read or written.
    """
    found = {view: rows(list(workdirs), view) for view in FOLDERS}
    runs = [overview(workdir) for workdir in workdirs]
    title = f"cai_jax: {', '.join(run['name'] for run in runs)}"
    share = 1.0
    while True:
        text = _html(title, runs, found, share)
        size = len(text.encode())
        if size <= megabytes * 1e6 or share == 0:
            break
        fixed = len(_html(title, runs, dict.fromkeys(found, ((), 0)), 1.0).encode())
        # Rows differ in length, so what fits by the mean may not.
        fits = (megabytes * 1e6 - fixed) / (size - fixed)
        share = max(0.0, min(0.97 * fits, 1.0) * share) if fits > 0.001 else 0.0
    write_atomically(to, text.encode())
    return to


def _html(title: str, runs: list, found: dict[str, tuple[Sequence[Row], int]], share: float) -> str:
    kept = {view: spaced(made, int(len(made) * share)) for view, (made, _) in found.items()}
    front: dict[str, Any] = {
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "runs": runs,
        "rows": {view: [len(kept[view]), there] for view, (_, there) in found.items()},
    }
    data = [("overview", page.packed(front))]
    for view, made in kept.items():
        for number, start in enumerate(range(0, len(made), ROWS_A_PAGE)):
            part = page.packed(made[start : start + ROWS_A_PAGE])
            data.append((f"rows-{view}-{number}", part))
    return page.inline(title, page.REPORT, data)
